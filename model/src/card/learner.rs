//! A model in training on a card: master weights with both moments, gradients and the weights that products read all
//! lie there; a step is two programs, of which the host sees the losses and the norm.

use std::sync::Arc;

use candle_core::{Device as Tensors, Tensor};
use distill::batch::TokenBatch;
use kernels::adamw::{self, adamw, clip};
use kernels::executor::Executor;
use kernels::program::{Kind, Program, View};
use kernels::round::round;

use super::engine::{CardModel, LossOf, Passed, activations, send};
use super::failed;
use super::loss::Losses;
use super::network::{self, Making, views};
use crate::config::Qwen3Config;
use crate::language_model::LanguageModel;
use crate::learner::Learner;
use crate::ops::adamw::scalars;
use crate::ops::head::{HeadLoss, LossSettings, Teaching};
use crate::parameters::{ModelViews, ParameterIndex};
use crate::qwen3::{ModelError, check_batch};
use crate::recompute::Recompute;
use crate::state_file::TrainingState;
use crate::student::{Student, StudentError, Training, rows_not_finite};
use crate::weights::Weights;

/// A student on a card.
pub struct CardLearner<X: Executor> {
    model: CardModel<X>,
    training: Training,
    /// Master weights, first moments, second moments, `[P]` float32 each.
    state: [View; 3],
    /// The weights as products read them, where these are not the master weights.
    rounded: Option<View>,
    /// `[P]` float32, and by parameter.
    gradients: View,
    of_parameters: ModelViews<View>,
    /// Whether what lies in the gradients counts for nothing: it is set to 0 before anything is added.
    stale: bool,
    steps: u64,
}

impl<X: Executor + Send> CardLearner<X> {
    /// The same student on a card.
    ///
    /// # Errors
    /// When there is no room for it, or it is to be trained in a way that cards are not for.
    pub fn new(on: X, student: &Student) -> Result<Self, StudentError> {
        let config = student.model().config().clone();
        let mut learner = Self::empty(on, config, *student.training())?;
        learner.steps = student.steps();
        let Self { state, rounded, ref model, .. } = learner;
        let mut engine = model.engine();
        for (row, view) in state.into_iter().enumerate() {
            send(&mut engine.on, view, &student.state().narrow(0, row, 1)?.flatten_all()?)?;
        }
        if let Some(rounded) = rounded {
            let mut program = Program::default();
            program.call(round([state[0], rounded], rounded.len as u32));
            engine.run(&program, &Making::default().inputs)?;
        }
        drop(engine);
        Ok(learner)
    }

    /// A student of which weights and moments are 0.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(super) fn empty(
        mut on: X,
        config: Qwen3Config,
        training: Training,
    ) -> Result<Self, StudentError> {
        if training.recompute == Recompute::Gradients {
            return Err(ModelError::Device(
                "gradients are not computed again on a card: choose --recompute blocks".to_owned(),
            )
            .into());
        }
        let index = Arc::new(ParameterIndex::new(&config));
        if u32::try_from(index.total()).is_err() {
            return Err(ModelError::Device(format!(
                "a student of {} parameters: a card trains at most {}, which its kernels count; choose a smaller student",
                index.total(),
                u32::MAX
            ))
            .into());
        }
        let mut keep = |name, kind| on.keep(name, kind, index.total()).map_err(failed::<X>);
        let state = [
            keep("master weights", Kind::F32)?,
            keep("first moments", Kind::F32)?,
            keep("second moments", Kind::F32)?,
        ];
        let gradients = keep("gradients", Kind::F32)?;
        let kind = Kind::from(activations(training.precision)?);
        let rounded = (kind == Kind::Bf16).then(|| keep("weights", kind)).transpose()?;
        let of_parameters = views(gradients, &index, config.num_hidden_layers)?;
        let flat = rounded.unwrap_or(state[0]);
        let views = network::weights(flat, &index, config.num_hidden_layers)?;
        let model = CardModel::over(on, config, (&index, views), training.precision)?;
        Ok(Self {
            model,
            training,
            state,
            rounded,
            gradients,
            of_parameters,
            stale: true,
            steps: 0,
        })
    }

    /// The model, as its engine is spoken to.
    pub(super) fn card(&self) -> &CardModel<X> {
        &self.model
    }

    /// Memory for the logits of a loss, in bytes; none for the usual.
    #[cfg(test)]
    pub(crate) fn logits_bytes(&self, bytes: Option<usize>) {
        self.model.engine().logits_bytes = bytes.unwrap_or(super::loss::LOGITS_BYTES);
    }

    fn add_gradient(
        &mut self,
        batch: &TokenBatch,
        of: LossOf<'_>,
    ) -> Result<HeadLoss, StudentError> {
        let (making, losses) = self.learning(batch, of)?;
        let outputs = self.model.engine().run(&making.program, &making.inputs)?;
        self.stale = false;
        let loss = losses.read(&outputs);
        let rows = rows_not_finite(batch, &loss);
        if rows.is_empty() { Ok(loss) } else { Err(StudentError::LossNotFinite { rows }) }
    }

    /// The program that adds a batch's gradient.
    pub(super) fn learning(
        &self,
        batch: &TokenBatch,
        of: LossOf<'_>,
    ) -> Result<(Making, Losses), ModelError> {
        check_batch(self.model.config(), batch)?;
        let mut making = Making::default();
        let mut engine = self.model.engine();
        if self.stale {
            making.program.part("gradients");
            making.program.zero(self.gradients);
        }
        let grads = &self.of_parameters;
        let gradient = Some((grads.head, self.training.recompute));
        let (passed, losses) = engine.losses(&mut making, batch, of, gradient)?;
        if let Some(d_hidden) = losses.d_hidden {
            let Passed { shape, tape, hidden } = passed;
            let of = (tape, &hidden, d_hidden);
            engine.network.backward(&mut making, (batch, batch.scored()), of, grads, &shape);
        }
        Ok((making, losses))
    }

    /// Memory that stays from step to step, in bytes.
    pub(super) fn kept_bytes(&self) -> usize {
        let views = self.state.iter().chain([&self.gradients]).chain(&self.rounded);
        views.map(View::bytes).sum()
    }

    /// Clipping and AdamW as one program. Where the norm is not finite it changes nothing.
    fn update(&self, lr: f64, max_grad_norm: Option<f64>) -> Result<f64, ModelError> {
        let Self { state: [p, m, v], gradients, rounded, .. } = *self;
        let count = gradients.len as u32;
        let mut program = Program::default();
        program.part("update");
        if self.stale {
            program.zero(gradients);
        }
        let room = program.passing("shares", Kind::F64, adamw::shares(count) as usize);
        let scale = program.passing("shares", Kind::F32, 1);
        let norm = program.output(Kind::F32, 1);
        let most = max_grad_norm.map_or(f32::INFINITY, |most| most as f32);
        program.calls(clip([gradients, room, norm, scale], count, most));
        let scalars = scalars(&self.training.optimiser, lr, self.steps + 1);
        program.call(adamw([p, m, v, gradients, scale], rounded, count, &scalars));
        let outputs = self.model.engine().run(&program, &Making::default().inputs)?;
        Ok(f64::from(outputs.get::<f32>(norm)[0]))
    }

    /// The first parameter with a gradient that is not finite.
    fn first_not_finite(&self) -> Result<String, ModelError> {
        let gradients = self.model.engine().read::<f32>(self.gradients)?;
        let broken = gradients.iter().position(|g| !g.is_finite());
        let of = |at: usize| {
            let parameters = self.model.index().parameters();
            parameters.iter().rev().find(|parameter| parameter.offset <= at)
        };
        let found = broken.and_then(of).map(|parameter| parameter.name.clone());
        Ok(found.unwrap_or_else(|| "all parameters together".to_owned()))
    }
}

impl<X: Executor + Send> Learner for CardLearner<X> {
    fn model(&self) -> &dyn LanguageModel {
        &self.model
    }

    fn backward(
        &mut self,
        batch: &TokenBatch,
        classes: usize,
        signal: Option<Teaching<'_>>,
        settings: &LossSettings,
        scale: f64,
    ) -> Result<HeadLoss, StudentError> {
        let result = self.add_gradient(batch, LossOf { classes, signal, settings, scale });
        // Half a gradient must not reach the next step.
        self.stale |= result.is_err();
        result
    }

    fn step(&mut self, lr: f64, max_grad_norm: Option<f64>) -> Result<f64, StudentError> {
        if !(lr.is_finite() && lr >= 0.0) {
            self.stale = true;
            return Err(StudentError::LearningRate { found: lr });
        }
        let norm = self.update(lr, max_grad_norm);
        let parameter = match &norm {
            Ok(norm) if !norm.is_finite() => Some(self.first_not_finite()?),
            Ok(_) | Err(_) => None,
        };
        self.stale = true;
        let norm = norm?;
        if let Some(parameter) = parameter {
            return Err(StudentError::GradientNotFinite { parameter, norm });
        }
        self.steps += 1;
        Ok(norm)
    }

    fn steps(&self) -> u64 {
        self.steps
    }

    fn is_half_updated(&self) -> bool {
        false
    }

    fn snapshot(&self) -> Result<TrainingState, StudentError> {
        let index = Arc::new(self.model.index().clone());
        let total = index.total();
        let mut engine = self.model.engine();
        let mut state = Vec::with_capacity(3 * total);
        for view in self.state {
            state.extend(engine.read::<f32>(view)?);
        }
        drop(engine);
        let state = Tensor::from_vec(state, (3, total), &Tensors::Cpu)?;
        let master = state.narrow(0, 0, 1)?.reshape(total)?;
        let weights = Weights::from_flat(master, index)?;
        Ok(TrainingState::new(self.model.config().clone(), weights, state, self.steps))
    }

    fn take_gradients(&mut self) -> Result<Vec<f32>, StudentError> {
        let gradients = match self.stale {
            true => vec![0.0; self.gradients.len],
            false => self.model.engine().read(self.gradients)?,
        };
        self.stale = true;
        Ok(gradients)
    }
}
