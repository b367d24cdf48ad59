//! The ways other people's trainers ask a teacher, over HTTP: TRL's ([`trl`]) and vLLM's ([`vllm`]).
//!
//! Each reads a request into [`Asked`], sequences in order with the positions wanted of each, and
//! writes the answer from the [`Scored`]; what is between is here, and the same as for gRPC: the same
//! checks, the same queue with the same shares, the same device. The field's names and numbers are
//! described in docs/dialects.md.

pub mod ask;
pub mod body;
pub mod by_hand;
pub mod problem;
pub mod prompt;
pub mod reading;
pub mod trl;
pub mod vllm;

use std::time::Instant;

use axum::extract::Request;
use axum::response::Response;
use tokio::time::timeout;
use tonic::Code;
use tracing::Span;

use crate::client::Client;
use crate::desk::{Desk, without_panic};
use crate::error::TeacherError;
use crate::held::answer_bytes;
use crate::room::Taken;
use crate::spans;
use crate::unfinished::Unfinished;

use body::{Answer, Gone};
use reading::{Readers, Received};

pub use ask::{Asked, Scored};
pub use problem::Problem;

/// Most sequences of one request.
pub const MAX_SEQUENCES: usize = 4096;

/// What a handler needs.
#[derive(Clone)]
pub struct Counter {
    desk: Desk,
    unfinished: Unfinished,
    readers: Readers,
}

impl Counter {
    /// A counter of a desk, where requests come in by these bounds.
    pub fn new(desk: Desk, unfinished: Unfinished) -> Self {
        Self { desk, unfinished, readers: Readers::default() }
    }

    /// Answers one request: lets it in, reads it whole, and has its sequences scored. `question`
    /// makes of the body what is asked, and how the scores are to be written.
    ///
    /// # Errors
    /// [`Problem`], which is counted as the answer would be.
    async fn answer<Q, W>(
        &self,
        method: &'static str,
        request: Request,
        question: impl FnOnce(Received) -> Q,
    ) -> Result<Response, Problem>
    where
        Q: Future<Output = Result<(Asked, W), Problem>>,
        W: Write,
    {
        let (client, since) = (Client::of(request.extensions()), Instant::now());
        let metrics = &self.desk.metrics;
        let answered = async {
            let (serving, begun) = self.desk.enter()?;
            let limits = serving.facts.limits;
            // What the queue has no room for is refused before its body is read, and, since that may
            // take a while, before anything is made of it.
            self.desk.engine.has_room(&client, 1)?;
            // Nor does a drain wait for bodies: nothing of theirs is let in yet.
            drop(begun);
            let (body, room) = self.unfinished.whole(request, limits.max_http_body_bytes).await?;
            let (serving, call) = self.desk.enter()?;
            self.desk.engine.has_room(&client, 1)?;
            let reading = self.readers.reading(room);
            let received = Received { body, reading, client, serving };
            // A batch may take its time, a full queue too; nobody's request stays for ever.
            let seconds = limits.stream_timeout.as_secs_f64();
            let scored = timeout(limits.stream_timeout, self.scored(received, question)).await;
            let (scored, write, held) =
                scored.map_err(|_| TeacherError::RequestTime { seconds })??;
            let (times, patience) = (scored.times, limits.reader_timeout);
            let write = async move |answer| {
                let _held = held;
                write.write(scored, answer).await
            };
            Ok(Answer::start(times, patience, call, write))
        };
        let answered = without_panic(metrics, answered).await.map_err(Problem::from);
        let answered = answered.and_then(|answered| answered);
        match &answered {
            Ok(_) => {
                metrics.first_reply_seconds.observe(since.elapsed().as_secs_f64());
                metrics.answered(method, Code::Ok);
            }
            Err(problem) => {
                metrics.answered(method, problem.code);
                metrics.refused(problem.reason);
                tracing::debug!(error = problem.message, "refused");
            }
        }
        answered
    }

    /// The scores that a request asks for, how they are to be written, and the room they take.
    async fn scored<Q, W>(
        &self,
        received: Received,
        question: impl FnOnce(Received) -> Q,
    ) -> Result<(Scored, W, Taken), Problem>
    where
        Q: Future<Output = Result<(Asked, W), Problem>>,
    {
        let client = received.client.clone();
        let facts = &received.serving.facts;
        let (window, width) = (facts.limits.max_in_flight_per_stream, facts.hidden_size);
        let (asked, write) = question(received).await?;
        spans::asks(&Span::current(), asked.jobs());
        let bytes = asked.jobs().map(|job| answer_bytes(job, width)).sum();
        let held = self.desk.held.take(&client, bytes)?;
        let scored = asked.score(&self.desk, &client, window).await?;
        spans::took(&Span::current(), scored.times);
        Ok((scored, write, held))
    }
}

/// How a dialect writes the scores it asked for.
trait Write: Send + 'static {
    fn write(
        self,
        scored: Scored,
        answer: Answer,
    ) -> impl Future<Output = Result<(), Gone>> + Send + 'static;
}
