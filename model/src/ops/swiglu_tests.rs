//! Tests of the gated activation: against `f64`, at the ends of the range, and over threads.

use proptest::prelude::*;

use super::super::reference;
use super::super::testing::{error, matrix, on_threads, random, values, wide, zeros};
use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn forward_and_backward_agree_with_f64(n in 1_usize..60, i in 1_usize..200, seed: u64) {
        let gate_up: Vec<f32> = random(seed, n * 2 * i).iter().map(|x| x * 6.0).collect();
        let da = random(seed ^ 1, n * i);
        let t = matrix(&gate_up, n, 2 * i);
        let exact = reference::swiglu(&wide(&gate_up), i);
        prop_assert!(error(&values(&swiglu(&t).unwrap()), &exact) < 3e-7);
        let exact = reference::swiglu_backward(&wide(&da), &wide(&gate_up), i);
        let found = swiglu_backward(&matrix(&da, n, i), &t).unwrap();
        prop_assert!(error(&values(&found), &exact) < 5e-7);
    }
}

#[test]
fn gates_far_out_are_shut_or_open_and_never_nan() {
    let t = matrix(&[-1e4, 0.0, 1e4, 3.0, 3.0, 3.0], 1, 6);
    assert_eq!(values(&swiglu(&t).unwrap()), [0.0, 0.0, 3e4]);
    let d = swiglu_backward(&matrix(&[1.0, 1.0, 1.0], 1, 3), &t).unwrap();
    assert_eq!(values(&d), [0.0, 1.5, 3.0, 0.0, 0.0, 1e4]);
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let (n, i) = (500, 100);
    let gate_up = matrix(&random(1, n * 2 * i), n, 2 * i);
    let da = matrix(&random(2, n * i), n, i);
    let all = || [swiglu(&gate_up), swiglu_backward(&da, &gate_up)].map(|t| values(&t.unwrap()));
    let one = on_threads(1, all);
    assert!(on_threads(3, all) == one && on_threads(8, all) == one);
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    assert!(swiglu(&zeros((2, 5))).unwrap_err().to_string().contains('5'));
    assert!(swiglu_backward(&zeros((2, 3)), &zeros((2, 4))).is_err());
}
