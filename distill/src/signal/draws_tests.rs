//! Draws against the distribution they are from, and what is no draw.

use super::*;
use crate::reference::{kl_draws, kl_full};

fn key(position: u32) -> DrawKey {
    DrawKey { seed: 7, token_checksum: 0x0123_4567_89ab_cdef, position }
}

/// Two rows of the union of two exact entries and three draws over five classes.
fn sample() -> Draws {
    let half = 0.5f32.ln();
    let mut signal = Draws::new(3, 2);
    signal.push([(1, half), (4, 2.0 * half)], 2.0 * half, [0, 0, 3]);
    signal.push([(0, half), (2, half)], f32::NEG_INFINITY, []);
    signal
}

// From ChaCha with 8 rounds written out in Python from its description (its block of zeros is
// 3e00ef2f895f40d6..., as published): the first 10 words without 11 bits.
#[test]
fn uniforms_are_the_key_stream_as_described_one_in_each_part() {
    let words = [
        7_625_587_800_207_199u64,
        8_353_528_457_579_317,
        2_705_367_761_154_038,
        2_554_758_409_717_138,
        8_744_795_877_135_017,
        7_676_455_154_431_566,
        4_959_395_527_828_518,
        235_241_807_254_209,
        7_124_415_041_073_730,
        3_991_155_030_981_001,
    ];
    let found = key(41).uniforms(10);
    for (i, (found, word)) in found.iter().zip(words).enumerate() {
        let wanted = (i as f64 + word as f64 / 2f64.powi(53)) / 10.0;
        assert!((found - wanted).abs() < 1e-16, "{i}: {found} {wanted}");
    }
    assert_eq!(found, key(41).uniforms(10));
    assert_eq!(key(41).uniforms(1), [words[0] as f64 / 2f64.powi(53)]);
    // Every part of the key counts.
    let others =
        [key(42), DrawKey { seed: 8, ..key(41) }, DrawKey { token_checksum: 0, ..key(41) }];
    for other in others {
        assert!(other.uniforms(10).iter().all(|uniform| !found.contains(uniform)));
    }
    // The last of so many are nearer to 1 than numbers of 64 bits tell apart.
    assert!(key(41).uniforms(1 << 20).iter().all(|uniform| (0.0..1.0).contains(uniform)));
}

#[test]
fn an_estimate_is_exact_above_and_shared_below() {
    let signal = sample();
    assert_eq!(signal.check(5), Ok(()));
    let (ids, p) = signal.estimate(0);
    assert_eq!(ids, [1, 4, 0, 3]);
    // 1/2 and 1/4 exactly; of the 1/4 that is left two draws of three, and one.
    for (found, wanted) in p.iter().zip([0.5, 0.25, 0.25 * 2.0 / 3.0, 0.25 / 3.0]) {
        assert!((found - wanted).abs() < 1e-7, "{found} {wanted}");
    }
    assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-15);
    assert_eq!(signal.estimate(1), (vec![0, 2], vec![0.5, 0.5]));

    let mut plain = Draws::new(4, 0);
    plain.push([], 0.0, [2, 7, 7, 7]);
    assert_eq!(plain.estimate(0), (vec![2, 7], vec![0.25, 0.75]));
}

#[test]
fn rows_are_joined_and_taken_apart() {
    let (whole, mut joined) = (sample(), Draws::new(3, 2));
    for row in 0..2 {
        joined.append(&whole.slice(row..row + 1));
    }
    joined.append(&whole.slice(1..1));
    assert_eq!(joined, whole);
    joined.append(&whole);
    assert_eq!((joined.slice(2..4), joined.rows(), joined.ends[3]), (whole, 4, 4));
    assert_eq!(joined.slice(0..0), Draws::new(3, 2));
}

#[test]
fn the_slow_way_follows_the_sums_of_the_probabilities() {
    // p = 1/8, 1/2, 1/4, 1/8.
    let logits = [8f64.recip(), 0.5, 0.25, 8f64.recip()].map(f64::ln);
    let mut plain = Draws::new(5, 0);
    plain.push_exact(&logits, 1.0, &[0.0, 0.124, 0.126, 0.62, 0.99]);
    assert_eq!((plain.ids, plain.counts), (vec![0, 1, 3], vec![2, 2, 1]));
    // Without class 1 the others have 1/4, 1/2, 1/4 of a half.
    let mut union = Draws::new(4, 1);
    union.push_exact(&logits, 1.0, &[0.24, 0.26, 0.74, 0.76]);
    assert_eq!(
        (&union.exact_ids, &union.ids, &union.counts[..]),
        (&vec![1], &vec![0, 2, 3], &[1, 2, 1][..])
    );
    assert!((union.log_rest[0] - 0.5f32.ln()).abs() < 1e-7);
    // At T = 1/2 the probabilities are squared: 1, 16, 4, 1 of 22.
    let mut cold = Draws::new(2, 0);
    cold.push_exact(&logits, 0.5, &[0.99 / 22.0, 1.01 / 22.0]);
    assert_eq!(cold.ids, [0, 1]);
    // All of the classes exact: nothing to draw from.
    let mut all = Draws::new(1, 4);
    all.push_exact(&logits, 1.0, &[0.5]);
    assert_eq!((all.ids.len(), all.log_rest[0], all.check(4)), (0, f32::NEG_INFINITY, Ok(())));
    assert_eq!(union.check(4), Ok(()));
}

/// Mean of the gradient over `seeds` draws, and its standard errors.
fn mean_gradient(z: &[f64], y: &[f64], k: usize, t: f64, seeds: u32) -> (Vec<f64>, Vec<f64>) {
    let (mut sum, mut squares) = (vec![0.0; z.len()], vec![0.0; z.len()]);
    for position in 0..seeds {
        let mut signal = Draws::new(8, k);
        signal.push_exact(y, t, &key(position).uniforms(8));
        for (j, g) in kl_draws(z, &signal, 0, t).gradient.into_iter().enumerate() {
            sum[j] += g;
            squares[j] += g * g;
        }
    }
    let n = f64::from(seeds);
    let mean: Vec<f64> = sum.iter().map(|sum| sum / n).collect();
    let error = |(square, mean): (&f64, &f64)| ((square / n - mean * mean).max(0.0) / n).sqrt();
    let errors = squares.iter().zip(&mean).map(error).collect();
    (mean, errors)
}

#[test]
fn the_mean_gradient_over_draws_is_the_full_one_and_exact_entries_spare_variance() {
    // A teacher with one token at 0.8, among 24 classes.
    let y: Vec<f64> =
        (0..24).map(|j| f64::from(j * 7 % 24) / 6.0 + if j == 5 { 5.0 } else { 0.0 }).collect();
    let z: Vec<f64> = (0..24).map(|j| f64::from(j * 5 % 24) / 8.0).collect();
    for t in [1.0, 2.0] {
        let full = kl_full(&z, &y, t).gradient;
        let mut noise = Vec::new();
        for k in [0, 2] {
            let (mean, errors) = mean_gradient(&z, &y, k, t, 4000);
            for ((found, wanted), error) in mean.iter().zip(&full).zip(&errors) {
                // An exact entry has no error but the rounding of its float32.
                let allowed = 4.0 * error + 1e-6;
                assert!(
                    (found - wanted).abs() < allowed,
                    "k = {k}, T = {t}: {found}, {wanted} ± {error}"
                );
            }
            noise.push(errors.iter().map(|error| error * error).sum::<f64>());
        }
        assert!(noise[1] < 0.5 * noise[0], "T = {t}: variance {noise:?}");
    }
}

#[test]
fn what_no_teacher_can_mean_is_refused_by_name() {
    let refused = |change: fn(&mut Draws), says: &str| {
        let mut signal = sample();
        change(&mut signal);
        let error = signal.check(5).expect_err(says).to_string();
        assert!(error.contains(says), "{error}");
    };
    refused(|s| s.draws = 0, "0 draws a position");
    refused(|s| s.exact_ids.truncate(3), "2 rows of 2 exact entries need 4 exact ids, found 3");
    refused(|s| s.exact_log_p.push(-1.0), "4 exact log-probabilities, found 5");
    refused(|s| s.log_rest.truncate(1), "2 masses of the rest, found 1");
    refused(|s| s.counts.push(1), "2 counts, found 3");
    refused(|s| s.ends = vec![1, 1], "2 ends of rows that rise to the last id, found 1");
    refused(|s| s.ends = vec![3, 2], "ends of rows that rise");
    refused(|s| s.ids[1] = 5, "row 0: id 5 is not below the number of classes 5");
    refused(|s| s.exact_ids[3] = 5, "row 1: id 5 is not below");
    refused(|s| s.ids[1] = 0, "row 0: id 0 stands behind 0");
    refused(|s| s.exact_ids.swap(0, 1), "row 0: id 1 stands behind 4");
    refused(|s| s.ids[1] = 4, "row 0: id 4 was drawn, but is one of the exact entries");
    refused(|s| s.counts[1] = 0, "row 0: id 3 was drawn 0 times");
    refused(|s| s.counts[1] = 2, "row 0: 4 draws, wanted 3");
    refused(|s| s.counts = vec![u32::MAX; 2], "row 0: 8589934590 draws, wanted 3");
    refused(|s| s.log_rest[1] = -200.0, "row 1: 0 draws, wanted 3");
    refused(|s| s.log_rest[0] = f32::NEG_INFINITY, "row 0: the masses sum to 0.750, wanted 1");
    refused(|s| s.log_rest[0] = 0.0, "row 0: the masses sum to 1.750");
    refused(|s| s.log_rest[0] = f32::NAN, "row 0: log_rest is NaN");
    refused(|s| s.exact_log_p[3] = 0.1, "row 1: a log-probability is 0.1, wanted a finite number");
    refused(|s| s.exact_log_p[2] = f32::NEG_INFINITY, "row 1: a log-probability is -inf");
    let mut plain = Draws::new(1, 0);
    plain.push([], -0.01, [2]);
    assert!(matches!(plain.check(3), Err(DrawsError::Mass { row: 0, .. })));
}
