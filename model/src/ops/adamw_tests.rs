//! AdamW against PyTorch's own numbers and against the formula in float64.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::ops::testing::device;

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().and_then(|t| t.to_vec1()).expect("values")
}

fn flat(values: &[f32]) -> Tensor {
    Tensor::new(values, &device()).expect("a tensor")
}

/// The formula, one element, in float64.
fn by_hand(pmv: &mut [f64; 3], g: f64, hyper: &AdamW, lr: f64, step: i32) {
    let [p, m, v] = pmv;
    *p -= lr * hyper.weight_decay * *p;
    *m = hyper.beta1 * *m + (1.0 - hyper.beta1) * g;
    *v = hyper.beta2 * *v + (1.0 - hyper.beta2) * g * g;
    let m_hat = *m / (1.0 - hyper.beta1.powi(step));
    let v_hat = *v / (1.0 - hyper.beta2.powi(step));
    *p -= lr * m_hat / (v_hat.sqrt() + hyper.epsilon);
}

#[test]
fn ten_steps_follow_the_formula_in_float64() {
    // More than one chunk and no whole number of vectors.
    let count = CHUNK + 4_321;
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let hyper = AdamW { beta1: 0.85, beta2: 0.97, epsilon: 1e-3, weight_decay: 0.3 };
    let start: Vec<f32> = (0..count).map(|_| rng.random_range(-2.0..2.0)).collect();
    let zeros = vec![0.0f32; 2 * count];
    let state = flat(&[start.clone(), zeros].concat()).reshape((3, count)).expect("state");
    let mut wanted: Vec<[f64; 3]> = start.iter().map(|&p| [f64::from(p), 0.0, 0.0]).collect();
    for step in 1..=10 {
        let lr = 0.01 * f64::from(step);
        // Gradients from 1e-6 to 1: some roots are far below epsilon.
        let g: Vec<f32> = (0..count)
            .map(|_| rng.random_range(-1.0f32..1.0) * 10f32.powi(rng.random_range(-6..1)))
            .collect();
        adamw_step(&state, 0, &flat(&g), &hyper, lr, step as u64, 0.25).expect("a step");
        for (pmv, &g) in wanted.iter_mut().zip(&g) {
            by_hand(pmv, 0.25 * f64::from(g), &hyper, lr, step);
        }
    }
    let found = values(&state);
    for (i, [p, m, v]) in wanted.iter().enumerate() {
        for (part, wanted, scale) in [(0, p, 1.0), (1, m, 0.1), (2, v, 0.01)] {
            let found = f64::from(found[part * count + i]);
            assert!((found - wanted).abs() < 1e-5 * scale, "{part} {i}: {found}, {wanted}");
        }
    }
}

#[test]
fn three_steps_of_torch() {
    // torch 2.15: AdamW([p], lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01),
    // p = [1, -2, 0.5], gradients [0.1, -3, 0], [-0.2, 1e-3, 0], [0.3, 5, 1].
    let state = Tensor::new(&[[1.0f32, -2.0, 0.5], [0.0; 3], [0.0; 3]], &device()).expect("state");
    let steps = [[0.1f32, -3.0, 0.0], [-0.2, 1e-3, 0.0], [0.3, 5.0, 1.0]];
    for (i, g) in steps.iter().enumerate() {
        adamw_step(&state, 0, &flat(g), &AdamW::default(), 0.1, i as u64 + 1, 1.0).expect("a step");
    }
    let found = values(&state);
    for (found, wanted) in found.iter().zip(TORCH) {
        assert!((found - wanted).abs() <= 2e-7 * wanted.abs(), "{found}, torch {wanted}");
    }
}

/// Parameters, first and second moments after the three steps.
const TORCH: [f32; 9] = [
    0.899_452_57,
    -1.855_465,
    0.434_620_2,
    0.020_100_001,
    0.257_089_97,
    0.1,
    0.000_139_940_02,
    0.033_982_012,
    0.001,
];

#[test]
fn the_norm_is_that_of_all_gradients_whatever_their_size() {
    let count = 3 * CHUNK + 5;
    assert!(
        (squared_norm(&flat(&vec![0.5; count])).unwrap().sqrt() - 0.5 * (count as f64).sqrt())
            .abs()
            < 1e-9
    );
    // Squares beyond and below what f32 holds.
    let big = squared_norm(&flat(&[3e30, -4e30])).unwrap().sqrt();
    assert!((big / 5e30 - 1.0).abs() < 1e-6, "{big}");
    let small = squared_norm(&flat(&[3e-30, -4e-30])).unwrap().sqrt();
    assert!((small / 5e-30 - 1.0).abs() < 1e-6, "{small}");
    assert!(!squared_norm(&flat(&[1.0, f32::NAN])).unwrap().sqrt().is_finite());
    assert!(!squared_norm(&flat(&[1.0, f32::NEG_INFINITY])).unwrap().sqrt().is_finite());
}

#[test]
fn clipping_leaves_small_gradients_and_brings_large_ones_to_the_limit() {
    assert_eq!(clip_scale(0.5, 1.0), 1.0);
    assert!((clip_scale(4.0, 1.0) - 1.0 / 4.000_001).abs() < 1e-15);
    assert_eq!(clip_scale(0.0, 1.0), 1.0);
}

#[test]
fn the_bits_do_not_depend_on_the_number_of_threads() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let count = 2 * CHUNK + 77;
    let g: Vec<f32> = (0..count).map(|_| rng.random_range(-1.0..1.0)).collect();
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| {
            let state = Tensor::ones((3, count), candle_core::DType::F32, &device()).unwrap();
            let norm = squared_norm(&flat(&g)).unwrap().sqrt();
            adamw_step(&state, 0, &flat(&g), &AdamW::default(), 0.1, 1, clip_scale(norm, 1.0))
                .unwrap();
            (norm.to_bits(), values(&state))
        })
    };
    assert!(run(1) == run(3));
}

#[test]
fn shapes_and_steps_that_make_no_sense_are_refused() {
    let state = Tensor::zeros((3, 4), candle_core::DType::F32, &device()).unwrap();
    let error = |g: &Tensor, step| {
        adamw_step(&state, 0, g, &AdamW::default(), 0.1, step, 1.0).unwrap_err().to_string()
    };
    assert!(error(&flat(&[0.0; 4]), 0).contains("from 1"));
    assert!(error(&flat(&[0.0; 5]), 1).contains("the parameters 0..5 of 4"));
}
