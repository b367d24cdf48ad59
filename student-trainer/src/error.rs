//! Why a run ends without its result. Each error names the thing, both values and the remedy.

use crate::checkpoint::CheckpointError;
use crate::outputs::OutputError;
use crate::teacher::TeacherError;

/// Why training or evaluation stopped.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The output directory.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// A checkpoint could not be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The teacher: not reached, not fitting, or lost on the way.
    #[error(transparent)]
    Teacher(#[from] TeacherError),
    /// A tensor operation failed.
    #[error("computing {what}: {source}")]
    Tensor {
        /// What was computed.
        what: &'static str,
        /// What the operation said.
        source: candle_core::Error,
    },
    /// A loss or a gradient that is not a number.
    #[error(
        "step {step}: {what} is {value}; no update was made and nothing is lost: checkpoints hold \
         the state before. Rows of this step (counted from 0 in the training set): {rows:?}. \
         Look at these rows, or lower --learning-rate"
    )]
    NotFinite {
        /// The step that was not done.
        step: u64,
        /// `loss` or `gradient norm`.
        what: &'static str,
        /// Its value.
        value: f64,
        /// Indices of the rows of the step.
        rows: Vec<usize>,
    },
}
