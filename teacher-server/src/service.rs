//! The tonic side: takes requests in, hands them on, gives replies out. No maths.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use distill::handshake::Limits;
use futures::{FutureExt, Stream};
use proto::convert;
use proto::v1::{
    GetInfoReply, GetInfoRequest, ScoreReply, ScoreRequest, ScoreTextReply, ScoreTextRequest,
    teacher_server::Teacher,
};
use tokio::sync::{mpsc, watch};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::client::Client;
use crate::deadline::Deadline;
use crate::engine::Engine;
use crate::error::{TeacherError, panic_text};
use crate::metrics::Metrics;
use crate::score_stream::{ScoreStream, StreamTimes};
use crate::shutdown::{Call, Calls};
use crate::state::{Serving, State};
use crate::text::{Encoders, score_text};

/// The service. One for all connections.
pub struct TeacherService {
    engine: Engine,
    state: watch::Receiver<State>,
    calls: Calls,
    times: StreamTimes,
    encoders: Encoders,
    metrics: Metrics,
}

impl TeacherService {
    /// A service over an engine; it accepts work while `state` says so.
    pub fn new(
        engine: Engine,
        state: watch::Receiver<State>,
        calls: Calls,
        limits: &Limits,
        metrics: Metrics,
    ) -> Self {
        let times = StreamTimes {
            total: limits.stream_timeout,
            idle: limits.stream_idle_timeout,
            reader: limits.reader_timeout,
        };
        let encoders = Encoders::new(limits.max_encoding_texts);
        Self { engine, state, calls, times, encoders, metrics }
    }

    /// Lets a call in: what it needs to be served, and its mark among the running calls.
    fn enter(&self) -> Result<(Arc<Serving>, Call), TeacherError> {
        // In this order: a drain first changes the state, then waits for the calls.
        let call = self.calls.begin().ok_or(TeacherError::Draining)?;
        let serving = self.state.borrow().serving()?;
        Ok((serving, call))
    }

    /// Counts how a unary call ended.
    fn counted<T>(
        &self,
        method: &'static str,
        result: Result<T, TeacherError>,
    ) -> Result<Response<T>, Status> {
        let code = result.as_ref().map_or_else(TeacherError::code, |_| Code::Ok);
        self.metrics.answered(method, code);
        if let Err(error) = &result {
            self.metrics.refused(error.reason());
        }
        result.map(Response::new).map_err(Status::from)
    }
}

#[tonic::async_trait]
impl Teacher for TeacherService {
    async fn get_info(
        &self,
        _request: Request<GetInfoRequest>,
    ) -> Result<Response<GetInfoReply>, Status> {
        let serving = self.state.borrow().serving();
        let reply = serving.map(|serving| convert::facts_to_info(&serving.facts));
        self.counted("GetInfo", reply)
    }

    type ScoreStream = Replies;

    async fn score(
        &self,
        request: Request<Streaming<ScoreRequest>>,
    ) -> Result<Response<Replies>, Status> {
        let entered = self.enter().inspect_err(|error| {
            self.metrics.answered("Score", error.code());
            self.metrics.refused(error.reason());
        });
        let (serving, call) = entered?;
        let client = Client::of(request.extensions());
        let deadline = request.extensions().get::<Deadline>().map(|deadline| deadline.0);
        // One message waits here while the next one is packed; the rest of the results wait as
        // they came from the device.
        let (sender, replies) = mpsc::channel(1);
        let stream = ScoreStream {
            serving,
            engine: self.engine.clone(),
            metrics: self.metrics.clone(),
            client,
            times: self.times,
            deadline,
            out: sender,
        };
        let ending = Arc::new(OnceLock::new());
        let told = Arc::clone(&ending);
        let state = self.state.clone();
        let metrics = self.metrics.clone();
        tokio::spawn(async move {
            metrics.streams.inc();
            let run = stream.run(request.into_inner(), state);
            if let Err(error) = without_panic(&metrics, run).await.and_then(|ended| ended) {
                metrics.refused(error.reason());
                // Without this the stream would seem to have ended well.
                let _ = told.set(error);
            }
            metrics.streams.dec();
        });
        Ok(Response::new(Replies { replies, ending, _call: call }))
    }

    async fn score_text(
        &self,
        request: Request<ScoreTextRequest>,
    ) -> Result<Response<ScoreTextReply>, Status> {
        let answer = async {
            let (serving, _call) = self.enter()?;
            let client = Client::of(request.extensions());
            let asked = request.into_inner();
            score_text(asked, &client, &serving, &self.engine, &self.encoders).await
        };
        let reply = without_panic(&self.metrics, answer).await;
        self.counted("ScoreText", reply.unwrap_or_else(Err))
    }
}

/// The replies of one `Score` call, as tonic takes them; the call counts as running until the
/// transport has taken the last one.
pub struct Replies {
    replies: mpsc::Receiver<ScoreReply>,
    /// Why the stream ended, if not because everything was answered.
    ending: Arc<OnceLock<TeacherError>>,
    _call: Call,
}

impl Stream for Replies {
    type Item = Result<ScoreReply, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.replies.poll_recv(cx) {
            Poll::Ready(Some(reply)) => Poll::Ready(Some(Ok(reply))),
            Poll::Ready(None) => {
                let error = self.ending.get().cloned();
                Poll::Ready(error.map(|error| Err(error.into())))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

/// A handler's future whose panic is an error of this one call.
async fn without_panic<T>(
    metrics: &Metrics,
    future: impl Future<Output = T>,
) -> Result<T, TeacherError> {
    AssertUnwindSafe(future).catch_unwind().await.map_err(|panic| {
        metrics.panics.inc();
        let text = panic_text(panic.as_ref());
        tracing::error!(text, "a handler panicked");
        TeacherError::Panicked(text)
    })
}
