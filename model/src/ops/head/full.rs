//! One position under a teacher that says everything: its logits of all classes.
//!
//! With student logits z and teacher logits y, p = softmax(y / T) and q = softmax(z / T):
//!
//! ```text
//! KL  = Σ p_j (y_j - z_j) / T - logsumexp(y / T) + logsumexp(z / T)
//! g_j = (1 - alpha) softmax(z)_j + alpha T (q_j - p_j)      before -(1 - alpha) at the target
//! ```
//!
//! The sums come from blocks of classes, each relative to the largest logit so far; no probability is
//! stored.

use multiversion::multiversion;

use super::LossSettings;
use super::exps::{BLOCK, RestSums, position_of, reference_point, sum_block};
use super::row::RowLoss;
use crate::ops::math::{self, exp_f32};

/// A position, and what its blocks of logits have told so far.
pub(super) struct FullRow {
    target: usize,
    temperature: f64,
    ce_weight: f64,
    /// `alpha T² / T`
    kl_weight: f64,
    logit_of_target: f64,
    /// The student's largest logit, and the first class that has it.
    best: (f32, u32),
    student: RestSums,
    teacher: TeacherSums,
}

/// Sums over the teacher's logits y, relative to the largest of them.
#[derive(Clone, Copy)]
struct TeacherSums {
    max: f64,
    /// `Σ exp((y_j - max) / T)`
    at_t: f64,
    /// `Σ exp((y_j - max) / T) (y_j - z_j) / T`
    apart: f64,
}

impl TeacherSums {
    /// The sums over these logits and others.
    fn and(self, other: Self, temperature: f64) -> Self {
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
}

impl FullRow {
    pub(super) fn new(target: usize, settings: &LossSettings) -> Self {
        Self {
            target,
            temperature: settings.temperature,
            ce_weight: 1.0 - settings.alpha,
            kl_weight: settings.alpha * settings.temperature,
            logit_of_target: f64::NAN,
            best: (f32::NEG_INFINITY, u32::MAX),
            student: RestSums::NONE,
            teacher: TeacherSums { max: 0.0, at_t: 0.0, apart: 0.0 },
        }
    }

    /// Takes note of both sides' logits of the classes from `first` on; blocks come in order.
    pub(super) fn listen(&mut self, logits: &[f32], teacher: &[f32], first: usize) {
        if let Some(&logit) = self.target.checked_sub(first).and_then(|at| logits.get(at)) {
            self.logit_of_target = f64::from(logit);
        }
        let t = self.temperature;
        let max = math::max(logits);
        if max > self.best.0
            && let Some(at) = position_of(logits, max)
        {
            self.best = (max, (first + at) as u32);
        }
        self.student = self.student.and(RestSums::of(logits, max, t), t);
        let max = reference_point(math::max(teacher));
        let (at_t, apart) = sums_apart(teacher, logits, max, (1.0 / t) as f32);
        self.teacher = self.teacher.and(TeacherSums { max: f64::from(max), at_t, apart }, t);
    }

    /// Turns the student's logits of the classes from `first` on, as they were heard with the
    /// teacher's, into the gradient of `alpha T² KL + (1 - alpha) CE`; all classes were heard.
    pub(super) fn gradient(&self, logits: &mut [f32], teacher: &[f32], first: usize) {
        let t = self.temperature;
        let at_one = self.ce_weight * (self.student.max - self.student.log_at_one()).exp();
        let at_t = self.kl_weight * (self.student.max / t - self.student.log_at_t(t)).exp();
        let of_teacher = self.kl_weight / self.teacher.at_t;
        let max = [self.student.max as f32, self.teacher.max as f32];
        let weights = [at_one as f32, at_t as f32, of_teacher as f32];
        blend_apart(logits, teacher, max, (1.0 / t) as f32, weights);
        if let Some(at) = self.target.checked_sub(first).filter(|&at| at < logits.len()) {
            logits[at] -= self.ce_weight as f32;
        }
    }

    /// The losses; all classes were heard.
    pub(super) fn losses(&self) -> RowLoss {
        let t = self.temperature;
        let log_z_of_teacher = self.teacher.max / t + self.teacher.at_t.ln();
        let kl =
            self.teacher.apart / self.teacher.at_t - log_z_of_teacher + self.student.log_at_t(t);
        RowLoss {
            ce: self.student.log_at_one() - self.logit_of_target,
            // What lies below 0 is rounding; NaN stays.
            kl: if kl < 0.0 { 0.0 } else { kl },
            argmax: self.best.1,
            teacher_mass: 1.0,
            student_mass: 1.0,
        }
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
fn blend_apart(z: &mut [f32], y: &[f32], max: [f32; 2], inverse_t: f32, weights: [f32; 3]) {
    let ([m, n], [a, b, c]) = (max, weights);
    for (z, &y) in z.iter_mut().zip(y) {
        let below = *z - m;
        let of_student = a * exp_f32(below) + b * exp_f32(below * inverse_t);
        *z = of_student - c * exp_f32((y - n) * inverse_t);
    }
}
