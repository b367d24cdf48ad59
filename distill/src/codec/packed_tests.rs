//! The packed layout against one written from docs/wire.md alone, a number at a time.

use proptest::prelude::*;

use super::super::{Codec, Ids, Layout, decode, encode};
use super::*;

/// The largest of a row; of equal numbers the first.
fn largest(row: &[f32]) -> f32 {
    let mut sorted = row.to_vec();
    sorted.sort_by(|a, b| b.partial_cmp(a).expect("numbers"));
    sorted[0]
}

/// "At least (largest - smallest) / 65,535: that quotient rounded up to f32; 0 where all are equal."
fn step(row: &[f32]) -> f32 {
    let smallest = row.iter().copied().reduce(|a, b| if b < a { b } else { a }).expect("an entry");
    let quotient = (f64::from(largest(row)) - f64::from(smallest)) / 65_535.0;
    let mut step = (quotient as f32).next_down().max(0.0);
    while f64::from(step) < quotient {
        step = step.next_up();
    }
    step
}

/// The code whose value is nearest; of two as near the larger, which the layout leaves open.
fn code(value: f32, top: f32, step: f32) -> u16 {
    if step == 0.0 {
        return 0;
    }
    let steps = (f64::from(top) - f64::from(value)) / f64::from(step);
    let below = steps.floor();
    (if steps - below < 0.5 { below } else { below + 1.0 }) as u16
}

fn reference_bytes(signal: &TopK) -> Vec<u8> {
    let rows = || signal.scaled.chunks(signal.k);
    let mut bytes = Vec::new();
    let mut put = |number: u32, count: u32| {
        (0..count).for_each(|byte| bytes.push((number >> (8 * byte)) as u8));
    };
    rows().for_each(|row| put(largest(row).to_bits(), 4));
    rows().for_each(|row| put(step(row).to_bits(), 4));
    signal.log_z.iter().for_each(|number| put(number.to_bits(), 4));
    signal.log_rest.iter().for_each(|number| put(number.to_bits(), 4));
    signal.ids.iter().for_each(|&id| put(id, 3));
    for row in rows() {
        let (top, step) = (largest(row), step(row));
        row.iter().for_each(|&value| put(code(value, top, step).into(), 2));
    }
    bytes
}

/// What such bytes say, entry by entry.
fn reference_signal(bytes: &[u8], rows: usize, k: usize) -> TopK {
    let number = |at: usize, count: usize| {
        (0..count).rev().fold(0u32, |number, byte| number * 256 + u32::from(bytes[at + byte]))
    };
    let float = |at: usize| f32::from_bits(number(at, 4));
    let mut signal = TopK::new(k);
    for row in 0..rows {
        signal.log_z.push(float(8 * rows + 4 * row));
        signal.log_rest.push(float(12 * rows + 4 * row));
        let (top, step) = (f64::from(float(4 * row)), f64::from(float(4 * rows + 4 * row)));
        for entry in row * k..(row + 1) * k {
            let code = number(16 * rows + 3 * rows * k + 2 * entry, 2);
            signal.ids.push(number(16 * rows + 3 * entry, 3));
            signal.scaled.push((top - f64::from(code) * step) as f32);
        }
    }
    signal
}

/// A signal with every number as bits, so that 0 is not -0.
fn bits(signal: &TopK) -> [Vec<u32>; 4] {
    let of = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect();
    [signal.ids.clone(), of(&signal.scaled), of(&signal.log_z), of(&signal.log_rest)]
}

/// Rows of one length, ids 11 apart and `log_rest` -inf in every second row.
fn signal_of(rows: &[Vec<f32>]) -> TopK {
    let k = rows[0].len();
    TopK {
        k,
        ids: (0..rows.len() * k).map(|n| (n * 11 % (1 << 24)) as u32).collect(),
        scaled: rows.concat(),
        log_z: rows.iter().map(|row| row[0] / 3.0).collect(),
        log_rest: (0..rows.len()).map(|n| [-0.75, f32::NEG_INFINITY][n % 2]).collect(),
    }
}

/// Both ways as the reference has them, with ids and without.
fn check(signal: &TopK) {
    let (rows, k) = (signal.rows(), signal.k);
    let wanted = reference_bytes(signal);
    let layout = Layout { codec: Codec::Packed, classes: Some(1 << 24) };
    assert_eq!(encode(signal, 0..rows, layout).unwrap(), wanted, "{signal:?}");
    let decoded = decode(&wanted, rows, k, Codec::Packed, Ids::Sent { classes: 1 << 24 }).unwrap();
    let expected = reference_signal(&wanted, rows, k);
    assert_eq!(bits(&decoded), bits(&expected), "{signal:?}");
    let (ids, end) = (16 * rows, 16 * rows + 3 * rows * k);
    let without = encode(signal, 0..rows, Layout { classes: None, ..layout }).unwrap();
    assert_eq!(without, [&wanted[..ids], &wanted[end..]].concat());
    let known = decode(&without, rows, k, Codec::Packed, Ids::Known(&signal.ids)).unwrap();
    assert_eq!(bits(&known), bits(&expected));
}

#[test]
fn rows_of_every_length_are_as_the_document_says() {
    for k in 1..70 {
        let value = |row: usize, i: usize| 9.0 - ((i * 37 + row * 11) % 101) as f32 / 7.0;
        let rows: Vec<Vec<f32>> =
            (0..5).map(|row| (0..k).map(|i| value(row, i)).collect()).collect();
        check(&signal_of(&rows));
        // The largest and the smallest at every place of a row.
        for at in 0..k {
            let mut rows = [vec![1.5; k], vec![1.5; k]];
            (rows[0][at], rows[1][at]) = (2.0, -1.0);
            check(&signal_of(&rows));
        }
    }
}

#[test]
fn rows_at_the_edges_of_float32_are_as_the_document_says() {
    let tiny = f32::from_bits(1);
    for row in [
        vec![3.25; 5],
        vec![-0.0; 5],
        vec![-1.0, -0.0, 0.0, -2.0, 0.0],
        vec![-1.0, -0.0, -2.0, -tiny, 0.0, -0.0, 0.0, -1.0],
        vec![tiny, 0.0, -tiny, 3.0 * tiny],
        (0..300).map(|n| n as f32 * -tiny).collect(),
        vec![1e-38, 1.1e-38, -1e-38, 3e-42],
        vec![1.7e38, -1.6e38, 0.0, 1e-40, -1.0],
        vec![f32::MAX, 0.0, 1.0, f32::MAX.next_down()],
        vec![1e30, 1e30f32.next_down(), 1e30f32.next_up(), 1e30],
    ] {
        check(&signal_of(&[row]));
    }
}

#[test]
fn quotients_at_halves_are_rounded_up_and_those_beside_them_to_the_nearest() {
    // 0 to 65,535 in steps of 1: every half is a float32, and so are its neighbours.
    let halves: Vec<f32> = (0..65_535).map(|n| 65_535.0 - (n as f32 + 0.5)).collect();
    for near in [f32::next_down, |half| half, f32::next_up] {
        let row = halves.iter().map(|&half| near(half)).chain([0.0, 65_535.0]).collect();
        check(&signal_of(&[row]));
    }
    // (1 - 2^-53) / 2 is the largest number below a half: a half more would be rounded to 1.
    let row = vec![1.0, 2.0f32.powi(-53), -131_069.0];
    assert_eq!((step(&row), code(row[1], 1.0, 2.0)), (2.0, 0));
    check(&signal_of(&[row]));
}

#[test]
fn an_id_beyond_three_bytes_is_found_wherever_it_stands() {
    let layout = Layout { codec: Codec::Packed, classes: Some(1 << 24) };
    for at in 0..7 {
        let mut signal = signal_of(&[vec![1.0; 7]]);
        signal.ids = vec![0; 7];
        signal.ids[at] = 1 << 24;
        let wanted = CodecError::PackedClasses { classes: (1 << 24) + 1 };
        assert_eq!(encode(&signal, 0..1, layout), Err(wanted.clone()));
        signal.ids[at + 1..].fill(u32::MAX);
        assert_eq!(encode(&signal, 0..1, layout), Err(wanted));
    }
}

/// Rows of one length of numbers at every scale, or all near each other.
fn rows() -> impl Strategy<Value = Vec<Vec<f32>>> {
    let number = prop_oneof![
        -30.0f32..30.0,
        -1e4f32..1e4,
        any::<f32>().prop_map(|x| if x.is_finite() { x / 2.0 } else { x.signum() }),
        (any::<i8>(), Just(1e-44f32)).prop_map(|(n, unit)| f32::from(n) * unit),
        (0u8..4).prop_map(f32::from),
    ]
    .prop_map(|x| if x.is_nan() { 0.0 } else { x });
    (1usize..6, 1usize..90).prop_flat_map(move |(rows, k)| {
        prop::collection::vec(prop::collection::vec(number.clone(), k), rows)
    })
}

proptest! {
    #[test]
    fn any_rows_are_as_the_document_says(rows in rows()) {
        check(&signal_of(&rows));
    }
}
