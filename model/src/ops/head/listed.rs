//! The signals that list tokens of a position, each with a probability.

use distill::signal::{Draws, TopK};

use crate::ops::math;

/// Such a signal.
#[derive(Clone, Copy)]
pub(super) enum Listed<'a> {
    TopK(&'a TopK),
    Draws(&'a Draws),
}

/// What is told apart at a position: tokens, and everything else together.
#[derive(Default)]
pub(super) struct Outcomes {
    pub(super) ids: Vec<u32>,
    /// Five numbers of each token, each kind in a row: `p`, `log_p`, `z`, `q`, `q_one`.
    numbers: Vec<f64>,
    /// With those of the tokens it sums to 1.
    pub(super) p_rest: f64,
    pub(super) log_p_rest: f64,
}

impl Listed<'_> {
    /// The outcomes of a row.
    pub(super) fn outcomes(self, row: usize) -> Outcomes {
        match self {
            Self::TopK(signal) => of_top_k(signal, row),
            Self::Draws(signal) => {
                let (ids, p) = signal.estimate(row);
                let mut outcomes = Outcomes::new(ids);
                let [to_p, log_p, ..] = outcomes.kinds_mut();
                to_p.copy_from_slice(&p);
                log_p.iter_mut().zip(p).for_each(|(log_p, p)| *log_p = p.ln());
                (outcomes.p_rest, outcomes.log_p_rest) = (0.0, f64::NEG_INFINITY);
                outcomes
            }
        }
    }

    /// Whether what it lists, and the rest, are the outcomes there are; draws are an estimate of them.
    pub(super) fn tells_all_apart(self) -> bool {
        matches!(self, Self::TopK(_))
    }
}

/// As [`TopK::probabilities`] and [`TopK::log_probabilities`] say, with one exponential an entry.
fn of_top_k(signal: &TopK, row: usize) -> Outcomes {
    let entries = row * signal.k..(row + 1) * signal.k;
    let log_z = f64::from(signal.log_z[row]);
    let mut outcomes = Outcomes::new(signal.ids[entries.clone()].to_vec());
    let [p, log_p, ..] = outcomes.kinds_mut();
    for (log_p, &scaled) in log_p.iter_mut().zip(&signal.scaled[entries]) {
        *log_p = f64::from(scaled) - log_z;
    }
    p.copy_from_slice(log_p);
    math::exp_in_place_f64(p);
    let log_p_rest = f64::from(signal.log_rest[row]);
    let p_rest = log_p_rest.exp();
    let sum = p.iter().sum::<f64>() + p_rest;
    let log_sum = sum.ln();
    p.iter_mut().for_each(|p| *p /= sum);
    log_p.iter_mut().for_each(|log_p| *log_p -= log_sum);
    (outcomes.p_rest, outcomes.log_p_rest) = (p_rest / sum, log_p_rest - log_sum);
    outcomes
}

impl Outcomes {
    fn new(ids: Vec<u32>) -> Self {
        let numbers = vec![f64::NAN; 5 * ids.len()];
        Self { ids, numbers, ..Self::default() }
    }

    fn kind(&self, kind: usize) -> &[f64] {
        let k = self.ids.len();
        &self.numbers[kind * k..(kind + 1) * k]
    }

    /// Probabilities of the tokens.
    pub(super) fn p(&self) -> &[f64] {
        self.kind(0)
    }

    /// Their logarithms, which keep what is below the smallest float64.
    pub(super) fn log_p(&self) -> &[f64] {
        self.kind(1)
    }

    /// The student's logits, once they were heard.
    pub(super) fn z(&self) -> &[f64] {
        self.kind(2)
    }

    /// The student's probabilities at T, once all classes were heard.
    pub(super) fn q(&self) -> &[f64] {
        self.kind(3)
    }

    /// The student's probabilities at 1.
    pub(super) fn q_one(&self) -> &[f64] {
        self.kind(4)
    }

    /// All five, to be written.
    pub(super) fn kinds_mut(&mut self) -> [&mut [f64]; 5] {
        let k = self.ids.len();
        let (teacher, student) = self.numbers.split_at_mut(2 * k);
        let (p, log_p) = teacher.split_at_mut(k);
        let (z, student) = student.split_at_mut(k);
        let (q, q_one) = student.split_at_mut(k);
        [p, log_p, z, q, q_one]
    }

    /// The tokens among `count` classes from `first` on: which they are of all, and of the classes. All are
    /// looked at, which is less than what is done with a block of classes.
    pub(super) fn here(
        &self,
        first: usize,
        count: usize,
    ) -> impl Iterator<Item = (usize, usize)> + '_ {
        let place = move |(slot, &id): (usize, &u32)| {
            let at = (id as usize).wrapping_sub(first);
            (at < count).then_some((slot, at))
        };
        self.ids.iter().enumerate().filter_map(place)
    }

    /// Takes the tokens' logits out of those of the classes from `first` on; -inf is left.
    pub(super) fn take_logits(&mut self, first: usize, logits: &mut [f32]) {
        let k = self.ids.len();
        for (slot, id) in self.ids.iter().enumerate() {
            if let Some(logit) = logits.get_mut((*id as usize).wrapping_sub(first)) {
                self.numbers[2 * k + slot] = f64::from(std::mem::replace(logit, f32::NEG_INFINITY));
            }
        }
    }

    /// In nats.
    pub(super) fn entropy(&self) -> f64 {
        let pairs = self.p().iter().zip(self.log_p()).chain([(&self.p_rest, &self.log_p_rest)]);
        -pairs.filter(|(p, _)| **p > 0.0).map(|(p, log_p)| p * log_p).sum::<f64>()
    }

    /// The tokens alone, made to sum to 1.
    pub(super) fn renormalise(&mut self) {
        let mass: f64 = self.p().iter().sum();
        let [p, log_p, ..] = self.kinds_mut();
        p.iter_mut().for_each(|p| *p /= mass);
        log_p.iter_mut().for_each(|log_p| *log_p -= mass.ln());
        (self.p_rest, self.log_p_rest) = (0.0, f64::NEG_INFINITY);
    }
}
