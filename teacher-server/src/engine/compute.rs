//! One batch: scored, and each of its callers answered.
//!
//! A batch that fails, panics or is too large for the device's memory is tried again in halves, so
//! that one poisonous sequence fails alone and the server goes on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use distill::queue::pause;
use proto::convert::ScoreJob;

use super::{Answer, Errand, Shared, Work};
use crate::error::{TeacherError, panic_text};
use crate::metrics::Metrics;
use crate::scorer::{NotFinite, Scorer, ScorerError, Scores};

/// Scores a batch and answers each of its callers.
pub(super) fn score(scorer: &mut dyn Scorer, mut batch: Vec<Work>, shared: &Shared) {
    let metrics = &shared.metrics;
    let began = Instant::now();
    let outcome = attempt(scorer, &batch, shared);
    let computed = began.elapsed();
    match outcome {
        Ok(scores) => {
            shared.computed(batch.iter().map(|work| work.job.tokens.len()).sum(), computed);
            let computed_at = Instant::now();
            for (work, scores) in batch.into_iter().zip(scores) {
                answer(work, scores, began, computed, metrics);
            }
            metrics.handover_seconds.inc_by(computed_at.elapsed().as_secs_f64());
        }
        Err(error) => {
            metrics.failed_batches.inc();
            if let [alone] = batch.as_slice() {
                alone.span.in_scope(|| tracing::error!(%error, "a sequence failed"));
                batch.into_iter().for_each(|work| drop(work.reply.send(Err(error.clone()))));
                return;
            }
            tracing::error!(%error, sequences = batch.len(), "a batch failed");
            let second = batch.split_off(batch.len() / 2);
            score(scorer, batch, shared);
            score(scorer, second, shared);
        }
    }
}

/// Answers who wants what hidden states are read with.
pub(super) fn answer_errand(scorer: &mut dyn Scorer, errand: Errand, shared: &Shared) {
    let Errand { code, reply } = errand;
    // Who asked first had it made.
    let made = shared.lock().decoder.clone().filter(|decoder| decoder.has_code() || !code);
    let made = match made {
        Some(decoder) => Ok(decoder),
        None => match catch_unwind(AssertUnwindSafe(|| scorer.decoder(code))) {
            Ok(made) => made.map_err(|error| match error {
                ScorerError::NoCode(reason) => TeacherError::NoCode(reason),
                ScorerError::OutOfMemory(_) | ScorerError::Failed(_) => {
                    TeacherError::Scorer(error.to_string())
                }
            }),
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
}

/// Scores a batch once; whatever goes wrong is an error.
fn attempt(
    scorer: &mut dyn Scorer,
    batch: &[Work],
    shared: &Shared,
) -> Result<Vec<Result<Scores, NotFinite>>, TeacherError> {
    let jobs: Vec<&ScoreJob> = batch.iter().map(|work| &work.job).collect();
    // A scorer keeps nothing between batches but its weights, which a batch does not change.
    match catch_unwind(AssertUnwindSafe(|| scorer.score(&jobs))) {
        Ok(Ok(scores)) if scores.len() == jobs.len() => Ok(scores),
        Ok(Ok(scores)) => {
            let (found, wanted) = (scores.len(), jobs.len());
            Err(TeacherError::Scorer(format!("{found} answers to {wanted} sequences")))
        }
        Ok(Err(ScorerError::OutOfMemory(reason))) => {
            shared.metrics.out_of_memory.inc();
            let tokens = jobs.iter().map(|job| job.tokens.len()).sum();
            let inner = shared.lock();
            let pause = pause(inner.queue.tokens() + tokens, inner.rate);
            Err(TeacherError::OutOfMemory { tokens, reason, pause })
        }
        Ok(Err(ScorerError::Failed(reason) | ScorerError::NoCode(reason))) => {
            Err(TeacherError::Scorer(reason))
        }
        Err(panic) => {
            shared.metrics.panics.inc();
            Err(TeacherError::Panicked(panic_text(panic.as_ref())))
        }
    }
}

fn answer(
    work: Work,
    scores: Result<Scores, NotFinite>,
    began: Instant,
    computed: Duration,
    metrics: &Metrics,
) {
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
