//! What a teacher says of a position: the signals.

mod draws;

use std::sync::Arc;

use crate::coded::{Code, Rung};
use crate::fingerprint::Fingerprint;
use crate::handshake::SignalKind;
use crate::hidden::{HiddenForm, HiddenRows};
pub use draws::{DrawKey, Draws, DrawsError};

/// What a signal says of a position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Entries {
    /// The k most probable tokens.
    #[default]
    Top,
    /// Tokens the client names: k ids, the same at every position, or k for each position in turn.
    Named(Vec<u32>),
    /// Draws from the distribution, beside the k most probable tokens where k is not 0.
    Drawn {
        /// Draws a position.
        draws: u32,
        /// What they depend on beside the logits ([`DrawKey`]).
        seed: u64,
    },
    /// The final hidden state, and so everything; k is 0.
    Hidden(HiddenForm),
}

impl Entries {
    /// The kind of signal that says it.
    pub fn kind(&self) -> SignalKind {
        match self {
            Self::Top => SignalKind::TopK,
            Self::Named(_) => SignalKind::Candidates,
            Self::Drawn { .. } => SignalKind::Sampled,
            Self::Hidden(HiddenForm::Coded { .. }) => SignalKind::Coded,
            Self::Hidden(_) => SignalKind::Full,
        }
    }

    /// The code that hidden states are wanted in.
    pub fn code(&self) -> Option<Fingerprint> {
        if let Self::Hidden(HiddenForm::Coded { code, .. }) = self { Some(*code) } else { None }
    }

    /// The step of that code.
    pub fn rung(&self) -> Option<Rung> {
        if let Self::Hidden(HiddenForm::Coded { rung, .. }) = self { Some(*rung) } else { None }
    }

    /// The ids named for `row`, of k a row; none where the teacher chooses.
    ///
    /// # Panics
    /// When ids of each row are named and there is no such row.
    pub fn named_at(&self, row: usize, k: usize) -> Option<&[u32]> {
        match self {
            Self::Top | Self::Drawn { .. } | Self::Hidden(_) => None,
            Self::Named(ids) if ids.len() == k => Some(ids),
            Self::Named(ids) => Some(&ids[row * k..(row + 1) * k]),
        }
    }
}

/// What came of a teacher about some positions.
#[derive(Clone, Debug, PartialEq)]
pub enum Signal {
    /// The most probable tokens, or those that were named.
    TopK(TopK),
    /// Draws.
    Drawn(Draws),
    /// Hidden states as they travelled: few bytes, which are read when they are needed.
    Hidden(HiddenRows),
}

impl Signal {
    /// Of no positions: what is to come when `entries` were asked for, k of them. Hidden states have
    /// `width` numbers.
    pub fn new(entries: &Entries, k: usize, width: usize) -> Self {
        match *entries {
            Entries::Top | Entries::Named(_) => Self::TopK(TopK::new(k)),
            Entries::Drawn { draws, .. } => Self::Drawn(Draws::new(draws, k)),
            Entries::Hidden(form) => Self::Hidden(HiddenRows::new(form, width)),
        }
    }

    /// Number of positions.
    pub fn rows(&self) -> usize {
        match self {
            Self::TopK(signal) => signal.rows(),
            Self::Drawn(signal) => signal.rows(),
            Self::Hidden(signal) => signal.rows(),
        }
    }

    /// Appends the positions of another signal that answers the same question.
    ///
    /// # Panics
    /// When it answers another.
    pub fn append(&mut self, other: Self) {
        match (self, other) {
            (Self::TopK(all), Self::TopK(more)) => all.append(&more),
            (Self::Drawn(all), Self::Drawn(more)) => all.append(&more),
            (Self::Hidden(all), Self::Hidden(more)) => all.append(more),
            (all, more) => panic!("{all:?} and {more:?} cannot be joined"),
        }
    }

    /// The listed tokens, where it is that kind.
    pub fn top_k(&self) -> Option<&TopK> {
        match self {
            Self::TopK(signal) => Some(signal),
            Self::Drawn(_) | Self::Hidden(_) => None,
        }
    }
}

impl From<TopK> for Signal {
    fn from(signal: TopK) -> Self {
        Self::TopK(signal)
    }
}

/// What a teacher computed about some positions, before it is bytes.
#[derive(Clone, Debug, PartialEq)]
pub enum Computed {
    /// The most probable tokens, or those that were named.
    TopK(TopK),
    /// Draws.
    Drawn(Draws),
    /// Hidden states.
    Hidden(HiddenStates),
    /// Hidden states as numbers of steps.
    Coded(CodedStates),
}

impl Computed {
    /// Number of positions.
    pub fn rows(&self) -> usize {
        match self {
            Self::TopK(signal) => signal.rows(),
            Self::Drawn(signal) => signal.rows(),
            Self::Hidden(states) | Self::Coded(CodedStates { states, .. }) => states.rows(),
        }
    }

    /// The listed tokens, where it is that kind.
    pub fn top_k(&self) -> Option<&TopK> {
        match self {
            Self::TopK(signal) => Some(signal),
            Self::Drawn(_) | Self::Hidden(_) | Self::Coded(_) => None,
        }
    }
}

impl From<TopK> for Computed {
    fn from(signal: TopK) -> Self {
        Self::TopK(signal)
    }
}

/// Hidden states and what they are in a code.
#[derive(Clone, Debug, PartialEq)]
pub struct CodedStates {
    /// The code.
    pub code: Arc<Code>,
    /// Numbers of steps, `[rows, directions]`.
    pub numbers: Vec<i32>,
    /// What they stand for, which travels instead where a number is too large.
    pub states: HiddenStates,
}

/// Final hidden states, those the output matrix is applied to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HiddenStates {
    /// Numbers of one.
    pub width: usize,
    /// `[rows, width]`
    pub values: Vec<f32>,
}

impl HiddenStates {
    /// Number of positions.
    pub fn rows(&self) -> usize {
        self.values.len() / self.width.max(1)
    }
}

/// k tokens of each position and the mass of all the others together: the most probable ones, or
/// those a client named ([`Entries`]).
///
/// For each of `rows` positions, with teacher logits y over V classes and temperature T:
/// `ids` are the k largest y (ties to the lower id) in descending order of y, or the named ones in
/// the order they were named; `scaled` their
/// `y_i / T`, `log_z = logsumexp(y / T)` over all V classes, and `log_rest` the logarithm of the
/// mass outside the k, `log Σ_{j not in ids} exp(y_j / T - log_z)`: computed by the teacher as a
/// second logsumexp, since `1 - Σ p_i` loses all its digits where the k hold nearly everything.
/// It is -inf when k = V.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TopK {
    /// Entries a position.
    pub k: usize,
    /// Token ids, `[rows, k]`.
    pub ids: Vec<u32>,
    /// Logits divided by T, `[rows, k]`.
    pub scaled: Vec<f32>,
    /// Log of the partition function at T, `[rows]`.
    pub log_z: Vec<f32>,
    /// Log of the mass outside the k, `[rows]`.
    pub log_rest: Vec<f32>,
}

impl TopK {
    /// A signal of no positions.
    pub fn new(k: usize) -> Self {
        Self { k, ..Self::default() }
    }

    /// Number of positions.
    pub fn rows(&self) -> usize {
        self.log_z.len()
    }

    /// Appends the positions of another signal of the same k.
    ///
    /// # Panics
    /// When k differs.
    pub fn append(&mut self, other: &Self) {
        assert_eq!(self.k, other.k, "signals of different k cannot be joined");
        self.ids.extend_from_slice(&other.ids);
        self.scaled.extend_from_slice(&other.scaled);
        self.log_z.extend_from_slice(&other.log_z);
        self.log_rest.extend_from_slice(&other.log_rest);
    }

    /// The positions `rows` of this signal.
    pub fn slice(&self, rows: std::ops::Range<usize>) -> Self {
        let entries = rows.start * self.k..rows.end * self.k;
        Self {
            k: self.k,
            ids: self.ids[entries.clone()].to_vec(),
            scaled: self.scaled[entries].to_vec(),
            log_z: self.log_z[rows.clone()].to_vec(),
            log_rest: self.log_rest[rows].to_vec(),
        }
    }

    /// The probabilities of one position, `[k]`, and of everything else together, in float64 and
    /// summing to 1: what rounding on the way here took from the sum is given back in proportion,
    /// so that a divergence over these k + 1 outcomes is never negative.
    pub fn probabilities(&self, row: usize) -> (Vec<f64>, f64) {
        let entries = row * self.k..(row + 1) * self.k;
        let log_z = f64::from(self.log_z[row]);
        let mut p: Vec<f64> =
            self.scaled[entries].iter().map(|&s| (f64::from(s) - log_z).exp()).collect();
        let mut rest = f64::from(self.log_rest[row]).exp();
        let sum = p.iter().sum::<f64>() + rest;
        p.iter_mut().for_each(|p_i| *p_i /= sum);
        rest /= sum;
        (p, rest)
    }

    /// The logarithms of [`TopK::probabilities`], which keep their digits where a probability itself
    /// is below the smallest float64.
    pub fn log_probabilities(&self, row: usize) -> (Vec<f64>, f64) {
        let entries = row * self.k..(row + 1) * self.k;
        let log_z = f64::from(self.log_z[row]);
        let rest = f64::from(self.log_rest[row]);
        let logs = self.scaled[entries].iter().map(|&s| f64::from(s) - log_z);
        let log_sum = log_sum_exp(logs.clone().chain([rest]));
        (logs.map(|log| log - log_sum).collect(), rest - log_sum)
    }

    /// Appends the exact signal of one position, selected the slow way from all its logits
    /// (float64 throughout): the reference for every faster selection.
    ///
    /// # Panics
    /// When k is 0 or above the number of logits.
    pub fn push_exact(&mut self, logits: &[f64], temperature: f64) {
        assert!(self.k >= 1 && self.k <= logits.len(), "k must lie in 1..=V");
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let logit = |id: u32| logits[id as usize];
        order.sort_by(|&a, &b| logit(b).total_cmp(&logit(a)).then(a.cmp(&b)));
        self.push_exact_named(&order[..self.k], logits, temperature);
    }

    /// The same of the tokens `named`, k of them, all different.
    ///
    /// # Panics
    /// When there are not k, or one is no class.
    pub fn push_exact_named(&mut self, named: &[u32], logits: &[f64], temperature: f64) {
        assert_eq!(named.len(), self.k, "k tokens are named");
        let scaled = |id: u32| logits[id as usize] / temperature;
        let others = (0..logits.len() as u32).filter(|id| !named.contains(id));
        let log_z = log_sum_exp(logits.iter().map(|y| y / temperature));
        let log_others = log_sum_exp(others.map(scaled));
        self.ids.extend(named);
        self.scaled.extend(named.iter().map(|&id| scaled(id) as f32));
        self.log_z.push(log_z as f32);
        self.log_rest.push((log_others - log_z) as f32);
    }
}

/// `log Σ exp(x)`, -inf for no values.
pub fn log_sum_exp(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = values.clone().fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY {
        return largest;
    }
    largest + values.map(|v| (v - largest).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_selection_orders_by_logit_then_by_id_and_keeps_the_mass_of_the_rest() {
        let mut signal = TopK::new(2);
        signal.push_exact(&[1.0, 3.0, 3.0, 0.0], 2.0);
        assert_eq!(signal.ids, [1, 2]);
        assert_eq!(signal.scaled, [1.5, 1.5]);
        let z = (0.5f64).exp() + 2.0 * (1.5f64).exp() + 1.0;
        assert!((f64::from(signal.log_z[0]) - z.ln()).abs() < 1e-6);
        let (p, rest) = signal.probabilities(0);
        assert!((p[0] - (1.5f64).exp() / z).abs() < 1e-6);
        assert!((rest - ((0.5f64).exp() + 1.0) / z).abs() < 1e-6);
    }

    #[test]
    fn log_probabilities_are_those_of_the_probabilities_and_go_below_them() {
        let mut signal = TopK::new(2);
        signal.push_exact(&[1.0, 3.0, 3.0, 0.0], 2.0);
        let ((p, rest), (log_p, log_rest)) = (signal.probabilities(0), signal.log_probabilities(0));
        for (p, log_p) in p.iter().chain([&rest]).zip(log_p.iter().chain([&log_rest])) {
            assert!((p.ln() - log_p).abs() < 1e-14, "{p} {log_p}");
        }
        // e^-1000 is no float64.
        signal.push_exact(&[0.0, 1000.0, 2000.0, 0.0], 1.0);
        let (log_p, log_rest) = signal.log_probabilities(1);
        assert_eq!((log_p, log_rest), (vec![0.0, -1000.0], f64::from(signal.log_rest[1])));
        assert_eq!(signal.probabilities(1).1, 0.0);
    }

    #[test]
    fn named_tokens_keep_their_order_and_the_others_are_the_rest() {
        let logits = [1.0, 3.0, 3.0, 0.0];
        let mut signal = TopK::new(2);
        signal.push_exact_named(&[3, 1], &logits, 2.0);
        assert_eq!(
            (signal.ids.as_slice(), signal.scaled.as_slice()),
            (&[3, 1][..], &[0.0, 1.5][..])
        );
        let z = 0.5f64.exp() + 2.0 * 1.5f64.exp() + 1.0;
        let rest = ((0.5f64.exp() + 1.5f64.exp()) / z).ln();
        assert!((f64::from(signal.log_rest[0]) - rest).abs() < 1e-6);
        let (same, each) = (Entries::Named(vec![3, 1]), Entries::Named(vec![3, 1, 0, 2]));
        assert_eq!(
            (same.named_at(1, 2), each.named_at(1, 2)),
            (Some(&[3, 1][..]), Some(&[0, 2][..]))
        );
        assert_eq!(Entries::Top.named_at(0, 2), None);
    }

    #[test]
    fn nothing_is_left_when_k_is_the_whole_vocabulary() {
        let mut signal = TopK::new(3);
        signal.push_exact(&[1.0, 2.0, 3.0], 1.0);
        assert_eq!(signal.log_rest, [f32::NEG_INFINITY]);
        let (p, rest) = signal.probabilities(0);
        assert_eq!(rest, 0.0);
        assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12);
    }
}
