//! One position: its losses and their gradient, from its logits.
//!
//! With the signal's k tokens taken out, the gradient of every other class j is
//!
//! ```text
//! g_j = a e^(z_j - m) + b e^((z_j - m) / T),   m the largest logit among them,
//! a = (1 - alpha) e^(m - logZ_1)
//! b = alpha T (e^(m / T - logZ_T) - p_rest / Σ e^((z_j - m) / T))
//! ```
//!
//! two coefficients a row (before -1 at the target): `b` is `alpha T² · (q_j - p_rest s_j) / T`
//! with `s` the softmax among them. Tail `renormalise` is the same with the k probabilities scaled
//! up to sum to 1 and `p_rest` = 0.

use distill::signal::TopK;

use super::exps::{RestSums, blend, log_sum, position_of};
use super::{LossSettings, Tail};
use crate::ops::math;

/// What a position gives.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowLoss {
    pub(super) ce: f64,
    pub(super) kl: f64,
    pub(super) argmax: u32,
    pub(super) teacher_mass: f64,
    pub(super) student_mass: f64,
}

/// A position, without its logits.
pub(super) struct Row<'a> {
    target: usize,
    /// The signal's tokens; none without a signal.
    ids: &'a [u32],
    /// Their probabilities, as the tail makes them.
    p: Vec<f64>,
    p_rest: f64,
    teacher_mass: f64,
    /// 1 without a signal: one pass of exponentials is enough.
    temperature: f64,
    ce_weight: f64,
    /// `alpha T² / T`
    kl_weight: f64,
}

impl<'a> Row<'a> {
    /// `signal` is a signal and the row of it that speaks of this position.
    pub(super) fn new(
        target: usize,
        signal: Option<(&'a TopK, usize)>,
        settings: &LossSettings,
    ) -> Self {
        let LossSettings { alpha, temperature, tail, .. } = *settings;
        let ce_weight = 1.0 - alpha;
        let Some((signal, row)) = signal else {
            return Self {
                target,
                ids: &[],
                p: Vec::new(),
                p_rest: 0.0,
                teacher_mass: 0.0,
                temperature: 1.0,
                ce_weight,
                kl_weight: 0.0,
            };
        };
        let (mut p, mut p_rest) = signal.probabilities(row);
        let teacher_mass: f64 = p.iter().sum();
        if tail == Tail::Renormalise {
            p.iter_mut().for_each(|p| *p /= teacher_mass);
            p_rest = 0.0;
        }
        let ids = &signal.ids[row * signal.k..(row + 1) * signal.k];
        let kl_weight = alpha * temperature;
        Self { target, ids, p, p_rest, teacher_mass, temperature, ce_weight, kl_weight }
    }

    /// The losses; `logits` are scratch afterwards.
    pub(super) fn losses(&self, logits: &mut [f32]) -> RowLoss {
        let logit_of_target = f64::from(logits[self.target]);
        let top = self.take_out(logits);
        let max = math::max(logits);
        let argmax = self.argmax(logits, max, &top);
        let sums = RestSums::of(logits, max, self.temperature);
        self.measure(&Softmax::new(&sums, &top, self.temperature), logit_of_target, argmax)
    }

    /// The losses; the gradient of `alpha T² KL + (1 - alpha) CE` replaces `logits`. `tempered` is
    /// scratch of the same length.
    pub(super) fn losses_and_gradient(&self, logits: &mut [f32], tempered: &mut [f32]) -> RowLoss {
        let logit_of_target = f64::from(logits[self.target]);
        let top = self.take_out(logits);
        let max = math::max(logits);
        let argmax = self.argmax(logits, max, &top);
        let sums = RestSums::keeping(logits, tempered, max, self.temperature);
        let softmax = Softmax::new(&sums, &top, self.temperature);
        let loss = self.measure(&softmax, logit_of_target, argmax);
        self.gradient(logits, tempered, &sums, &softmax);
        loss
    }

    /// Sets the logits of the signal's tokens to -inf and gives what they were.
    fn take_out(&self, logits: &mut [f32]) -> Vec<f64> {
        let take =
            |&id: &u32| f64::from(std::mem::replace(&mut logits[id as usize], f32::NEG_INFINITY));
        self.ids.iter().map(take).collect()
    }

    /// The largest of the taken-out logits and the others, whose largest is `max`.
    fn argmax(&self, logits: &[f32], max: f32, top: &[f64]) -> u32 {
        let (mut best, mut best_id) = (f64::NEG_INFINITY, u32::MAX);
        for (&z, &id) in top.iter().zip(self.ids) {
            if z > best || (z == best && id < best_id) {
                (best, best_id) = (z, id);
            }
        }
        if f64::from(max) < best {
            return best_id;
        }
        let other = position_of(logits, max).map_or(u32::MAX, |at| at as u32);
        if f64::from(max) > best { other } else { other.min(best_id) }
    }

    fn measure(&self, softmax: &Softmax<'_>, logit_of_target: f64, argmax: u32) -> RowLoss {
        let mut kl = kl_term(self.p_rest, softmax.log_q_rest);
        let mut student_mass = 0.0;
        for (log_q, &p) in softmax.log_q().zip(&self.p) {
            kl += kl_term(p, log_q);
            student_mass += log_q.exp();
        }
        let ce = softmax.log_z_one - logit_of_target;
        RowLoss { ce, kl, argmax, teacher_mass: self.teacher_mass, student_mass }
    }

    /// Turns exponentials into the gradient: `logits` hold those at T = 1, `tempered` those at T.
    fn gradient(
        &self,
        logits: &mut [f32],
        tempered: &[f32],
        sums: &RestSums,
        softmax: &Softmax<'_>,
    ) {
        let at_one = self.ce_weight * (sums.max - softmax.log_z_one).exp();
        // A student that leaves the others nothing at all leaves them no direction to grow in.
        let p_rest = if sums.at_t == 0.0 { 0.0 } else { self.p_rest / sums.at_t };
        let q = (sums.max / self.temperature - softmax.log_z_t).exp();
        let at_t = self.kl_weight * (q - p_rest);
        if self.temperature == 1.0 {
            math::scale_in_place(logits, (at_one + at_t) as f32);
        } else {
            blend(logits, tempered, at_one as f32, at_t as f32);
        }
        for (i, log_q) in softmax.log_q().enumerate() {
            let ce = (softmax.top[i] - softmax.log_z_one).exp();
            let kl = log_q.exp() - self.p[i];
            logits[self.ids[i] as usize] = (self.ce_weight * ce + self.kl_weight * kl) as f32;
        }
        logits[self.target] -= self.ce_weight as f32;
    }
}

/// The student's partition functions, and its probabilities at T of the k + 1 outcomes, which sum
/// to 1 to the last digits of `f64`: a divergence made of them is not negative.
struct Softmax<'a> {
    top: &'a [f64],
    temperature: f64,
    log_z_one: f64,
    log_z_t: f64,
    log_q_rest: f64,
}

impl<'a> Softmax<'a> {
    fn new(sums: &RestSums, top: &'a [f64], temperature: f64) -> Self {
        let log_rest = sums.log_at_t(temperature);
        let log_z_t = log_sum(log_rest, top.iter().map(|z| z / temperature));
        Self {
            top,
            temperature,
            log_z_one: log_sum(sums.log_at_one(), top.iter().copied()),
            log_z_t,
            log_q_rest: log_rest - log_z_t,
        }
    }

    /// `log softmax(z / T)` of the taken-out tokens.
    fn log_q(&self) -> impl Iterator<Item = f64> {
        self.top.iter().map(|z| z / self.temperature - self.log_z_t)
    }
}

/// `p log(p / q)`, 0 for what the teacher rules out.
fn kl_term(p: f64, log_q: f64) -> f64 {
    if p > 0.0 { p * (p.ln() - log_q) } else { 0.0 }
}
