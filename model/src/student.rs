//! A model in training: master weights with both moments, gradients, and the optimiser's step.

mod error;
mod two_passes;

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use distill::batch::TokenBatch;

use crate::config::Qwen3Config;
use crate::gradients::Gradients;
use crate::language_model::LanguageModel as _;
use crate::load::{StoredWeights, WeightsError, is_gguf};
use crate::ops::Precision;
use crate::ops::adamw::{AdamW, adamw_step, clip_scale, squared_norm};
use crate::ops::embed::{gather_rows, scatter_add_rows};
use crate::ops::head::{HeadLoss, LossSettings, Teaching, head_loss};
use crate::parameters::ParameterIndex;
use crate::qwen3::{ModelError, Qwen3};
use crate::recompute::Recompute;
use crate::weights::{Weights, draw, read};
pub use error::StudentError;
use two_passes::FirstPass;

/// How a student is trained: what does not change from step to step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Training {
    /// The type of the products' operands.
    pub precision: Precision,
    /// The optimiser's settings.
    pub optimiser: AdamW,
    /// What a step computes again.
    pub recompute: Recompute,
}

/// Everything a training step reads and changes.
pub struct Student {
    model: Qwen3,
    /// `[3, P]` float32: master weights, first moments, second moments.
    state: Tensor,
    gradients: Gradients,
    training: Training,
    steps: u64,
    /// Of the batch whose gradients are to be computed again.
    first_pass: Option<FirstPass>,
    /// Whether an update failed on its way.
    half_updated: bool,
    /// Held by everybody who reads the state beside the training.
    lent: Arc<()>,
}

impl Student {
    /// A student that starts from the weights of a model directory, moments 0.
    ///
    /// # Errors
    /// [`StudentError::Weights`], naming file and tensor.
    pub fn load(
        dir: &Path,
        config: Qwen3Config,
        training: Training,
        device: &Device,
    ) -> Result<Self, StudentError> {
        if is_gguf(dir) {
            return Err(WeightsError::Quantised { file: dir.to_owned() }.into());
        }
        let index = ParameterIndex::new(&config);
        let stored = StoredWeights::open(dir, &config, &index)?;
        let state = read::<f32>(&stored, &index, 3 * index.total())?;
        Self::from_state(config, index, state, 0, training, device)
    }

    /// A student that starts from seeded random weights ([`Weights::random`]), moments 0.
    ///
    /// # Errors
    /// [`StudentError::Weights`] when memory does not suffice.
    pub fn random(
        config: Qwen3Config,
        seed: u64,
        training: Training,
        device: &Device,
    ) -> Result<Self, StudentError> {
        let index = ParameterIndex::new(&config);
        let state = draw(&config, &index, seed, 3 * index.total())?;
        Self::from_state(config, index, state, 0, training, device)
    }

    pub(crate) fn from_state(
        config: Qwen3Config,
        index: ParameterIndex,
        state: Vec<f32>,
        steps: u64,
        training: Training,
        device: &Device,
    ) -> Result<Self, StudentError> {
        let (total, index) = (index.total(), Arc::new(index));
        let state = Tensor::from_vec(state, (3, total), device)?;
        let master = state.narrow(0, 0, 1)?.reshape(total)?;
        let weights = Weights::from_flat(master, Arc::clone(&index))?;
        let gradients = match training.recompute {
            Recompute::Gradients => Gradients::of_one_block(&config, device)?,
            Recompute::None | Recompute::Blocks => {
                Gradients::new(&index, config.num_hidden_layers, device)?
            }
        };
        Ok(Self {
            model: Qwen3::new(config, weights, training.precision)?,
            state,
            gradients,
            training,
            steps,
            first_pass: None,
            half_updated: false,
            lent: Arc::new(()),
        })
    }

    /// Memory of [`Self::state`] for a model of this configuration, in bytes.
    pub fn state_bytes(config: &Qwen3Config) -> u64 {
        (3 * ParameterIndex::new(config).total() * size_of::<f32>()) as u64
    }

    /// The network; it computes with the weights as they are at each call.
    pub fn model(&self) -> &Qwen3 {
        &self.model
    }

    /// The master weights.
    pub fn weights(&self) -> &Weights {
        self.model.weights()
    }

    /// What the backward passes since the last step have added up; with [`Recompute::Gradients`] that
    /// of the parameters outside the blocks only.
    pub fn gradients(&self) -> &Gradients {
        &self.gradients
    }

    /// How it is trained.
    pub fn training(&self) -> &Training {
        &self.training
    }

    /// Optimiser steps done.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// What keeps the state as it is while somebody reads it elsewhere: no step is made before it is
    /// dropped.
    pub(crate) fn lend(&self) -> Arc<()> {
        Arc::clone(&self.lent)
    }

    /// Whether an update failed on its way, so that the state is that of no step.
    pub fn is_half_updated(&self) -> bool {
        self.half_updated
    }

    /// Master weights, first and second moments, `[3, P]` float32.
    pub fn state(&self) -> &Tensor {
        &self.state
    }

    /// Losses of a batch's scored positions, in the order of [`TokenBatch::scored`], and their
    /// gradient added to [`Self::gradients`]. `scale` is 1/N, N the scored positions of the whole
    /// step. The returned `d_hidden` is None: it has been used.
    ///
    /// # Errors
    /// [`StudentError::LossNotFinite`] with the rows concerned; [`StudentError::OneBatch`]; else as
    /// [`head_loss`].
    pub fn backward(
        &mut self,
        batch: &TokenBatch,
        classes: usize,
        signal: Option<Teaching<'_>>,
        settings: &LossSettings,
        scale: f64,
    ) -> Result<HeadLoss, StudentError> {
        // On a thread of the pool, which the many parallel loops within need then not wake.
        let result = rayon::scope(|_| self.add_gradient(batch, classes, signal, settings, scale));
        if result.is_err() {
            // Half a gradient must not reach the next step.
            self.forget_gradients()?;
        }
        result
    }

    fn add_gradient(
        &mut self,
        batch: &TokenBatch,
        classes: usize,
        signal: Option<Teaching<'_>>,
        settings: &LossSettings,
        scale: f64,
    ) -> Result<HeadLoss, StudentError> {
        if self.first_pass.is_some() {
            return Err(StudentError::OneBatch);
        }
        let (hidden, tape) = self.model.forward_train(batch, self.training.recompute)?;
        let mut loss = head_loss(
            &gather_rows(&hidden, batch.scored())?,
            self.model.head(),
            classes,
            batch.targets(),
            signal,
            settings,
            scale,
            Some(self.gradients.head()),
        )?;
        let rows = rows_not_finite(batch.scored_per_row(), &loss);
        if !rows.is_empty() {
            return Err(StudentError::LossNotFinite { rows });
        }
        if let Some(d_scored) = loss.d_hidden.take() {
            let d_hidden = Tensor::zeros(hidden.shape(), DType::F32, hidden.device())?;
            drop(hidden);
            scatter_add_rows(&d_hidden, batch.scored(), &d_scored)?;
            match self.training.recompute {
                Recompute::None | Recompute::Blocks => {
                    self.model.backward(tape, &d_hidden, &self.gradients)?;
                }
                Recompute::Gradients => {
                    let (model, gradients) = (&self.model, &self.gradients);
                    self.first_pass = Some(two_passes::first(model, tape, &d_hidden, gradients)?);
                }
            }
        }
        Ok(loss)
    }

    /// Losses of a batch's scored positions; nothing is kept and no gradient computed.
    ///
    /// # Errors
    /// As [`LanguageModel::losses`](crate::language_model::LanguageModel::losses).
    pub fn evaluate(
        &self,
        batch: &TokenBatch,
        classes: usize,
        signal: Option<Teaching<'_>>,
        settings: &LossSettings,
    ) -> Result<HeadLoss, ModelError> {
        self.model.losses(batch, classes, signal, settings)
    }

    /// One AdamW step with the gradients added up since the last one, clipped to a norm of
    /// `max_grad_norm` when given; then the gradients are 0. Gives their norm before clipping.
    ///
    /// # Errors
    /// [`StudentError::GradientNotFinite`], [`StudentError::LearningRate`] or
    /// [`StudentError::BeingRead`]: before anything is changed, and the gradients are 0.
    /// [`StudentError::HalfUpdated`] when the device failed in the middle of an update.
    pub fn step(&mut self, lr: f64, max_grad_norm: Option<f64>) -> Result<f64, StudentError> {
        let refusal = if Arc::strong_count(&self.lent) > 1 {
            Some(StudentError::BeingRead)
        } else {
            let usable = lr.is_finite() && lr >= 0.0;
            (!usable).then_some(StudentError::LearningRate { found: lr })
        };
        if let Some(refusal) = refusal {
            self.forget_gradients()?;
            return Err(refusal);
        }
        let norm = self.squared_norms()?.iter().sum::<f64>().sqrt();
        if !norm.is_finite() {
            let parameter = self.first_not_finite()?;
            self.forget_gradients()?;
            return Err(StudentError::GradientNotFinite { parameter, norm });
        }
        let scale = max_grad_norm.map_or(1.0, |max| clip_scale(norm, max));
        match self.training.recompute {
            Recompute::None | Recompute::Blocks => {
                self.update(0, self.gradients.flat(), lr, scale)?
            }
            Recompute::Gradients => self.update_in_second_pass(lr, scale).map_err(|source| {
                self.half_updated = true;
                StudentError::HalfUpdated { source }
            })?,
        }
        self.steps += 1;
        self.gradients.zero()?;
        Ok(norm)
    }

    /// AdamW on the parameters from number `first` on, of which these are the gradients.
    fn update(
        &self,
        first: usize,
        gradients: &Tensor,
        lr: f64,
        scale: f64,
    ) -> candle_core::Result<()> {
        adamw_step(
            &self.state,
            first,
            gradients,
            &self.training.optimiser,
            lr,
            self.steps + 1,
            scale,
        )
    }

    /// Of the parameters before the blocks, of each block, of those after them.
    fn squared_norms(&self) -> candle_core::Result<Vec<f64>> {
        let mut squares: Vec<f64> =
            self.gradients.parts()?.iter().map(squared_norm).collect::<Result<_, _>>()?;
        if let Some(pass) = &self.first_pass {
            squares.splice(1..2, pass.squared_norms.iter().copied());
        }
        Ok(squares)
    }

    fn first_not_finite(&self) -> candle_core::Result<String> {
        let kept = self.gradients.first_not_finite()?.map(str::to_owned);
        let of_pass = self.first_pass.as_ref().and_then(|pass| pass.not_finite.clone());
        let index = self.model.weights().index();
        let place = |name: &String| index.get(name).map(|parameter| parameter.offset);
        let first = kept.into_iter().chain(of_pass).min_by_key(place);
        Ok(first.unwrap_or_else(|| "all parameters together".to_owned()))
    }

    /// What the backward passes since the last step have added up counts for nothing.
    pub(crate) fn forget_gradients(&mut self) -> candle_core::Result<()> {
        self.first_pass = None;
        self.gradients.zero()
    }
}

/// The rows of a batch, from 0, with a scored position whose loss is infinite or no number.
pub fn rows_not_finite(scored_per_row: &[usize], loss: &HeadLoss) -> Vec<usize> {
    let mut positions = loss.ce.iter().zip(&loss.kl);
    let mut rows = Vec::new();
    for (row, &scored) in scored_per_row.iter().enumerate() {
        let of_row = positions.by_ref().take(scored);
        if of_row.filter(|(ce, kl)| !ce.is_finite() || !kl.is_finite()).count() > 0 {
            rows.push(row);
        }
    }
    rows
}

#[cfg(test)]
#[path = "student_tests.rs"]
mod tests;
