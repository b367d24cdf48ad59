//! The thread that owns the model, and the queue before it.
//!
//! One OS thread loads the model and is the only one that touches it. Callers put jobs into a
//! bounded queue and wait for a oneshot reply; the thread packs what waits up to the token budget,
//! leaves out what nobody waits for any more, and answers. A batch that fails or panics is tried
//! again in halves, so that one poisonous sequence fails alone and the server goes on.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use proto::convert::ScoreJob;
use tokio::sync::oneshot;

use crate::error::{TeacherError, panic_text};
use crate::metrics::Metrics;
use crate::queue::{Queue, QueueBounds};
use crate::scorer::{Facts, LoadError, Loaded, NotFinite, Scorer, Scores, TextCodec};

/// How often the waiting of an idle device is counted.
const WAIT_IS_COUNTED: Duration = Duration::from_secs(1);

/// A scored job and how long it took.
#[derive(Debug, PartialEq)]
pub struct Answer {
    /// What the model said.
    pub scores: Scores,
    /// From admission to the start of its batch.
    pub queued: Duration,
    /// The batch on the device.
    pub computed: Duration,
}

/// What a caller waits for.
pub type Reply = oneshot::Receiver<Result<Answer, TeacherError>>;

/// What the async side needs of the loaded model.
pub struct Ready {
    /// What was loaded.
    pub facts: Facts,
    /// Its tokenizer.
    pub text: Arc<dyn TextCodec>,
}

/// A started engine.
pub struct Started {
    /// The handle.
    pub engine: Engine,
    /// Gets what was loaded, or why not; closed without a value when loading panicked.
    pub ready: oneshot::Receiver<Result<Ready, LoadError>>,
    /// Closed when the thread has ended.
    pub ended: oneshot::Receiver<Infallible>,
}

/// The handle callers share.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
    max_batch_tokens: usize,
    metrics: Metrics,
}

struct Inner {
    queue: Queue<Work>,
    /// No further job is admitted, and the thread ends.
    closed: bool,
}

struct Work {
    job: ScoreJob,
    reply: oneshot::Sender<Result<Answer, TeacherError>>,
    since: Instant,
}

impl Engine {
    /// Starts the thread, which calls `load` first.
    ///
    /// # Errors
    /// The operating system gave no thread.
    pub fn start(
        load: impl FnOnce() -> Result<Loaded, LoadError> + Send + 'static,
        bounds: QueueBounds,
        max_batch_tokens: usize,
        metrics: Metrics,
    ) -> std::io::Result<Started> {
        let inner = Mutex::new(Inner { queue: Queue::new(bounds), closed: false });
        let shared = Arc::new(Shared { inner, changed: Condvar::new(), max_batch_tokens, metrics });
        let (loaded, ready) = oneshot::channel();
        let (running, ended) = oneshot::channel();
        let thread = CloseOnExit { shared: Arc::clone(&shared), running };
        let body = move || run(&thread.shared, load, loaded);
        std::thread::Builder::new().name("device".into()).spawn(body)?;
        Ok(Started { engine: Self { shared }, ready, ended })
    }

    /// Admits a job.
    ///
    /// # Errors
    /// The queue's bound, or that the engine takes no more work.
    pub fn submit(&self, job: ScoreJob) -> Result<Reply, TeacherError> {
        let (reply, receiver) = oneshot::channel();
        let mut inner = self.shared.lock();
        if inner.closed {
            return Err(TeacherError::Stopped);
        }
        let tokens = job.tokens.len();
        if inner.queue.admits(tokens).is_err() {
            // Callers that left must not keep others out.
            self.shared.drop_abandoned(&mut inner);
            inner.queue.admits(tokens)?;
        }
        inner.queue.push(tokens, Work { job, reply, since: Instant::now() });
        self.shared.gauge(&inner);
        self.shared.metrics.admitted.inc();
        drop(inner);
        self.shared.changed.notify_one();
        Ok(receiver)
    }

    /// Admits no more jobs and forgets those that wait; the thread ends after its batch.
    pub fn abort(&self) {
        let mut inner = self.shared.lock();
        inner.closed = true;
        inner.queue.drop_unwanted(|_| false);
        self.shared.gauge(&inner);
        drop(inner);
        self.shared.changed.notify_one();
    }
}

impl Shared {
    /// A panic elsewhere leaves the queue whole (nothing panics between its updates), so a
    /// poisoned lock is taken over.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gauge(&self, inner: &Inner) {
        self.metrics.queued_sequences.set(inner.queue.len() as i64);
        self.metrics.queued_tokens.set(inner.queue.tokens() as i64);
    }

    fn drop_abandoned(&self, inner: &mut Inner) {
        let abandoned = inner.queue.drop_unwanted(|work| !work.reply.is_closed());
        self.metrics.abandoned.inc_by(abandoned as u64);
    }

    /// Waits for work and takes a batch of it; none when the engine is closed.
    fn next_batch(&self) -> Option<Vec<Work>> {
        let mut inner = self.lock();
        loop {
            self.drop_abandoned(&mut inner);
            let batch = inner.queue.take_batch(self.max_batch_tokens);
            self.gauge(&inner);
            if !batch.is_empty() {
                return Some(batch);
            }
            if inner.closed {
                return None;
            }
            let waits_since = Instant::now();
            let waited = self.changed.wait_timeout(inner, WAIT_IS_COUNTED);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
            self.metrics.waiting_seconds.inc_by(waits_since.elapsed().as_secs_f64());
        }
    }
}

/// Whatever ends the thread, nobody may wait for it in vain.
struct CloseOnExit {
    shared: Arc<Shared>,
    #[expect(dead_code, reason = "dropping it is what tells")]
    running: oneshot::Sender<Infallible>,
}

impl Drop for CloseOnExit {
    fn drop(&mut self) {
        let mut inner = self.shared.lock();
        inner.closed = true;
        inner.queue.drop_unwanted(|_| false);
        self.shared.gauge(&inner);
    }
}

fn run(
    shared: &Shared,
    load: impl FnOnce() -> Result<Loaded, LoadError>,
    loaded: oneshot::Sender<Result<Ready, LoadError>>,
) {
    let began = Instant::now();
    let mut scorer = match load() {
        Ok(Loaded { scorer, text, facts }) => {
            shared.metrics.load_seconds.set(began.elapsed().as_secs_f64());
            // When nobody waits for the answer any more, the queue is closed and the loop ends.
            let _ = loaded.send(Ok(Ready { facts, text }));
            scorer
        }
        Err(error) => {
            let _ = loaded.send(Err(error));
            return;
        }
    };
    while let Some(batch) = shared.next_batch() {
        score(scorer.as_mut(), batch, &shared.metrics);
    }
}

/// Scores a batch and answers each of its callers.
fn score(scorer: &mut dyn Scorer, mut batch: Vec<Work>, metrics: &Metrics) {
    let began = Instant::now();
    let jobs: Vec<&ScoreJob> = batch.iter().map(|work| &work.job).collect();
    // A scorer keeps nothing between batches but its weights, which a batch does not change.
    let outcome = match catch_unwind(AssertUnwindSafe(|| scorer.score(&jobs))) {
        Ok(Ok(scores)) if scores.len() == jobs.len() => Ok(scores),
        Ok(Ok(scores)) => {
            let (found, wanted) = (scores.len(), jobs.len());
            Err(TeacherError::Scorer(format!("{found} answers to {wanted} sequences")))
        }
        Ok(Err(error)) => Err(TeacherError::Scorer(error.to_string())),
        Err(panic) => {
            metrics.panics.inc();
            Err(TeacherError::Panicked(panic_text(panic.as_ref())))
        }
    };
    let computed = began.elapsed();
    match outcome {
        Ok(scores) => {
            metrics.computed(batch.iter().map(|work| work.job.tokens.len()).sum(), computed);
            let computed_at = Instant::now();
            for (work, scores) in batch.into_iter().zip(scores) {
                answer(work, scores, began, computed, metrics);
            }
            metrics.handover_seconds.inc_by(computed_at.elapsed().as_secs_f64());
        }
        Err(error) => {
            metrics.failed_batches.inc();
            tracing::error!(%error, sequences = batch.len(), "a batch failed");
            if batch.len() == 1 {
                batch.into_iter().for_each(|work| drop(work.reply.send(Err(error.clone()))));
                return;
            }
            let second = batch.split_off(batch.len() / 2);
            score(scorer, batch, metrics);
            score(scorer, second, metrics);
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
            tracing::error!(%error, tokens = work.job.tokens.len(), "a sequence was not answered");
            Err(TeacherError::NotFinite(error))
        }
    };
    // The caller may have left meanwhile; then nobody needs the answer.
    if work.reply.send(result).is_err() {
        metrics.abandoned.inc();
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
