//! Tests of the ways back to hidden states against the slow one.

use distill::coded::Parts;
use distill::fingerprint::Fingerprint;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

const RUNG: Rung = Rung(3);

/// Directions whose spread falls from `first` steps to a thousandth of that.
fn code(width: usize, directions: usize, first: f64, random: &mut StdRng) -> Code {
    let mut centred = || random.random::<f64>() - 0.5;
    let fall = |at: usize| first * (-7.0 * at as f64 / directions as f64).exp();
    Code::new(Parts {
        model: Fingerprint([0; 32]),
        mean: (0..width).map(|_| centred() as f32).collect(),
        spreads: &(0..directions).map(fall).collect::<Vec<f64>>(),
        matrix: &(0..width * directions).map(|_| centred()).collect::<Vec<f64>>(),
        standardised: (0..10_000).map(|_| 6.0 * centred() as f32).collect(),
    })
    .unwrap()
}

/// Numbers as a code has them, some of them of two bytes, some where nearly all are 0.
fn numbers(rows: usize, directions: usize, random: &mut StdRng) -> Numbers {
    let mut number = |at: usize| match random.random_range(0..40) {
        0 => random.random_range(-32_767..=32_767),
        1 => [-32_767, -129, -128, 127, 128, 32_767][random.random_range(0..6)],
        _ => {
            (random.random_range(-30.0..30.0) * (-7.0 * at as f64 / directions as f64).exp()) as i16
        }
    };
    let mut numbers: Vec<i16> = (0..rows * directions).map(|at| number(at % directions)).collect();
    // One that says nothing.
    numbers[..directions].fill(0);
    Numbers { numbers, verbatim: Vec::new() }
}

#[test]
fn every_way_comes_to_the_slow_one_to_the_bit() {
    let mut random = StdRng::seed_from_u64(4);
    // The last two: all directions are frequent, and no whole number of quads; none is.
    for (rows, width, directions, first) in [
        (1, 1, 1, 16.0),
        (7, 16, 15, 16.0),
        (300, 37, 30, 16.0),
        (17, 130, 128, 16.0),
        (11, 20, 13, 16_000.0),
        (11, 20, 13, 0.01),
    ] {
        let code = Arc::new(code(width, directions, first, &mut random));
        let numbers = numbers(rows, directions, &mut random);
        let truth = code.reconstruct(RUNG, &numbers);
        assert_eq!(Decoder::in_doubles(Arc::clone(&code), RUNG).hidden_states(&numbers), truth);
        assert_eq!(Decoder::new(Arc::clone(&code), RUNG).hidden_states(&numbers), truth);
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn bytes_are_multiplied_where_the_processor_can_and_the_entries_fit() {
    let mut random = StdRng::seed_from_u64(5);
    let made = code(20, 18, 16.0, &mut random);
    let here = is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512bw");
    assert_eq!(Digits::of(&made, RUNG).is_some(), here);
    // Its first entry as large as the format lets it be: docs/wire.md.
    let mut bytes = made.to_bytes();
    let first = 52 + 4 * made.width() + 2 * made.directions();
    assert_eq!(bytes[first..first + 4], made.matrix()[0].to_le_bytes());
    bytes[first..first + 4].copy_from_slice(&distill::coded::MAX_ENTRY.to_le_bytes());
    let large = Arc::new(Code::from_bytes(&bytes).unwrap());
    assert!(Digits::of(&large, RUNG).is_none());
    let numbers = numbers(5, 18, &mut random);
    let decoded = Decoder::new(Arc::clone(&large), RUNG).hidden_states(&numbers);
    assert_eq!(decoded, large.reconstruct(RUNG, &numbers));
}
