//! Tests of the norm: against `f64`, and that threads change nothing.

use candle_core::DType;
use proptest::prelude::*;

use super::super::reference;
use super::super::testing::{
    error, error_beside, matrix, on_threads, random, values, vector, wide, zeros,
};
use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn forward_and_backward_agree_with_f64(
        n in 1_usize..90, d in 1_usize..300, seed: u64, tiny: bool,
    ) {
        // With tiny inputs eps decides.
        let size = if tiny { 1e-3 } else { 2.0 };
        let eps = 1e-6;
        let x: Vec<f32> = random(seed, n * d).iter().map(|x| x * size).collect();
        let (w, dy) = (random(seed ^ 1, d), random(seed ^ 2, n * d));
        let (tx, tw, tdy) = (matrix(&x, n, d), vector(&w), matrix(&dy, n, d));
        let (y, rstd) = rms_norm(&tx, &tw, eps).unwrap();
        let exact = reference::rms_norm(&wide(&x), &wide(&w), eps);
        prop_assert!(error(&values(&y), &exact) < 3e-7);

        let (start_x, start_w) = (random(seed ^ 3, n * d), random(seed ^ 4, d));
        let (dx, dw) = (matrix(&start_x, n, d), vector(&start_w));
        rms_norm_backward(&tdy, &tx, &rstd, &tw, &dx, &dw).unwrap();
        let (ex, ew) = reference::rms_norm_backward(&wide(&dy), &wide(&x), &wide(&w), eps);
        let added = |exact: Vec<f64>, start: &[f32]| -> Vec<f64> {
            exact.iter().zip(start).map(|(e, s)| e + f64::from(*s)).collect()
        };
        prop_assert!(error(&values(&dx), &added(ex, &start_x)) < 2e-6);
        let size = ((n * d) as f64).sqrt();
        prop_assert!(error_beside(size, &values(&dw), &added(ew, &start_w)) < 2e-6);
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let (n, d) = (700, 96);
    let (x, dy) = (matrix(&random(1, n * d), n, d), matrix(&random(2, n * d), n, d));
    let w = vector(&random(3, d));
    let all = || {
        let (y, rstd) = rms_norm(&x, &w, 1e-6).unwrap();
        let (dx, dw) = (zeros((n, d)), zeros(d));
        rms_norm_backward(&dy, &x, &rstd, &w, &dx, &dw).unwrap();
        [values(&y), values(&rstd), values(&dx), values(&dw)]
    };
    let one = on_threads(1, all);
    for threads in [2, 3, 8] {
        assert!(on_threads(threads, all) == one, "{threads} threads");
    }
}

#[test]
fn a_weight_stored_in_sixteen_bits_is_widened() {
    let x = matrix(&random(1, 12), 3, 4);
    let w = vector(&[0.5, 1.0, -2.0, 0.25]);
    let (y, _) = rms_norm(&x, &w, 1e-6).unwrap();
    let (stored, _) = rms_norm(&x, &w.to_dtype(DType::BF16).unwrap(), 1e-6).unwrap();
    assert_eq!(values(&y), values(&stored));
}

#[test]
fn the_two_accumulators_may_be_views_of_one_arena() {
    let (n, d) = (3, 4);
    let (x, dy) = (matrix(&random(1, n * d), n, d), matrix(&random(2, n * d), n, d));
    let w = vector(&random(3, d));
    let (_, rstd) = rms_norm(&x, &w, 1e-6).unwrap();
    let arena = zeros(n * d + d);
    let dx = arena.narrow(0, 0, n * d).unwrap().reshape((n, d)).unwrap();
    let dw = arena.narrow(0, n * d, d).unwrap();
    rms_norm_backward(&dy, &x, &rstd, &w, &dx, &dw).unwrap();
    let (alone_x, alone_w) = (zeros((n, d)), zeros(d));
    rms_norm_backward(&dy, &x, &rstd, &w, &alone_x, &alone_w).unwrap();
    assert_eq!(values(&arena)[..n * d], values(&alone_x));
    assert_eq!(values(&arena)[n * d..], values(&alone_w));
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let (x, w) = (zeros((3, 4)), zeros(5));
    assert!(rms_norm(&x, &w, 1e-6).unwrap_err().to_string().contains("[5]"));
    let (w, rstd) = (zeros(4), zeros(2));
    assert!(rms_norm_backward(&x, &x, &rstd, &w, &zeros((3, 4)), &zeros(4)).is_err());
    assert!(rms_norm_backward(&x, &x, &zeros(3), &w, &zeros((3, 4)), &zeros(5)).is_err());
}
