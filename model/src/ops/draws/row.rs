//! One position: what its blocks of logits tell, and the classes its draws fall on.

use candle_core::Result;
use multiversion::multiversion;

use super::{DrawnScores, WantedDraws};
use crate::ops::head::BLOCK_CLASSES;
use crate::ops::head::exps::{RestSums, log_sum};
use crate::ops::math::{self, exp_f32};
use crate::ops::topk::select::{Selection, all_finite};
use crate::ops::topk::{leave_out, not_finite};

/// The largest number below 1.
const ALMOST_ONE: f64 = 1.0f64.next_down();

/// A position, and what its blocks of logits have told so far.
pub(super) struct Row {
    number: usize,
    next: Option<u32>,
    logit_of_next: f64,
    /// The k largest; none where k is 0.
    best: Option<Selection>,
    /// Of each block so far, over the classes that are not among the k largest.
    others: Vec<RestSums>,
}

/// A position whose classes were all heard, while the classes of its draws are found.
pub(super) struct Drawing {
    /// Ids and logits of the k largest, by ascending id.
    exact: Vec<(u32, f32)>,
    exact_log_p: Vec<f32>,
    log_rest: f32,
    next_logprobs: [f32; 2],
    /// Of each block, the largest logit that takes part in the draws.
    largest: Vec<f32>,
    /// Block and share of its mass that each draw goes beyond, ascending.
    places: Vec<(usize, f64)>,
    /// The classes found so far, ascending.
    drawn: Vec<u32>,
}

impl Row {
    pub(super) fn new(number: usize, wanted: &WantedDraws<'_>) -> Self {
        let best = (wanted.k > 0).then(|| Selection::new(wanted.k));
        let (next, logit_of_next) = (wanted.next[number], f64::NAN);
        Self { number, next, logit_of_next, best, others: Vec::new() }
    }

    /// Takes note of the logits of the classes from `first` on; blocks come in order. Those that are
    /// among the k largest so far are -inf afterwards.
    pub(super) fn listen(&mut self, logits: &mut [f32], first: usize, t: f64) -> Result<()> {
        let gone = match &mut self.best {
            Some(best) => best.offer(logits, first),
            None => all_finite(logits).then(Vec::new),
        };
        let Some(gone) = gone else { return not_finite(self.number, logits, first) };
        let here = self.next.and_then(|id| (id as usize).checked_sub(first));
        if let Some(&logit) = here.and_then(|at| logits.get(at)) {
            self.logit_of_next = f64::from(logit);
        }
        if let Some(best) = &self.best {
            best.since(first).for_each(|id| leave_out(logits, id - first));
        }
        self.others.push(RestSums::of(logits, math::max(logits), t));
        for (id, logit) in gone {
            let block = &mut self.others[id / BLOCK_CLASSES];
            *block = block.and(RestSums::of_one(logit), t);
        }
        Ok(())
    }

    /// The position once all classes were heard, and where its draws fall.
    pub(super) fn heard(self, wanted: &WantedDraws<'_>) -> Drawing {
        let t = wanted.temperature;
        let all = self.others.iter().fold(RestSums::NONE, |all, block| all.and(*block, t));
        let (ids, logits) = self.best.map(Selection::in_order).unwrap_or_default();
        let kept = logits.iter().copied().map(f64::from);
        let log_others = all.log_at_t(t);
        let log_z = log_sum(log_others, kept.clone().map(|z| z / t));
        let log_z_one = log_sum(all.log_at_one(), kept);
        let next = self.logit_of_next;
        let mut exact: Vec<(u32, f32)> = ids.into_iter().zip(logits).collect();
        exact.sort_unstable_by_key(|&(id, _)| id);
        let log_p = |&(_, z): &(u32, f32)| as_log(f64::from(z) / t - log_z);
        let uniforms = wanted.keys[self.number].uniforms(wanted.draws);
        Drawing {
            exact_log_p: exact.iter().map(log_p).collect(),
            exact,
            log_rest: if wanted.k == 0 { 0.0 } else { as_log(log_others - log_z) },
            next_logprobs: [(next - log_z_one) as f32, (next / t - log_z) as f32],
            places: places(&self.others, &all, &uniforms, t),
            largest: self.others.iter().map(|block| block.max as f32).collect(),
            drawn: Vec::with_capacity(uniforms.len()),
        }
    }
}

/// A logarithm of a probability as a number that is finite and at most 0, or -inf of nothing at all.
fn as_log(log_p: f64) -> f32 {
    if log_p == f64::NEG_INFINITY {
        return f32::NEG_INFINITY;
    }
    log_p.clamp(f32::MIN.into(), 0.0) as f32
}

/// The block each draw falls in, and the share of its mass that it goes beyond; none where there is no
/// mass. A block of no mass has no draws.
fn places(blocks: &[RestSums], all: &RestSums, uniforms: &[f64], t: f64) -> Vec<(usize, f64)> {
    let mass = |block: &RestSums| match block.at_t {
        // Its largest logit is none.
        0.0 => 0.0,
        at_t => at_t * ((block.max - all.max) / t).exp(),
    };
    let masses: Vec<f64> = blocks.iter().map(mass).collect();
    let total: f64 = masses.iter().sum();
    let Some(last) = masses.iter().rposition(|&mass| mass > 0.0) else { return Vec::new() };
    let (mut at, mut before) = (0, 0.0);
    let mut place = |uniform: &f64| {
        let beyond = uniform * total;
        while at < last && beyond >= before + masses[at] {
            before += masses[at];
            at += 1;
        }
        (at, ((beyond - before) / masses[at]).clamp(0.0, ALMOST_ONE))
    };
    uniforms.iter().map(&mut place).collect()
}

impl Drawing {
    /// Whether a draw falls in this block.
    pub(super) fn has_draws_in(&self, block: usize) -> bool {
        let next = self.places.get(self.drawn.len());
        next.is_some_and(|&(of_next, _)| of_next == block)
    }

    /// Finds the classes of the draws that fall in a block, from its logits, which are consumed; blocks
    /// come in order.
    pub(super) fn draw(&mut self, logits: &mut [f32], first: usize, block: usize, t: f64) {
        for &(id, _) in &self.exact {
            if let Some(at) = (id as usize).checked_sub(first).filter(|&at| at < logits.len()) {
                leave_out(logits, at);
            }
        }
        exps_below(logits, self.largest[block], (1.0 / t) as f32);
        let mass: f64 = logits.iter().copied().map(f64::from).sum();
        let here = self.places[self.drawn.len()..].iter().take_while(|&&(of, _)| of == block);
        let (mut at, mut sum) = (0, f64::from(logits[0]));
        for &(_, share) in here {
            // The sum ends at `mass`, of which this is less: a class whose exponential is 0 adds
            // nothing, and is never the first beyond.
            while at + 1 < logits.len() && sum <= share * mass {
                at += 1;
                sum += f64::from(logits[at]);
            }
            self.drawn.push((first + at) as u32);
        }
    }

    /// Adds the position to the scores, once all draws are found.
    pub(super) fn finish(self, scores: &mut DrawnScores) {
        let exact = self.exact.iter().map(|&(id, _)| id).zip(self.exact_log_p);
        scores.signal.push(exact, self.log_rest, self.drawn);
        scores.next_logprob.push(self.next_logprobs[0]);
        scores.next_logprob_t.push(self.next_logprobs[1]);
    }
}

/// `z = exp((z - max) / T)` in place.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
fn exps_below(row: &mut [f32], max: f32, inverse_t: f32) {
    for z in row {
        *z = exp_f32((*z - max) * inverse_t);
    }
}
