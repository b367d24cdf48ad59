//! For tests: a student on a device with little memory, which is looked at.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::Tensor;
use distill::batch::TokenBatch;
use model::config::Qwen3Config;
use model::language_model::{Answer, Asking, LanguageModel};
use model::learner::Learner;
use model::ops::Precision;
use model::ops::head::{HeadLoss, LossSettings, Teaching};
use model::parameters::ParameterIndex;
use model::qwen3::ModelError;
use model::started::Started;
use model::state_file::TrainingState;
use model::student::StudentError;

/// Tokens that a device takes at once, and how long it lasts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// To learn.
    pub(super) learning: usize,
    /// For losses alone.
    pub(super) losses: usize,
    /// For what it is asked.
    pub(super) answers: usize,
    /// Backward passes before it fails.
    pub(super) passes: usize,
}

impl Room {
    /// For everything, for ever.
    pub(super) const ALL: Self =
        Self { learning: usize::MAX, losses: usize::MAX, answers: usize::MAX, passes: usize::MAX };
}

/// A student on a device with so much room.
pub(super) struct Scarce {
    student: Box<dyn Learner>,
    room: Room,
    /// Backward passes so far.
    passes: usize,
    /// Steps that are under way.
    steps: usize,
    seen: Arc<Seen>,
}

/// What it was asked for.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// How often memory did not suffice.
    pub(super) refused: AtomicUsize,
    /// How many steps were under way at a time.
    pub(super) most_steps: AtomicUsize,
}

impl Scarce {
    /// This student with so much room, and what will be seen of it.
    pub(super) fn new(student: Box<dyn Learner>, room: Room) -> (Self, Arc<Seen>) {
        let seen = Arc::new(Seen::default());
        (Self { student, room, passes: 0, steps: 0, seen: Arc::clone(&seen) }, seen)
    }

    /// Refuses once the device has failed.
    fn lasts(&self, what: &str) -> Result<(), ModelError> {
        match self.passes > self.room.passes {
            true => Err(ModelError::Device(what.to_owned())),
            false => Ok(()),
        }
    }

    fn has_room(&self, batch: &TokenBatch, most: usize) -> Result<(), ModelError> {
        if batch.ids().len() <= most {
            return Ok(());
        }
        self.seen.refused.fetch_add(1, Ordering::Relaxed);
        Err(ModelError::OutOfMemory("no room for it".to_owned()))
    }
}

impl LanguageModel for Scarce {
    fn config(&self) -> &Qwen3Config {
        self.student.model().config()
    }

    fn precision(&self) -> Precision {
        self.student.model().precision()
    }

    fn index(&self) -> &ParameterIndex {
        self.student.model().index()
    }

    fn device(&self) -> String {
        self.student.model().device()
    }

    fn start_answer(
        &self,
        batch: &TokenBatch,
        asked: &[Asking<'_>],
    ) -> Result<Started<Vec<Answer>>, ModelError> {
        self.has_room(batch, self.room.answers)?;
        self.student.model().start_answer(batch, asked)
    }

    fn finish_answer(
        &self,
        started: Started<Vec<Answer>>,
        asked: &[Asking<'_>],
    ) -> Result<Vec<Answer>, ModelError> {
        self.student.model().finish_answer(started, asked)
    }

    fn losses(
        &self,
        batch: &TokenBatch,
        classes: usize,
        signal: Option<Teaching<'_>>,
        settings: &LossSettings,
    ) -> Result<HeadLoss, ModelError> {
        self.has_room(batch, self.room.losses)?;
        self.student.model().losses(batch, classes, signal, settings)
    }

    fn head(&self) -> Result<Tensor, ModelError> {
        self.student.model().head()
    }
}

impl Learner for Scarce {
    fn model(&self) -> &dyn LanguageModel {
        self
    }

    fn start_backward(
        &mut self,
        batch: &TokenBatch,
        classes: usize,
        signal: Option<Teaching<'_>>,
        settings: &LossSettings,
        scale: f64,
    ) -> Result<Started<HeadLoss>, StudentError> {
        self.passes += 1;
        self.lasts("the device has failed")?;
        if let Err(error) = self.has_room(batch, self.room.learning) {
            // As the contract has it: half a gradient must not reach the next step.
            self.student.give_up()?;
            return Err(error.into());
        }
        self.student.start_backward(batch, classes, signal, settings, scale)
    }

    fn finish_backward(&mut self, started: Started<HeadLoss>) -> Result<HeadLoss, StudentError> {
        self.lasts("what was started is lost")?;
        self.student.finish_backward(started)
    }

    fn start_step(
        &mut self,
        lr: f64,
        max_grad_norm: Option<f64>,
    ) -> Result<Started<f64>, StudentError> {
        self.steps += 1;
        self.seen.most_steps.fetch_max(self.steps, Ordering::Relaxed);
        self.student.start_step(lr, max_grad_norm)
    }

    fn give_up(&mut self) -> Result<(), StudentError> {
        self.student.give_up()
    }

    fn finish_step(&mut self, started: Started<f64>) -> Result<f64, StudentError> {
        self.steps -= 1;
        self.student.finish_step(started)
    }

    fn steps(&self) -> u64 {
        self.student.steps()
    }

    fn is_half_updated(&self) -> bool {
        self.student.is_half_updated()
    }

    fn snapshot(&self) -> Result<TrainingState, StudentError> {
        self.student.snapshot()
    }

    fn take_gradients(&mut self) -> Result<Vec<f32>, StudentError> {
        self.student.take_gradients()
    }
}
