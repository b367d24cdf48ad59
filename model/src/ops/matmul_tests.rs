//! Tests of the products: against `f64`, and that a row's bits depend on nothing beside it.

use candle_core::DType;
use proptest::prelude::*;

use super::super::reference;
use super::super::testing::zeros;
use super::super::testing::{
    error, error_beside, matrix as t, on_threads, random, random_matrix, values, wide,
};
use super::*;

/// The products and their accumulating forms against `f64`.
fn check_products(n: usize, i: usize, o: usize, seed: u64) {
    let (x, w, dy) = (random(seed, n * i), random(seed ^ 1, o * i), random(seed ^ 2, n * o));
    let start = random(seed ^ 3, (n * o).max(n * i).max(o * i));
    let (tx, tw, tdy) = (t(&x, n, i), t(&w, o, i), t(&dy, n, o));
    let p = Precision::F32;
    let close = |found: &Tensor, exact: &[f64], depth: usize| {
        let size = (exact.len() as f64 * depth as f64).sqrt();
        assert!(error_beside(size, &values(found), exact) < 1e-6, "{n} x {i} x {o}");
    };
    let added = |exact: &[f64]| -> Vec<f64> {
        exact.iter().zip(&start).map(|(e, s)| e + f64::from(*s)).collect()
    };

    let exact = reference::linear(&wide(&x), &wide(&w), n, i, o);
    close(&linear(&tx, &tw, p).unwrap(), &exact, i);
    let out = t(&start, n, o);
    linear_into(&out, &tx, &tw, p).unwrap();
    close(&out, &added(&exact), i);

    let (dx, dw) = reference::linear_backward(&wide(&dy), &wide(&x), &wide(&w), n, i, o);
    close(&linear_grad_input(&tdy, &tw, p).unwrap(), &dx, o);
    let out = t(&start, o, i);
    linear_grad_weight_into(&out, &tdy, &tx, p).unwrap();
    close(&out, &added(&dw), n);
}

#[test]
fn sums_longer_than_one_piece() {
    for (n, i, o) in [(5, 1300, 7), (1100, 6, 40), (3, 17, 1025), (1, 513, 1), (600, 2, 1)] {
        check_products(n, i, o, 11);
        check_rounded_products(n, i, o, 13, Precision::Bf16);
        check_rounded_products(n, i, o, 14, Precision::F16);
    }
}

/// The products of rounded operands against `f64` products of the same rounded values, stored as
/// `f32` or as what they are rounded to.
fn check_rounded_products(n: usize, i: usize, o: usize, seed: u64, p: Precision) {
    let rounded = |seed: u64, rows: usize, cols: usize| {
        let exact = random_matrix(seed, rows, cols);
        let stored = exact.to_dtype(p.dtype()).unwrap();
        let values = wide(&values(&stored.to_dtype(DType::F32).unwrap()));
        let source = if seed & 1 == 0 { exact } else { stored };
        (source, values)
    };
    let ((x, x64), (w, w64)) = (rounded(seed, n, i), rounded(seed >> 1, o, i));
    let (dy, dy64) = rounded(seed >> 2, n, o);
    let close = |found: &Tensor, exact: &[f64], depth: usize| {
        let size = (exact.len() as f64 * depth as f64).sqrt();
        let error = error_beside(size, &values(found), exact);
        assert!(error < 1e-6, "{n} x {i} x {o} {p}: {error:e}");
    };
    let y = linear(&x, &w, p).unwrap();
    close(&y, &reference::linear(&x64, &w64, n, i, o), i);
    let (dx, dw) = reference::linear_backward(&dy64, &x64, &w64, n, i, o);
    close(&linear_grad_input(&dy, &w, p).unwrap(), &dx, o);
    let found = zeros((o, i));
    linear_grad_weight_into(&found, &dy, &x, p).unwrap();
    close(&found, &dw, n);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn products_of_rounded_operands_agree_with_f64(
        n in 1_usize..70, i in 1_usize..130, o in 1_usize..130, seed: u64, half: bool,
    ) {
        let p = if half { Precision::F16 } else { Precision::Bf16 };
        check_rounded_products(n, i, o, seed, p);
    }

    #[test]
    fn the_three_products_agree_with_f64(
        n in 1_usize..70, i in 1_usize..130, o in 1_usize..130, seed: u64,
    ) {
        check_products(n, i, o, seed);
    }

    #[test]
    fn a_row_alone_has_the_bits_it_has_among_others(
        n in 1_usize..50, i in 1_usize..1400, o in 1_usize..200, seed: u64, half: bool,
    ) {
        let x = random_matrix(seed, n, i);
        let mut w = random_matrix(seed ^ 1, o, i);
        if half {
            w = w.to_dtype(DType::BF16).unwrap();
        }
        let p = if half { Precision::Bf16 } else { Precision::F32 };
        let all = values(&linear(&x, &w, p).unwrap());
        let row = seed as usize % n;
        let alone = values(&linear(&x.narrow(0, row, 1).unwrap(), &w, p).unwrap());
        prop_assert_eq!(&all[row * o..(row + 1) * o], &alone[..]);
        let added = zeros((n, o)).affine(1.0, 1.0).unwrap();
        linear_into(&added, &x, &w, p).unwrap();
        let one = zeros((1, o)).affine(1.0, 1.0).unwrap();
        linear_into(&one, &x.narrow(0, row, 1).unwrap(), &w, p).unwrap();
        prop_assert_eq!(&values(&added)[row * o..(row + 1) * o], &values(&one)[..]);
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    for (n, i, o) in [(600, 256, 700), (600, 1300, 64), (97, 513, 1025), (3, 600, 5000)] {
        let x = random_matrix(1, n, i);
        let w = random_matrix(2, o, i);
        let dy = random_matrix(3, n, o);
        for p in [Precision::F32, Precision::Bf16, Precision::F16] {
            let all = || {
                let dw = zeros((o, i));
                linear_grad_weight_into(&dw, &dy, &x, p).unwrap();
                let y = linear(&x, &w, p).unwrap();
                [values(&y), values(&linear_grad_input(&dy, &w, p).unwrap()), values(&dw)]
            };
            let one = on_threads(1, all);
            for threads in [2, 3, 7, 16] {
                assert!(on_threads(threads, all) == one, "{threads} threads, {n} {i} {o} {p}");
            }
        }
    }
}

#[test]
fn sixteen_bit_products_are_exact_products_of_rounded_operands() {
    let (n, i, o) = (37, 70, 65);
    let x = random_matrix(4, n, i);
    let w = random_matrix(5, o, i);
    for p in [Precision::Bf16, Precision::F16] {
        let round = |t: &Tensor| t.to_dtype(p.dtype()).unwrap();
        let back = |t: &Tensor| wide(&values(&round(t).to_dtype(DType::F32).unwrap()));
        let exact = reference::linear(&back(&x), &back(&w), n, i, o);
        assert!(error(&values(&linear(&x, &w, p).unwrap()), &exact) < 1e-6);
        // A weight stored in the rounded type gives the same bits, one more rounding later.
        let stored = values(&linear(&x, &round(&w), p).unwrap());
        assert_eq!(stored, values(&linear(&x, &w, p).unwrap()));
        let unrounded = reference::linear(&wide(&values(&x)), &wide(&values(&w)), n, i, o);
        assert!(error(&stored, &unrounded) > 1e-4, "nothing was rounded");
    }
}

#[test]
fn a_wide_stored_weight_is_converted_in_several_blocks() {
    let (n, i, o) = (5, 1024, 1500);
    assert!(o * i > 5 * crate::ops::product::WIDEN_BLOCK);
    let x = random_matrix(6, n, i);
    let w = random_matrix(7, o, i);
    let w = w.to_dtype(DType::BF16).unwrap();
    let exact = reference::linear(
        &wide(&values(&x)),
        &wide(&values(&w.to_dtype(DType::F32).unwrap())),
        n,
        i,
        o,
    );
    assert!(error(&values(&linear(&x, &w, Precision::F32).unwrap()), &exact) < 1e-6);
}

#[test]
fn shapes_that_do_not_fit_are_refused_with_both_shapes() {
    let t = |r: usize, c: usize| zeros((r, c));
    let p = Precision::F32;
    let message = linear(&t(3, 4), &t(5, 6), p).unwrap_err().to_string();
    assert!(message.contains("[5, 6]") && message.contains("[5, 4]"), "{message}");
    assert!(linear_into(&t(3, 4), &t(3, 4), &t(5, 4), p).is_err());
    assert!(linear_grad_input(&t(3, 4), &t(5, 6), p).is_err());
    assert!(linear_grad_weight_into(&t(5, 4), &t(3, 5), &t(2, 4), p).is_err());
    let double = t(3, 4).to_dtype(DType::F64).unwrap();
    assert!(linear(&double, &t(5, 4), p).is_err());
    let columns = t(4, 3).t().unwrap();
    assert!(linear(&columns, &t(5, 4), p).unwrap_err().to_string().contains("contiguous"));
}

#[test]
fn no_rows_give_no_rows() {
    let x = zeros((0, 4));
    let w = zeros((5, 4));
    assert_eq!(linear(&x, &w, Precision::F32).unwrap().dims(), [0, 5]);
}
