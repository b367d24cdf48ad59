//! A position of either kind: its teacher lists tokens (or there is none), or says all.

use super::full::FullRow;
use super::row::{Heard, Row, RowLoss};

/// A position, while its classes are heard.
pub(super) enum Listening {
    Listed(Row),
    Full(FullRow),
}

/// A position whose classes were all heard.
pub(super) enum Position {
    Listed(Heard),
    Full(FullRow),
}

impl Listening {
    pub(super) fn listen(&mut self, logits: &mut [f32], teacher: &[f32], first: usize) {
        match self {
            Self::Listed(row) => row.listen(logits, first),
            Self::Full(row) => row.listen(logits, teacher, first),
        }
    }

    pub(super) fn heard(self) -> Position {
        match self {
            Self::Listed(row) => Position::Listed(row.heard()),
            Self::Full(row) => Position::Full(row),
        }
    }
}

impl Position {
    /// Takes note of what depends on the sums over all classes.
    pub(super) fn listen_again(&mut self, logits: &[f32], teacher: &[f32]) {
        match self {
            // A few outcomes, known by now.
            Self::Listed(_) => {}
            Self::Full(row) => row.listen_again(logits, teacher),
        }
    }

    pub(super) fn gradient(&self, logits: &mut [f32], teacher: &[f32], first: usize) {
        match self {
            Self::Listed(row) => row.gradient(logits, first),
            Self::Full(row) => row.gradient(logits, teacher, first),
        }
    }

    pub(super) fn losses(&self) -> RowLoss {
        match self {
            Self::Listed(row) => row.losses(),
            Self::Full(row) => row.losses(),
        }
    }
}
