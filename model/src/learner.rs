//! A model in training, wherever it computes: on this machine's processor ([`Student`]) or on a card
//! ([`crate::card`]).

use distill::batch::TokenBatch;

use crate::language_model::LanguageModel;
use crate::ops::head::{HeadLoss, LossSettings, Teaching};
use crate::started::Started;
use crate::state_file::TrainingState;
use crate::student::{Student, StudentError};

/// Weights with both moments, gradients, and the optimiser's step.
///
/// A device that computes by itself is given the next thing before the last one is done: what is started is carried out
/// in this order, and finished in any. Where a loss or gradient turns out to be no number no step that was started behind
/// it is made; whoever is told so, or of a failure of the device, need finish nothing more: it is forgotten.
pub trait Learner: Send {
    /// The model as it is now, with the steps that were started.
    fn model(&self) -> &dyn LanguageModel;

    /// Starts a forward and backward pass: losses of a batch's scored positions, in the order of [`TokenBatch::scored`],
    /// and their gradient added to what the next step goes by. `scale` is 1/N, N the scored positions of the whole step.
    ///
    /// # Errors
    /// Before anything was computed, as [`head_loss`](crate::ops::head::head_loss) or [`StudentError::OneBatch`], or where
    /// memory does not suffice; and as [`Self::finish_backward`]. The gradients are 0 then.
    fn start_backward(
        &mut self,
        batch: &TokenBatch,
        classes: usize,
        signal: Option<Teaching<'_>>,
        settings: &LossSettings,
        scale: f64,
    ) -> Result<Started<HeadLoss>, StudentError>;

    /// The losses.
    ///
    /// # Errors
    /// [`StudentError::LossNotFinite`] with the rows concerned, and failures of the device. The gradients are 0 then.
    fn finish_backward(&mut self, started: Started<HeadLoss>) -> Result<HeadLoss, StudentError>;

    /// Starts one AdamW step with the gradients added up since the last one, clipped to a norm of `max_grad_norm` when
    /// given; then the gradients are 0.
    ///
    /// # Errors
    /// As [`Student::step`].
    fn start_step(
        &mut self,
        lr: f64,
        max_grad_norm: Option<f64>,
    ) -> Result<Started<f64>, StudentError>;

    /// Forgets what was started of a step that will not be, which need not be finished: the gradients are 0.
    ///
    /// # Errors
    /// When the device fails.
    fn give_up(&mut self) -> Result<(), StudentError>;

    /// The gradients' norm before clipping.
    ///
    /// # Errors
    /// As [`Student::step`].
    fn finish_step(&mut self, started: Started<f64>) -> Result<f64, StudentError>;

    /// [`Self::start_backward`] and [`Self::finish_backward`].
    ///
    /// # Errors
    /// Theirs.
    fn backward(
        &mut self,
        batch: &TokenBatch,
        classes: usize,
        signal: Option<Teaching<'_>>,
        settings: &LossSettings,
        scale: f64,
    ) -> Result<HeadLoss, StudentError> {
        let started = self.start_backward(batch, classes, signal, settings, scale)?;
        self.finish_backward(started)
    }

    /// [`Self::start_step`] and [`Self::finish_step`].
    ///
    /// # Errors
    /// Theirs.
    fn step(&mut self, lr: f64, max_grad_norm: Option<f64>) -> Result<f64, StudentError> {
        let started = self.start_step(lr, max_grad_norm)?;
        self.finish_step(started)
    }

    /// Optimiser steps done and finished.
    fn steps(&self) -> u64;

    /// Whether an update failed on its way, so that the state is that of no step.
    fn is_half_updated(&self) -> bool;

    /// The state as it is now, everything that was started being finished. [`Self::start_step`] may refuse to change it
    /// while this is alive ([`TrainingState::is_lent`]).
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

    fn start_backward(
        &mut self,
        batch: &TokenBatch,
        classes: usize,
        signal: Option<Teaching<'_>>,
        settings: &LossSettings,
        scale: f64,
    ) -> Result<Started<HeadLoss>, StudentError> {
        Self::backward(self, batch, classes, signal, settings, scale).map(Started::Done)
    }

    fn finish_backward(&mut self, started: Started<HeadLoss>) -> Result<HeadLoss, StudentError> {
        Ok(started.done())
    }

    fn start_step(
        &mut self,
        lr: f64,
        max_grad_norm: Option<f64>,
    ) -> Result<Started<f64>, StudentError> {
        Self::step(self, lr, max_grad_norm).map(Started::Done)
    }

    fn give_up(&mut self) -> Result<(), StudentError> {
        Ok(self.forget_gradients()?)
    }

    fn finish_step(&mut self, started: Started<f64>) -> Result<f64, StudentError> {
        Ok(started.done())
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
