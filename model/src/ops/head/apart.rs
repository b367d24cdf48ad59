//! How far apart two rows of logits are on the average of either side's probabilities: what the
//! Kullback-Leibler divergences between them are made of.

use multiversion::multiversion;

use super::exps::{BLOCK, reference_point, sum_block};
use crate::ops::math::{self, exp_f32};

/// Sums over a side's logits x beside the other's o, relative to the largest x.
#[derive(Clone, Copy)]
pub(super) struct ApartSums {
    pub(super) max: f64,
    /// `Σ exp((x_j - max) / T)`
    pub(super) at_t: f64,
    /// `Σ exp((x_j - max) / T) (x_j - o_j) / T`
    apart: f64,
}

impl ApartSums {
    /// The sums over no logits.
    pub(super) const NONE: Self = Self { max: 0.0, at_t: 0.0, apart: 0.0 };

    pub(super) fn of(side: &[f32], other: &[f32], temperature: f64) -> Self {
        let max = reference_point(math::max(side));
        let (at_t, apart) = sums_apart(side, other, max, (1.0 / temperature) as f32);
        Self { max: f64::from(max), at_t, apart }
    }

    /// The sums over these logits and others.
    pub(super) fn and(self, other: Self, temperature: f64) -> Self {
        if self.at_t == 0.0 {
            return other;
        }
        let max = self.max.max(other.max);
        let ours = ((self.max - max) / temperature).exp();
        let theirs = ((other.max - max) / temperature).exp();
        Self {
            max,
            at_t: self.at_t * ours + other.at_t * theirs,
            apart: self.apart * ours + other.apart * theirs,
        }
    }

    /// The mean of `(x_j - o_j) / T` under this side's probabilities.
    pub(super) fn mean(&self) -> f64 {
        self.apart / self.at_t
    }

    /// `log Σ exp(x_j / T)`.
    pub(super) fn log_at_t(&self, temperature: f64) -> f64 {
        self.max / temperature + self.at_t.ln()
    }
}

/// `Σ e_j` and `Σ e_j (y_j - z_j) / T` with `e = exp((y - max) / T)`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
fn sums_apart(y: &[f32], z: &[f32], max: f32, inverse_t: f32) -> (f64, f64) {
    let mut space = [[0.0_f32; BLOCK]; 2];
    let (mut at_t, mut apart) = (0.0, 0.0);
    for (y, z) in y.chunks(BLOCK).zip(z.chunks(BLOCK)) {
        let [exps, parts] = &mut space;
        let (exps, parts) = (&mut exps[..y.len()], &mut parts[..y.len()]);
        for (((e, part), &y), &z) in exps.iter_mut().zip(parts.iter_mut()).zip(y).zip(z) {
            *e = exp_f32((y - max) * inverse_t);
            *part = *e * ((y - z) * inverse_t);
        }
        at_t += f64::from(sum_block(exps));
        apart += f64::from(sum_block(parts));
    }
    (at_t, apart)
}

/// `z = a·exp(z - m) + b·exp((z - m) / T) - c·exp((y - n) / T)` in place, with `max` = [m, n] and
/// `weights` = [a, b, c].
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
pub(super) fn blend_apart(
    z: &mut [f32],
    y: &[f32],
    max: [f32; 2],
    inverse_t: f32,
    weights: [f32; 3],
) {
    let ([m, n], [a, b, c]) = (max, weights);
    for (z, &y) in z.iter_mut().zip(y) {
        let below = *z - m;
        let of_student = a * exp_f32(below) + b * exp_f32(below * inverse_t);
        *z = of_student - c * exp_f32((y - n) * inverse_t);
    }
}

/// `z = a·exp(z - m) + exp((z - m) / T)·(b + c·((z - y) / T - mean))` in place, with `weights` =
/// [a, b, c].
///
/// `(z - y) / T` is rounded as [`sums_apart`] rounds it, and `mean` comes in two parts: where one
/// class has nearly all of the mass the mean is its own value, and nothing may be left of it.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
pub(super) fn blend_back(
    z: &mut [f32],
    y: &[f32],
    m: f32,
    mean: f64,
    inverse_t: f32,
    weights: [f32; 3],
) {
    let [a, b, c] = weights;
    let high = mean as f32;
    let low = (mean - f64::from(high)) as f32;
    for (z, &y) in z.iter_mut().zip(y) {
        let below = *z - m;
        let apart = ((*z - y) * inverse_t - high) - low;
        *z = a * exp_f32(below) + exp_f32(below * inverse_t) * (b + c * apart);
    }
}

/// `z -= c·exp((y - n) / T)` in place.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
pub(super) fn take_away(z: &mut [f32], y: &[f32], n: f32, inverse_t: f32, c: f32) {
    for (z, &y) in z.iter_mut().zip(y) {
        *z -= c * exp_f32((y - n) * inverse_t);
    }
}
