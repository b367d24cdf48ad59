//! Tests of the codecs: golden bytes, round trips, hostile bytes.

use proptest::prelude::*;

use super::*;

/// Two rows of three entries over 151,936 classes.
fn sample() -> TopK {
    TopK {
        k: 3,
        ids: vec![1, 151_935, 258, 0, 65_536, 5],
        scaled: vec![2.0, 1.0, 1.5, -0.25, -0.25, -0.25],
        log_z: vec![3.0, 0.5],
        log_rest: vec![-1.0, f32::NEG_INFINITY],
    }
}

/// All of a signal, its ids included.
fn encode_all(signal: &TopK, codec: Codec) -> Result<Vec<u8>, CodecError> {
    encode(signal, 0..signal.rows(), Layout { codec, classes: Some(151_936) })
}

/// A signal whose ids are among the bytes.
fn decode_all(
    bytes: &[u8],
    rows: usize,
    k: usize,
    classes: usize,
    codec: Codec,
) -> Result<TopK, CodecError> {
    decode(bytes, rows, k, codec, Ids::Sent { classes })
}

fn row_bytes(k: usize, codec: Codec) -> usize {
    Layout { codec, classes: Some(151_936) }.row_bytes(k)
}

// Written by hand: f32 2.0 = 0x40000000, 1.0 = 0x3f800000, 1.5 = 0x3fc00000, -0.25 = 0xbe800000,
// 3.0 = 0x40400000, 0.5 = 0x3f000000, -1.0 = 0xbf800000, -inf = 0xff800000;
// 151935 = 0x02517f, 258 = 0x000102, 65536 = 0x010000.
#[rustfmt::skip]
const RAW: [u8; 64] = [
    0, 0, 0x40, 0x40,  0, 0, 0, 0x3f,                                       // log_z
    0, 0, 0x80, 0xbf,  0, 0, 0x80, 0xff,                                    // log_rest
    1, 0, 0, 0,  0x7f, 0x51, 2, 0,  2, 1, 0, 0,                             // ids, row 0
    0, 0, 0, 0,  0, 0, 1, 0,        5, 0, 0, 0,                             // ids, row 1
    0, 0, 0, 0x40,     0, 0, 0x80, 0x3f,  0, 0, 0xc0, 0x3f,                 // values, row 0
    0, 0, 0x80, 0xbe,  0, 0, 0x80, 0xbe,  0, 0, 0x80, 0xbe,                 // values, row 1
];

// Row 0 spans 1.0: the step is 1/65535 = 2^-16 (1 + 2^-16 + 2^-32 ...), rounded up to f32
// 2^-16 (1 + 129 * 2^-23) = 0x37800081; codes 0, 65535 and 32767.5 - 0.25 -> 32767. Row 1 is flat.
#[rustfmt::skip]
const PACKED: [u8; 62] = [
    0, 0, 0, 0x40,           0, 0, 0x80, 0xbe,                              // top
    0x81, 0, 0x80, 0x37,     0, 0, 0, 0,                                    // step
    0, 0, 0x40, 0x40,        0, 0, 0, 0x3f,                                 // log_z
    0, 0, 0x80, 0xbf,        0, 0, 0x80, 0xff,                              // log_rest
    1, 0, 0,  0x7f, 0x51, 2,  2, 1, 0,   0, 0, 0,  0, 0, 1,  5, 0, 0,       // ids
    0, 0,  0xff, 0xff,  0xff, 0x7f,      0, 0,  0, 0,  0, 0,                // codes
];

#[test]
fn raw_bytes_are_as_written_by_hand() {
    assert_eq!(encode_all(&sample(), Codec::Raw).unwrap(), RAW);
    assert_eq!(decode_all(&RAW, 2, 3, 151_936, Codec::Raw).unwrap(), sample());
}

#[test]
fn packed_bytes_are_as_written_by_hand() {
    assert_eq!(encode_all(&sample(), Codec::Packed).unwrap(), PACKED);
    let decoded = decode_all(&PACKED, 2, 3, 151_936, Codec::Packed).unwrap();
    assert_eq!(decoded.ids, sample().ids);
    assert_eq!((&decoded.log_z, &decoded.log_rest), (&sample().log_z, &sample().log_rest));
    let off = |at: usize| f64::from((decoded.scaled[at] - sample().scaled[at]).abs());
    assert_eq!([0, 3, 4, 5].map(off), [0.0; 4]);
    assert!(off(1) < 1e-6 && off(2) < 1.0 / 131_070.0 + 1e-7);
}

#[test]
fn sizes_are_those_of_the_contract() {
    assert_eq!((row_bytes(64, Codec::Packed), row_bytes(64, Codec::Raw)), (336, 520));
    for codec in [Codec::Packed, Codec::Raw] {
        assert_eq!(encode_all(&sample(), codec).unwrap().len(), 2 * row_bytes(3, codec));
        assert_eq!(row_bytes(usize::MAX, codec), usize::MAX);
    }
}

#[test]
fn some_rows_are_those_rows() {
    for codec in Codec::ALL {
        let second = encode_all(&sample().slice(1..2), codec).unwrap();
        assert_eq!(
            encode(&sample(), 1..2, Layout { codec, classes: Some(151_936) }).unwrap(),
            second
        );
        assert!(
            encode(&sample(), 1..1, Layout { codec, classes: Some(151_936) }).unwrap().is_empty()
        );
    }
}

#[test]
fn ids_the_receiver_knows_are_left_out_and_put_back() {
    let ids = sample().ids;
    for (codec, golden, at, of_ids) in
        [(Codec::Raw, &RAW[..], 16, 24), (Codec::Packed, &PACKED[..], 32, 18)]
    {
        let layout = Layout { codec, classes: None };
        let bytes = encode(&sample(), 0..2, layout).unwrap();
        assert_eq!(bytes, [&golden[..at], &golden[at + of_ids..]].concat());
        assert_eq!(bytes.len(), 2 * layout.row_bytes(3));
        let back = decode(&bytes, 2, 3, codec, Ids::Known(&ids)).unwrap();
        assert_eq!(back, decode_all(golden, 2, 3, 151_936, codec).unwrap());
        let error = decode(&bytes, 2, 3, codec, Ids::Known(&ids[1..])).unwrap_err();
        let (array, wanted, found) = ("known ids", 6, 5);
        assert_eq!(error, CodecError::Shape { rows: 2, k: 3, array, wanted, found });
        let error = decode(golden, 2, 3, codec, Ids::Known(&ids)).unwrap_err();
        assert!(matches!(error, CodecError::Length { .. }), "{error}");
    }
    // Such ids may be beyond three bytes: they do not travel.
    let mut wide = sample();
    wide.ids[0] = u32::MAX;
    let packed = Layout { codec: Codec::Packed, classes: None };
    let bytes = encode(&wide, 0..2, packed).unwrap();
    assert_eq!(decode(&bytes, 2, 3, Codec::Packed, Ids::Known(&wide.ids)).unwrap().ids, wide.ids);
}

#[test]
fn signals_that_cannot_travel_are_refused() {
    let refused = |change: fn(&mut TopK), codec| {
        let mut signal = sample();
        change(&mut signal);
        encode_all(&signal, codec).unwrap_err()
    };
    let codec = Codec::Packed;
    let error = refused(|signal| signal.ids[1] = 1 << 24, codec);
    assert_eq!(error, CodecError::PackedClasses { classes: (1 << 24) + 1 });
    let error = refused(|signal| signal.scaled[4] = f32::INFINITY, codec);
    assert_eq!(error, CodecError::NotFinite { row: 1, what: "a value", found: f32::INFINITY });
    assert!(matches!(
        refused(|signal| signal.log_z[1] = f32::NAN, codec),
        CodecError::NotFinite { row: 1, what: "log_z", .. }
    ));
    assert!(matches!(
        refused(|signal| signal.log_rest[0] = f32::INFINITY, codec),
        CodecError::NotFinite { row: 0, what: "log_rest", .. }
    ));
    let error = refused(|signal| signal.ids.truncate(5), Codec::Raw);
    assert_eq!(error, CodecError::Shape { rows: 2, k: 3, array: "ids", wanted: 6, found: 5 });
    assert_eq!(refused(|signal| signal.k = 0, Codec::Raw), CodecError::ZeroEntries);
    // The widest id three bytes hold is fine.
    let mut widest = sample();
    widest.ids[1] = (1 << 24) - 1;
    let bytes = encode_all(&widest, codec).unwrap();
    assert_eq!(decode_all(&bytes, 2, 3, 1 << 24, codec).unwrap().ids[1], (1 << 24) - 1);
}

#[test]
fn no_rows_are_no_bytes_however_many_entries_each_would_have() {
    for (codec, k) in
        Codec::ALL.map(|codec| (codec, 1 << 63)).into_iter().chain([(Codec::Packed, 1)])
    {
        for ids in [Ids::Sent { classes: 1 << 24 }, Ids::Known(&[])] {
            let none = TopK::new(k);
            assert!(encode(&none, 0..0, ids.layout(codec)).unwrap().is_empty());
            match decode(&[], 0, k, codec, ids) {
                Ok(read) => assert_eq!(read, none),
                Err(error) => assert!(matches!(ids, Ids::Sent { .. }), "{error}"),
            }
        }
    }
}

#[test]
fn a_row_that_could_not_be_read_is_not_written() {
    let row = |scaled: &[f32]| TopK {
        k: 2,
        ids: vec![1, 2],
        scaled: scaled.to_vec(),
        ..sample().slice(0..1)
    };
    for smallest in [f32::MIN, f32::MIN.next_up()] {
        for largest in [f32::MAX, 1.0] {
            let extreme = row(&[smallest, largest]);
            let error = encode_all(&extreme, Codec::Packed).unwrap_err();
            assert!(matches!(error, CodecError::NotFinite { row: 0, .. }), "{error}");
            let bytes = encode_all(&extreme, Codec::Raw).unwrap();
            assert_eq!(decode_all(&bytes, 1, 2, 3, Codec::Raw).unwrap(), extreme);
        }
    }
    let bytes = encode_all(&row(&[-3.4e38, 3.4e38]), Codec::Packed).unwrap();
    decode_all(&bytes, 1, 2, 3, Codec::Packed).unwrap();
    let flat = encode_all(&row(&[f32::MIN; 2]), Codec::Packed).unwrap();
    assert_eq!(decode_all(&flat, 1, 2, 3, Codec::Packed).unwrap().scaled, [f32::MIN; 2]);
}

#[test]
fn bytes_that_are_no_signal_are_refused() {
    let refused = |bytes: &[u8], rows, k, classes, codec| {
        decode_all(bytes, rows, k, classes, codec).unwrap_err()
    };
    let (raw, packed) = (Codec::Raw, Codec::Packed);
    let error = refused(&RAW[1..], 2, 3, 151_936, raw);
    let wanted = CodecError::Length { codec: raw, rows: 2, k: 3, wanted: 64, found: 63 };
    assert_eq!(error, wanted);
    assert!(matches!(refused(&[], usize::MAX, 3, 9, raw), CodecError::Length { .. }));
    assert_eq!(refused(&[], 0, 0, 9, raw), CodecError::ZeroEntries);
    assert_eq!(refused(&[], 0, 4, 3, raw), CodecError::TooManyEntries { k: 4, classes: 3 });
    let classes = (1 << 24) + 1;
    assert_eq!(refused(&PACKED, 2, 3, classes, packed), CodecError::PackedClasses { classes });
    let error = refused(&PACKED, 2, 3, 151_935, packed);
    assert_eq!(error, CodecError::Id { row: 0, found: 151_935, classes: 151_935 });
    let mut bytes = RAW;
    bytes[32..36].copy_from_slice(&[5, 0, 0, 0]);
    assert_eq!(refused(&bytes, 2, 3, 151_936, raw), CodecError::DuplicateId { row: 1, found: 5 });
    let mut bytes = PACKED;
    bytes[8..12].copy_from_slice(&f32::NAN.to_le_bytes());
    let error = refused(&bytes, 2, 3, 151_936, packed);
    assert!(matches!(error, CodecError::NotFinite { row: 0, what: "the step", .. }), "{error}");
    // A top and a step, each finite, whose difference is not.
    let mut bytes = PACKED;
    bytes[0..4].copy_from_slice(&(-f32::MAX).to_le_bytes());
    bytes[8..12].copy_from_slice(&f32::MAX.to_le_bytes());
    let error = refused(&bytes, 2, 3, 151_936, packed);
    assert!(matches!(error, CodecError::NotFinite { row: 0, what: "a value", .. }), "{error}");
}

#[test]
fn arrays_of_four_byte_numbers_travel() {
    assert_eq!(token_bytes(&[1, 0x0403_0201]), [1, 0, 0, 0, 1, 2, 3, 4]);
    assert_eq!(tokens_from_bytes(&[1, 2, 3, 4]), Some(vec![0x0403_0201]));
    assert_eq!(float_bytes(&[1.0]), [0, 0, 0x80, 0x3f]);
    assert_eq!(floats_from_bytes(&[0, 0, 0x80, 0x3f]), Some(vec![1.0]));
    assert_eq!((tokens_from_bytes(&[0; 5]), floats_from_bytes(&[0; 7])), (None, None));
}

/// Signals of 0 to 5 rows with distinct ids a row, at every scale of float32.
fn signals() -> impl Strategy<Value = TopK> {
    let number = prop_oneof![
        -1e4f32..1e4,
        any::<f32>().prop_filter("not at the edge", |value| value.abs() < 3.4e38),
        (any::<i8>(), Just(1e-42f32)).prop_map(|(n, unit)| f32::from(n) * unit),
    ];
    let rest = prop_oneof![-50.0f32..0.0, Just(f32::NEG_INFINITY)];
    (0usize..6, 1usize..20).prop_flat_map(move |(rows, k)| {
        let ids = proptest::sample::subsequence((0u32..40).collect::<Vec<_>>(), k).prop_shuffle();
        (
            Just(k),
            prop::collection::vec(ids, rows),
            prop::collection::vec(number.clone(), rows * k),
            prop::collection::vec(number.clone(), rows),
            prop::collection::vec(rest.clone(), rows),
        )
            .prop_map(|(k, ids, scaled, log_z, log_rest)| TopK {
                k,
                ids: ids.concat(),
                scaled,
                log_z,
                log_rest,
            })
    })
}

proptest! {
    #[test]
    fn raw_is_exact(signal in signals()) {
        let bytes = encode_all(&signal, Codec::Raw).unwrap();
        let back = decode_all(&bytes, signal.rows(), signal.k, 40, Codec::Raw).unwrap();
        prop_assert_eq!(back, signal);
    }

    #[test]
    fn packed_is_off_by_at_most_half_a_step(signal in signals()) {
        let bytes = encode_all(&signal, Codec::Packed).unwrap();
        let back = decode_all(&bytes, signal.rows(), signal.k, 40, Codec::Packed).unwrap();
        prop_assert_eq!(&back.ids, &signal.ids);
        prop_assert_eq!(&back.log_z, &signal.log_z);
        prop_assert_eq!(&back.log_rest, &signal.log_rest);
        let rows = signal.scaled.chunks(signal.k).zip(back.scaled.chunks(signal.k));
        for (sent, received) in rows {
            let wide = |value: f32| f64::from(value);
            let largest = sent.iter().copied().map(wide).fold(f64::MIN, f64::max);
            let smallest = sent.iter().copied().map(wide).fold(f64::MAX, f64::min);
            for (&sent, &received) in sent.iter().zip(received) {
                // The step is itself an f32, and so is the result.
                let step = (largest - smallest) / 65_535.0 * (1.0 + 2f64.powi(-23)) + 1.5e-45;
                let half_ulp = wide(received.abs().next_up() - received.abs()) / 2.0;
                let off = (wide(sent) - wide(received)).abs();
                prop_assert!(off <= step / 2.0 + half_ulp, "{sent} became {received}");
            }
        }
    }

    #[test]
    fn no_bytes_make_decoding_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        rows in 0usize..8,
        k in 0usize..8,
        classes in prop_oneof![0usize..20, Just(usize::MAX)],
        codec in prop::sample::select(&Codec::ALL[..]),
    ) {
        // Mostly of the right length, or nothing beyond the first check would be reached.
        let length = Ids::Sent { classes }.layout(codec).bytes(rows, k).min(1_000);
        let mut exact: Vec<u8> = bytes.iter().copied().cycle().take(length).collect();
        if let Codec::Compact | Codec::Compact8 = codec && exact.len() >= 20 {
            let bits = if codec == Codec::Compact { 16 } else { 8 };
            exact[..8].copy_from_slice(&[0x4c, 0x54, 0x4b, 1, bits, 1, 0, 0]);
            let numbers = [rows, k, classes].map(|number| (number as u32).to_le_bytes());
            exact[8..20].copy_from_slice(&numbers.concat());
        }
        for bytes in [&bytes, &exact] {
            if let Ok(signal) = decode_all(bytes, rows, k, classes, codec) {
                prop_assert!(signal.ids.iter().all(|&id| (id as usize) < classes));
                prop_assert!(signal.scaled.iter().all(|value| value.is_finite()));
                prop_assert_eq!(signal.rows(), rows);
            }
        }
    }
}
