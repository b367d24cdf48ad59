//! A model in training, wherever it computes: on this machine's processor ([`Student`]) or on a card
//! ([`crate::card`]).

use distill::batch::TokenBatch;

use crate::language_model::LanguageModel;
use crate::ops::head::{HeadLoss, LossSettings, Teaching};
use crate::state_file::TrainingState;
use crate::student::{Student, StudentError};

/// Weights with both moments, gradients, and the optimiser's step.
pub trait Learner: Send {
    /// The model as it is now.
    fn model(&self) -> &dyn LanguageModel;

    /// Losses of a batch's scored positions, in the order of [`TokenBatch::scored`]; their gradient is added to what the
    /// next [`Self::step`] goes by. `scale` is 1/N, N the scored positions of the whole step.
    ///
    /// # Errors
    /// [`StudentError::LossNotFinite`] with the rows concerned; [`StudentError::OneBatch`]; else as
    /// [`head_loss`](crate::ops::head::head_loss). The gradients are 0 then.
    fn backward(
        &mut self,
        batch: &TokenBatch,
        classes: usize,
        signal: Option<Teaching<'_>>,
        settings: &LossSettings,
        scale: f64,
    ) -> Result<HeadLoss, StudentError>;

    /// One AdamW step with the gradients added up since the last one, clipped to a norm of `max_grad_norm` when
    /// given; then the gradients are 0. Gives their norm before clipping.
    ///
    /// # Errors
    /// As [`Student::step`].
    fn step(&mut self, lr: f64, max_grad_norm: Option<f64>) -> Result<f64, StudentError>;

    /// Optimiser steps done.
    fn steps(&self) -> u64;

    /// Whether an update failed on its way, so that the state is that of no step.
    fn is_half_updated(&self) -> bool;

    /// The state as it is now. [`Self::step`] may refuse to change it while this is alive.
    ///
    /// # Errors
    /// When the device fails.
    fn snapshot(&self) -> Result<TrainingState, StudentError>;

    /// All gradients added up since the last step, `[P]` in the order of the parameters; they are 0 afterwards.
    ///
    /// # Errors
    /// When the device fails.
    fn take_gradients(&mut self) -> Result<Vec<f32>, StudentError>;
}

impl Learner for Student {
    fn model(&self) -> &dyn LanguageModel {
        Self::model(self)
    }

    fn backward(
        &mut self,
        batch: &TokenBatch,
        classes: usize,
        signal: Option<Teaching<'_>>,
        settings: &LossSettings,
        scale: f64,
    ) -> Result<HeadLoss, StudentError> {
        Self::backward(self, batch, classes, signal, settings, scale)
    }

    fn step(&mut self, lr: f64, max_grad_norm: Option<f64>) -> Result<f64, StudentError> {
        Self::step(self, lr, max_grad_norm)
    }

    fn steps(&self) -> u64 {
        Self::steps(self)
    }

    fn is_half_updated(&self) -> bool {
        Self::is_half_updated(self)
    }

    fn snapshot(&self) -> Result<TrainingState, StudentError> {
        Ok(TrainingState::of(self))
    }

    fn take_gradients(&mut self) -> Result<Vec<f32>, StudentError> {
        let flat = self.gradients().flat().to_vec1::<f32>()?;
        self.gradients().zero()?;
        Ok(flat)
    }
}
