//! Tests of bias, head norms and rotation: against `f64`, over layouts, rows and threads.

use proptest::prelude::*;

use super::super::reference::{self, QkvWeights};
use super::super::rope::RopeScaling;
use super::super::testing::{
    ends, error, error_beside, matrix, on_threads, random, random_matrix, values, vector, wide,
    zeros,
};
use super::*;

fn tables(head_dim: usize) -> RopeTables {
    RopeTables::new(head_dim, 1e4, &RopeScaling::Default, 40).unwrap()
}

fn layouts() -> impl Strategy<Value = QkvLayout> {
    (1_usize..4, 1_usize..4, 1_usize..20).prop_map(|(kv_heads, group, half)| QkvLayout {
        heads: kv_heads * group,
        kv_heads,
        head_dim: 2 * half,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn forward_and_backward_agree_with_f64(
        layout in layouts(), lengths in prop::collection::vec(1_usize..40, 1..5), seed: u64,
    ) {
        let (row_ends, e) = (ends(&lengths), layout.head_dim);
        let n = *row_ends.last().unwrap();
        let (tables, width, eps) = (tables(e), layout.width(), 1e-6);
        let (raw, d_ready) = (random(seed, n * width), random(seed ^ 1, n * width));
        let (q, k) = (random(seed ^ 2, e), random(seed ^ 3, e));
        let (wq, wk) = (wide(&q), wide(&k));
        let (cos, sin) = (wide(tables.cos()), wide(tables.sin()));
        let weights = QkvWeights { q_norm: &wq, k_norm: &wk, eps, cos: &cos, sin: &sin };

        let (traw, tq, tk) = (matrix(&raw, n, width), vector(&q), vector(&k));
        let (ready, rstd) = prepare_qkv(&traw, &tq, &tk, eps, &tables, &layout, &row_ends).unwrap();
        prop_assert_eq!(rstd.dims(), [n, layout.heads + layout.kv_heads]);
        let exact = reference::prepare_qkv(&wide(&raw), &weights, &layout, &row_ends);
        prop_assert!(error(&values(&ready), &exact) < 5e-7);

        // Both weights' gradients are views of one arena that already holds something.
        let start = random(seed ^ 4, 2 * e);
        let arena = vector(&start);
        let (dq, dk) = (arena.narrow(0, 0, e).unwrap(), arena.narrow(0, e, e).unwrap());
        let d_raw = prepare_qkv_backward(
            &matrix(&d_ready, n, width), &traw, &rstd, &tq, &tk, &tables, &layout, &row_ends, &dq,
            &dk,
        ).unwrap();
        let (ex, eq, ek) = reference::prepare_qkv_backward(
            &wide(&d_ready), &wide(&raw), &weights, &layout, &row_ends,
        );
        prop_assert!(error(&values(&d_raw), &ex) < 2e-6);
        let exact: Vec<f64> =
            eq.iter().chain(&ek).zip(&start).map(|(g, s)| g + f64::from(*s)).collect();
        let size = ((n * width) as f64).sqrt();
        prop_assert!(error_beside(size, &values(&arena), &exact) < 2e-6);
    }

    #[test]
    fn bias_is_added_and_its_gradient_summed(n in 1_usize..200, c in 1_usize..80, seed: u64) {
        let (x, b, db) = (random(seed, n * c), random(seed ^ 1, c), random(seed ^ 2, c));
        let (t, acc) = (matrix(&x, n, c), vector(&db));
        bias_backward_into(&acc, &t).unwrap();
        let exact: Vec<f64> = (0..c)
            .map(|j| f64::from(db[j]) + (0..n).map(|r| f64::from(x[r * c + j])).sum::<f64>())
            .collect();
        let size = ((n * c) as f64).sqrt();
        prop_assert!(error_beside(size, &values(&acc), &exact) < 2e-6);
        add_bias(&t, &vector(&b)).unwrap();
        let exact: Vec<f32> = x.iter().enumerate().map(|(i, x)| x + b[i % c]).collect();
        prop_assert_eq!(values(&t), exact);
    }
}

#[test]
fn a_row_alone_has_the_bits_it_has_among_others_on_any_number_of_threads() {
    let layout = QkvLayout { heads: 3, kv_heads: 1, head_dim: 32 };
    let (n, row_ends) = (230, ends(&[30, 40, 40, 1, 40, 40, 39]));
    let raw = random_matrix(1, n, layout.width());
    let (q, k, tables) = (vector(&random(2, 32)), vector(&random(3, 32)), tables(32));
    let all = || {
        let (ready, rstd) = prepare_qkv(&raw, &q, &k, 1e-6, &tables, &layout, &row_ends).unwrap();
        let (dq, dk) = (zeros(32), zeros(32));
        let d = prepare_qkv_backward(
            &raw, &ready, &rstd, &q, &k, &tables, &layout, &row_ends, &dq, &dk,
        );
        [values(&ready), values(&d.unwrap()), values(&dq), values(&dk)]
    };
    let one = on_threads(1, all);
    assert!(on_threads(2, all) == one && on_threads(7, all) == one);
    let row = raw.narrow(0, 70, 40).unwrap();
    let (alone, _) = prepare_qkv(&row, &q, &k, 1e-6, &tables, &layout, &[40]).unwrap();
    assert!(one[0][70 * layout.width()..110 * layout.width()] == values(&alone));
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let layout = QkvLayout { heads: 2, kv_heads: 1, head_dim: 4 };
    let (q, k, tables) = (zeros(4), zeros(4), tables(4));
    let raw = zeros((50, layout.width()));
    let message = |layout: QkvLayout, row_ends: &[usize]| {
        prepare_qkv(&raw, &q, &k, 1e-6, &tables, &layout, row_ends).unwrap_err().to_string()
    };
    assert!(message(layout, &[50]).contains("row of 50 tokens"));
    assert!(message(layout, &[20, 40]).contains("ends at 40"));
    assert!(message(layout, &[30, 20, 50]).contains("20 after 30"));
    assert!(message(QkvLayout { kv_heads: 3, ..layout }, &[50]).contains("2 query heads"));
    assert!(message(QkvLayout { head_dim: 3, ..layout }, &[50]).contains("dimension of 3"));
    assert!(message(QkvLayout { heads: 4, ..layout }, &[50]).contains("raw projections"));
}
