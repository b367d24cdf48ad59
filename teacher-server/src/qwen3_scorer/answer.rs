//! What jobs are answered, of the hidden states of a batch: listed tokens, draws, or the states
//! themselves.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use distill::fingerprint::token_checksum;
use distill::signal::{CodedStates, Computed, DrawKey, Entries, HiddenStates};
use model::coding::Encoder;
use model::ops::draws::{WantedDraws, draw_head};
use model::ops::embed::gather_rows;
use model::ops::topk::{Wanted, score_head};
use model::qwen3::Qwen3;
use proto::convert::ScoreJob;

use super::first_line;
use crate::scorer::{LoadError, NotFinite, Scores};

/// What a job came to.
pub(super) type JobScores = Result<Scores, NotFinite>;

/// A job, and where its first token lies in the batch.
pub(super) type Placed<'a> = (&'a ScoreJob, u32);

/// How the operations say that a number is NaN or infinite.
const NOT_FINITE: &str = "not a finite number";

/// What answers are made of.
pub(super) struct Answering<'a> {
    pub(super) network: &'a Qwen3,
    /// Where there is a code.
    pub(super) encoder: Option<&'a Encoder>,
    /// Of every position of the batch, `[N, D]`.
    pub(super) hidden: &'a Tensor,
}

impl Answering<'_> {
    /// Scores of jobs that ask for the same with the same parameters. Where a number is not finite
    /// each is tried alone, to find whose it is.
    pub(super) fn score_group(&self, jobs: &[Placed]) -> Result<Vec<JobScores>, LoadError> {
        match self.score_together(jobs)? {
            Ok(scores) => Ok(scores.into_iter().map(Ok).collect()),
            Err(error) if jobs.len() == 1 => Ok(vec![Err(error)]),
            Err(_) => {
                let alone = |job: &Placed| Ok(self.score_group(&[*job])?.remove(0));
                jobs.iter().map(alone).collect()
            }
        }
    }

    fn score_together(&self, jobs: &[Placed]) -> Result<Result<Vec<Scores>, NotFinite>, LoadError> {
        let Some(&(first, _)) = jobs.first() else { return Ok(Ok(Vec::new())) };
        let rows = jobs.iter().flat_map(|(job, start)| job.positions().map(move |t| start + t));
        let rows: Vec<u32> = rows.collect();
        let hidden = gather_rows(self.hidden, &rows)?;
        let scores = match first.entries {
            Entries::Top | Entries::Named(_) => self.list(first, jobs, &hidden),
            Entries::Drawn { draws, .. } => self.draw(first, draws, jobs, &hidden),
            Entries::Hidden(_) => self.states(jobs, &hidden),
        };
        match scores {
            Ok(scores) => Ok(Ok(scores)),
            // candle's errors are text; this is the one that speaks of the model's own numbers.
            Err(error) => match first_line(&error) {
                text if text.contains(NOT_FINITE) => Ok(Err(NotFinite(text))),
                _ => Err(error.into()),
            },
        }
    }

    fn list(
        &self,
        first: &ScoreJob,
        jobs: &[Placed],
        hidden: &Tensor,
    ) -> candle_core::Result<Vec<Scores>> {
        let asked = Wanted {
            classes: first.classes,
            next: &next_tokens(jobs),
            temperature: f64::from(first.temperature),
            k: first.k,
            entries: &entries(jobs),
        };
        let scores = score_head(hidden, self.network.head(), asked, self.network.precision())?;
        let signal = |rows| scores.signal.slice(rows).into();
        Ok(by_job(jobs, signal, [&scores.next_logprob, &scores.next_logprob_t]))
    }

    fn draw(
        &self,
        first: &ScoreJob,
        draws: u32,
        jobs: &[Placed],
        hidden: &Tensor,
    ) -> candle_core::Result<Vec<Scores>> {
        let keys: Vec<DrawKey> = jobs.iter().flat_map(|(job, _)| keys(job)).collect();
        let asked = WantedDraws {
            classes: first.classes,
            next: &next_tokens(jobs),
            temperature: f64::from(first.temperature),
            draws,
            k: first.k,
            keys: &keys,
        };
        let scores = draw_head(hidden, self.network.head(), asked, self.network.precision())?;
        let signal = |rows| Computed::Drawn(scores.signal.slice(rows));
        Ok(by_job(jobs, signal, [&scores.next_logprob, &scores.next_logprob_t]))
    }

    fn states(&self, jobs: &[Placed], hidden: &Tensor) -> candle_core::Result<Vec<Scores>> {
        let width = hidden.dim(1)?;
        let values = hidden.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let mut scores = Vec::with_capacity(jobs.len());
        let mut rest = &values[..];
        for (job, _) in jobs {
            let (of_job, after) = rest.split_at(job.rows() * width);
            rest = after;
            let states = HiddenStates { width, values: of_job.to_vec() };
            let coded = job.entries.rung().zip(self.encoder);
            let signal = match coded {
                Some((rung, encoder)) => {
                    let code = Arc::clone(encoder.code());
                    let numbers = encoder.numbers(of_job, rung)?;
                    Computed::Coded(CodedStates { code, numbers, states })
                }
                // Coded ones were not let in without a code.
                None => Computed::Hidden(states),
            };
            scores.push(Scores { signal, next_logprob: Vec::new(), next_logprob_t: Vec::new() });
        }
        Ok(scores)
    }
}

/// Scores of all rows as those of each job.
fn by_job(
    jobs: &[Placed],
    signal: impl Fn(std::ops::Range<usize>) -> Computed,
    [next_logprob, next_logprob_t]: [&[f32]; 2],
) -> Vec<Scores> {
    let mut first = 0;
    let of_job = |(job, _): &Placed| {
        let these = first..first + job.rows();
        first = these.end;
        Scores {
            signal: signal(these.clone()),
            next_logprob: next_logprob[these.clone()].to_vec(),
            next_logprob_t: next_logprob_t[these].to_vec(),
        }
    };
    jobs.iter().map(of_job).collect()
}

fn next_tokens(jobs: &[Placed]) -> Vec<Option<u32>> {
    jobs.iter().flat_map(|(job, _)| job.next_tokens()).collect()
}

/// What the draws of a job's positions depend on.
fn keys(job: &ScoreJob) -> Vec<DrawKey> {
    let Entries::Drawn { seed, .. } = job.entries else { return Vec::new() };
    let token_checksum = token_checksum(&job.tokens);
    job.positions().map(|position| DrawKey { seed, token_checksum, position }).collect()
}

/// The entries of jobs of one group, all rows in turn.
fn entries(jobs: &[Placed]) -> Entries {
    let named = |(job, _): &Placed| match &job.entries {
        Entries::Named(ids) if ids.len() == job.k => ids.repeat(job.rows()),
        Entries::Named(ids) => ids.clone(),
        Entries::Top | Entries::Drawn { .. } | Entries::Hidden(_) => Vec::new(),
    };
    match jobs.first() {
        Some((ScoreJob { entries: Entries::Named(_), .. }, _)) => {
            Entries::Named(jobs.iter().flat_map(named).collect())
        }
        Some(_) | None => Entries::Top,
    }
}
