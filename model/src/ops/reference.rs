//! Every operation again, slowly, in `f64`, over row-major slices: the truth its fast counterpart
//! is tested against. The backward functions return gradients, they do not accumulate.
//!
//! The losses and the optimiser are in `distill::reference` and in the tests of their own modules.

use std::ops::Range;

use super::rope::QkvLayout;

/// `y[n, o] = x[n, i]·w[o, i]ᵀ`.
pub fn linear(x: &[f64], w: &[f64], n: usize, i: usize, o: usize) -> Vec<f64> {
    let mut y = vec![0.0; n * o];
    for r in 0..n {
        for c in 0..o {
            y[r * o + c] = (0..i).map(|k| x[r * i + k] * w[c * i + k]).sum();
        }
    }
    y
}

/// `(dx, dw)` of [`linear`].
pub fn linear_backward(
    dy: &[f64],
    x: &[f64],
    w: &[f64],
    n: usize,
    i: usize,
    o: usize,
) -> (Vec<f64>, Vec<f64>) {
    let (mut dx, mut dw) = (vec![0.0; n * i], vec![0.0; o * i]);
    for r in 0..n {
        for c in 0..o {
            for k in 0..i {
                dx[r * i + k] += dy[r * o + c] * w[c * i + k];
                dw[c * i + k] += dy[r * o + c] * x[r * i + k];
            }
        }
    }
    (dx, dw)
}

/// `y = x / √(mean(x²) + eps) · w`, every row of length `w.len()` by itself.
pub fn rms_norm(x: &[f64], w: &[f64], eps: f64) -> Vec<f64> {
    let mut y = Vec::with_capacity(x.len());
    for x in x.chunks_exact(w.len()) {
        let rstd = rstd(x, eps);
        y.extend(x.iter().zip(w).map(|(x, w)| x * rstd * w));
    }
    y
}

/// `(dx, dw)` of [`rms_norm`].
pub fn rms_norm_backward(dy: &[f64], x: &[f64], w: &[f64], eps: f64) -> (Vec<f64>, Vec<f64>) {
    let d = w.len();
    let (mut dx, mut dw) = (Vec::with_capacity(x.len()), vec![0.0; d]);
    for (dy, x) in dy.chunks_exact(d).zip(x.chunks_exact(d)) {
        let rstd = rstd(x, eps);
        let mean = (0..d).map(|j| dy[j] * w[j] * x[j] * rstd).sum::<f64>() / d as f64;
        for j in 0..d {
            dx.push(rstd * (dy[j] * w[j] - x[j] * rstd * mean));
            dw[j] += dy[j] * x[j] * rstd;
        }
    }
    (dx, dw)
}

fn rstd(x: &[f64], eps: f64) -> f64 {
    1.0 / (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + eps).sqrt()
}

/// One head turned to its position: `(a, b) → (a·cos - b·sin, b·cos + a·sin)` for the halves
/// `a`, `b`. `cos` and `sin` hold one angle for each pair.
pub fn rotate(x: &[f64], cos: &[f64], sin: &[f64]) -> Vec<f64> {
    let half = cos.len();
    let first = (0..half).map(|i| x[i] * cos[i] - x[half + i] * sin[i]);
    let second = (0..half).map(|i| x[half + i] * cos[i] + x[i] * sin[i]);
    first.chain(second).collect()
}

/// The gradient of [`rotate`]: turned back by the same angle.
pub fn rotate_backward(dy: &[f64], cos: &[f64], sin: &[f64]) -> Vec<f64> {
    let negative: Vec<f64> = sin.iter().map(|s| -s).collect();
    rotate(dy, cos, &negative)
}

/// The weights and tables that turn raw projections into queries and keys.
#[derive(Clone, Copy, Debug)]
pub struct QkvWeights<'a> {
    /// Norm weight of query heads, `[E]`.
    pub q_norm: &'a [f64],
    /// Norm weight of key heads, `[E]`.
    pub k_norm: &'a [f64],
    /// Added to the mean square.
    pub eps: f64,
    /// Cosines, `[positions, E/2]`.
    pub cos: &'a [f64],
    /// Sines, `[positions, E/2]`.
    pub sin: &'a [f64],
}

/// Norm and rotation of every query and key head; values are copied. `[N, (H+2G)E]` both ways.
pub fn prepare_qkv(
    raw: &[f64],
    weights: &QkvWeights<'_>,
    layout: &QkvLayout,
    row_ends: &[usize],
) -> Vec<f64> {
    let e = layout.head_dim;
    let mut ready = raw.to_vec();
    for (token, position) in positions(row_ends).enumerate() {
        let angles = position * e / 2..(position + 1) * e / 2;
        for head in 0..layout.heads + layout.kv_heads {
            let at = token * layout.width() + head * e;
            let w = if head < layout.heads { weights.q_norm } else { weights.k_norm };
            let normed = rms_norm(&raw[at..at + e], w, weights.eps);
            let (cos, sin) = (&weights.cos[angles.clone()], &weights.sin[angles.clone()]);
            ready[at..at + e].copy_from_slice(&rotate(&normed, cos, sin));
        }
    }
    ready
}

/// `(d_raw, dq_norm, dk_norm)` of [`prepare_qkv`].
pub fn prepare_qkv_backward(
    d_ready: &[f64],
    raw: &[f64],
    weights: &QkvWeights<'_>,
    layout: &QkvLayout,
    row_ends: &[usize],
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let e = layout.head_dim;
    let mut d_raw = d_ready.to_vec();
    let (mut dq_norm, mut dk_norm) = (vec![0.0; e], vec![0.0; e]);
    for (token, position) in positions(row_ends).enumerate() {
        let angles = position * e / 2..(position + 1) * e / 2;
        for head in 0..layout.heads + layout.kv_heads {
            let at = token * layout.width() + head * e;
            let (cos, sin) = (&weights.cos[angles.clone()], &weights.sin[angles.clone()]);
            let d_normed = rotate_backward(&d_ready[at..at + e], cos, sin);
            let query = head < layout.heads;
            let w = if query { weights.q_norm } else { weights.k_norm };
            let (dx, dw) = rms_norm_backward(&d_normed, &raw[at..at + e], w, weights.eps);
            d_raw[at..at + e].copy_from_slice(&dx);
            let acc = if query { &mut dq_norm } else { &mut dk_norm };
            acc.iter_mut().zip(dw).for_each(|(acc, dw)| *acc += dw);
        }
    }
    (d_raw, dq_norm, dk_norm)
}

/// Causal attention within each row: `ready` [N, (H+2G)E] gives `(out [N, H·E], lse [N, H])`.
pub fn attention(ready: &[f64], layout: &QkvLayout, row_ends: &[usize]) -> (Vec<f64>, Vec<f64>) {
    let (h, e) = (layout.heads, layout.head_dim);
    let n = ready.len() / layout.width();
    let (mut out, mut lse) = (vec![0.0; n * h * e], vec![0.0; n * h]);
    for_each_query(layout, row_ends, |query, head, keys| {
        let (p, log_sum) = probabilities(ready, layout, query, head, keys.clone());
        lse[query * h + head] = log_sum;
        for (key, p) in keys.zip(p) {
            let v = layout.value(key, head);
            for c in 0..e {
                out[(query * h + head) * e + c] += p * ready[v + c];
            }
        }
    });
    (out, lse)
}

/// `d_ready` of [`attention`].
pub fn attention_backward(
    d_out: &[f64],
    ready: &[f64],
    layout: &QkvLayout,
    row_ends: &[usize],
) -> Vec<f64> {
    let (h, e) = (layout.heads, layout.head_dim);
    let scale = 1.0 / (e as f64).sqrt();
    let mut d_ready = vec![0.0; ready.len()];
    for_each_query(layout, row_ends, |query, head, keys| {
        let (p, _) = probabilities(ready, layout, query, head, keys.clone());
        let d_out = &d_out[(query * h + head) * e..][..e];
        let d_p: Vec<f64> = keys
            .clone()
            .map(|key| (0..e).map(|c| d_out[c] * ready[layout.value(key, head) + c]).sum())
            .collect();
        let mean: f64 = p.iter().zip(&d_p).map(|(p, d)| p * d).sum();
        let q = layout.query(query, head);
        for (j, key) in keys.enumerate() {
            let (k, v) = (layout.key(key, head), layout.value(key, head));
            let d_score = p[j] * (d_p[j] - mean) * scale;
            for c in 0..e {
                d_ready[q + c] += d_score * ready[k + c];
                d_ready[k + c] += d_score * ready[q + c];
                d_ready[v + c] += p[j] * d_out[c];
            }
        }
    });
    d_ready
}

fn probabilities(
    ready: &[f64],
    layout: &QkvLayout,
    query: usize,
    head: usize,
    keys: Range<usize>,
) -> (Vec<f64>, f64) {
    let e = layout.head_dim;
    let q = layout.query(query, head);
    let score = |key: usize| -> f64 {
        let k = layout.key(key, head);
        (0..e).map(|c| ready[q + c] * ready[k + c]).sum::<f64>() / (e as f64).sqrt()
    };
    let scores: Vec<f64> = keys.map(score).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = max + scores.iter().map(|s| (s - max).exp()).sum::<f64>().ln();
    (scores.iter().map(|s| (s - log_sum).exp()).collect(), log_sum)
}

fn for_each_query(
    layout: &QkvLayout,
    row_ends: &[usize],
    mut visit: impl FnMut(usize, usize, Range<usize>),
) {
    let mut start = 0;
    for &end in row_ends {
        for query in start..end {
            for head in 0..layout.heads {
                visit(query, head, start..query + 1);
            }
        }
        start = end;
    }
}

/// `silu(gate)·up` of rows `[gate [I], up [I]]`.
pub fn swiglu(gate_up: &[f64], i: usize) -> Vec<f64> {
    gate_up
        .chunks_exact(2 * i)
        .flat_map(|row| (0..i).map(|j| row[j] * sigmoid(row[j]) * row[i + j]))
        .collect()
}

/// The gradient of [`swiglu`].
pub fn swiglu_backward(da: &[f64], gate_up: &[f64], i: usize) -> Vec<f64> {
    let mut d = vec![0.0; gate_up.len()];
    for (r, row) in gate_up.chunks_exact(2 * i).enumerate() {
        for j in 0..i {
            let (gate, up, s) = (row[j], row[i + j], sigmoid(row[j]));
            let da = da[r * i + j];
            d[r * 2 * i + j] = da * up * s * (1.0 + gate * (1.0 - s));
            d[r * 2 * i + i + j] = da * gate * s;
        }
    }
    d
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The place of every token in its row.
pub fn positions(row_ends: &[usize]) -> impl Iterator<Item = usize> + '_ {
    let starts = std::iter::once(0).chain(row_ends.iter().copied());
    starts.zip(row_ends).flat_map(|(start, &end)| 0..end - start)
}

#[cfg(test)]
#[path = "reference_tests.rs"]
mod tests;
