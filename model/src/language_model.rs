//! What a model can be asked, wherever it computes: on this machine's processor ([`Qwen3`]) or on a card
//! ([`crate::card`]).

use candle_core::{Result as CandleResult, Tensor};
use distill::batch::TokenBatch;
use distill::signal::Entries;
use kernels::executor::Times;

use crate::config::Qwen3Config;
use crate::ops::Precision;
use crate::ops::draws::{DrawnScores, WantedDraws, draw_head};
use crate::ops::embed::gather_rows;
use crate::ops::head::{HeadLoss, LossSettings, Teaching, head_loss};
use crate::ops::topk::{HeadScores, Wanted, score_head};
use crate::parameters::ParameterIndex;
use crate::qwen3::{ModelError, Qwen3};
use crate::started::Started;

/// What is asked about some positions of a batch.
#[derive(Clone, Copy, Debug)]
pub enum Asked<'a> {
    /// Listed tokens and the mass of the rest.
    Listed(Wanted<'a>),
    /// Draws, beside exact entries.
    Drawn(WantedDraws<'a>),
    /// The hidden states.
    States,
}

/// What a model says of them.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// To [`Asked::Listed`].
    Listed(HeadScores),
    /// To [`Asked::Drawn`].
    Drawn(DrawnScores),
    /// To [`Asked::States`]: `[R, D]`.
    States(Vec<f32>),
}

/// A number among those that were asked about is NaN or infinite: a broken model must not teach. Says which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotFinite(pub String);

/// How the operations say it.
const NOT_FINITE: &str = "not a finite number";

/// What came of one question.
pub type Answer = Result<Said, NotFinite>;

/// Positions of a batch (indices of its tokens), and what is asked about them.
pub type Asking<'a> = (&'a [u32], Asked<'a>);

/// A model that answers. What it says of a position depends on its own row alone, whatever else is in the batch.
pub trait LanguageModel: Send {
    /// The configuration.
    fn config(&self) -> &Qwen3Config;

    /// The type of the products' operands.
    fn precision(&self) -> Precision;

    /// Where each parameter lies.
    fn index(&self) -> &ParameterIndex;

    /// The device in the words of `--device`, and what it calls itself where that is known.
    fn device(&self) -> String;

    /// One forward pass of a batch, and what is asked about its positions, in the order of the questions.
    ///
    /// # Errors
    /// As [`Self::start_answer`] and [`Self::finish_answer`].
    fn answer(&self, batch: &TokenBatch, asked: &[Asking<'_>]) -> Result<Vec<Answer>, ModelError> {
        let started = self.start_answer(batch, asked)?;
        self.finish_answer(started, asked)
    }

    /// Starts it: a device that computes by itself is given the next batch before the last one is read. Two may be under
    /// way while a third is asked for.
    ///
    /// # Errors
    /// [`ModelError`], naming row and position; what is asked is checked as [`score_head`] and [`draw_head`] do.
    fn start_answer(
        &self,
        batch: &TokenBatch,
        asked: &[Asking<'_>],
    ) -> Result<Started<Vec<Answer>>, ModelError>;

    /// Whether [`Self::finish_answer`] would not have to wait.
    ///
    /// # Errors
    /// When the device fails.
    fn has_ended(&self, started: &Started<Vec<Answer>>) -> Result<bool, ModelError> {
        Ok(started.is_done())
    }

    /// The answers to what was asked when it was started.
    ///
    /// # Errors
    /// When the device fails.
    fn finish_answer(
        &self,
        started: Started<Vec<Answer>>,
        asked: &[Asking<'_>],
    ) -> Result<Vec<Answer>, ModelError>;

    /// Losses of a batch's scored positions, in the order of [`TokenBatch::scored`].
    ///
    /// # Errors
    /// [`ModelError`]: as [`head_loss`].
    fn losses(
        &self,
        batch: &TokenBatch,
        classes: usize,
        signal: Option<Teaching<'_>>,
        settings: &LossSettings,
    ) -> Result<HeadLoss, ModelError>;

    /// The matrix that turns hidden states into logits, `[V, D]`, on the processor.
    ///
    /// # Errors
    /// When the device fails.
    fn head(&self) -> Result<Tensor, ModelError>;

    /// From now on it is noted when each step of a program runs, where the device can tell; that makes it slower.
    fn note_times(&self) {}

    /// What was noted; no more is from now on. None where nothing was.
    fn take_times(&self) -> Option<Times> {
        None
    }

    /// Hidden states of every position after the last norm, `[N, D]`.
    ///
    /// # Errors
    /// As [`Self::answer`].
    fn states(&self, batch: &TokenBatch) -> Result<Vec<f32>, ModelError> {
        let positions: Vec<u32> = (0..batch.ids().len() as u32).collect();
        match self.answer(batch, &[(&positions, Asked::States)])?.pop() {
            Some(Ok(Said::States(states))) => Ok(states),
            Some(Ok(_)) | None => Err(not_asked()),
            Some(Err(NotFinite(what))) => Err(ModelError::Operation(candle_core::Error::msg(what))),
        }
    }

    /// The `k` classes that the model holds likeliest at each of a batch's scored positions, `[S, k]`, the
    /// likeliest first.
    ///
    /// # Errors
    /// As [`Self::answer`], and when a logit is no number.
    fn likeliest(
        &self,
        batch: &TokenBatch,
        classes: usize,
        k: usize,
    ) -> Result<Vec<u32>, ModelError> {
        let next = vec![None; batch.scored().len()];
        let wanted = Wanted { classes, next: &next, temperature: 1.0, k, entries: &Entries::Top };
        match self.answer(batch, &[(batch.scored(), Asked::Listed(wanted))])?.pop() {
            Some(Ok(Said::Listed(scores))) => Ok(scores.signal.ids),
            Some(Ok(_)) | None => Err(not_asked()),
            Some(Err(NotFinite(what))) => Err(ModelError::Operation(candle_core::Error::msg(what))),
        }
    }
}

fn not_asked() -> ModelError {
    ModelError::Operation(candle_core::Error::msg("a model answered what it was not asked"))
}

impl LanguageModel for Qwen3 {
    fn config(&self) -> &Qwen3Config {
        Self::config(self)
    }

    fn precision(&self) -> Precision {
        Self::precision(self)
    }

    fn index(&self) -> &ParameterIndex {
        self.weights().index()
    }

    fn device(&self) -> String {
        "cpu".to_owned()
    }

    fn start_answer(
        &self,
        batch: &TokenBatch,
        asked: &[Asking<'_>],
    ) -> Result<Started<Vec<Answer>>, ModelError> {
        let hidden = self.forward_hidden(batch)?;
        let say = |&(positions, asked): &Asking<'_>| -> Result<Answer, ModelError> {
            match self.say(&gather_rows(&hidden, positions)?, asked) {
                Ok(said) => Ok(Ok(said)),
                // candle's errors are text, with a stack trace where RUST_BACKTRACE is set; this is the one that speaks
                // of the model's own numbers.
                Err(error) => match error.to_string().lines().next() {
                    Some(line) if line.contains(NOT_FINITE) => Ok(Err(NotFinite(line.to_owned()))),
                    _ => Err(error.into()),
                },
            }
        };
        Ok(Started::Done(asked.iter().map(say).collect::<Result<_, _>>()?))
    }

    fn finish_answer(
        &self,
        started: Started<Vec<Answer>>,
        _: &[Asking<'_>],
    ) -> Result<Vec<Answer>, ModelError> {
        Ok(started.done())
    }

    fn losses(
        &self,
        batch: &TokenBatch,
        classes: usize,
        signal: Option<Teaching<'_>>,
        settings: &LossSettings,
    ) -> Result<HeadLoss, ModelError> {
        let hidden = gather_rows(&self.forward_hidden(batch)?, batch.scored())?;
        let targets = batch.targets();
        Ok(head_loss(&hidden, Self::head(self), classes, targets, signal, settings, 1.0, None)?)
    }

    fn head(&self) -> Result<Tensor, ModelError> {
        Ok(Self::head(self).clone())
    }
}

impl Qwen3 {
    /// What is asked about positions with these hidden states `[R, D]`.
    fn say(&self, hidden: &Tensor, asked: Asked<'_>) -> CandleResult<Said> {
        let (head, precision) = (Self::head(self), Self::precision(self));
        match asked {
            Asked::Listed(wanted) => Ok(Said::Listed(score_head(hidden, head, wanted, precision)?)),
            Asked::Drawn(wanted) => Ok(Said::Drawn(draw_head(hidden, head, wanted, precision)?)),
            Asked::States => Ok(Said::States(hidden.flatten_all()?.to_vec1()?)),
        }
    }
}
