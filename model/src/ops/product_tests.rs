//! Tests of what the operations above do not reach: the way of a processor without bfloat16, and how
//! a product is divided.

use super::super::testing::{error, on_threads, random};
use super::*;

/// A processor with the instruction takes [`bf16`] wherever bfloat16 is asked for; the other way
/// must give the same products, to the rounding of their sums.
#[test]
fn a_processor_without_the_instruction_gets_the_same_products() {
    let (m, n, k) = (37, 300, 1100);
    let (a, b) = (random(1, m * k), random(2, k * n));
    let (a, b) = (MatRef::new(&a[..], m, k), MatRef::new(&b[..], k, n));
    let mut by_widening = vec![0.0; m * n];
    let dst = MatMut::new(&mut by_widening, m, n);
    widening(dst, Store::Replace, 0.5, a, b, Precision::Bf16);
    let mut found = vec![1.0; m * n];
    let dst = MatMut::new(&mut found, m, n);
    product(dst, Store::Replace, 0.5, a, b, Precision::Bf16, Threads::Pool);
    let exact: Vec<f64> = by_widening.iter().copied().map(f64::from).collect();
    assert!(error(&found, &exact) < 1e-6);
}

/// The same for an operand that was laid out before, in whole and for a row alone.
#[test]
fn a_matrix_laid_out_once_gives_the_same_products() {
    for (m, n, k) in [(1, 1, 1), (37, 300, 1101), (200, 33, 2), (61, 70, 4000)] {
        let (a, b) = (random(7, m * k), random(8, n * k));
        let (a, b) = (MatRef::new(&a[..], m, k), MatRef::new(&b[..], n, k).transposed());
        let laid = Laid::out(b);
        #[cfg(target_arch = "x86_64")]
        assert_eq!(laid.is_some(), bf16::available());
        let Some(laid) = laid else { return };
        let mut by_widening = vec![0.0; m * n];
        let dst = MatMut::new(&mut by_widening, m, n);
        widening(dst, Store::Replace, 0.5, a, b, Precision::Bf16);
        let exact: Vec<f64> = by_widening.iter().copied().map(f64::from).collect();
        let run = |a: MatRef<'_>| {
            let mut found = vec![f32::NAN; a.rows() * n];
            let dst = MatMut::new(&mut found, a.rows(), n);
            laid.product(dst, 0.5, a, Threads::Pool);
            found
        };
        let one = on_threads(1, || run(a));
        assert!(error(&one, &exact) < 1e-6, "{m} x {n} x {k}");
        for threads in [2, 7, 64] {
            assert!(on_threads(threads, || run(a)) == one, "{m} x {n} x {k}, {threads} threads");
        }
        assert_eq!(run(a.row_range(m - 1..m)), one[(m - 1) * n..]);
    }
}

#[test]
fn infinities_and_nan_are_seen_and_touch_their_own_rows_only() {
    let (m, n, k) = (14, 40, 33);
    for bad in [f32::NAN, f32::INFINITY] {
        let (mut a, b) = (random(3, m * k), random(4, k * n));
        a[5 * k + 32] = bad;
        for precision in [Precision::F32, Precision::Bf16, Precision::F16] {
            let mut found = vec![0.0; m * n];
            let dst = MatMut::new(&mut found, m, n);
            let (a, b) = (MatRef::new(&a[..], m, k), MatRef::new(&b[..], k, n));
            product(dst, Store::Replace, 1.0, a, b, precision, Threads::Own);
            for (row, values) in found.chunks_exact(n).enumerate() {
                assert_eq!(values.iter().all(|v| v.is_finite()), row != 5, "{bad} {precision}");
            }
        }
    }
}

/// A machine with many more threads than a small product has parts worth giving.
#[test]
fn more_threads_than_parts_change_nothing() {
    for (m, n, k) in [(32, 32, 512), (32, 384, 1024), (64, 64, 128), (1, 4096, 256), (13, 33, 4000)]
    {
        let (a, b) = (random(5, m * k), random(6, k * n));
        for precision in [Precision::F32, Precision::Bf16, Precision::F16] {
            let run = || {
                let mut found = vec![0.0; m * n];
                let dst = MatMut::new(&mut found, m, n);
                let (a, b) = (MatRef::new(&a[..], m, k), MatRef::new(&b[..], k, n));
                product(dst, Store::Replace, 1.0, a, b, precision, Threads::Pool);
                found
            };
            let one = on_threads(1, run);
            for threads in [16, 64, 128] {
                assert!(on_threads(threads, run) == one, "{m} x {n} x {k}, {threads}, {precision}");
            }
        }
    }
}

#[test]
fn a_product_of_depth_zero_is_zero() {
    let none: [f32; 0] = [];
    for precision in [Precision::F32, Precision::Bf16] {
        let mut found = vec![7.0; 6];
        let dst = MatMut::new(&mut found, 2, 3);
        let (a, b) = (MatRef::new(&none[..], 2, 0), MatRef::new(&none[..], 0, 3));
        product(dst, Store::Replace, 1.0, a, b, precision, Threads::Own);
        assert_eq!(found, [0.0; 6]);
    }
}

#[test]
fn parts_cover_a_product_once_and_read_the_least() {
    assert_eq!(reading_least(1000, 10, 6), [6, 1]);
    assert_eq!(reading_least(100, 100, 4), [2, 2]);
    assert_eq!(reading_least(10, 1000, 7), [1, 7]);
    // Where gemm does the arithmetic: by columns, unless they would be narrow; many parts as above.
    assert_eq!(single::grid(512, 6144, 2), [1, 2]);
    assert_eq!(single::grid(1024, 256, 2), [1, 2]);
    assert_eq!(single::grid(1024, 1536, 2), [2, 1]);
    assert_eq!(single::grid(512, 1536, 2), [1, 2]);
    assert_eq!(single::grid(1000, 10, 6), [6, 1]);
    for (shares, len, unit) in [(3, 100, 12), (7, 5, 32), (16, 513, 64)] {
        let mut end = 0;
        for number in 0..shares {
            let range = share(number, shares, len, unit);
            assert_eq!(range.start, end);
            end = range.end;
        }
        assert_eq!(end, len);
    }
}
