//! Why a training step, or the loading of a student, stopped.

use std::path::PathBuf;

use crate::load::WeightsError;
use crate::qwen3::ModelError;
use crate::save::SaveError;

/// Why a training step stopped. Whatever the reason but [`StudentError::HalfUpdated`], weights, moments
/// and the step count are what they were before, and the gradients are 0.
#[derive(Debug, thiserror::Error)]
pub enum StudentError {
    /// The batch cannot be computed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A loss of a scored position is not a finite number.
    #[error(
        "the loss is not finite in rows {rows:?} of the batch (from 0); nothing was updated; \
         look at these rows, or lower the learning rate"
    )]
    LossNotFinite {
        /// Rows of the batch, from 0.
        rows: Vec<usize>,
    },
    /// A gradient is not a finite number.
    #[error(
        "the gradient of `{parameter}` is not finite (norm of all {norm}); nothing was updated; \
         lower the learning rate"
    )]
    GradientNotFinite {
        /// The first parameter concerned.
        parameter: String,
        /// The norm over all parameters.
        norm: f64,
    },
    /// A step while the state is read elsewhere.
    #[error("the student's state is still being written to the disk; nothing was updated")]
    BeingRead,
    /// An update that failed on its way.
    #[error(
        "an update failed on its way ({source}): the student is between two steps and is not saved; \
         go on from the newest checkpoint"
    )]
    HalfUpdated {
        /// What the device said.
        source: candle_core::Error,
    },
    /// A second batch for a step whose gradients are not kept.
    #[error(
        "a student that computes gradients again takes one batch a step; use --recompute blocks \
         with --gradient-accumulation-steps above 1"
    )]
    OneBatch,
    /// A learning rate that is no number to step by.
    #[error("the learning rate is {found}; wanted a finite number, 0 or above")]
    LearningRate {
        /// What was given.
        found: f64,
    },
    /// The start weights cannot be used.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The training state cannot be written.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// A file holds no training state of this model.
    #[error("{path} is no training state of this model: {reason}")]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, found and wanted.
        reason: String,
    },
}

impl From<candle_core::Error> for StudentError {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(ModelError::Operation(error))
    }
}
