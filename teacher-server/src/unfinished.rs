//! Request messages that have begun and are not complete: bounded in bytes, shared between clients,
//! and in time each. Bytes count as they come: who announces much and sends little keeps nobody out.
//!
//! tonic keeps what has come of a message until the rest comes, however long that takes; a few
//! clients that never finish theirs would hold the server's memory, and their calls, for ever.

use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header::CONTENT_ENCODING;
use bytes::BytesMut;
use distill::handshake::Limits;
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use proto::causes::with_causes;
use tokio::time::{Instant, Sleep};
use tonic::Status;

use crate::client::Client;
use crate::error::TeacherError;
use crate::metrics::Metrics;
use crate::room::{Room, Taken};

/// Bytes before a message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;
/// The calls with any number of messages, of which each may come as late as the client likes. The others
/// have one, and tonic waits for the end of the request before it looks at it.
const STREAMS: [&str; 2] = ["/Score", "/ServerReflectionInfo"];
/// Bytes of each message that are not counted: a small one finds room whatever others hold.
const UNCOUNTED: usize = 1024;
/// When somebody whom the bound kept out should come again.
const PAUSE: Duration = Duration::from_secs(1);

/// The bounds, shared by all connections.
#[derive(Clone, Debug)]
pub struct Unfinished {
    room: Room,
    limit: usize,
    timeout: Duration,
    metrics: Metrics,
}

impl Unfinished {
    /// By these limits; the message of a call with one has its time from the call's beginning.
    pub fn new(limits: &Limits, metrics: Metrics) -> Self {
        let limit = limits.max_unfinished_bytes;
        Self { room: Room::new(limit), limit, timeout: limits.message_timeout, metrics }
    }

    /// The request, its body bounded.
    pub fn bound(&self, request: Request) -> Request {
        let streams = STREAMS.iter().any(|end| request.uri().path().ends_with(end));
        let deadline = (!streams).then(|| Box::pin(tokio::time::sleep(self.timeout)));
        let client = Client::of(request.extensions());
        let held = self.room.begin(&client);
        let (bounds, prefix, rest, came) = (self.clone(), Vec::new(), 0, 0);
        let followed =
            |body| Bounded { body, client, bounds, streams, prefix, rest, came, held, deadline };
        request.map(|body| Body::new(followed(body)))
    }
}

impl Unfinished {
    /// The whole body of a request that is not gRPC's, of at most `largest` bytes, and the room it
    /// takes. It counts as unfinished until that is dropped: it may have to wait to be read.
    ///
    /// # Errors
    /// [`TeacherError`]: too large, no room for it, broken, or not there in time.
    pub async fn whole(
        &self,
        request: Request,
        largest: usize,
    ) -> Result<(Bytes, Taken), TeacherError> {
        let client = Client::of(request.extensions());
        let encoding = request.headers().get(CONTENT_ENCODING);
        if let Some(encoding) = encoding.filter(|encoding| *encoding != "identity") {
            return Err(TeacherError::BodyEncoding(format!("{encoding:?}")));
        }
        let body = request.into_body();
        let large = || TeacherError::BodyBytes { limit: largest };
        if body.size_hint().exact().is_some_and(|announced| announced > largest as u64) {
            return Err(large());
        }
        let mut held = self.room.begin(&client);
        let read = async {
            let (mut body, mut whole) = (pin!(Limited::new(body, largest)), BytesMut::new());
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| match error.is::<LengthLimitError>() {
                    true => large(),
                    false => TeacherError::Body(with_causes(&*error)),
                })?;
                let part = frame.into_data().unwrap_or_default();
                self.hold(&mut held, whole.len() + part.len())?;
                whole.extend_from_slice(&part);
            }
            Ok::<_, TeacherError>(whole.freeze())
        };
        let seconds = self.timeout.as_secs_f64();
        let read = tokio::time::timeout(self.timeout, read).await;
        let body = read.map_err(|_| TeacherError::MessageTime { seconds })??;
        Ok((body, held))
    }

    /// Has a message of which so much has come take its room.
    fn hold(&self, held: &mut Taken, came: usize) -> Result<(), TeacherError> {
        match held.grow_to(came.saturating_sub(UNCOUNTED)) {
            true => Ok(()),
            false => Err(TeacherError::Unfinished { limit: self.limit, pause: PAUSE }),
        }
    }
}

/// A request's body, followed message by message.
struct Bounded {
    body: Body,
    client: Client,
    bounds: Unfinished,
    /// Whether more messages than one may come.
    streams: bool,
    /// What has come of a message's first bytes.
    prefix: Vec<u8>,
    /// Bytes of the message that are still to come.
    rest: usize,
    /// Those that have come.
    came: usize,
    /// The room they take.
    held: Taken,
    /// When it has to be complete; where it is the only one, the request too.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Bounded {
    /// Takes note of bytes that came.
    fn follow(&mut self, mut bytes: &[u8]) -> Result<(), TeacherError> {
        while !bytes.is_empty() {
            if self.rest > 0 {
                let here = self.rest.min(bytes.len());
                self.rest -= here;
                self.came += here;
                bytes = &bytes[here..];
                self.bounds.hold(&mut self.held, self.came)?;
            } else {
                let here = (PREFIX_BYTES - self.prefix.len()).min(bytes.len());
                self.prefix.extend_from_slice(&bytes[..here]);
                bytes = &bytes[here..];
                self.begin();
            }
            // A stream's message is taken as soon as it is whole.
            if self.streams && self.rest == 0 && self.prefix.is_empty() {
                self.taken();
            }
        }
        Ok(())
    }

    /// What has come is tonic's, or over.
    fn taken(&mut self) {
        self.held = self.bounds.room.begin(&self.client);
        (self.came, self.deadline) = (0, None);
    }

    /// A message begins; its length is known once its first bytes are there.
    fn begin(&mut self) {
        let timeout = self.bounds.timeout;
        self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        if let Ok([_, length @ ..]) = <[u8; PREFIX_BYTES]>::try_from(self.prefix.as_slice()) {
            self.prefix.clear();
            self.rest = u32::from_be_bytes(length) as usize;
        }
    }

    fn late(&mut self, cx: &mut Context<'_>) -> bool {
        self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready())
    }

    fn refuse(&mut self, error: TeacherError) -> axum::Error {
        // Polled again it would be late again, and a timer that has gone off must not be.
        let far = Instant::now() + Duration::from_secs(86_400);
        if let Some(deadline) = &mut self.deadline {
            deadline.as_mut().reset(far);
        }
        self.bounds.metrics.refused(error.reason());
        axum::Error::new(Status::from(error))
    }
}

impl HttpBody for Bounded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let followed = frame.data_ref().map_or(Ok(()), |bytes| self.follow(bytes));
                Poll::Ready(Some(followed.map(|()| frame).map_err(|error| self.refuse(error))))
            }
            // tonic takes a message that ends right after its length for the stream's good end.
            Poll::Ready(None) if self.rest > 0 || !self.prefix.is_empty() => {
                (self.rest, self.prefix) = (0, Vec::new());
                Poll::Ready(Some(Err(self.refuse(TeacherError::CutOff))))
            }
            Poll::Ready(None) => {
                self.taken();
                Poll::Ready(None)
            }
            Poll::Pending if self.late(cx) => {
                let seconds = self.bounds.timeout.as_secs_f64();
                let error = self.refuse(TeacherError::MessageTime { seconds });
                Poll::Ready(Some(Err(error)))
            }
            other @ (Poll::Ready(_) | Poll::Pending) => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
#[path = "unfinished_tests.rs"]
mod tests;
