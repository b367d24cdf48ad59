//! Hostile and damaged safetensors: an error for each, a panic for none; and exact conversions.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// A file of a header and so many bytes of data.
fn file(header: &[u8], data: usize) -> tempfile::NamedTempFile {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    bytes.extend(std::iter::repeat_n(0x3f, data));
    raw(&bytes)
}

fn raw(bytes: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

fn open(header: &Value, data: usize) -> Result<TensorFile, TensorFileError> {
    TensorFile::open(file(header.to_string().as_bytes(), data).path())
}

fn tensor(dtype: &str, shape: &[u64], start: u64, end: u64) -> Value {
    json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]})
}

#[test]
fn a_sound_file_is_read() {
    let header = json!({
        "__metadata__": {"format": "pt"},
        "b": tensor("F32", &[2], 0, 8),
        "a": tensor("BF16", &[1, 2], 8, 12),
        "counts": tensor("I64", &[1], 12, 20),
    });
    let open = open(&header, 20).unwrap();
    assert_eq!(open.names().collect::<Vec<_>>(), ["a", "b", "counts"]);
    assert_eq!(open.metadata()["format"], "pt");
    let a = open.tensor("a").unwrap().unwrap();
    assert_eq!((a.dtype, &a.shape[..], a.bytes()), (StoredDtype::Bf16, &[1, 2][..], 4));
    assert!(open.tensor("c").unwrap().is_none());
    let refused = open.tensor("counts").unwrap_err().to_string();
    assert!(refused.contains("`counts` is stored as I64"), "{refused}");
}

#[test]
fn each_damage_has_its_error() {
    type Is = fn(&TensorFileError) -> bool;
    let offsets: Is = |e| matches!(e, TensorFileError::Offsets { tensor, .. } if tensor == "b");
    let header: Is = |e| matches!(e, TensorFileError::Header { .. });
    let length: Is = |e| matches!(e, TensorFileError::Length { .. });
    let a = tensor("F32", &[2], 0, 8);
    let cases = [
        (json!({"a": a, "b": tensor("F32", &[2], 4, 12)}), 12, offsets),
        (json!({"a": a, "b": tensor("F32", &[2], 0, 8)}), 8, offsets),
        (json!({"a": a, "b": tensor("F32", &[2], 12, 20)}), 20, offsets),
        (json!({"a": tensor("F32", &[3], 0, 8)}), 8, header),
        (json!({"a": tensor("F32", &[1 << 40, 1 << 40], 0, 8)}), 8, header),
        (json!({"a": tensor("F32", &[2], 8, 0)}), 8, |_| true),
        (json!({"a": tensor("F99", &[2], 0, 8)}), 8, header),
        (json!({"a": {"dtype": "F32"}}), 8, header),
        (json!({"a": 3}), 8, header),
        (json!({"__metadata__": 3}), 0, header),
        (json!([]), 0, header),
        (json!({"a": a}), 7, length),
        (json!({"a": a}), 9, length),
        (json!({"a": tensor("U8", &[1 << 60], 0, 1 << 60)}), 9, length),
    ];
    for (text, data, is) in cases {
        let error = open(&text, data).unwrap_err();
        assert!(is(&error), "{text} with {data} bytes: {error:?}");
    }
}

#[test]
fn files_that_are_not_safetensors_are_refused() {
    let pickle = b"PK\x03\x04\x00\x00\x08\x08archive/data.pkl";
    let long_header = [u64::MAX.to_le_bytes(), [0; 8]].concat();
    let cut_header = [100u64.to_le_bytes(), [b' '; 8]].concat();
    let not_utf8 = [4u64.to_le_bytes().to_vec(), vec![0xff; 4]].concat();
    for bytes in [&b""[..], b"short", pickle, &long_header, &cut_header, &not_utf8, &[0; 8]] {
        let error = TensorFile::open(raw(bytes).path()).unwrap_err();
        let kinds =
            matches!(error, TensorFileError::Header { .. } | TensorFileError::Length { .. });
        assert!(kinds, "{error:?}");
    }
    let missing = TensorFile::open(Path::new("/nowhere/x.safetensors")).unwrap_err();
    assert!(missing.to_string().contains("/nowhere/x.safetensors"), "{missing}");
    let directory = TensorFile::open(Path::new("/")).unwrap_err();
    assert!(matches!(directory, TensorFileError::Read { .. } | TensorFileError::Header { .. }));
}

#[test]
fn every_sixteen_bit_value_is_widened_exactly_and_rounded_to_nearest_even() {
    let bits: Vec<u16> = (0..=u16::MAX).collect();
    let bytes: Vec<u8> = bits.iter().flat_map(|b| b.to_le_bytes()).collect();
    for (dtype, exact) in [
        ("BF16", (|b| f32::from_bits(u32::from(b) << 16)) as fn(u16) -> f32),
        ("F16", |b| f16::from_bits(b).to_f32()),
    ] {
        let header = json!({"x": tensor(dtype, &[65536], 0, 131_072)}).to_string();
        let mut whole = (header.len() as u64).to_le_bytes().to_vec();
        whole.extend_from_slice(header.as_bytes());
        whole.extend_from_slice(&bytes);
        let kept = raw(&whole);
        let file = TensorFile::open(kept.path()).unwrap();
        let x = file.tensor("x").unwrap().unwrap();
        let mut wide = vec![0f32; 65536];
        file.read(&x, 0, &mut wide).unwrap();
        let mut narrow = vec![bf16::ZERO; 65536];
        file.read(&x, 0, &mut narrow).unwrap();
        for (&b, (&w, &n)) in bits.iter().zip(wide.iter().zip(&narrow)) {
            assert!(w.to_bits() == exact(b).to_bits() || w.is_nan(), "{dtype} {b:#x}: {w}");
            assert!(n == bf16::from_f32(w) || w.is_nan(), "{dtype} {b:#x}: {n}");
        }
        // A piece from the middle.
        let mut piece = vec![0f32; 3];
        file.read(&x, 0x3f80, &mut piece).unwrap();
        assert_eq!(piece, wide[0x3f80..0x3f83]);
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = TensorFile::open(raw(&bytes).path());
    }

    #[test]
    fn no_damage_to_a_sound_header_panics(
        at in 0usize..120,
        byte in any::<u8>(),
        cut in 0usize..60,
    ) {
        let header = json!({"a": tensor("F32", &[2], 0, 8), "b": tensor("F16", &[2, 3], 8, 20)});
        let mut text = header.to_string().into_bytes();
        let length = text.len();
        text[at % length] = byte;
        let whole = file(&text, 20);
        let mut bytes = std::fs::read(whole.path()).unwrap();
        bytes.truncate(bytes.len() - cut.min(bytes.len()));
        if let Ok(file) = TensorFile::open(raw(&bytes).path()) {
            for name in file.names() {
                if let Ok(Some(tensor)) = file.tensor(name) {
                    let mut values = vec![0f32; tensor.shape.iter().product()];
                    let _ = file.read(&tensor, 0, &mut values);
                }
            }
        }
    }
}
