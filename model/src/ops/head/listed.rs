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
}
