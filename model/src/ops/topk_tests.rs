//! Selection and sums against the exact signal, on ordinary and on hostile rows.

use candle_core::DType;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::ops::tensor;
use crate::ops::testing::{device, score_top};

/// Scores rows of logits given outright: the output matrix is the identity, with spare rows.
fn score(
    logits: &[Vec<f32>],
    next: &[Option<u32>],
    temperature: f64,
    k: usize,
) -> Result<(TopK, Vec<f32>)> {
    let classes = logits[0].len();
    let mut w = vec![9.0f32; (classes + 2) * classes];
    for (i, w) in w[..classes * classes].iter_mut().enumerate() {
        *w = if i % (classes + 1) == 0 { 1.0 } else { 0.0 };
    }
    let w = tensor(w, (classes + 2, classes))?;
    let hidden = tensor(logits.concat(), (logits.len(), classes))?;
    score_top(&hidden, &w, classes, next, temperature, k, Precision::F32)
}

fn exact(logits: &[Vec<f32>], temperature: f64, k: usize) -> TopK {
    let mut signal = TopK::new(k);
    for row in logits {
        let wide: Vec<f64> = row.iter().map(|&z| f64::from(z)).collect();
        signal.push_exact(&wide, temperature);
    }
    signal
}

/// Within `f32` rounding of a sum, or both -inf.
fn near(found: f32, wanted: f32) -> bool {
    found == wanted || (found - wanted).abs() <= 1e-6 * (1.0 + wanted.abs())
}

fn check(logits: &[Vec<f32>], temperature: f64, k: usize) {
    let next = every_other(logits.len());
    let found = score(logits, &next, temperature, k).expect("a signal");
    compare(found, logits, temperature, k);
}

/// Class 0 follows every other row.
fn every_other(rows: usize) -> Vec<Option<u32>> {
    (0..rows).map(|r| (r % 2 == 0).then_some(0)).collect()
}

fn compare(
    (found, next_logprob): (TopK, Vec<f32>),
    logits: &[Vec<f32>],
    temperature: f64,
    k: usize,
) {
    let wanted = exact(logits, temperature, k);
    assert_eq!(found.ids, wanted.ids);
    assert_eq!(found.scaled, wanted.scaled);
    for r in 0..logits.len() {
        let (z, w) = (found.log_z[r], wanted.log_z[r]);
        assert!(near(z, w), "log_z {z}, {w}");
        let (z, w) = (found.log_rest[r], wanted.log_rest[r]);
        assert!(near(z, w), "log_rest {z}, {w} (k = {k}, T = {temperature})");
        if r % 2 == 1 {
            assert!(next_logprob[r].is_nan());
        } else {
            let row: Vec<f64> = logits[r].iter().map(|&z| f64::from(z)).collect();
            let wanted = -distill::reference::cross_entropy(&row, 0).value;
            assert!(near(next_logprob[r], wanted as f32), "{} {wanted}", next_logprob[r]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_exact_signal(
        classes in prop_oneof![1usize..60, 300usize..700],
        rows in 1usize..4,
        share in 0.0..=1.0f64,
        size in prop_oneof![Just(0.0f32), Just(0.1), Just(10.0), Just(1e4)],
        grain in prop_oneof![Just(0.0f32), Just(0.25), Just(3.0)],
        temperature in prop_oneof![Just(1.0), 0.5..20.0f64],
        seed in any::<u64>(),
    ) {
        // Where there is a grain, logits are multiples of it: many ties.
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut one = || {
            let z: f32 = rng.random_range(-1.0..=1.0) * size;
            // The product with the identity makes +0 of -0.
            0.0 + if grain > 0.0 { (z / grain).round() * grain } else { z }
        };
        let logits: Vec<Vec<f32>> =
            (0..rows).map(|_| (0..classes).map(|_| one()).collect()).collect();
        let k = 1 + (share * (classes - 1) as f64) as usize;
        check(&logits, temperature, k);
    }
}

#[test]
fn rows_that_mean_harm() {
    let n = 2000;
    let rows = vec![
        vec![0.0; n],
        vec![-1e4; n],
        (0..n).map(|i| if i == 1999 { 1e4 } else { -1e4 }).collect(),
        (0..n).map(|i| if i % 2 == 0 { 1e4 } else { -1e4 }).collect(),
        (0..n).map(|i| i as f32 * 1e-3).collect(),
        (0..n).map(|i| -(i as f32)).collect(),
    ];
    for k in [1, 64, 1000, 1001, 1999, 2000] {
        for temperature in [0.5, 1.0, 5.0, 20.0] {
            check(&rows, temperature, k);
        }
    }
}

/// With rising logits every block drives out all that were the best before it; what is driven out
/// is part of the rest.
#[test]
fn what_a_later_block_drives_out_is_counted_with_the_rest() {
    let classes = 2 * 4096 + 100;
    assert_eq!(blocks(classes).count(), 3);
    let column: Vec<f32> = (0..classes).map(|i| (i / 2) as f32 * 0.5).collect();
    let factors = [1.0f32, -1.0, 0.0, 0.015_625];
    let hidden = tensor(factors.to_vec(), (factors.len(), 1)).unwrap();
    let w = tensor(column.clone(), (classes, 1)).unwrap();
    let logits: Vec<Vec<f32>> =
        factors.iter().map(|factor| column.iter().map(|z| factor * z).collect()).collect();
    for k in [1, 64, 5000, classes - 1, classes] {
        for temperature in [1.0, 50.0] {
            let next = every_other(factors.len());
            let p = Precision::F32;
            let found = score_top(&hidden, &w, classes, &next, temperature, k, p).unwrap();
            compare(found, &logits, temperature, k);
        }
    }
}

#[test]
fn many_rows_over_several_chunks_meet_a_product_in_float64() {
    let (rows, classes, width, k) = (2100, 4099, 4, 5);
    assert!(chunks(rows).count() > 1 && blocks(classes).count() > 1);
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut drawn =
        |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-2.0..2.0)).collect() };
    let (hidden, w) = (drawn(rows * width), drawn(classes * width));
    let next: Vec<Option<u32>> = (0..rows).map(|r| Some((r % classes) as u32)).collect();
    let run = |dtype: DType, precision| {
        let x = tensor(hidden.clone(), (rows, width)).unwrap();
        let w = tensor(w.clone(), (classes, width)).unwrap().to_dtype(dtype).unwrap();
        score_top(&x, &w, classes, &next, 2.0, k, precision).unwrap()
    };
    let (signal, next_logprob) = run(DType::F32, Precision::F32);
    assert_eq!((signal.rows(), signal.ids.len()), (rows, rows * k));
    for r in (0..rows).step_by(97) {
        let logits: Vec<f64> = w
            .chunks(width)
            .map(|w| {
                let terms = w.iter().zip(&hidden[r * width..(r + 1) * width]);
                terms.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
            })
            .collect();
        let mut wanted = TopK::new(k);
        wanted.push_exact(&logits, 2.0);
        assert_eq!(&signal.ids[r * k..(r + 1) * k], wanted.ids);
        assert!(near(signal.log_z[r], wanted.log_z[0]));
        assert!(near(signal.log_rest[r], wanted.log_rest[0]));
        let ce = distill::reference::cross_entropy(&logits, r % classes).value;
        assert!(near(next_logprob[r], -ce as f32));
    }
    // Weights stored in bf16 are the same as weights rounded to bf16.
    assert_eq!(run(DType::BF16, Precision::Bf16), run(DType::F32, Precision::Bf16));
}

/// The vocabulary of Qwen3 and the largest k a teacher grants by default: the k largest, in order, whatever
/// block of classes they come from.
#[test]
fn a_thousand_of_a_real_vocabulary() {
    let (rows, classes, width) = (2, 151_936, 8);
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    // Whole numbers: sums of their products are exact, and there are ties without end.
    let mut drawn =
        |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-60..60) as f32).collect() };
    let (hidden, w) = (drawn(rows * width), drawn(classes * width));
    let x = tensor(hidden.clone(), (rows, width)).unwrap();
    let matrix = tensor(w.clone(), (classes, width)).unwrap();
    for k in [1, 64, 1024] {
        let next = vec![Some(151_935); rows];
        let (signal, next_logprob) =
            score_top(&x, &matrix, classes, &next, 900.0, k, Precision::F32).unwrap();
        for r in 0..rows {
            let h = &hidden[r * width..(r + 1) * width];
            let logit = |w: &[f32]| w.iter().zip(h).map(|(a, b)| f64::from(a * b)).sum::<f64>();
            let logits: Vec<f64> = w.chunks(width).map(logit).collect();
            let mut wanted = TopK::new(k);
            wanted.push_exact(&logits, 900.0);
            assert_eq!(&signal.ids[r * k..(r + 1) * k], wanted.ids, "k {k}");
            assert!(near(signal.log_z[r], wanted.log_z[0]));
            assert!(near(signal.log_rest[r], wanted.log_rest[0]));
            let ce = distill::reference::cross_entropy(&logits, 151_935).value;
            assert!(near(next_logprob[r], -ce as f32));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Named tokens, over several blocks of classes: their logits, and everything else as the rest.
    #[test]
    fn the_exact_signal_of_named_tokens(
        classes in prop_oneof![1usize..60, 4090usize..4200],
        each_row: bool,
        size in prop_oneof![Just(0.1f32), Just(10.0), Just(1e4)],
        temperature in prop_oneof![Just(1.0), 0.5..20.0f64],
        seed in any::<u64>(),
    ) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (rows, k) = (3, rng.random_range(1..=classes.min(70)));
        let factors: Vec<f32> = (0..rows).map(|_| rng.random_range(-1.0..1.0) * size).collect();
        let column: Vec<f32> = (0..classes).map(|_| rng.random_range(-1.0..1.0)).collect();
        let mut named = Vec::new();
        for _ in 0..if each_row { rows } else { 1 } {
            let ids = rand::seq::index::sample(&mut rng, classes, k);
            named.extend(ids.into_iter().map(|id| id as u32));
        }
        let (hidden, w) = (tensor(factors.clone(), (rows, 1)).unwrap(),
                           tensor(column.clone(), (classes, 1)).unwrap());
        let next = vec![Some(0), None, Some(classes as u32 - 1)];
        let entries = Entries::Named(named);
        let wanted = Wanted { classes, next: &next, temperature, k, entries: &entries };
        let found = score_head(&hidden, &w, wanted, Precision::F32).unwrap();
        for r in 0..rows {
            let logits: Vec<f64> = column.iter().map(|z| f64::from(factors[r] * z)).collect();
            let mut exact = TopK::new(k);
            exact.push_exact_named(entries.named_at(r, k).unwrap(), &logits, temperature);
            let of_row = found.signal.slice(r..r + 1);
            prop_assert_eq!((&of_row.ids, &of_row.scaled), (&exact.ids, &exact.scaled));
            prop_assert!(near(of_row.log_z[0], exact.log_z[0]));
            prop_assert!(near(of_row.log_rest[0], exact.log_rest[0]));
            let Some(id) = next[r] else {
                prop_assert!(found.next_logprob[r].is_nan() && found.next_logprob_t[r].is_nan());
                continue;
            };
            let at = |t: f64| {
                let scaled: Vec<f64> = logits.iter().map(|z| z / t).collect();
                -distill::reference::cross_entropy(&scaled, id as usize).value as f32
            };
            prop_assert!(near(found.next_logprob[r], at(1.0)));
            prop_assert!(near(found.next_logprob_t[r], at(temperature)));
        }
    }
}

#[test]
fn named_tokens_that_are_none_or_come_twice_are_refused() {
    let (hidden, w) =
        (tensor(vec![1.0f32; 2], (2, 1)).unwrap(), tensor(vec![1.0f32; 5], (5, 1)).unwrap());
    let refused = |named: &[u32], says: &str| {
        let entries = Entries::Named(named.to_vec());
        let wanted =
            Wanted { classes: 5, next: &[None; 2], temperature: 1.0, k: 2, entries: &entries };
        let error = score_head(&hidden, &w, wanted, Precision::F32).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    refused(&[1, 5], "token 5 is named");
    refused(&[1, 2, 3], "3 ids are named, wanted 2 or 2 for each of 2 rows");
    refused(&[1, 2, 4, 4], "row 1: token 4 is named twice");
}

#[test]
fn a_broken_model_does_not_teach() {
    for (bad, name) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (-f32::INFINITY, "-inf")] {
        let classes = 100;
        let hidden = tensor(vec![1.0f32, 2.0, 3.0], (3, 1)).unwrap();
        let mut w = vec![0.5f32; classes];
        w[77] = bad;
        let w = tensor(w, (classes, 1)).unwrap();
        let score = |classes| score_top(&hidden, &w, classes, &[None; 3], 1.0, 4, Precision::F32);
        let error = score(classes).unwrap_err().to_string();
        assert!(error.contains("row 0") && error.contains("class 77") && error.contains(name));
        // A class that does not take part does no harm.
        assert!(score(77).is_ok());
    }
    let hidden = tensor(vec![1.0f32, f32::NAN], (2, 1)).unwrap();
    let w = tensor(vec![1.0f32; 4], (4, 1)).unwrap();
    let error = score_top(&hidden, &w, 4, &[None; 2], 1.0, 4, Precision::F32).unwrap_err();
    assert!(error.to_string().contains("row 1"), "{error}");
}

#[test]
fn what_does_not_fit_is_refused_with_both_values() {
    let logits = [vec![0.0f32; 5]];
    let refused = |next: &[Option<u32>], temperature: f64, k: usize, parts: &[&str]| {
        let error = score(&logits, next, temperature, k).unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    refused(&[None], 1.0, 0, &["k is 0", "1 to 5"]);
    refused(&[None], 1.0, 6, &["k is 6", "1 to 5"]);
    refused(&[None], -1.0, 1, &["temperature is -1"]);
    refused(&[None], f64::INFINITY, 1, &["temperature is inf"]);
    refused(&[Some(5)], 1.0, 1, &["row 0", "token 5", "5 classes"]);
    refused(&[None, None], 1.0, 1, &["next tokens", "2", "1"]);
    let (hidden, w) = (
        Tensor::zeros((1, 3), DType::F32, &device()).unwrap(),
        Tensor::zeros((5, 3), DType::F32, &device()).unwrap(),
    );
    let error = score_top(&hidden, &w, 6, &[None], 1.0, 1, Precision::F32).unwrap_err();
    assert!(error.to_string().contains('6') && error.to_string().contains('5'), "{error}");
}
