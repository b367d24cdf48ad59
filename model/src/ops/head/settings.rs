//! What is computed of the output layer, beside the numbers themselves.

use super::{Divergence, Tail};
use crate::ops::Precision;

/// What the loss of a step is made of: `total = alpha T² D + (1 - alpha) CE`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossSettings {
    /// Weight of the divergence from the teacher, 0 to 1.
    pub alpha: f64,
    /// Temperature of the divergence, the one the signal was made at; above 0.
    pub temperature: f64,
    /// What D is.
    pub divergence: Divergence,
    /// What becomes of the mass outside the signal's k tokens. [`Tail::Renormalise`] has a meaning for
    /// the forward divergence alone.
    pub tail: Tail,
    /// Rounding of the operands of the three products.
    pub precision: Precision,
}

impl LossSettings {
    /// The forward divergence from a teacher alone, in float32: what signals are held against each other
    /// by.
    pub fn divergence_alone(temperature: f64) -> Self {
        Self {
            alpha: 1.0,
            temperature,
            divergence: Divergence::ForwardKl,
            tail: Tail::Bucket,
            precision: Precision::F32,
        }
    }

    /// Cross-entropy alone, in float32: what any logits say of the tokens that follow.
    pub fn cross_entropy_alone() -> Self {
        Self { alpha: 0.0, ..Self::divergence_alone(1.0) }
    }
}
