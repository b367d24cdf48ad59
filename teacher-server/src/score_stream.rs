//! One `Score` stream: reads requests while there is room, answers in the order results come.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use distill::signal::Computed;
use futures::stream::{FuturesUnordered, Stream, StreamExt};
use proto::convert::{self, ScoreJob, Stamp, Times};
use proto::v1::{ScoreReply, ScoreRequest};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tonic::{Code, Status};
use tracing::Span;

use crate::client::Client;
use crate::engine::{Answer, Engine, Reply};
use crate::error::TeacherError;
use crate::held::{Held, answer_bytes};
use crate::metrics::Metrics;
use crate::request_id::RequestId;
use crate::room::Taken;
use crate::scorer::Scores;
use crate::spans;
use crate::state::{Serving, State};
use crate::unreadable;

/// How long a stream may take.
#[derive(Clone, Copy, Debug)]
pub struct StreamTimes {
    /// From its first word to its last request.
    pub total: Duration,
    /// Without a request and without an answer owed.
    pub idle: Duration,
    /// For the client to take an answer.
    pub reader: Duration,
}

/// What a stream needs.
pub struct ScoreStream {
    /// The server's facts and limits.
    pub serving: Arc<Serving>,
    /// Where jobs go.
    pub engine: Engine,
    /// Room for answers, over all streams.
    pub held: Held,
    /// What is counted.
    pub metrics: Metrics,
    /// Who asks.
    pub client: Client,
    /// The call's name.
    pub id: RequestId,
    /// How long it may take.
    pub times: StreamTimes,
    /// When it has to be over, if its client says so.
    pub deadline: Option<Instant>,
    /// Where replies go.
    pub out: mpsc::Sender<ScoreReply>,
}

/// A request that was admitted.
struct Admitted {
    job: ScoreJob,
    reply: Reply,
    asked: Asked,
}

/// What is kept of it until its answer has been sent.
struct Asked {
    since: Instant,
    span: Span,
    /// What its answer takes.
    bytes: usize,
    _held: Taken,
}

/// What the unanswered requests of a stream take.
#[derive(Default)]
struct Unanswered {
    ids: HashSet<u64>,
    bytes: usize,
}

impl Unanswered {
    fn add(&mut self, job: &ScoreJob, bytes: usize) {
        self.ids.insert(job.id);
        self.bytes += bytes;
    }

    fn remove(&mut self, job: &ScoreJob, asked: &Asked) {
        self.ids.remove(&job.id);
        self.bytes -= asked.bytes;
    }
}

/// Why a stream stops in the middle.
enum Stop {
    /// The client left; nobody reads the replies.
    Gone,
    /// The server ends it.
    Cut(TeacherError),
}

impl ScoreStream {
    /// Runs until the client has sent everything and has its answers, or leaves; or the server
    /// drains, or the stream's time is over: then what was admitted is answered first.
    ///
    /// # Errors
    /// Why the stream ended, if not by the client's own will.
    pub async fn run(
        self,
        requests: impl Stream<Item = Result<ScoreRequest, Status>> + Unpin,
        state: watch::Receiver<State>,
    ) -> Result<(), TeacherError> {
        let mut read = 0;
        let served = self.serve(requests, state, &mut read).await;
        Span::current().record("sequences", read);
        match served {
            Ok(end) => end,
            Err(Stop::Gone) => Ok(()),
            Err(Stop::Cut(error)) => Err(error),
        }
    }

    async fn serve(
        &self,
        mut requests: impl Stream<Item = Result<ScoreRequest, Status>> + Unpin,
        mut state: watch::Receiver<State>,
        read: &mut u64,
    ) -> Result<Result<(), TeacherError>, Stop> {
        let mut pending = FuturesUnordered::new();
        let mut held = Unanswered::default();
        let limits = &self.serving.facts.limits;
        let StreamTimes { total, idle, .. } = self.times;
        let opened = Instant::now();
        let mut idle_since = opened;
        // None while requests are read; then how the stream will end.
        let mut end: Option<Result<(), TeacherError>> = None;
        while end.is_none() || !pending.is_empty() {
            let room = end.is_none()
                && pending.len() < limits.max_in_flight_per_stream
                && held.bytes < limits.max_held_bytes_per_stream;
            let is_idle = end.is_none() && pending.is_empty();
            tokio::select! {
                () = self.out.closed() => return Err(Stop::Gone),
                () = until(self.deadline) => return Err(Stop::Cut(TeacherError::Deadline)),
                Some((job, asked, result)) = pending.next(), if !pending.is_empty() => {
                    held.remove(&job, &asked);
                    self.answer(&job, &asked, result).await?;
                    idle_since = Instant::now();
                }
                () = draining(&mut state), if end.is_none() => {
                    end = Some(Err(TeacherError::Draining));
                }
                () = sleep_until(opened + total), if end.is_none() => {
                    end = Some(Err(TeacherError::StreamTime { seconds: total.as_secs() }));
                }
                () = sleep_until(idle_since + idle), if is_idle => {
                    end = Some(Err(TeacherError::StreamIdle { seconds: idle.as_secs() }));
                }
                request = requests.next(), if room => match request {
                    Some(Ok(request)) => {
                        *read += 1;
                        let span = spans::of_sequence(&self.id, &request);
                        match self.admit(&request, &mut held, &span) {
                            Ok(admitted) => pending.push(wait(admitted)),
                            Err(error) => {
                                self.refuse(request.id, &error, &span).await?;
                                idle_since = Instant::now();
                            }
                        }
                    }
                    Some(Err(status)) => end = Some(Err(unreadable::of_stream(status))),
                    None => end = Some(Ok(())),
                },
            }
        }
        Ok(end.unwrap_or(Ok(())))
    }

    /// Checks a request and puts it into the queue.
    fn admit(
        &self,
        request: &ScoreRequest,
        held: &mut Unanswered,
        span: &Span,
    ) -> Result<Admitted, TeacherError> {
        if held.ids.contains(&request.id) {
            return Err(TeacherError::DuplicateId { id: request.id });
        }
        let job = convert::score_job(request, &self.serving.facts)?;
        span.record("positions", job.rows());
        let bytes = answer_bytes(&job, self.serving.facts.hidden_size);
        let _held = self.held.take(&self.client, bytes)?;
        let reply = span.in_scope(|| self.engine.submit(&self.client, job.clone()))?;
        held.add(&job, bytes);
        let asked = Asked { since: Instant::now(), span: span.clone(), bytes, _held };
        Ok(Admitted { job, reply, asked })
    }

    async fn answer(
        &self,
        job: &ScoreJob,
        asked: &Asked,
        result: Result<Answer, TeacherError>,
    ) -> Result<(), Stop> {
        let span = &asked.span;
        let replies = match result {
            Ok(answer) => {
                spans::took(span, Times { queued: answer.queued, computed: answer.computed });
                self.replies(job, answer).await
            }
            Err(error) => Err(error),
        };
        let replies = match replies {
            Ok(replies) => replies,
            Err(error) => return self.refuse(job.id, &error, span).await,
        };
        let mut sent = 0;
        for (index, reply) in replies.into_iter().enumerate() {
            self.metrics.positions.inc_by(u64::from(reply.rows));
            let bytes = reply.signal.len() + reply.next_logprob.len();
            self.metrics.payload_bytes.inc_by(bytes as u64);
            self.send(reply).await?;
            sent += bytes;
            if index == 0 {
                self.metrics.first_reply_seconds.observe(asked.since.elapsed().as_secs_f64());
            }
        }
        self.metrics.answered("Score", Code::Ok);
        spans::sequence_ends(span, Code::Ok, sent);
        tracing::debug!(parent: span, "answered");
        Ok(())
    }

    async fn replies(
        &self,
        job: &ScoreJob,
        answer: Answer,
    ) -> Result<Vec<ScoreReply>, TeacherError> {
        let facts = &self.serving.facts;
        let stamp = Stamp {
            model_fingerprint: facts.model_fingerprint,
            tokenizer_fingerprint: facts.tokenizer_fingerprint,
            max_reply_bytes: facts.limits.max_reply_bytes,
            queued: answer.queued,
            computed: answer.computed,
        };
        let scores = answer.scores;
        let Computed::Coded(_) = scores.signal else {
            let Scores { signal, next_logprob, .. } = &scores;
            return Ok(convert::score_replies(job, signal, next_logprob, &stamp)?);
        };
        // Tens of microseconds a position, which the threads of the network have better use for.
        let job = job.clone();
        let coding = tokio::task::spawn_blocking(move || {
            convert::score_replies(&job, &scores.signal, &scores.next_logprob, &stamp)
        });
        let failed = |error: tokio::task::JoinError| TeacherError::Panicked(error.to_string());
        Ok(coding.await.map_err(failed)??)
    }

    async fn refuse(&self, id: u64, error: &TeacherError, span: &Span) -> Result<(), Stop> {
        spans::sequence_ends(span, error.code(), 0);
        tracing::debug!(parent: span, error = error.to_string(), "refused");
        self.metrics.answered("Score", error.code());
        self.metrics.refused(error.reason());
        let reply = convert::refusal(id, error.code(), error.to_string(), error.pause());
        self.send(reply).await
    }

    async fn send(&self, reply: ScoreReply) -> Result<(), Stop> {
        let patience = self.times.reader;
        tokio::select! {
            sent = self.out.send(reply) => sent.map_err(|_| Stop::Gone),
            () = until(self.deadline) => Err(Stop::Cut(TeacherError::Deadline)),
            () = sleep(patience) => {
                Err(Stop::Cut(TeacherError::Unread { seconds: patience.as_secs_f64() }))
            }
        }
    }
}

/// Waits for the device's answer to one request.
async fn wait(admitted: Admitted) -> (ScoreJob, Asked, Result<Answer, TeacherError>) {
    let Admitted { job, reply, asked } = admitted;
    // A sender dropped without an answer: the thread ended or forgot its queue.
    let result = reply.await.unwrap_or(Err(TeacherError::Stopped));
    (job, asked, result)
}

/// Completes at the deadline; never without one.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn draining(state: &mut watch::Receiver<State>) {
    // An error means the server is gone, which is more than draining.
    let _ = state.wait_for(|state| matches!(state, State::Draining)).await;
}
