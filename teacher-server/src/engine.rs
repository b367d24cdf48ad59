//! The thread that owns the model, and the queue before it.
//!
//! One OS thread loads the model and is the only one that touches it. Callers put jobs into a
//! bounded queue and wait for a oneshot reply; the thread packs what waits up to the token budget,
//! leaves out what nobody waits for any more, and answers (`engine::compute`). A device that computes by
//! itself is given the next batch before the last one is read. Decoders are asked for between two batches.

mod compute;
mod next;
mod reply;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use distill::fingerprint::Fingerprint;
use distill::queue::{FairQueue, QueueBounds, pause};
use proto::convert::ScoreJob;
use tokio::sync::oneshot;
use tracing::Span;

pub use self::reply::Reply;

use self::compute::{DeviceLost, UnderWay};
use self::next::{Device, Next};
use self::reply::Departures;
use crate::client::Client;
use crate::decoder::Decoder;
use crate::error::TeacherError;
use crate::metrics::Metrics;
use crate::scorer::{Facts, LoadError, Loaded, Scorer, Scores, TextCodec};

/// Weight of the last batch in the rate of computing.
const RATE_WEIGHT: f64 = 0.2;
/// A scored job and how long it took.
#[derive(Debug, PartialEq)]
pub struct Answer {
    /// What the model said.
    pub scores: Scores,
    /// From admission to the start of its batch on the device.
    pub queued: Duration,
    /// The batch on the device.
    pub computed: Duration,
}

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
    batching: Batching,
    departures: Departures,
    metrics: Metrics,
}

/// How sequences are put together.
#[derive(Clone, Copy, Debug)]
pub struct Batching {
    /// Tokens computed at once; a longer sequence is computed alone.
    pub max_tokens: usize,
    /// How long the first sequence waits for company while the device is idle.
    pub wait: Duration,
}

struct Inner {
    queue: FairQueue<Client, Work>,
    /// Who waits for a decoder; answered before the next batch.
    errands: VecDeque<Errand>,
    /// What hidden states are read with, once somebody has asked for it.
    decoder: Option<Arc<Decoder>>,
    /// The code that coded ones may be asked for by.
    code: Option<Fingerprint>,
    /// Tokens computed a second, of late; 0 before the first batch.
    rate: f64,
    /// How many of [`Departures`] there were when the queue was last looked through.
    seen: usize,
    /// No further job is admitted, and the thread ends.
    closed: bool,
}

/// Somebody who wants what hidden states are read with.
struct Errand {
    /// That of coded ones too.
    code: bool,
    reply: oneshot::Sender<Result<Arc<Decoder>, TeacherError>>,
}

struct Work {
    job: ScoreJob,
    reply: oneshot::Sender<Result<Answer, TeacherError>>,
    since: Instant,
    /// Of whom it is, so that what the log says of it names them.
    span: Span,
}

impl Engine {
    /// Starts the thread, which calls `load` first.
    ///
    /// # Errors
    /// The operating system gave no thread.
    pub fn start(
        load: impl FnOnce() -> Result<Loaded, LoadError> + Send + 'static,
        bounds: QueueBounds,
        batching: Batching,
        metrics: Metrics,
    ) -> std::io::Result<Started> {
        let queue = FairQueue::new(bounds);
        let inner = Mutex::new(Inner {
            queue,
            errands: VecDeque::new(),
            decoder: None,
            code: None,
            rate: 0.0,
            seen: 0,
            closed: false,
        });
        let (changed, departures) = (Condvar::new(), Departures::default());
        let shared = Arc::new(Shared { inner, changed, batching, departures, metrics });
        let (loaded, ready) = oneshot::channel();
        let (running, ended) = oneshot::channel();
        let thread = CloseOnExit { shared: Arc::clone(&shared), running };
        let body = move || run(&thread.shared, load, loaded);
        std::thread::Builder::new().name("device".into()).spawn(body)?;
        Ok(Started { engine: Self { shared }, ready, ended })
    }

    /// Whether a job of so many tokens would be admitted now.
    ///
    /// # Errors
    /// The queue's bound and when to come again, or that the engine takes no more work.
    pub fn has_room(&self, client: &Client, tokens: usize) -> Result<(), TeacherError> {
        self.shared.admits(&mut self.shared.lock(), client, tokens)
    }

    /// Admits a job of a client.
    ///
    /// # Errors
    /// Those of [`Engine::has_room`], or that hidden states are to be coded by a code that is not this
    /// model's.
    pub fn submit(&self, client: &Client, job: ScoreJob) -> Result<Reply, TeacherError> {
        let (reply, receiver) = oneshot::channel();
        let mut inner = self.shared.lock();
        let tokens = job.tokens.len();
        if let Some(wanted) = job.entries.code()
            && inner.code != Some(wanted)
        {
            return Err(TeacherError::OtherCode { wanted, held: inner.code });
        }
        self.shared.admits(&mut inner, client, tokens)?;
        let priority = job.priority;
        let work = Work { job, reply, since: Instant::now(), span: Span::current() };
        inner.queue.push(client.clone(), priority, tokens, work);
        self.shared.gauge(&inner);
        self.shared.metrics.admitted.inc();
        drop(inner);
        self.shared.changed.notify_one();
        Ok(Reply::new(receiver, &self.shared.departures))
    }

    /// What hidden states are read with, and with `code` the coded ones too.
    ///
    /// # Errors
    /// Why there is none, or that the engine takes no more work.
    pub async fn decoder(&self, code: bool) -> Result<Arc<Decoder>, TeacherError> {
        let (reply, receiver) = oneshot::channel();
        {
            let mut inner = self.shared.lock();
            if inner.closed {
                return Err(TeacherError::Stopped);
            }
            if let Some(decoder) = &inner.decoder
                && (decoder.has_code() || !code)
            {
                return Ok(Arc::clone(decoder));
            }
            // Who left while the engine was at work must not hold a place.
            inner.errands.retain(|errand| !errand.reply.is_closed());
            inner.errands.push_back(Errand { code, reply });
        }
        self.shared.changed.notify_one();
        receiver.await.unwrap_or(Err(TeacherError::Stopped))
    }

    /// The bytes of this name. Who was told of them by a server that has started again since need not ask
    /// this one what there is.
    ///
    /// # Errors
    /// Those of [`Self::decoder`].
    pub async fn blob(&self, fingerprint: Fingerprint) -> Result<Option<Arc<[u8]>>, TeacherError> {
        let known = self.shared.lock().decoder.clone();
        let decoder = match known {
            Some(decoder) => decoder,
            None => self.decoder(false).await?,
        };
        Ok(decoder.find(fingerprint))
    }

    /// Admits no more jobs and forgets those that wait; the thread ends after its batch.
    pub fn abort(&self) {
        let mut inner = self.shared.lock();
        inner.close();
        self.shared.gauge(&inner);
        drop(inner);
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn admits(
        &self,
        inner: &mut Inner,
        client: &Client,
        tokens: usize,
    ) -> Result<(), TeacherError> {
        if inner.closed {
            return Err(TeacherError::Stopped);
        }
        if inner.queue.admits(client, tokens).is_ok() {
            return Ok(());
        }
        // Callers that left must not keep others out.
        self.drop_abandoned(inner);
        let pause = pause(inner.queue.tokens() + tokens, inner.rate);
        inner.queue.admits(client, tokens).map_err(|full| TeacherError::Full { full, pause })
    }

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
        let departures = self.departures.count();
        // The whole queue is gone through, which a refusal must not cost where nobody has left.
        if inner.seen == departures {
            return;
        }
        inner.seen = departures;
        let abandoned = inner.queue.drop_unwanted(|work| !work.reply.is_closed());
        self.metrics.abandoned.inc_by(abandoned as u64);
    }

    /// Takes note of a computed batch.
    fn computed(&self, tokens: usize, took: Duration) {
        self.metrics.computed(tokens, took, self.batching.max_tokens);
        let rate = tokens as f64 / took.as_secs_f64().max(1e-9);
        let mut inner = self.lock();
        let weight = if inner.rate == 0.0 { 1.0 } else { RATE_WEIGHT };
        inner.rate += weight * (rate - inner.rate);
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
        inner.close();
        self.shared.gauge(&inner);
    }
}

impl Inner {
    /// Whoever waits is told that nobody answers.
    fn close(&mut self) {
        self.closed = true;
        self.queue.drop_unwanted(|_| false);
        self.errands.clear();
    }
}

fn run(
    shared: &Shared,
    load: impl FnOnce() -> Result<Loaded, LoadError>,
    loaded: oneshot::Sender<Result<Ready, LoadError>>,
) {
    let began = Instant::now();
    // A model that cannot score is not there: the first client is not the one to find out.
    let warm = |mut loaded: Loaded| loaded.scorer.warm_up(&loaded.facts).map(|()| loaded);
    let mut scorer = match load().and_then(warm) {
        Ok(Loaded { scorer, text, facts }) => {
            shared.metrics.load_seconds.set(began.elapsed().as_secs_f64());
            shared.lock().code = scorer.code();
            // When nobody waits for the answer any more, the queue is closed and the loop ends.
            let _ = loaded.send(Ok(Ready { facts, text }));
            scorer
        }
        Err(error) => {
            let _ = loaded.send(Err(error));
            return;
        }
    };
    if let Err(DeviceLost(reason)) = compute_until_closed(scorer.as_mut(), shared) {
        tracing::error!("the device has failed, the server ends: {reason}");
    }
}

fn compute_until_closed(scorer: &mut dyn Scorer, shared: &Shared) -> Result<(), DeviceLost> {
    let mut under_way: Option<UnderWay> = None;
    // When the device was last seen without work.
    let mut idle_at = Instant::now();
    loop {
        let next = shared.next(|| match &under_way {
            None => Device::Idle,
            Some(batch) if batch.has_ended(scorer) => Device::Done,
            Some(_) => Device::Computes,
        });
        let started = match next {
            None => return Ok(()),
            Some(Next::Errand(errand)) => {
                compute::answer_errand(scorer, errand, shared)?;
                continue;
            }
            Some(Next::Batch(batch)) => Some(compute::start(scorer, batch, shared)),
            Some(Next::Finish) => None,
        };
        // Whatever became of it, the one before it is read first.
        let mut failed = match under_way.take() {
            Some(before) => compute::finish(scorer, before, &mut idle_at, shared)?,
            None => Vec::new(),
        };
        match started {
            Some(batch) if batch.computes() && failed.is_empty() => under_way = Some(batch),
            // What is tried again would run behind it: it is read first.
            Some(batch) => failed.extend(compute::finish(scorer, batch, &mut idle_at, shared)?),
            None => {}
        }
        compute::score(scorer, failed, &mut idle_at, shared)?;
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
