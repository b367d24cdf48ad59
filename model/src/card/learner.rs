//! A model in training on a card: master weights with both moments, gradients and the weights that products read all
//! lie there; a step is two programs, of which the host sees the losses and the norm, when it asks for them.

use std::sync::Arc;

use candle_core::{Device as Tensors, Tensor};
use distill::batch::TokenBatch;
use kernels::adamw::{self, Clipping, NOWHERE, adamw, clip, halt};
use kernels::executor::{Executor, Outputs};
use kernels::program::{Kind, Program, View};
use kernels::round::round;

use super::engine::{CardModel, LossOf, Passed, activations, send};
use super::failed;
use super::loss::Losses;
use super::network::{self, Making, views};
use super::waiting::{Of, Waiting};
use crate::config::Qwen3Config;
use crate::language_model::LanguageModel;
use crate::learner::Learner;
use crate::ops::adamw::scalars;
use crate::ops::head::{HeadLoss, LossSettings, Teaching};
use crate::parameters::{ModelViews, ParameterIndex};
use crate::qwen3::{ModelError, check_batch};
use crate::recompute::Recompute;
use crate::started::Started;
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
    /// `[1]` u32: not 0 once a loss or gradient was no number. No step is made then.
    halted: View,
    waiting: Waiting<X>,
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
        let halted = on.keep("halted", Kind::U32, 1).map_err(failed::<X>)?;
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
            halted,
            waiting: Waiting::default(),
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
        for losses in losses.that_must_be_finite() {
            making.program.call(halt([losses, self.halted], losses.len as u32));
        }
        if let Some(d_hidden) = losses.d_hidden {
            let Passed { shape, tape, hidden } = passed;
            let of = (tape, &hidden, d_hidden);
            engine.network.backward(&mut making, (batch, batch.scored()), of, grads, &shape);
        }
        Ok((making, losses))
    }

    /// Starts a program.
    fn start<T>(&mut self, making: &Making, of: Of) -> Result<Started<T>, ModelError> {
        let Self { model, waiting, .. } = self;
        let program = (&making.program, &making.inputs);
        let number = waiting.start(&mut model.engine().on, program, of).map_err(failed::<X>)?;
        Ok(Started::Running(number))
    }

    /// What a program that was started has put out.
    fn finish(&mut self, number: u64) -> Result<(Of, Outputs), ModelError> {
        let Self { model, waiting, .. } = self;
        let ended = waiting.finish(&mut model.engine().on, number).map_err(failed::<X>)?;
        ended.ok_or_else(|| {
            let why =
                "what was started is lost with the card, which failed: start the program again";
            ModelError::Device(why.to_owned())
        })
    }

    /// Clipping and AdamW as one program; where what came of it will lie.
    fn updating(&self, lr: f64, max_grad_norm: Option<f64>) -> (Making, Of) {
        let Self { state: [p, m, v], gradients, rounded, halted, .. } = *self;
        let count = gradients.len as u32;
        let mut making = Making::default();
        let program = &mut making.program;
        program.part("update");
        if self.stale {
            program.zero(gradients);
        }
        let shares = adamw::shares(count) as usize;
        let of = Clipping {
            gradients,
            shares: program.passing("shares", Kind::F64, shares),
            places: program.passing("shares", Kind::U32, shares),
            halted,
            norm: program.output(Kind::F64, 1),
            outcome: program.output(Kind::U32, 2),
            scale: program.passing("shares", Kind::F32, 1),
        };
        let most = max_grad_norm.map_or(f32::INFINITY, |most| most as f32);
        program.calls(clip(of, count, most));
        let number = self.steps + self.waiting.steps() + 1;
        let scalars = scalars(&self.training.optimiser, lr, number);
        program.call(adamw([p, m, v, gradients, of.scale], rounded, count, &scalars));
        (making, Of::Update { norm: of.norm, outcome: of.outcome })
    }

    /// Waits for all that was started and forgets it, with the gradients; steps may be made again.
    fn forget(&mut self) -> Result<(), StudentError> {
        let Self { model, waiting, .. } = self;
        let mut engine = model.engine();
        let all = waiting.forget(&mut engine.on);
        self.steps +=
            all.iter().filter(|(of, outputs)| of.is_made(outputs) == Some(true)).count() as u64;
        self.stale = true;
        Ok(engine.on.write(self.halted, &[0_u32]).map_err(failed::<X>)?)
    }

    /// What is given, or what is wrong, once everything else is forgotten. Of two errors the first says more.
    fn or_forget<T>(&mut self, result: Result<T, StudentError>) -> Result<T, StudentError> {
        result.inspect_err(|_| {
            let _ = self.forget();
        })
    }

    /// The losses of a program that has ended, or the rows with one that is no number.
    fn losses(&mut self, number: u64) -> Result<HeadLoss, StudentError> {
        let (Of::Losses(losses, scored_per_row), outputs) = self.finish(number)? else {
            unreachable!("number {number} is a step");
        };
        let loss = losses.read(&outputs);
        let rows = rows_not_finite(&scored_per_row, &loss);
        if rows.is_empty() { Ok(loss) } else { Err(StudentError::LossNotFinite { rows }) }
    }

    /// The norm of a step that was made.
    fn norm(&mut self, number: u64) -> Result<f64, StudentError> {
        let (of, outputs) = self.finish(number)?;
        let Of::Update { norm, outcome } = of else {
            unreachable!("number {number} is no step");
        };
        let norm = outputs.get::<f64>(norm)[0];
        if of.is_made(&outputs) == Some(true) {
            self.steps += 1;
            return Ok(norm);
        }
        let place = outputs.get::<u32>(outcome)[1];
        let of = |at: usize| {
            let parameters = self.model.index().parameters();
            parameters.iter().rev().find(|parameter| parameter.offset <= at)
        };
        let found = (place != NOWHERE).then(|| of(place as usize)).flatten();
        let parameter =
            found.map_or("all parameters together".to_owned(), |found| found.name.clone());
        Err(StudentError::GradientNotFinite { parameter, norm })
    }
}

impl<X: Executor + Send> Learner for CardLearner<X> {
    fn model(&self) -> &dyn LanguageModel {
        &self.model
    }

    fn start_backward(
        &mut self,
        batch: &TokenBatch,
        classes: usize,
        signal: Option<Teaching<'_>>,
        settings: &LossSettings,
        scale: f64,
    ) -> Result<Started<HeadLoss>, StudentError> {
        let of = LossOf { classes, signal, settings, scale };
        let started = self.learning(batch, of).and_then(|(making, losses)| {
            self.start(&making, Of::Losses(losses, batch.scored_per_row().to_vec()))
        });
        // Half a gradient must not reach the next step.
        self.stale = started.is_err();
        Ok(started?)
    }

    fn finish_backward(&mut self, started: Started<HeadLoss>) -> Result<HeadLoss, StudentError> {
        let loss = match started {
            Started::Done(loss) => return Ok(loss),
            Started::Running(number) => self.losses(number),
        };
        self.or_forget(loss)
    }

    fn start_step(
        &mut self,
        lr: f64,
        max_grad_norm: Option<f64>,
    ) -> Result<Started<f64>, StudentError> {
        let started = if lr.is_finite() && lr >= 0.0 {
            let (making, of) = self.updating(lr, max_grad_norm);
            self.start(&making, of).map_err(StudentError::from)
        } else {
            Err(StudentError::LearningRate { found: lr })
        };
        self.stale = true;
        started
    }

    fn give_up(&mut self) -> Result<(), StudentError> {
        let Self { model, waiting, .. } = self;
        self.stale = true;
        let mut engine = model.engine();
        let sound = waiting.give_up(&mut engine.on).map_err(failed::<X>);
        if sound.is_err() {
            drop(engine);
            self.or_forget(sound.map_err(StudentError::from))?;
        } else if sound? {
            // What halted was given up.
            engine.on.write(self.halted, &[0_u32]).map_err(failed::<X>)?;
        }
        Ok(())
    }

    fn finish_step(&mut self, started: Started<f64>) -> Result<f64, StudentError> {
        let norm = match started {
            Started::Done(norm) => return Ok(norm),
            Started::Running(number) => self.norm(number),
        };
        self.or_forget(norm)
    }

    fn steps(&self) -> u64 {
        self.steps
    }

    fn is_half_updated(&self) -> bool {
        false
    }

    fn snapshot(&self) -> Result<TrainingState, StudentError> {
        if !self.waiting.is_empty() {
            let why = "a state is that behind steps that were finished, and some were not";
            return Err(ModelError::Device(why.to_owned()).into());
        }
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
