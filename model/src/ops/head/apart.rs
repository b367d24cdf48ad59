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
    /// `Σ exp((x_j - max) / T) (x_j - max) / T`
    below: f64,
}

impl ApartSums {
    /// The sums over no logits.
    pub(super) const NONE: Self = Self { max: 0.0, at_t: 0.0, apart: 0.0, below: 0.0 };

    pub(super) fn of(side: &[f32], other: &[f32], temperature: f64) -> Self {
        let max = reference_point(math::max(side));
        let [at_t, apart, below] = sums_apart(side, other, max, (1.0 / temperature) as f32);
        Self { max: f64::from(max), at_t, apart, below }
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
            below: (self.below + self.at_t * (self.max - max) / temperature) * ours
                + (other.below + other.at_t * (other.max - max) / temperature) * theirs,
        }
    }

    /// The mean of `(x_j - o_j) / T` under this side's probabilities.
    pub(super) fn mean(&self) -> f64 {
        self.apart / self.at_t
    }

    /// Entropy of this side's probabilities, in nats.
    pub(super) fn entropy(&self) -> f64 {
        self.at_t.ln() - self.below / self.at_t
    }

    /// `log Σ exp(x_j / T)`.
    pub(super) fn log_at_t(&self, temperature: f64) -> f64 {
        self.max / temperature + self.at_t.ln()
    }
}

/// `Σ e_j`, `Σ e_j (y_j - z_j) / T` and `Σ e_j (y_j - max) / T` with `e = exp((y - max) / T)`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
fn sums_apart(y: &[f32], z: &[f32], max: f32, inverse_t: f32) -> [f64; 3] {
    let mut space = [[0.0_f32; BLOCK]; 3];
    let mut sums = [0.0; 3];
    for (y, z) in y.chunks(BLOCK).zip(z.chunks(BLOCK)) {
        let [exps, parts, belows] = &mut space;
        let exps = &mut exps[..y.len()];
        let rest = parts[..y.len()].iter_mut().zip(&mut belows[..y.len()]);
        for (((e, (part, below)), &y), &z) in exps.iter_mut().zip(rest).zip(y).zip(z) {
            let depth = (y - max) * inverse_t;
            *e = exp_f32(depth);
            *part = *e * ((y - z) * inverse_t);
            // What is nothing to the sum is nothing here too, where 0 times -inf is no number.
            *below = if *e > 0.0 { *e * depth } else { 0.0 };
        }
        for (sum, values) in sums.iter_mut().zip([&*exps, &parts[..y.len()], &belows[..y.len()]]) {
            *sum += f64::from(sum_block(values));
        }
    }
    sums
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
