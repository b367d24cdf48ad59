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

use distill::reference::Loss;

use super::exps::{RestSums, blend, position_of};
use super::listed::Outcomes;
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
    /// What the signal tells apart, as the tail makes it, and the student's part in it; no tokens without
    /// a signal.
    outcomes: Outcomes,
    divergence: Divergence,
    teacher_mass: f64,
    entropy: f64,
    /// 1 without a signal: one exponential a class is enough.
    temperature: f64,
    ce_weight: f64,
    /// `alpha T² / T`
    kl_weight: f64,
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
    over: Option<Loss>,
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
            outcomes: Outcomes::default(),
            divergence: Divergence::ForwardKl,
            teacher_mass: 0.0,
            entropy: f64::NAN,
            temperature: 1.0,
            ce_weight: 1.0 - alpha,
            kl_weight: 0.0,
            logit_of_target: f64::NAN,
            best_other: (f32::NEG_INFINITY, u32::MAX),
            sums: RestSums::NONE,
        };
        let Some((signal, number)) = signal else { return row };
        row.outcomes = signal.outcomes(number);
        row.teacher_mass = row.outcomes.p().iter().sum();
        if signal.tells_all_apart() {
            row.entropy = row.outcomes.entropy();
        }
        if tail == Tail::Renormalise {
            row.outcomes.renormalise();
        }
        row.divergence = divergence.simplest();
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
        self.outcomes.take_logits(first, logits);
        let max = math::max(logits);
        if max > self.best_other.0
            && let Some(at) = position_of(logits, max)
        {
            self.best_other = (max, (first + at) as u32);
        }
        self.sums = self.sums.and(RestSums::of(logits, max, self.temperature), self.temperature);
        for (slot, at) in self.outcomes.here(first, logits.len()) {
            logits[at] = self.outcomes.z()[slot] as f32;
        }
    }

    /// The position once all classes were heard.
    pub(super) fn heard(mut self) -> Heard {
        let softmax = Softmax::new(&self.sums, &mut self.outcomes, self.temperature);
        let over = (self.divergence != Divergence::ForwardKl).then(|| {
            let Outcomes { log_p_rest, .. } = self.outcomes;
            let log_p = [self.outcomes.log_p(), &[log_p_rest]].concat();
            let of_listed = self.outcomes.z().iter().map(|&z| softmax.log_q(z));
            let log_q: Vec<f64> = of_listed.chain([softmax.log_q_rest]).collect();
            self.divergence.over(&log_p, &log_q)
        });
        Heard { row: self, softmax, over }
    }

    /// The token with the largest logit, the lower id among equals.
    fn argmax(&self) -> u32 {
        let (mut best, mut best_id) = (f64::from(self.best_other.0), self.best_other.1);
        for (&z, &id) in self.outcomes.z().iter().zip(&self.outcomes.ids) {
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
        let Self { row, softmax, over } = self;
        let (sums, outcomes) = (&row.sums, &row.outcomes);
        let at_one = row.ce_weight * (sums.max - softmax.log_z_one).exp();
        let at_t = row.kl_weight * self.slope_of_others();
        let count = logits.len();
        let here = || outcomes.here(first, count);
        // What is left of the largest logit would overflow where a token of the signal is far above all
        // others.
        here().for_each(|(_, at)| logits[at] = f32::NEG_INFINITY);
        blend(logits, sums.max, row.temperature, at_one, at_t);
        for (slot, at) in here() {
            let ce = outcomes.q_one()[slot];
            let forward = outcomes.q()[slot] - outcomes.p()[slot];
            let slope = over.as_ref().map_or(forward, |over| over.gradient[slot]);
            logits[at] = (row.ce_weight * ce + row.kl_weight * slope) as f32;
        }
        if let Some(at) = row.target.checked_sub(first).filter(|&at| at < logits.len()) {
            logits[at] -= row.ce_weight as f32;
        }
    }

    /// The slope of one of the other classes, for each unit of `e^((z - m) / T)`.
    fn slope_of_others(&self) -> f64 {
        let Self { row, softmax, over, .. } = self;
        let sum = row.sums.at_t;
        // A student that leaves the others nothing at all leaves them no direction to grow in.
        let shared = |of_rest: f64| if sum == 0.0 { 0.0 } else { of_rest / sum };
        match over {
            None => {
                let at_largest = (row.sums.max / row.temperature - softmax.log_z_t).exp();
                at_largest - shared(row.outcomes.p_rest)
            }
            Some(over) => shared(over.gradient[row.outcomes.ids.len()]),
        }
    }

    /// The losses.
    pub(super) fn losses(&self) -> RowLoss {
        let Self { row, softmax, over } = self;
        let outcomes = &row.outcomes;
        let (kl, kl_rest) = match over {
            Some(over) => (over.value, f64::NAN),
            None => {
                let Outcomes { p_rest, log_p_rest, .. } = *outcomes;
                let rest = kl_term(p_rest, log_p_rest, softmax.log_q_rest);
                let listed = outcomes.p().iter().zip(outcomes.log_p()).zip(outcomes.z());
                let terms = listed.map(|((&p, &log_p), &z)| kl_term(p, log_p, softmax.log_q(z)));
                (terms.sum::<f64>() + rest, rest)
            }
        };
        let student_mass = outcomes.q().iter().fold(0.0, |sum, q| sum + q);
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
    /// From the sums over the other tokens and the logits of those listed, whose probabilities are
    /// written.
    fn new(sums: &RestSums, outcomes: &mut Outcomes, temperature: f64) -> Self {
        let log_rest = sums.log_at_t(temperature);
        let [_, _, z, q, q_one] = outcomes.kinds_mut();
        let log_z_t = soften(z, temperature, log_rest, q);
        let log_z_one = match temperature == 1.0 {
            true => {
                q_one.copy_from_slice(q);
                log_z_t
            }
            false => soften(z, 1.0, sums.log_at_one(), q_one),
        };
        Self { temperature, log_z_one, log_z_t, log_q_rest: log_rest - log_z_t }
    }

    /// `log softmax(z / T)` of a token whose logit is `z`.
    fn log_q(&self, z: f64) -> f64 {
        z / self.temperature - self.log_z_t
    }
}

/// The probabilities at T of tokens with logits `z` beside others that come to `log_rest` together, and
/// the logarithm of the sum over all; NaN where a logit is no number, or all are -inf.
fn soften(z: &[f64], temperature: f64, log_rest: f64, q: &mut [f64]) -> f64 {
    q.iter_mut().zip(z).for_each(|(q, z)| *q = z / temperature);
    let largest = q.iter().copied().fold(log_rest, f64::max);
    q.iter_mut().for_each(|q| *q -= largest);
    math::exp_in_place_f64(q);
    let sum = q.iter().sum::<f64>() + (log_rest - largest).exp();
    q.iter_mut().for_each(|q| *q /= sum);
    largest + sum.ln()
}

/// `p log(p / q)`, 0 for what the teacher rules out.
fn kl_term(p: f64, log_p: f64, log_q: f64) -> f64 {
    if p > 0.0 { p * (log_p - log_q) } else { 0.0 }
}
