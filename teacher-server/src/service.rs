//! The tonic side: takes requests in, hands them on, gives replies out. No maths.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;

use distill::handshake::Limits;
use futures::Stream;
use proto::convert;
use proto::v1::{
    FetchReply, FetchRequest, GetDecoderReply, GetDecoderRequest, GetInfoReply, GetInfoRequest,
    ScoreReply, ScoreRequest, ScoreTextReply, ScoreTextRequest, teacher_server::Teacher,
};
use tokio::sync::mpsc;
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::Instrument as _;

use crate::client::Client;
use crate::deadline::Deadline;
use crate::desk::{Desk, without_panic};
use crate::error::TeacherError;
use crate::fetch;
use crate::metrics::Metrics;
use crate::request_id::RequestId;
use crate::room::KeptRoom;
use crate::score_stream::{ScoreStream, StreamTimes};
use crate::shutdown::Call;
use crate::text::score_text;

/// The service. One for all connections.
pub struct TeacherService {
    desk: Desk,
    times: StreamTimes,
}

impl TeacherService {
    /// A service at a desk.
    pub fn new(desk: Desk, limits: &Limits) -> Self {
        let times = StreamTimes {
            total: limits.stream_timeout,
            idle: limits.stream_idle_timeout,
            reader: limits.reader_timeout,
        };
        Self { desk, times }
    }

    fn refused(&self, error: &TeacherError) {
        self.desk.metrics.refused(error.reason());
        tracing::debug!(error = error.to_string(), "refused");
    }

    /// Counts how a unary call ended.
    fn counted<T>(
        &self,
        method: &'static str,
        result: Result<T, TeacherError>,
    ) -> Result<Response<T>, Status> {
        let code = result.as_ref().map_or_else(TeacherError::code, |_| Code::Ok);
        self.desk.metrics.answered(method, code);
        if let Err(error) = &result {
            self.refused(error);
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
        let serving = self.desk.state.borrow().serving();
        let reply = serving.map(|serving| convert::facts_to_info(&serving.facts));
        self.counted("GetInfo", reply)
    }

    async fn get_decoder(
        &self,
        request: Request<GetDecoderRequest>,
    ) -> Result<Response<GetDecoderReply>, Status> {
        let code = request.get_ref().code;
        let answer = async {
            let (serving, _call) = self.desk.enter()?;
            if serving.facts.hidden_size == 0 {
                return Err(TeacherError::NoDecoder);
            }
            let decoder = self.desk.engine.decoder(code).await?;
            Ok(convert::decoder_reply(&decoder.facts()))
        };
        let reply = without_panic(&self.desk.metrics, answer).await;
        self.counted("GetDecoder", reply.unwrap_or_else(Err))
    }

    type FetchStream = Replies<FetchReply>;

    async fn fetch(
        &self,
        request: Request<FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let client = Client::of(request.extensions());
        let find = async {
            let (serving, call) = self.desk.enter()?;
            if serving.facts.hidden_size == 0 {
                return Err(TeacherError::NoDecoder);
            }
            let (blob, first) = fetch::find(&self.desk, request.get_ref()).await?;
            // What is on its way to a client that does not read.
            let most = serving.facts.limits.max_reply_bytes;
            let held = self.desk.held.take(&client, 2 * most)?;
            Ok((blob, first, most, (call, held)))
        };
        let found = without_panic(&self.desk.metrics, find).await.unwrap_or_else(Err);
        let (blob, first, most, (call, held)) = self.counted("Fetch", found)?.into_inner();
        let (sender, replies) = mpsc::channel(1);
        let (metrics, patience) = (self.desk.metrics.clone(), self.times.reader);
        let ending = Arc::new(OnceLock::new());
        let told = Arc::clone(&ending);
        let sending = async move {
            let sent = fetch::send(blob, first, most, patience, sender);
            tell(&metrics, without_panic(&metrics, sent).await.and_then(|end| end), &told);
            drop(held);
        };
        tokio::spawn(sending.in_current_span());
        Ok(Response::new(Replies { replies, ending, _call: call }))
    }

    type ScoreStream = Replies<ScoreReply>;

    async fn score(
        &self,
        request: Request<Streaming<ScoreRequest>>,
    ) -> Result<Response<Self::ScoreStream>, Status> {
        let entered = self.desk.enter().inspect_err(|error| {
            self.desk.metrics.answered("Score", error.code());
            self.refused(error);
        });
        let (serving, call) = entered?;
        let client = Client::of(request.extensions());
        let id = request.extensions().get::<RequestId>().cloned();
        let deadline = request.extensions().get::<Deadline>().map(|deadline| deadline.0);
        // One message waits here while the next one is packed; the rest of the results wait as
        // they came from the device.
        let (sender, replies) = mpsc::channel(1);
        let stream = ScoreStream {
            serving,
            engine: self.desk.engine.clone(),
            held: self.desk.held.clone(),
            metrics: self.desk.metrics.clone(),
            client,
            id: id.unwrap_or_else(RequestId::fresh),
            times: self.times,
            deadline,
            out: sender,
        };
        let ending = Arc::new(OnceLock::new());
        let told = Arc::clone(&ending);
        let state = self.desk.state.clone();
        let metrics = self.desk.metrics.clone();
        let answering = async move {
            metrics.streams.inc();
            let run = stream.run(request.into_inner(), state);
            tell(&metrics, without_panic(&metrics, run).await.and_then(|end| end), &told);
            metrics.streams.dec();
        };
        tokio::spawn(answering.in_current_span());
        Ok(Response::new(Replies { replies, ending, _call: call }))
    }

    async fn score_text(
        &self,
        request: Request<ScoreTextRequest>,
    ) -> Result<Response<ScoreTextReply>, Status> {
        let since = Instant::now();
        let answer = async {
            let (serving, _call) = self.desk.enter()?;
            let client = Client::of(request.extensions());
            let asked = request.into_inner();
            score_text(asked, &client, &serving, &self.desk).await
        };
        let reply = without_panic(&self.desk.metrics, answer).await;
        let reply = reply.unwrap_or_else(Err);
        if reply.is_ok() {
            self.desk.metrics.first_reply_seconds.observe(since.elapsed().as_secs_f64());
        }
        let (reply, held) = reply.map_or_else(
            |error| (Err(error), None),
            |(reply, held)| (Ok(reply), Some(KeptRoom(Arc::new(held)))),
        );
        let mut response = self.counted("ScoreText", reply)?;
        held.and_then(|held| response.extensions_mut().insert(held));
        Ok(response)
    }
}

/// Takes note of how a stream ended: without this it would seem to have ended well.
fn tell(metrics: &Metrics, end: Result<(), TeacherError>, told: &OnceLock<TeacherError>) {
    if let Err(error) = end {
        metrics.refused(error.reason());
        tracing::debug!(error = error.to_string(), "the stream ends");
        let _ = told.set(error);
    }
}

/// The replies of one call, as tonic takes them; the call counts as running until the transport has
/// taken the last one.
pub struct Replies<T> {
    replies: mpsc::Receiver<T>,
    /// Why the stream ended, if not because everything was answered.
    ending: Arc<OnceLock<TeacherError>>,
    _call: Call,
}

impl<T> Stream for Replies<T> {
    type Item = Result<T, Status>;

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
