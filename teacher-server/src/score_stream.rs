//! One `Score` stream: reads requests while there is room, answers in the order results come.

use std::collections::HashSet;
use std::sync::Arc;

use distill::codec::{Codec, row_bytes};
use futures::stream::{FuturesUnordered, Stream, StreamExt};
use proto::convert::{self, ScoreJob, Stamp};
use proto::v1::{ScoreReply, ScoreRequest};
use tokio::sync::{mpsc, watch};
use tonic::{Code, Status};

use crate::engine::{Answer, Engine, Reply};
use crate::error::TeacherError;
use crate::metrics::Metrics;
use crate::state::{Serving, State};
use crate::unreadable;

/// Results one stream may have the server hold, in bytes, before it reads no further. One request
/// is always read, so that the bound never stops a stream for good.
const HELD_BYTES: usize = 64 << 20;

/// What a stream needs.
pub struct ScoreStream {
    /// The server's facts and limits.
    pub serving: Arc<Serving>,
    /// Where jobs go.
    pub engine: Engine,
    /// What is counted.
    pub metrics: Metrics,
    /// Where replies go.
    pub out: mpsc::Sender<Result<ScoreReply, Status>>,
}

/// A request that was admitted.
struct Admitted {
    job: ScoreJob,
    reply: Reply,
}

/// What the unanswered requests of a stream take.
#[derive(Default)]
struct Held {
    ids: HashSet<u64>,
    bytes: usize,
}

impl Held {
    fn add(&mut self, job: &ScoreJob) {
        self.ids.insert(job.id);
        self.bytes += answer_bytes(job);
    }

    fn remove(&mut self, job: &ScoreJob) {
        self.ids.remove(&job.id);
        self.bytes -= answer_bytes(job);
    }
}

fn answer_bytes(job: &ScoreJob) -> usize {
    job.rows() * row_bytes(job.k, Codec::Raw)
}

/// The client left; nobody reads the replies.
struct Gone;

impl ScoreStream {
    /// Runs until the client has sent everything and has its answers, or leaves, or the server
    /// drains: then what was admitted is answered and the stream ends UNAVAILABLE.
    pub async fn run(
        self,
        mut requests: impl Stream<Item = Result<ScoreRequest, Status>> + Unpin,
        mut state: watch::Receiver<State>,
    ) {
        let mut pending = FuturesUnordered::new();
        let mut held = Held::default();
        let most = self.serving.facts.limits.max_in_flight_per_stream;
        // None while requests are read; then how the stream will end.
        let mut end: Option<Result<(), Status>> = None;
        while end.is_none() || !pending.is_empty() {
            let room = end.is_none() && pending.len() < most && held.bytes < HELD_BYTES;
            let step = tokio::select! {
                () = self.out.closed() => Err(Gone),
                Some((job, result)) = pending.next(), if !pending.is_empty() => {
                    held.remove(&job);
                    self.answer(&job, result).await
                }
                () = draining(&mut state), if end.is_none() => {
                    end = Some(Err(TeacherError::Draining.into()));
                    Ok(())
                }
                request = requests.next(), if room => match request {
                    Some(Ok(request)) => match self.admit(&request, &mut held) {
                        Ok(admitted) => {
                            pending.push(wait(admitted));
                            Ok(())
                        }
                        Err(error) => self.refuse(request.id, &error).await,
                    },
                    Some(Err(status)) => {
                        end = Some(Err(unreadable::of_stream(status)));
                        Ok(())
                    }
                    None => {
                        end = Some(Ok(()));
                        Ok(())
                    }
                },
            };
            if let Err(Gone) = step {
                return;
            }
        }
        if let Some(Err(status)) = end {
            let _ = self.out.send(Err(status)).await;
        }
    }

    /// Checks a request and puts it into the queue.
    fn admit(&self, request: &ScoreRequest, held: &mut Held) -> Result<Admitted, TeacherError> {
        if held.ids.contains(&request.id) {
            return Err(TeacherError::DuplicateId { id: request.id });
        }
        let job = convert::score_job(request, &self.serving.facts)?;
        let reply = self.engine.submit(job.clone())?;
        held.add(&job);
        Ok(Admitted { job, reply })
    }

    async fn answer(
        &self,
        job: &ScoreJob,
        result: Result<Answer, TeacherError>,
    ) -> Result<(), Gone> {
        let replies = result.and_then(|answer| self.replies(job, &answer));
        let replies = match replies {
            Ok(replies) => replies,
            Err(error) => return self.refuse(job.id, &error).await,
        };
        for reply in replies {
            self.metrics.positions.inc_by(u64::from(reply.rows));
            let bytes = reply.signal.len() + reply.next_logprob.len();
            self.metrics.payload_bytes.inc_by(bytes as u64);
            self.send(reply).await?;
        }
        self.metrics.answered("Score", Code::Ok);
        Ok(())
    }

    fn replies(&self, job: &ScoreJob, answer: &Answer) -> Result<Vec<ScoreReply>, TeacherError> {
        let facts = &self.serving.facts;
        let stamp = Stamp {
            model_fingerprint: facts.model_fingerprint,
            tokenizer_fingerprint: facts.tokenizer_fingerprint,
            max_reply_bytes: facts.limits.max_reply_bytes,
            queued: answer.queued,
            computed: answer.computed,
        };
        let scores = &answer.scores;
        Ok(convert::score_replies(job, &scores.signal, &scores.next_logprob, &stamp)?)
    }

    async fn refuse(&self, id: u64, error: &TeacherError) -> Result<(), Gone> {
        tracing::debug!(id, %error, "refused");
        self.metrics.answered("Score", error.code());
        let reply = convert::refusal(id, error.code(), error.to_string());
        self.send(reply).await
    }

    async fn send(&self, reply: ScoreReply) -> Result<(), Gone> {
        self.out.send(Ok(reply)).await.map_err(|_| Gone)
    }
}

/// Waits for the device's answer to one request.
async fn wait(admitted: Admitted) -> (ScoreJob, Result<Answer, TeacherError>) {
    let Admitted { job, reply } = admitted;
    // A sender dropped without an answer: the thread ended or forgot its queue.
    let result = reply.await.unwrap_or(Err(TeacherError::Stopped));
    (job, result)
}

async fn draining(state: &mut watch::Receiver<State>) {
    // An error means the server is gone, which is more than draining.
    let _ = state.wait_for(|state| matches!(state, State::Draining)).await;
}
