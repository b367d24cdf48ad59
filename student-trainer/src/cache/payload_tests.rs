//! Payloads against another writer's bytes, and whatever else may come.

use super::*;
use crate::testing::rows;
use distill::signal::TopK;

fn scored(rows: usize, k: usize, classes: u32) -> Scored {
    let mut signal = TopK::new(k);
    for row in 0..rows {
        signal.ids.extend((0..k as u32).map(|i| (row as u32 * 5 + i * 3) % classes));
        signal.scaled.extend((0..k).map(|i| 1.5 - i as f32 * 0.1 + row as f32));
        signal.log_z.push(2.0 + row as f32);
        signal.log_rest.push(if row == 1 { f32::NEG_INFINITY } else { -0.25 });
    }
    let next_logprob = (0..rows).map(|row| -1.0 - row as f32).collect();
    Scored { signal: signal.into(), next_logprob, wire_bytes: 77 }
}

const ABOUT: About = About { classes: 24, states: None };

// >>> from struct import pack
// >>> (pack("<4H5I", 1, 1, 2, 0, 3, 1, 1, 2, 24) + pack("<3I", 4, 5, 6) + pack("<2I", 1, 2)
// ...  + pack("<2f2I2f", 2.0, -0.25, 0, 3, 1.5, 1.4) + pack("<f", -1.0)).hex()
const BYTES: &str = "0100010002000000030000000100000001000000020000001800000004000000050000000600000001000000\
                     0200000000000040000080be00000000030000000000c03f3333b33f000080bf";

#[test]
fn an_answer_is_written_as_documented_and_read_back_to_the_bit() {
    let row = Sequence::new(vec![4, 5, 6], vec![true, false, true]).unwrap();
    let answer = scored(1, 2, 24);
    let bytes = write(&row, &answer, 24).unwrap();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, BYTES);
    let without_bytes = Scored { wire_bytes: 0, ..answer };
    assert_eq!(read(&bytes, &row, ABOUT).unwrap(), without_bytes);
    let said = read_said(&bytes, ABOUT).unwrap();
    assert_eq!(said.tokens, [4, 5, 6]);
    assert_eq!(said.ranges.into_iter().flatten().collect::<Vec<_>>(), [1]);
    assert_eq!(said.scored, without_bytes);
}

#[test]
fn an_answer_about_another_row_is_refused() {
    let set = rows(8, 3);
    let bytes = write(&set[2], &scored(set[2].scored().count(), 3, 24), 24).unwrap();
    for (i, row) in set.iter().enumerate() {
        assert_eq!(read(&bytes, row, ABOUT).is_ok(), i == 2, "row {i}");
    }
    let mut mask = set[2].loss_mask.clone();
    mask[2] = false;
    let fewer = Sequence::new(set[2].ids.clone(), mask).unwrap();
    assert!(matches!(read(&bytes, &fewer, ABOUT), Err(PayloadError::Name)));
}

#[test]
fn no_bytes_make_a_reader_panic_and_what_it_takes_means_something() {
    let row = &rows(8, 3)[4];
    let positions = row.scored().count();
    let whole = write(row, &scored(positions, 3, 24), 24).unwrap();
    for cut in 0..whole.len() {
        read_said(&whole[..cut], ABOUT).unwrap_err();
    }
    for at in 0..whole.len() {
        for byte in [0, 1, 2, 0x7f, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            let Ok(said) = read_said(&bytes, ABOUT) else { continue };
            assert_eq!(said.scored.signal.rows(), positions);
            assert!(said.scored.signal.top_k().unwrap().ids.iter().all(|&id| id < 24));
            assert!(said.ranges.iter().all(|range| range.end as usize <= said.tokens.len()));
        }
    }
    // Counts that no bytes could be behind.
    for at in [8, 12, 16, 20] {
        let mut bytes = whole.clone();
        bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(read_said(&bytes, ABOUT), Err(PayloadError::Length { .. })), "at {at}");
    }
}
