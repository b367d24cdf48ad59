//! Hidden states to coded rows and back: the matrix products of [`distill::coded`], and how a code is
//! made of a teacher ([`fn@fit`]).
//!
//! The teacher holds an [`Encoder`]: coordinates z = B (h - mean), numbers round(z / step). Which number
//! a coordinate rounds to is the encoder's affair: it computes in bfloat16 where that is lost beside the
//! step, else in `f32`. The student's side holds a [`Decoder`], whose sums are exact whole numbers, in
//! bytes or in `f64` and whatever their order (see [`distill::coded`]), so that every machine finds the
//! same hidden states.

mod decoder;
mod encoder;
mod file;
mod fit;
#[cfg(target_arch = "x86_64")]
mod in_bytes;
mod symmetric;

use candle_core::{Result, Tensor};
use distill::signal::HiddenStates;

use crate::ops::tensor;
pub use decoder::Decoder;
pub use encoder::Encoder;
pub use file::CalibrationFileError;
pub use fit::{CalibrationError, Sample, enough_positions, fit, least_positions};

/// Hidden states as a tensor `[rows, width]`.
///
/// # Errors
/// When the values are no whole rows.
pub fn to_tensor(states: HiddenStates) -> Result<Tensor> {
    let rows = states.values.len() / states.width.max(1);
    tensor(states.values, (rows, states.width))
}

#[cfg(test)]
#[path = "coding/coding_tests.rs"]
mod tests;
