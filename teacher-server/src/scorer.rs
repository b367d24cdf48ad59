//! What the server asks of a model: the seam between the service and the device.

use std::ops::Range;
use std::sync::Arc;

use distill::codec::Codec;
use distill::fingerprint::Fingerprint;
use distill::queue::Priority;
use distill::signal::{CodedStates, Computed, Entries, TopK};
use model::started::Started;
use proto::convert::ScoreJob;

use crate::decoder::Decoder;

/// Tokens a model is tried with before it serves.
const WARM_UP_TOKENS: usize = 16;

/// The positions of a whole sequence, as a job names them.
pub fn all_positions(tokens: usize) -> Vec<Range<u32>> {
    std::iter::once(0..tokens as u32).collect()
}

/// What the model says of one job: one row for each position wanted, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// The signal, `[rows]`.
    pub signal: Computed,
    /// Log-probability at T = 1 of the token that follows, `[rows]`; NaN where none does. Empty beside
    /// hidden states.
    pub next_logprob: Vec<f32>,
    /// The same at the job's temperature.
    pub next_logprob_t: Vec<f32>,
}

impl Scores {
    /// These scores, unless a row holds a number no model in health produces: a value or `log_z`
    /// that is not finite, a `log_rest` that is NaN or +inf, a `next_logprob` that is not finite
    /// although a token follows; draws that are none; a hidden state that is not finite.
    ///
    /// # Errors
    /// [`NotFinite`] naming the row.
    pub fn checked(self, job: &ScoreJob) -> Result<Self, NotFinite> {
        if let Computed::Drawn(draws) = &self.signal {
            draws.check(job.classes).map_err(|error| NotFinite(error.to_string()))?;
        }
        match self.first_unsound_row(job) {
            None => Ok(self),
            Some(row) => Err(NotFinite(format!("row {row}"))),
        }
    }

    fn first_unsound_row(&self, job: &ScoreJob) -> Option<usize> {
        job.next_tokens().enumerate().position(|(row, next)| {
            let finite = |logprobs: &[f32]| next.is_none() || logprobs[row].is_finite();
            let next_sound = || finite(&self.next_logprob) && finite(&self.next_logprob_t);
            let sound = match &self.signal {
                Computed::TopK(TopK { k, scaled, log_z, log_rest, .. }) => {
                    let values = &scaled[row * k..(row + 1) * k];
                    let rest_sound = log_rest[row] < f32::INFINITY;
                    let sound = values.iter().all(|v| v.is_finite()) && log_z[row].is_finite();
                    sound && rest_sound && next_sound()
                }
                Computed::Drawn(_) => next_sound(),
                Computed::Hidden(states) | Computed::Coded(CodedStates { states, .. }) => {
                    let width = states.width;
                    states.values[row * width..(row + 1) * width].iter().all(|x| x.is_finite())
                }
            };
            !sound
        })
    }
}

/// What a loaded model is.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Hub id or directory name, as given.
    pub model: String,
    /// The commit it came from; empty for a local directory.
    pub revision: String,
    /// Of weights and configuration.
    pub model_fingerprint: Fingerprint,
    /// Of what maps text to ids.
    pub tokenizer_fingerprint: Fingerprint,
    /// Rows of the output matrix.
    pub vocab_size: u32,
    /// 1 + the largest id of the tokenizer.
    pub tokenizer_size: u32,
    /// Numbers of a final hidden state; 0 where the scorer gives none.
    pub hidden_size: u32,
    /// Longest sequence the model's positions allow.
    pub max_positions: u32,
    /// Arithmetic: `f32`, `bf16` or `f16`.
    pub dtype: String,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// Number of parameters.
    pub parameters: u64,
}

/// Why a batch could not be scored: a fault of the device or of the model, never of the request.
#[derive(Debug, thiserror::Error)]
pub enum ScorerError {
    /// The device's memory did not suffice; a smaller batch may do.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// The device has failed for good: nothing is scored on it any more by this process.
    #[error("{0}")]
    DeviceLost(String),
    /// There is no code of hidden states, and asking again makes none.
    #[error("{0}")]
    NoCode(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// The model's numbers for one job cannot be: NaN or infinite.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("the model gave numbers that are not finite for this sequence ({0}); nothing was sent")]
pub struct NotFinite(pub String);

/// What a job came to.
pub type JobScores = Result<Scores, NotFinite>;

/// A model on a device. Owned by one thread, which is the one that loaded it.
pub trait Scorer {
    /// Scores the jobs of one batch, in order. The result for a job does not depend on the others.
    ///
    /// # Errors
    /// As [`Self::start`] and [`Self::finish`].
    fn score(&mut self, jobs: &[&ScoreJob]) -> Result<Vec<JobScores>, ScorerError> {
        let started = self.start(jobs)?;
        self.finish(started, jobs)
    }

    /// Starts a batch. Where the device computes by itself, the next one may be started before this one is finished, and
    /// while two are under way a third may be scored.
    ///
    /// # Errors
    /// The batch failed as a whole; the caller may try its jobs in smaller batches.
    fn start(&mut self, jobs: &[&ScoreJob]) -> Result<Started<Vec<JobScores>>, ScorerError>;

    /// Whether [`Self::finish`] would not have to wait for the device.
    fn has_ended(&mut self, started: &Started<Vec<JobScores>>) -> bool {
        started.is_done()
    }

    /// The scores of the jobs that were started, which are given again.
    ///
    /// # Errors
    /// As [`Self::start`].
    fn finish(
        &mut self,
        started: Started<Vec<JobScores>>,
        _jobs: &[&ScoreJob],
    ) -> Result<Vec<JobScores>, ScorerError> {
        Ok(started.done())
    }

    /// What it takes to read this model's hidden states, and with `code` also the coded ones: made when
    /// it is first asked for.
    ///
    /// # Errors
    /// Why there is none.
    fn decoder(&mut self, code: bool) -> Result<Arc<Decoder>, ScorerError> {
        let what = if code { "hidden states and no code" } else { "hidden states" };
        Err(ScorerError::Failed(format!("this model gives no {what}")))
    }

    /// The code that coded hidden states can be asked for by, where there is one.
    fn code(&self) -> Option<Fingerprint> {
        None
    }

    /// Scores a few tokens, so that what the device does once is done, and a model that cannot
    /// score is found before the first client comes.
    ///
    /// # Errors
    /// What scoring said, or that its numbers are not finite.
    fn warm_up(&mut self, facts: &Facts) -> Result<(), LoadError> {
        let tokens = WARM_UP_TOKENS.min(facts.max_positions as usize).max(1);
        let classes = facts.vocab_size as usize;
        let job = ScoreJob {
            id: 0,
            tokens: (0..tokens as u32).map(|id| id % facts.vocab_size.max(1)).collect(),
            ranges: all_positions(tokens),
            temperature: 1.0,
            entries: Entries::Top,
            k: classes.min(8),
            codec: Codec::Raw,
            classes,
            priority: Priority::Normal,
        };
        let scores = self.score(&[&job]).map_err(|error| format!("it cannot score: {error}"))?;
        let unsound = |NotFinite(place): NotFinite| {
            let dtype = &facts.dtype;
            format!(
                "it gives numbers that are not finite (tried in {dtype}, {place}); its file is damaged: fetch or \
                 convert it again, or, if it is sound, choose a wider --dtype"
            )
        };
        for scores in scores {
            scores.and_then(|scores| scores.checked(&job)).map_err(unsound)?;
        }
        Ok(())
    }
}

/// Text to ids and back, for `ScoreText`.
pub trait TextCodec: Send + Sync {
    /// The ids of a text; special tokens written in it are recognised.
    ///
    /// # Errors
    /// What the tokenizer could not do.
    fn encode(&self, text: &str) -> Result<Vec<u32>, ScorerError>;

    /// The text of one token.
    fn text_of(&self, id: u32) -> String;
}

/// What loading brings: the model stays on the thread that loaded it, the rest is shared.
pub struct Loaded {
    /// The model.
    pub scorer: Box<dyn Scorer>,
    /// The tokenizer.
    pub text: Arc<dyn TextCodec>,
    /// What was loaded.
    pub facts: Facts,
}

/// Why a model could not be loaded.
pub type LoadError = Box<dyn std::error::Error + Send + Sync>;

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> ScoreJob {
        ScoreJob {
            id: 1,
            tokens: vec![5, 6, 7, 8],
            ranges: vec![1..2, 3..4],
            temperature: 1.0,
            k: 2,
            codec: Codec::Packed,
            classes: 9,
            entries: Entries::Top,
            priority: Priority::Normal,
        }
    }

    fn sound() -> Scores {
        let signal = TopK {
            k: 2,
            ids: vec![0, 1, 2, 3],
            scaled: vec![1.0; 4],
            log_z: vec![2.0; 2],
            log_rest: vec![-1.0, f32::NEG_INFINITY],
        };
        let next = vec![-1.0, f32::NAN];
        Scores { signal: signal.into(), next_logprob: next.clone(), next_logprob_t: next }
    }

    fn listed(scores: &mut Scores) -> &mut TopK {
        let Computed::TopK(signal) = &mut scores.signal else { panic!("listed tokens") };
        signal
    }

    #[test]
    fn every_array_is_searched_for_numbers_that_cannot_be() {
        assert_eq!(sound().first_unsound_row(&job()), None);
        type Spoil = fn(&mut Scores);
        let spoils: [(Spoil, usize); 8] = [
            (|s| listed(s).scaled[3] = f32::NAN, 1),
            (|s| listed(s).scaled[0] = f32::NEG_INFINITY, 0),
            (|s| listed(s).log_z[1] = f32::INFINITY, 1),
            (|s| listed(s).log_rest[0] = f32::NAN, 0),
            (|s| listed(s).log_rest[1] = f32::INFINITY, 1),
            (|s| s.next_logprob[0] = f32::NAN, 0),
            (|s| s.next_logprob[0] = f32::NEG_INFINITY, 0),
            (|s| s.next_logprob_t[0] = f32::NAN, 0),
        ];
        for (spoil, row) in spoils {
            let mut scores = sound();
            spoil(&mut scores);
            assert_eq!(scores.first_unsound_row(&job()), Some(row));
        }
    }
}
