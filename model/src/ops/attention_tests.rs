//! Tests of attention: against `f64`, over layouts and row lengths around the tile, bit for bit
//! over threads and neighbours.

use proptest::prelude::*;

use super::super::reference;
use super::super::testing::{ends, error, matrix, on_threads, random, random_matrix, values, wide};
use super::*;

fn check(layout: QkvLayout, lengths: &[usize], seed: u64) {
    let row_ends = ends(lengths);
    let (n, width) = (*row_ends.last().unwrap(), layout.width());
    let out_width = layout.heads * layout.head_dim;
    let ready: Vec<f32> = random(seed, n * width).iter().map(|x| x * 2.0).collect();
    let d_out = random(seed ^ 1, n * out_width);
    let t = matrix(&ready, n, width);
    let (out, lse) = attention(&t, &layout, &row_ends, Precision::F32).unwrap();
    let (exact, exact_lse) = reference::attention(&wide(&ready), &layout, &row_ends);
    assert!(error(&values(&out), &exact) < 1e-6, "out of {layout:?} {lengths:?}");
    assert!(error(&values(&lse), &exact_lse) < 1e-6, "lse of {layout:?} {lengths:?}");
    let d_out_t = matrix(&d_out, n, out_width);
    let found =
        attention_backward(&d_out_t, &t, &out, &lse, &layout, &row_ends, Precision::F32).unwrap();
    let exact = reference::attention_backward(&wide(&d_out), &wide(&ready), &layout, &row_ends);
    assert!(error(&values(&found), &exact) < 3e-6, "gradient of {layout:?} {lengths:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn forward_and_backward_agree_with_f64(
        kv_heads in 1_usize..3, group in 1_usize..4, half in 1_usize..17,
        lengths in prop::collection::vec(1_usize..80, 1..5), seed: u64,
    ) {
        let layout = QkvLayout { heads: kv_heads * group, kv_heads, head_dim: 2 * half };
        check(layout, &lengths, seed);
    }
}

#[test]
fn row_lengths_around_the_tile() {
    let layout = QkvLayout { heads: 3, kv_heads: 1, head_dim: 32 };
    for length in [1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200] {
        check(layout, &[length], 7);
    }
    check(QkvLayout { heads: 1, kv_heads: 1, head_dim: 2 }, &[1], 8);
    check(QkvLayout { heads: 4, kv_heads: 4, head_dim: 64 }, &[300, 1, 1, 70], 9);
}

#[test]
fn scores_far_apart_neither_overflow_nor_vanish() {
    // Scores of ±4000: the softmax is a choice of one key.
    let layout = QkvLayout { heads: 1, kv_heads: 1, head_dim: 2 };
    let size = (4000.0 * 2.0_f32.sqrt()).sqrt();
    let token = |q: f32, k: f32, v: f32| [q * size, 0.0, k * size, 0.0, v, -v];
    let ready = [token(1.0, 1.0, 5.0), token(1.0, -1.0, 6.0), token(-1.0, 0.0, 7.0)].concat();
    let (out, lse) = attention(&matrix(&ready, 3, 6), &layout, &[3], Precision::F32).unwrap();
    assert_eq!(values(&out), [5.0, -5.0, 5.0, -5.0, 6.0, -6.0]);
    assert!(values(&lse).iter().all(|lse| (lse - 4000.0).abs() < 0.01));
    let d =
        attention_backward(&out, &matrix(&ready, 3, 6), &out, &lse, &layout, &[3], Precision::F32)
            .unwrap();
    assert!(values(&d).iter().all(|d| d.is_finite()));
}

#[test]
fn a_row_alone_has_the_bits_it_has_among_others_on_any_number_of_threads() {
    let layout = QkvLayout { heads: 4, kv_heads: 2, head_dim: 24 };
    let (n, row_ends) = (331, ends(&[100, 130, 1, 100]));
    let ready = random_matrix(1, n, layout.width());
    let d_out = random_matrix(2, n, 96);
    for precision in [Precision::F32, Precision::Bf16, Precision::F16] {
        let both = |ready: &Tensor, d_out: &Tensor, row_ends: &[usize]| {
            let (out, lse) = attention(ready, &layout, row_ends, precision).unwrap();
            let d =
                attention_backward(d_out, ready, &out, &lse, &layout, row_ends, precision).unwrap();
            [values(&out), values(&lse), values(&d)]
        };
        let one = on_threads(1, || both(&ready, &d_out, &row_ends));
        for threads in [2, 3, 8] {
            assert!(on_threads(threads, || both(&ready, &d_out, &row_ends)) == one, "{threads}");
        }
        for (start, length) in [(100, 130), (230, 1)] {
            let narrow = |t: &Tensor| t.narrow(0, start, length).unwrap();
            let alone = both(&narrow(&ready), &narrow(&d_out), &[length]);
            for (all, alone) in one.iter().zip(&alone) {
                let width = alone.len() / length;
                assert!(all[start * width..(start + length) * width] == *alone, "row at {start}");
            }
        }
    }
}

/// Every rounding is by at most 2^-9 of a value; the scores here are sums of size 1, so their
/// exponentials are off by less than a hundredth, and so is what is made of them.
#[test]
fn rounded_operands_stay_as_near_as_their_digits_allow() {
    let layout = QkvLayout { heads: 4, kv_heads: 2, head_dim: 32 };
    let (n, row_ends) = (200, ends(&[130, 1, 69]));
    let (ready, d_out) = (random(3, n * layout.width()), random(4, n * 128));
    let (t, d_out_t) = (matrix(&ready, n, layout.width()), matrix(&d_out, n, 128));
    let (out, lse) = attention(&t, &layout, &row_ends, Precision::Bf16).unwrap();
    let (exact, exact_lse) = reference::attention(&wide(&ready), &layout, &row_ends);
    let gradient = Precision::Bf16;
    let found = attention_backward(&d_out_t, &t, &out, &lse, &layout, &row_ends, gradient).unwrap();
    let exact_gradient =
        reference::attention_backward(&wide(&d_out), &wide(&ready), &layout, &row_ends);
    let pairs = [(out, exact), (lse, exact_lse), (found, exact_gradient)];
    for (found, exact) in pairs {
        let error = error(&values(&found), &exact);
        assert!((1e-5..1e-2).contains(&error), "{error:e}");
    }
}

#[test]
fn empty_rows_are_passed_over_and_wrong_shapes_refused() {
    let layout = QkvLayout { heads: 2, kv_heads: 1, head_dim: 4 };
    let ready = random_matrix(1, 5, layout.width());
    let (out, lse) = attention(&ready, &layout, &[2, 5], Precision::F32).unwrap();
    let (same, _) = attention(&ready, &layout, &[0, 2, 2, 5], Precision::F32).unwrap();
    assert_eq!(values(&out), values(&same));
    let (none, _) =
        attention(&ready.narrow(0, 0, 0).unwrap(), &layout, &[], Precision::F32).unwrap();
    assert_eq!(none.dims(), [0, 8]);
    assert!(attention(&ready, &layout, &[2, 4], Precision::F32).is_err());
    let wider = QkvLayout { heads: 3, ..layout };
    assert!(
        attention(&ready, &wider, &[5], Precision::F32)
            .unwrap_err()
            .to_string()
            .contains("[5, 20]")
    );
    assert!(attention_backward(&ready, &ready, &out, &lse, &layout, &[5], Precision::F32).is_err());
}
