//! Tests of hidden states as bytes: as near as is said, and any bytes survived.

use super::*;
use proptest::prelude::*;

const FORMS: [HiddenForm; 4] =
    [HiddenForm::F32, HiddenForm::Bf16, HiddenForm::Int8, HiddenForm::Int4];

#[test]
fn a_row_by_hand() {
    let row = [1.0, -2.0, 0.5];
    let read = |form| decode(&encode(&row, 3, form).unwrap(), 1, 3, form).unwrap().values;
    assert_eq!(encode(&row, 3, HiddenForm::Bf16).unwrap()[4..], [0x80, 0x3f, 0, 0xc0, 0, 0x3f]);
    assert_eq!(read(HiddenForm::F32), row);
    assert_eq!(read(HiddenForm::Bf16), row);
    // 2 / 7 rounded up to bfloat16 is 0x3e93: 0.287109375.
    let scale = 0.287_109_38;
    let bytes = encode(&row, 3, HiddenForm::Int4).unwrap();
    assert_eq!(bytes, [0xc1, 1, 3, 0, 0x93, 0x3e, 0x93, 0x02]);
    assert_eq!(read(HiddenForm::Int4), [3.0 * scale, -7.0 * scale, 2.0 * scale]);
}

proptest! {
    #[test]
    fn numbers_come_back_as_near_as_is_said(
        width in 1usize..200,
        seed in prop::collection::vec(-8.0f32..8.0, 1..40),
        exponent in -20i32..20,
    ) {
        let scale = (exponent as f32).exp2();
        let states: Vec<f32> =
            (0..2 * width).map(|at| scale * seed[at % seed.len()] * (1 + at % 5) as f32).collect();
        for form in FORMS {
            let bytes = encode(&states, width, form).unwrap();
            prop_assert_eq!(bytes.len(), HEAD_BYTES + 2 * form.row_bytes(width));
            let read = decode(&bytes, 2, width, form).unwrap();
            for (row, found) in states.chunks(width).zip(read.values.chunks(width)) {
                for (group, found) in row.chunks(GROUP).zip(found.chunks(GROUP)) {
                    let largest = group.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                    for (x, found) in group.iter().zip(found) {
                        let most = match form {
                            HiddenForm::F32 | HiddenForm::Coded { .. } => 0.0,
                            HiddenForm::Bf16 => x.abs() / 256.0,
                            HiddenForm::Int8 => largest / 251.0,
                            HiddenForm::Int4 => largest / 13.8,
                        };
                        prop_assert!((x - found).abs() <= most, "{form}: {x} {found}");
                    }
                }
            }
        }
    }

    #[test]
    fn no_bytes_make_it_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..80),
        rows in 0usize..5,
        width in 1usize..70,
        form in 0usize..4,
    ) {
        let form = FORMS[form];
        let whole = HEAD_BYTES + rows * form.row_bytes(width);
        let mut sized: Vec<u8> = bytes.iter().copied().cycle().take(whole).collect();
        sized.resize(whole, 0);
        sized[..4].copy_from_slice(&[KIND, VERSION, number(form).unwrap(), 0]);
        for bytes in [&bytes, &sized] {
            if let Ok(read) = decode(bytes, rows, width, form) {
                prop_assert!(read.values.iter().all(|x| x.is_finite()));
                prop_assert_eq!(read.values.len(), rows * width);
            }
        }
    }
}

#[test]
fn what_is_not_such_rows_is_refused() {
    let bytes = encode(&[1.0; 6], 3, HiddenForm::Int8).unwrap();
    let refused = |bytes: &[u8], rows, form| decode(bytes, rows, 3, form).unwrap_err().to_string();
    assert!(refused(&bytes, 2, HiddenForm::Bf16).contains("[c1, 01, 02, 00]"));
    assert!(refused(&bytes, 3, HiddenForm::Int8).contains("take 15 bytes, found 10"));
    assert!(refused(&bytes[..3], 0, HiddenForm::Int8).contains("begin with"));
    let mut spoilt = encode(&[1.0; 3], 3, HiddenForm::F32).unwrap();
    spoilt[12..16].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(refused(&spoilt, 1, HiddenForm::F32).contains("hidden state 0 holds NaN"));
    // A code of -128 and one of -8, a scale below 0, something beside an odd last half byte.
    let int4 = encode(&[1.0; 3], 3, HiddenForm::Int4).unwrap();
    for (bytes, form, at, found) in [
        (&bytes, HiddenForm::Int8, 6, 0x80),
        (&bytes, HiddenForm::Int8, 5, 0xbf),
        (&int4, HiddenForm::Int4, 6, 0x78),
        (&int4, HiddenForm::Int4, 5, 0xbf),
        (&int4, HiddenForm::Int4, 7, 0x17),
    ] {
        let rows = (bytes.len() - HEAD_BYTES) / form.row_bytes(3);
        assert!(decode(bytes, rows, 3, form).is_ok());
        let mut spoilt = bytes.clone();
        spoilt[at] = found;
        let wanted = HiddenError::Group { row: 0, form };
        assert_eq!(decode(&spoilt, rows, 3, form), Err(wanted), "{form} {at}");
    }
    let unsound = encode(&[1.0, f32::INFINITY], 1, HiddenForm::Bf16).unwrap_err();
    assert_eq!(unsound, HiddenError::NotFinite { row: 1, found: f32::INFINITY });
}

#[test]
fn parts_are_looked_at_as_they_come() {
    let mut rows = HiddenRows::new(HiddenForm::Int8, 3);
    rows.push(2, encode(&[1.0; 6], 3, HiddenForm::Int8).unwrap()).unwrap();
    rows.push(1, encode(&[2.0; 3], 3, HiddenForm::Int8).unwrap()).unwrap();
    assert_eq!((rows.rows(), rows.bytes()), (3, 4 + 10 + 4 + 5));
    assert!(rows.push(2, encode(&[1.0; 3], 3, HiddenForm::Int8).unwrap()).is_err());
    let mut coded =
        HiddenRows::new(HiddenForm::Coded { code: Fingerprint([3; 32]), rung: Rung(2) }, 3);
    let refused = coded.push(1, vec![0xc0, 1, 3, 0]).unwrap_err();
    assert_eq!(refused, HiddenError::Rung { found: Rung(3), wanted: Rung(2) });
    assert!(coded.push(0, vec![0xc0, 1, 2, 0]).is_ok());
    assert!(coded.push(0, vec![0xc0]).is_err());
}
