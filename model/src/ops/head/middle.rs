//! The Jensen-Shannon divergence between two rows of logits whose normalisers are known.
//!
//! With p the teacher's and q the student's probability of a class and `m = beta p + (1 - beta) q`,
//! let the larger of p and q be `l`, the smaller one `l e`, `e = exp(-|log q - log p|)`. Then
//! `m / l = share of the larger + share of the smaller · e` lies between the larger one's share and
//! 1: nothing overflows, and its logarithm carries the rounding of a number of about 1.

use multiversion::multiversion;

use super::exps::{BLOCK, sum_block};
use crate::ops::math::{exp_f32, ln_f32};

/// Both sides' normalisers and the teacher's share of the middle.
#[derive(Clone, Copy)]
pub(super) struct Middle {
    /// The student's and the teacher's largest logit.
    pub(super) max: [f32; 2],
    /// `log Σ exp((x_j - max) / T)` of either.
    pub(super) log_sum: [f32; 2],
    pub(super) inverse_t: f32,
    /// Of the student and of the teacher: `1 - beta` and `beta`.
    pub(super) shares: [f32; 2],
}

impl Middle {
    /// `[q, p, log(q / m), log(p / m)]` of a class with logits `z` and `y`.
    #[inline(always)]
    fn of(&self, z: f32, y: f32) -> [f32; 4] {
        let log_q = (z - self.max[0]) * self.inverse_t - self.log_sum[0];
        let log_p = (y - self.max[1]) * self.inverse_t - self.log_sum[1];
        let (of_student, of_teacher) = (self.shares[0], self.shares[1]);
        let apart = log_q - log_p;
        let student_has_more = apart > 0.0;
        let apart = apart.abs();
        let (log_larger, share, other_share) = if student_has_more {
            (log_q, of_student, of_teacher)
        } else {
            (log_p, of_teacher, of_student)
        };
        let (larger, e) = (exp_f32(log_larger), exp_f32(-apart));
        let smaller = larger * e;
        let larger_over_m = -ln_f32(share + other_share * e);
        let smaller_over_m = larger_over_m - apart;
        if student_has_more {
            [larger, smaller, larger_over_m, smaller_over_m]
        } else {
            [smaller, larger, smaller_over_m, larger_over_m]
        }
    }
}

/// `Σ q log(q / m)` and `Σ p log(p / m)`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
pub(super) fn sums_from_middle(z: &[f32], y: &[f32], middle: Middle) -> [f64; 2] {
    let mut space = [[0.0_f32; BLOCK]; 2];
    let mut sums = [0.0; 2];
    for (z, y) in z.chunks(BLOCK).zip(y.chunks(BLOCK)) {
        let [of_student, of_teacher] = &mut space;
        let (of_student, of_teacher) = (&mut of_student[..z.len()], &mut of_teacher[..z.len()]);
        for (((s, t), &z), &y) in of_student.iter_mut().zip(of_teacher.iter_mut()).zip(z).zip(y) {
            let [q, p, q_over_m, p_over_m] = middle.of(z, y);
            *s = q * q_over_m;
            *t = p * p_over_m;
        }
        sums[0] += f64::from(sum_block(of_student));
        sums[1] += f64::from(sum_block(of_teacher));
    }
    sums
}

/// `z = a·exp(z - max) + b·q·(log(q / m) - mean)` in place, with `weights` = [a, b].
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
pub(super) fn blend_from_middle(
    z: &mut [f32],
    y: &[f32],
    middle: Middle,
    mean: f32,
    weights: [f32; 2],
) {
    let [a, b] = weights;
    for (z, &y) in z.iter_mut().zip(y) {
        let [q, _, q_over_m, _] = middle.of(*z, y);
        *z = a * exp_f32(*z - middle.max[0]) + b * (q * (q_over_m - mean));
    }
}
