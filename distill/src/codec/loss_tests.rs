//! What each code adds to the top-k loss and to its gradient, measured against the signal as it was, in
//! float64. docs/wire.md states the figures.

use rand::{Rng as _, SeedableRng as _};

use super::*;
use crate::reference::{Tail, kl_top_k};

const CLASSES: usize = 4096;
const K: usize = 64;
const ROWS: usize = 48;

/// A teacher's logits and a student's, one position each. `spread` is the standard deviation of the
/// teacher's, of which the student has got three quarters.
fn logits(spread: f64) -> Vec<(Vec<f64>, Vec<f64>)> {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(5);
    // Of twelve uniform numbers, whose sum is as good as normal.
    let mut normal = || (0..12).map(|_| random.random::<f64>()).sum::<f64>() - 6.0;
    let mut row = || -> (Vec<f64>, Vec<f64>) {
        let teacher: Vec<f64> = (0..CLASSES).map(|_| spread * normal()).collect();
        let student = teacher.iter().map(|y| 0.75 * (y + 0.5 * spread * normal())).collect();
        (teacher, student)
    };
    (0..ROWS).map(|_| row()).collect()
}

/// Of all rows: the mean of what the code changes of the loss, and how far off the gradient is, as a
/// share of its length.
fn measured(spread: f64, temperature: f64, codec: Codec) -> [f64; 2] {
    let rows = logits(spread);
    let mut signal = TopK::new(K);
    rows.iter().for_each(|(teacher, _)| signal.push_exact(teacher, temperature));
    let ids = Ids::Sent { classes: CLASSES };
    let bytes = encode(&signal, 0..ROWS, ids.layout(codec)).unwrap();
    let coded = decode(&bytes, ROWS, K, codec, ids).unwrap();
    let (mut change, mut off, mut length) = (0.0, 0.0f64, 0.0f64);
    for (row, (_, student)) in rows.iter().enumerate() {
        let exact = kl_top_k(student, &signal, row, temperature, Tail::Bucket);
        let found = kl_top_k(student, &coded, row, temperature, Tail::Bucket);
        change += (found.value - exact.value).abs();
        for (exact, found) in exact.gradient.iter().zip(&found.gradient) {
            off += (found - exact).powi(2);
            length += exact.powi(2);
        }
        assert_within_what_a_value_may_be_off(
            &signal,
            row,
            codec,
            [&exact.gradient, &found.gradient],
        );
    }
    [change / ROWS as f64, (off / length).sqrt()]
}

/// Every value being off by at most e, every probability is by a factor of at most exp(2 e), the sum
/// being kept, and the gradient is theirs.
fn assert_within_what_a_value_may_be_off(
    signal: &TopK,
    row: usize,
    codec: Codec,
    [exact, found]: [&[f64]; 2],
) {
    let values = &signal.scaled[row * K..][..K];
    let range = f64::from(values[0] - values[K - 1]);
    // Values and step are float32.
    let rounding = f64::from(values[0].abs().max(values[K - 1].abs())) * f64::from(f32::EPSILON);
    let e = range * codec.error_share() * (1.0 + 1e-6) + rounding;
    let off: f64 = exact.iter().zip(found).map(|(a, b)| (a - b).abs()).sum();
    assert!(off <= (2.0 * e).exp_m1(), "{codec}: the gradient is off by {off}, its values by {e}");
}

#[test]
fn what_a_code_adds_to_loss_and_gradient_is_as_stated() {
    // The table of docs/wire.md: spread and temperature (the top 64 hold nearly everything, most,
    // little), then what 16 and 8 bits add.
    for (spread, temperature, of_16, of_8) in [
        (6.0, 1.0, [1.2e-5, 1.2e-5], [2.7e-3, 2.6e-3]),
        (3.0, 1.0, [2.0e-6, 1.3e-5], [4.9e-4, 2.9e-3]),
        (3.0, 2.0, [1.8e-7, 1.4e-5], [4.6e-5, 3.4e-3]),
        (3.0, 5.0, [7.6e-9, 1.1e-5], [2.1e-6, 2.8e-3]),
    ] {
        for (codec, stated) in [
            (Codec::Raw, [0.0, 0.0]),
            (Codec::Packed, of_16),
            (Codec::Compact, of_16),
            (Codec::Compact8, of_8),
        ] {
            let found = measured(spread, temperature, codec);
            for (found, stated) in found.into_iter().zip(stated) {
                let off = (found - stated).abs();
                assert!(
                    off <= 0.05 * stated,
                    "{codec} at {temperature}: {found:e}, not {stated:e}"
                );
            }
        }
    }
}
