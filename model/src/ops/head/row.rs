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
//! up to sum to 1 and `p_rest` = 0, and so are draws with their estimate of p, which sums to 1. Another
//! divergence than the forward one has, for `q_rest - p_rest`, what [`Divergence::over`] says of the
//! k + 1 outcomes, in `f64`.

use std::ops::Range;

use distill::reference::Loss;

use super::exps::{RestSums, blend, log_sum, position_of};
use super::{Divergence, Listed, LossSettings, Tail};
use crate::ops::math;

/// What a position gives.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowLoss {
    pub(super) ce: f64,
    pub(super) kl: f64,
    pub(super) argmax: u32,
    pub(super) teacher_mass: f64,
    pub(super) student_mass: f64,
    /// Of `kl`, what the outcome beside the listed ones adds; NaN where that has no meaning.
    pub(super) kl_rest: f64,
    /// Of the teacher, in nats, over what its signal tells apart; NaN where it does not say.
    pub(super) entropy: f64,
    /// Of a teacher that says all, where it was measured: its own cross-entropy and most probable class.
    pub(super) teacher: Option<(f64, u32)>,
}

/// A position: what is known of it, and what its blocks of logits have told so far.
pub(super) struct Row {
    target: usize,
    /// The signal's tokens, by ascending id; none without a signal.
    ids: Vec<u32>,
    /// Their probabilities, as the tail makes them.
    p: Vec<f64>,
    p_rest: f64,
    divergence: Divergence,
    /// Logarithms of the same and of `p_rest`; none where the divergence is the forward one.
    log_p: Vec<f64>,
    teacher_mass: f64,
    entropy: f64,
    /// 1 without a signal: one exponential a class is enough.
    temperature: f64,
    ce_weight: f64,
    /// `alpha T² / T`
    kl_weight: f64,
    /// The student's logits of the signal's tokens.
    top: Vec<f64>,
    logit_of_target: f64,
    /// The largest logit of the other tokens, and the first that has it.
    best_other: (f32, u32),
    /// Over the other tokens.
    sums: RestSums,
}

/// A position whose classes were all heard.
pub(super) struct Heard {
    row: Row,
    softmax: Softmax,
    /// The divergence over the k + 1 outcomes and its slopes; none where it is the forward one.
    outcomes: Option<Loss>,
}

impl Row {
    /// `signal` is a signal and the row of it that speaks of this position.
    pub(super) fn new(
        target: usize,
        signal: Option<(Listed<'_>, usize)>,
        settings: &LossSettings,
    ) -> Self {
        let LossSettings { alpha, temperature, divergence, tail, .. } = *settings;
        let mut row = Self {
            target,
            ids: Vec::new(),
            p: Vec::new(),
            p_rest: 0.0,
            divergence: Divergence::ForwardKl,
            log_p: Vec::new(),
            teacher_mass: 0.0,
            entropy: f64::NAN,
            temperature: 1.0,
            ce_weight: 1.0 - alpha,
            kl_weight: 0.0,
            top: Vec::new(),
            logit_of_target: f64::NAN,
            best_other: (f32::NEG_INFINITY, u32::MAX),
            sums: RestSums::NONE,
        };
        let Some((signal, number)) = signal else { return row };
        let (ids, mut p, p_rest) = signal.outcomes(number);
        row.teacher_mass = p.iter().sum();
        if signal.tells_all_apart() {
            let outcomes = p.iter().chain([&p_rest]).filter(|&&p| p > 0.0);
            row.entropy = outcomes.map(|p| -p * p.ln()).sum();
        }
        if tail == Tail::Renormalise {
            p.iter_mut().for_each(|p| *p /= row.teacher_mass);
        } else {
            row.p_rest = p_rest;
        }
        let mut pairs: Vec<(u32, f64)> = ids.into_iter().zip(p).collect();
        pairs.sort_unstable_by_key(|pair| pair.0);
        (row.ids, row.p) = pairs.into_iter().unzip();
        row.divergence = divergence.simplest();
        if row.divergence != Divergence::ForwardKl {
            row.log_p = signal.log_outcomes(number);
        }
        row.top = vec![f64::NAN; row.ids.len()];
        row.temperature = temperature;
        row.kl_weight = alpha * temperature;
        row
    }

    /// Takes note of the logits of the classes from `first` on; blocks come in order. `logits` are
    /// what they were afterwards.
    pub(super) fn listen(&mut self, logits: &mut [f32], first: usize) {
        if let Some(&logit) = self.target.checked_sub(first).and_then(|at| logits.get(at)) {
            self.logit_of_target = f64::from(logit);
        }
        let here = self.here(first, logits.len());
        for slot in here.clone() {
            let logit = &mut logits[self.ids[slot] as usize - first];
            self.top[slot] = f64::from(std::mem::replace(logit, f32::NEG_INFINITY));
        }
        let max = math::max(logits);
        if max > self.best_other.0
            && let Some(at) = position_of(logits, max)
        {
            self.best_other = (max, (first + at) as u32);
        }
        self.sums = self.sums.and(RestSums::of(logits, max, self.temperature), self.temperature);
        for slot in here {
            logits[self.ids[slot] as usize - first] = self.top[slot] as f32;
        }
    }

    /// The position once all classes were heard.
    pub(super) fn heard(self) -> Heard {
        let softmax = Softmax::new(&self.sums, &self.top, self.temperature);
        let outcomes = (!self.log_p.is_empty()).then(|| {
            let of_top = self.top.iter().map(|&z| softmax.log_q(z));
            let log_q: Vec<f64> = of_top.chain([softmax.log_q_rest]).collect();
            self.divergence.over(&self.log_p, &log_q)
        });
        Heard { row: self, softmax, outcomes }
    }

    /// The signal's tokens among `count` classes from `first` on.
    fn here(&self, first: usize, count: usize) -> Range<usize> {
        let below = |end: usize| self.ids.partition_point(|&id| (id as usize) < end);
        below(first)..below(first + count)
    }

    /// The token with the largest logit, the lower id among equals.
    fn argmax(&self) -> u32 {
        let (mut best, mut best_id) = (f64::from(self.best_other.0), self.best_other.1);
        for (&z, &id) in self.top.iter().zip(&self.ids) {
            if z > best || (z == best && id < best_id) {
                (best, best_id) = (z, id);
            }
        }
        best_id
    }
}

impl Heard {
    /// Turns the logits of the classes from `first` on, as they were heard, into the gradient of
    /// `alpha T² D + (1 - alpha) CE`.
    pub(super) fn gradient(&self, logits: &mut [f32], first: usize) {
        let Self { row, softmax, .. } = self;
        let sums = &row.sums;
        let at_one = row.ce_weight * (sums.max - softmax.log_z_one).exp();
        let at_t = row.kl_weight * self.slope_of_others();
        let here = row.here(first, logits.len());
        for slot in here.clone() {
            // What is left of the largest logit would overflow where a token of the signal is
            // far above all others.
            logits[row.ids[slot] as usize - first] = f32::NEG_INFINITY;
        }
        blend(logits, sums.max, row.temperature, at_one, at_t);
        for slot in here {
            let z = row.top[slot];
            let ce = (z - softmax.log_z_one).exp();
            let slope = match &self.outcomes {
                None => softmax.log_q(z).exp() - row.p[slot],
                Some(outcomes) => outcomes.gradient[slot],
            };
            let gradient = row.ce_weight * ce + row.kl_weight * slope;
            logits[row.ids[slot] as usize - first] = gradient as f32;
        }
        if let Some(at) = row.target.checked_sub(first).filter(|&at| at < logits.len()) {
            logits[at] -= row.ce_weight as f32;
        }
    }

    /// The slope of one of the other classes, for each unit of `e^((z - m) / T)`.
    fn slope_of_others(&self) -> f64 {
        let Self { row, softmax, outcomes } = self;
        let sum = row.sums.at_t;
        // A student that leaves the others nothing at all leaves them no direction to grow in.
        let shared = |of_rest: f64| if sum == 0.0 { 0.0 } else { of_rest / sum };
        match outcomes {
            None => (row.sums.max / row.temperature - softmax.log_z_t).exp() - shared(row.p_rest),
            Some(outcomes) => shared(outcomes.gradient[row.ids.len()]),
        }
    }

    /// The losses.
    pub(super) fn losses(&self) -> RowLoss {
        let Self { row, softmax, outcomes } = self;
        let mut kl_rest = kl_term(row.p_rest, softmax.log_q_rest);
        let mut kl = kl_rest;
        let mut student_mass = 0.0;
        for (&z, &p) in row.top.iter().zip(&row.p) {
            let log_q = softmax.log_q(z);
            kl += kl_term(p, log_q);
            student_mass += log_q.exp();
        }
        if let Some(outcomes) = outcomes {
            kl = outcomes.value;
            kl_rest = f64::NAN;
        }
        let ce = softmax.log_z_one - row.logit_of_target;
        let (argmax, teacher_mass, entropy) = (row.argmax(), row.teacher_mass, row.entropy);
        RowLoss { ce, kl, argmax, teacher_mass, student_mass, kl_rest, entropy, teacher: None }
    }
}

/// The student's partition functions, and its probabilities at T of the k + 1 outcomes, which sum
/// to 1 to the last digits of `f64`: a divergence made of them is not negative.
struct Softmax {
    temperature: f64,
    log_z_one: f64,
    log_z_t: f64,
    log_q_rest: f64,
}

impl Softmax {
    fn new(sums: &RestSums, top: &[f64], temperature: f64) -> Self {
        let log_rest = sums.log_at_t(temperature);
        let log_z_t = log_sum(log_rest, top.iter().map(|z| z / temperature));
        Self {
            temperature,
            log_z_one: log_sum(sums.log_at_one(), top.iter().copied()),
            log_z_t,
            log_q_rest: log_rest - log_z_t,
        }
    }

    /// `log softmax(z / T)` of a token whose logit is `z`.
    fn log_q(&self, z: f64) -> f64 {
        z / self.temperature - self.log_z_t
    }
}

/// `p log(p / q)`, 0 for what the teacher rules out.
fn kl_term(p: f64, log_q: f64) -> f64 {
    if p > 0.0 { p * (p.ln() - log_q) } else { 0.0 }
}
