//! One batch: started, read, and each of its callers answered.
//!
//! A batch that fails, panics or is too large for the device's memory is tried again in halves, so
//! that one poisonous sequence fails alone and the server goes on. Where the device has failed for good
//! it does not: who waits is told that the server ends, and may ask another one.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use distill::queue::pause;
use model::started::Started;
use proto::convert::ScoreJob;

use super::{Answer, Errand, Shared, Work};
use crate::error::{TeacherError, panic_text};
use crate::metrics::Metrics;
use crate::scorer::{JobScores, Scorer, ScorerError};

/// The device has failed for good, and how.
#[derive(Debug)]
pub(super) struct DeviceLost(pub(super) String);

/// A batch that was started.
pub(super) struct UnderWay {
    batch: Vec<Work>,
    began: Instant,
    started: Result<Started<Vec<JobScores>>, Fault>,
}

/// Why a batch failed.
enum Fault {
    Lost(DeviceLost),
    /// It may do in smaller ones.
    Of(TeacherError),
}

impl UnderWay {
    /// Whether a device computes it by itself.
    pub(super) fn computes(&self) -> bool {
        self.started.as_ref().is_ok_and(|started| !started.is_done())
    }

    /// Whether the device has computed it.
    pub(super) fn has_ended(&self, scorer: &mut dyn Scorer) -> bool {
        self.started.as_ref().map_or(true, |started| scorer.has_ended(started))
    }
}

/// Starts a batch.
pub(super) fn start(scorer: &mut dyn Scorer, batch: Vec<Work>, shared: &Shared) -> UnderWay {
    let began = Instant::now();
    let started = attempt(&batch, shared, |jobs| scorer.start(jobs));
    UnderWay { batch, began, started }
}

/// Reads a batch and answers each of its callers; gives the halves of one that failed. `idle_at` is when the device ended
/// what was before it.
pub(super) fn finish(
    scorer: &mut dyn Scorer,
    UnderWay { mut batch, began, started }: UnderWay,
    idle_at: &mut Instant,
    shared: &Shared,
) -> Result<Vec<Vec<Work>>, DeviceLost> {
    let metrics = &shared.metrics;
    let outcome = started.and_then(|started| {
        let scores = attempt(&batch, shared, |jobs| scorer.finish(started, jobs))?;
        match scores.len() == batch.len() {
            true => Ok(scores),
            false => {
                let found = format!("{} answers to {} sequences", scores.len(), batch.len());
                Err(Fault::Of(TeacherError::Scorer(found)))
            }
        }
    });
    let began = began.max(*idle_at);
    let computed = began.elapsed();
    *idle_at = began + computed;
    match outcome {
        Ok(scores) => {
            shared.computed(batch.iter().map(|work| work.job.tokens.len()).sum(), computed);
            let computed_at = Instant::now();
            for (work, scores) in batch.into_iter().zip(scores) {
                answer(work, scores, began, computed, metrics);
            }
            metrics.handover_seconds.inc_by(computed_at.elapsed().as_secs_f64());
            Ok(Vec::new())
        }
        Err(Fault::Lost(lost)) => Err(lost),
        Err(Fault::Of(error)) => {
            metrics.failed_batches.inc();
            if let [alone] = batch.as_slice() {
                alone.span.in_scope(|| tracing::error!(%error, "a sequence failed"));
                batch.into_iter().for_each(|work| drop(work.reply.send(Err(error.clone()))));
                return Ok(Vec::new());
            }
            tracing::error!(%error, sequences = batch.len(), "a batch failed");
            let second = batch.split_off(batch.len() / 2);
            Ok(vec![batch, second])
        }
    }
}

/// Scores batches one after another, and halves of those that fail.
pub(super) fn score(
    scorer: &mut dyn Scorer,
    batches: Vec<Vec<Work>>,
    idle_at: &mut Instant,
    shared: &Shared,
) -> Result<(), DeviceLost> {
    let mut left = VecDeque::from(batches);
    while let Some(batch) = left.pop_front() {
        let started = start(scorer, batch, shared);
        let halves = finish(scorer, started, idle_at, shared)?;
        halves.into_iter().rev().for_each(|half| left.push_front(half));
    }
    Ok(())
}

/// Answers who wants what hidden states are read with.
pub(super) fn answer_errand(
    scorer: &mut dyn Scorer,
    errand: Errand,
    shared: &Shared,
) -> Result<(), DeviceLost> {
    let Errand { code, reply } = errand;
    // Who asked first had it made.
    let made = shared.lock().decoder.clone().filter(|decoder| decoder.has_code() || !code);
    let made = match made {
        Some(decoder) => Ok(decoder),
        None => match catch_unwind(AssertUnwindSafe(|| scorer.decoder(code))) {
            Ok(Ok(made)) => Ok(made),
            Ok(Err(ScorerError::DeviceLost(reason))) => return Err(DeviceLost(reason)),
            Ok(Err(ScorerError::NoCode(reason))) => Err(TeacherError::NoCode(reason)),
            Ok(Err(error @ (ScorerError::OutOfMemory(_) | ScorerError::Failed(_)))) => {
                Err(TeacherError::Scorer(error.to_string()))
            }
            Err(panic) => {
                shared.metrics.panics.inc();
                Err(TeacherError::Panicked(panic_text(panic.as_ref())))
            }
        },
    };
    match &made {
        Ok(decoder) => {
            let mut inner = shared.lock();
            inner.decoder = Some(Arc::clone(decoder));
            inner.code = scorer.code();
        }
        Err(error) => tracing::error!(%error, "no decoder of hidden states can be given"),
    }
    // The caller may have left meanwhile.
    let _ = reply.send(made);
    Ok(())
}

/// What a scorer does with the jobs of a batch; whatever goes wrong is a fault.
fn attempt<T>(
    batch: &[Work],
    shared: &Shared,
    score: impl FnOnce(&[&ScoreJob]) -> Result<T, ScorerError>,
) -> Result<T, Fault> {
    let jobs: Vec<&ScoreJob> = batch.iter().map(|work| &work.job).collect();
    // A scorer keeps nothing between batches but its weights, which a batch does not change.
    let error = match catch_unwind(AssertUnwindSafe(|| score(&jobs))) {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(ScorerError::DeviceLost(reason))) => return Err(Fault::Lost(DeviceLost(reason))),
        Ok(Err(ScorerError::OutOfMemory(reason))) => {
            shared.metrics.out_of_memory.inc();
            let tokens = jobs.iter().map(|job| job.tokens.len()).sum();
            let inner = shared.lock();
            let pause = pause(inner.queue.tokens() + tokens, inner.rate);
            TeacherError::OutOfMemory { tokens, reason, pause }
        }
        Ok(Err(ScorerError::Failed(reason) | ScorerError::NoCode(reason))) => {
            TeacherError::Scorer(reason)
        }
        Err(panic) => {
            shared.metrics.panics.inc();
            TeacherError::Panicked(panic_text(panic.as_ref()))
        }
    };
    Err(Fault::Of(error))
}

fn answer(work: Work, scores: JobScores, began: Instant, computed: Duration, metrics: &Metrics) {
    let queued = began.saturating_duration_since(work.since);
    metrics.queue_seconds.observe(queued.as_secs_f64());
    metrics.tokens.inc_by(work.job.tokens.len() as u64);
    let result = match scores.and_then(|scores| scores.checked(&work.job)) {
        Ok(scores) => Ok(Answer { scores, queued, computed }),
        Err(error) => {
            metrics.non_finite.inc();
            let tokens = work.job.tokens.len();
            let tell = || tracing::error!(%error, tokens, "a sequence was not answered");
            work.span.in_scope(tell);
            Err(TeacherError::NotFinite(error))
        }
    };
    // The caller may have left meanwhile; then nobody needs the answer.
    if work.reply.send(result).is_err() {
        metrics.abandoned.inc();
    }
}
