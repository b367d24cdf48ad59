//! One position under a teacher that says everything: its logits of all classes.
//!
//! With student logits z and teacher logits y, p = softmax(y / T), q = softmax(z / T) and
//! d_j = (z_j - y_j) / T:
//!
//! ```text
//! forward  KL(p || q) = -Σ p_j d_j - logsumexp(y / T) + logsumexp(z / T)
//! reverse  KL(q || p) =  Σ q_j d_j + logsumexp(y / T) - logsumexp(z / T)
//! jsd      with m = beta p + (1 - beta) q: beta KL(p || m) + (1 - beta) KL(q || m)
//!
//! g_j = (1 - alpha) softmax(z)_j + alpha T G_j      before -(1 - alpha) at the target
//! forward  G_j = q_j - p_j
//! reverse  G_j = q_j (d_j - Σ q_i d_i)
//! jsd      G_j = (1 - beta) q_j (log(q_j / m_j) - KL(q || m))
//! ```
//!
//! The sums come from blocks of classes, each relative to the largest logit so far; no probability is
//! stored. What m needs is both sides' sums over all classes: its logarithms are summed when these
//! are known, by listening a second time.

use super::apart::{ApartSums, blend_apart, blend_back, take_away};
use super::exps::{RestSums, position_of};
use super::middle::{Middle, blend_from_middle, sums_from_middle};
use super::row::RowLoss;
use super::{Divergence, LossSettings};
use crate::ops::math;

/// What one side's logits tell by themselves.
struct Side {
    logit_of_target: f64,
    /// The largest logit, and the first class that has it.
    best: (f32, u32),
    sums: RestSums,
}

impl Side {
    const NONE: Self = Self {
        logit_of_target: f64::NAN,
        best: (f32::NEG_INFINITY, u32::MAX),
        sums: RestSums::NONE,
    };

    /// Takes note of the logits of the classes from `first` on.
    fn listen(&mut self, logits: &[f32], first: usize, target: usize, temperature: f64) {
        if let Some(&logit) = target.checked_sub(first).and_then(|at| logits.get(at)) {
            self.logit_of_target = f64::from(logit);
        }
        let max = math::max(logits);
        if max > self.best.0
            && let Some(at) = position_of(logits, max)
        {
            self.best = (max, (first + at) as u32);
        }
        self.sums = self.sums.and(RestSums::of(logits, max, temperature), temperature);
    }

    /// `-log softmax(x)[target]`
    fn ce(&self) -> f64 {
        self.sums.log_at_one() - self.logit_of_target
    }
}

/// A position, and what its blocks of logits have told so far.
pub(super) struct FullRow {
    target: usize,
    temperature: f64,
    divergence: Divergence,
    ce_weight: f64,
    /// `alpha T² / T`
    kl_weight: f64,
    student: Side,
    /// The teacher alone, at T = 1: of no use to a gradient, so only where none is made.
    measured: Option<Side>,
    /// The teacher's, beside the student.
    teacher: ApartSums,
    /// The student's, beside the teacher; where the divergence asks for them.
    back: ApartSums,
    /// `KL(q || m)` and `KL(p || m)`, where the divergence asks for them.
    from_middle: [f64; 2],
}

impl FullRow {
    /// `measures` the teacher's own loss too.
    pub(super) fn new(target: usize, settings: &LossSettings, measures: bool) -> Self {
        Self {
            target,
            temperature: settings.temperature,
            divergence: settings.divergence.simplest(),
            ce_weight: 1.0 - settings.alpha,
            kl_weight: settings.alpha * settings.temperature,
            student: Side::NONE,
            measured: measures.then_some(Side::NONE),
            teacher: ApartSums::NONE,
            back: ApartSums::NONE,
            from_middle: [0.0; 2],
        }
    }

    /// Takes note of both sides' logits of the classes from `first` on; blocks come in order.
    pub(super) fn listen(&mut self, logits: &[f32], teacher: &[f32], first: usize) {
        let t = self.temperature;
        self.student.listen(logits, first, self.target, t);
        if let Some(measured) = &mut self.measured {
            measured.listen(teacher, first, self.target, 1.0);
        }
        self.teacher = self.teacher.and(ApartSums::of(teacher, logits, t), t);
        if let Divergence::ReverseKl | Divergence::Mixture { .. } = self.divergence {
            self.back = self.back.and(ApartSums::of(logits, teacher, t), t);
        }
    }

    /// Takes note of the same logits once more, all classes heard; blocks come in order.
    pub(super) fn listen_again(&mut self, logits: &[f32], teacher: &[f32]) {
        if let Divergence::Jsd { beta } = self.divergence {
            let [of_student, of_teacher] = sums_from_middle(logits, teacher, self.middle(beta));
            self.from_middle[0] += of_student;
            self.from_middle[1] += of_teacher;
        }
    }

    /// Turns the student's logits of the classes from `first` on, as they were heard with the
    /// teacher's, into the gradient of `alpha T² D + (1 - alpha) CE`; all classes were heard.
    pub(super) fn gradient(&self, logits: &mut [f32], teacher: &[f32], first: usize) {
        match self.divergence {
            Divergence::ForwardKl => self.forward(logits, teacher),
            Divergence::ReverseKl => self.reverse(logits, teacher, 1.0),
            Divergence::Mixture { beta } => self.reverse(logits, teacher, beta),
            Divergence::Jsd { beta } => {
                let weights = [self.at_one() as f32, (self.kl_weight * (1.0 - beta)) as f32];
                let (middle, mean) = (self.middle(beta), self.from_middle[0] as f32);
                blend_from_middle(logits, teacher, middle, mean, weights);
            }
        }
        if let Some(at) = self.target.checked_sub(first).filter(|&at| at < logits.len()) {
            logits[at] -= self.ce_weight as f32;
        }
    }

    fn forward(&self, logits: &mut [f32], teacher: &[f32]) {
        let of_teacher = self.kl_weight / self.teacher.at_t;
        let weights = [self.at_one() as f32, self.at_t() as f32, of_teacher as f32];
        blend_apart(logits, teacher, self.max(), self.inverse_t(), weights);
    }

    /// The gradient where the reverse divergence weighs `share` and the forward one the rest.
    fn reverse(&self, logits: &mut [f32], teacher: &[f32], share: f64) {
        let at_t = self.at_t();
        let weights = [self.at_one(), at_t * (1.0 - share), at_t * share].map(|w| w as f32);
        let [of_student, of_teacher] = self.max();
        blend_back(logits, teacher, of_student, self.back.mean(), self.inverse_t(), weights);
        if share < 1.0 {
            let weight = (1.0 - share) * self.kl_weight / self.teacher.at_t;
            take_away(logits, teacher, of_teacher, self.inverse_t(), weight as f32);
        }
    }

    /// What `exp(z - max)` counts in the gradient.
    fn at_one(&self) -> f64 {
        self.ce_weight * (self.student.sums.max - self.student.sums.log_at_one()).exp()
    }

    /// What `exp((z - max) / T)` counts in the gradient, as the student's probability at T.
    fn at_t(&self) -> f64 {
        let t = self.temperature;
        self.kl_weight * (self.student.sums.max / t - self.student.sums.log_at_t(t)).exp()
    }

    fn max(&self) -> [f32; 2] {
        [self.student.sums.max as f32, self.teacher.max as f32]
    }

    fn inverse_t(&self) -> f32 {
        (1.0 / self.temperature) as f32
    }

    fn middle(&self, beta: f64) -> Middle {
        Middle {
            max: self.max(),
            log_sum: [self.student.sums.at_t.ln() as f32, self.teacher.at_t.ln() as f32],
            inverse_t: self.inverse_t(),
            shares: [(1.0 - beta) as f32, beta as f32],
        }
    }

    /// The losses; all classes were heard, twice where the divergence asks for it.
    pub(super) fn losses(&self) -> RowLoss {
        let t = self.temperature;
        let (of_student, of_teacher) = (self.student.sums.log_at_t(t), self.teacher.log_at_t(t));
        let forward = || self.teacher.mean() - of_teacher + of_student;
        let reverse = || self.back.mean() - of_student + of_teacher;
        let kl = match self.divergence {
            Divergence::ForwardKl => forward(),
            Divergence::ReverseKl => reverse(),
            Divergence::Mixture { beta } => (1.0 - beta) * forward() + beta * reverse(),
            Divergence::Jsd { beta } => {
                (1.0 - beta) * self.from_middle[0] + beta * self.from_middle[1]
            }
        };
        RowLoss {
            ce: self.student.ce(),
            // What lies below 0 is rounding; NaN stays.
            kl: if kl < 0.0 { 0.0 } else { kl },
            argmax: self.student.best.1,
            teacher_mass: 1.0,
            student_mass: 1.0,
            kl_rest: 0.0,
            entropy: self.teacher.entropy(),
            teacher: self.measured.as_ref().map(|side| (side.ce(), side.best.1)),
        }
    }
}
