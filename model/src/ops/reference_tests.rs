//! The closed-form gradients of the references against finite differences of their forwards.

use super::super::testing::{ends, random, wide};
use super::*;

fn values(seed: u64, len: usize) -> Vec<f64> {
    wide(&random(seed, len))
}

/// Checks `gradient` of `Σ weights·f(x)` at `x` by central differences.
fn check(what: &str, x: &[f64], weights: &[f64], gradient: &[f64], f: impl Fn(&[f64]) -> Vec<f64>) {
    assert_eq!(gradient.len(), x.len());
    let total = |x: &[f64]| f(x).iter().zip(weights).map(|(y, w)| y * w).sum::<f64>();
    let mut moved = x.to_vec();
    for i in 0..x.len() {
        let step = 1e-5;
        moved[i] = x[i] + step;
        let above = total(&moved);
        moved[i] = x[i] - step;
        let below = total(&moved);
        moved[i] = x[i];
        let slope = (above - below) / (2.0 * step);
        let distance = (slope - gradient[i]).abs();
        assert!(distance < 1e-8 * (1.0 + slope.abs()), "{what} {i}: {slope} {}", gradient[i]);
    }
}

#[test]
fn linear_gradients() {
    let (n, i, o) = (3, 4, 5);
    let (x, w, dy) = (values(1, n * i), values(2, o * i), values(3, n * o));
    let (dx, dw) = linear_backward(&dy, &x, &w, n, i, o);
    check("dx", &x, &dy, &dx, |x| linear(x, &w, n, i, o));
    check("dw", &w, &dy, &dw, |w| linear(&x, w, n, i, o));
}

#[test]
fn norm_gradients() {
    let (x, w, dy) = (values(1, 12), values(2, 4), values(3, 12));
    let (dx, dw) = rms_norm_backward(&dy, &x, &w, 1e-2);
    check("dx", &x, &dy, &dx, |x| rms_norm(x, &w, 1e-2));
    check("dw", &w, &dy, &dw, |w| rms_norm(&x, w, 1e-2));
}

#[test]
fn gate_gradients() {
    let (x, da) = (values(1, 20), values(2, 10));
    check("d", &x, &da, &swiglu_backward(&da, &x, 5), |x| swiglu(x, 5));
}

#[test]
fn query_and_key_gradients() {
    let layout = QkvLayout { heads: 2, kv_heads: 1, head_dim: 4 };
    let row_ends = ends(&[2, 1]);
    let (raw, dy) = (values(1, 3 * layout.width()), values(2, 3 * layout.width()));
    let (q_norm, k_norm) = (values(3, 4), values(4, 4));
    // Cosine and sine need not belong together here.
    let (cos, sin) = (values(5, 4), values(6, 4));
    let weights = QkvWeights { q_norm: &q_norm, k_norm: &k_norm, eps: 1e-3, cos: &cos, sin: &sin };
    let (d_raw, dq, dk) = prepare_qkv_backward(&dy, &raw, &weights, &layout, &row_ends);
    check("raw", &raw, &dy, &d_raw, |raw| prepare_qkv(raw, &weights, &layout, &row_ends));
    check("q", &q_norm, &dy, &dq, |q_norm| {
        prepare_qkv(&raw, &QkvWeights { q_norm, ..weights }, &layout, &row_ends)
    });
    check("k", &k_norm, &dy, &dk, |k_norm| {
        prepare_qkv(&raw, &QkvWeights { k_norm, ..weights }, &layout, &row_ends)
    });
}

#[test]
fn attention_gradients() {
    let layout = QkvLayout { heads: 3, kv_heads: 1, head_dim: 2 };
    let row_ends = ends(&[3, 1, 2]);
    let ready = values(1, 6 * layout.width());
    let d_out = values(2, 6 * 6);
    let gradient = attention_backward(&d_out, &ready, &layout, &row_ends);
    check("ready", &ready, &d_out, &gradient, |x| attention(x, &layout, &row_ends).0);
}

#[test]
fn attention_by_hand() {
    // Two keys whose scores for the second query differ by ln 3: weights 1/4 and 3/4.
    let layout = QkvLayout { heads: 1, kv_heads: 1, head_dim: 2 };
    let score = 3.0_f64.ln() * 2.0_f64.sqrt();
    let ready = [5.0, 5.0, 0.0, 0.0, 1.0, 2.0, 1.0, 0.0, score, 9.0, 5.0, -2.0];
    let (out, lse) = attention(&ready, &layout, &[2]);
    let expected = [1.0, 2.0, 4.0, -1.0];
    assert!(out.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{out:?}");
    assert!((lse[0]).abs() < 1e-12 && (lse[1] - 4.0_f64.ln()).abs() < 1e-12, "{lse:?}");
}

#[test]
fn positions_restart_in_every_row() {
    assert_eq!(positions(&[3, 3, 4, 6]).collect::<Vec<_>>(), [0, 1, 2, 0, 0, 1]);
}
