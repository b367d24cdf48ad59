//! The signals that list tokens of a position, each with a probability.

use distill::signal::{Draws, TopK};

/// Such a signal.
#[derive(Clone, Copy)]
pub(super) enum Listed<'a> {
    TopK(&'a TopK),
    Draws(&'a Draws),
}

impl Listed<'_> {
    /// Ids and probabilities of a row, in any order, and the probability of everything else together;
    /// they sum to 1.
    pub(super) fn outcomes(self, row: usize) -> (Vec<u32>, Vec<f64>, f64) {
        match self {
            Self::TopK(signal) => {
                let (p, rest) = signal.probabilities(row);
                (signal.ids[row * signal.k..(row + 1) * signal.k].to_vec(), p, rest)
            }
            Self::Draws(signal) => {
                let (ids, p) = signal.estimate(row);
                (ids, p, 0.0)
            }
        }
    }

    /// Whether what it lists, and the rest, are the outcomes there are; draws are an estimate of them.
    pub(super) fn tells_all_apart(self) -> bool {
        matches!(self, Self::TopK(_))
    }

    /// Logarithms of the probabilities of a row by ascending id, and of everything else last: they keep
    /// what is below the smallest float64.
    pub(super) fn log_outcomes(self, row: usize) -> Vec<f64> {
        let (ids, logs, log_rest) = match self {
            Self::TopK(signal) => {
                let (logs, log_rest) = signal.log_probabilities(row);
                (signal.ids[row * signal.k..(row + 1) * signal.k].to_vec(), logs, log_rest)
            }
            Self::Draws(signal) => {
                let (ids, p) = signal.estimate(row);
                (ids, p.into_iter().map(f64::ln).collect(), f64::NEG_INFINITY)
            }
        };
        let mut pairs: Vec<(u32, f64)> = ids.into_iter().zip(logs).collect();
        pairs.sort_unstable_by_key(|pair| pair.0);
        pairs.into_iter().map(|(_, log)| log).chain([log_rest]).collect()
    }
}
