//! Streams that ask once and then only listen: health's `Watch`, which needs no token, and reflection.
//! Bounded in number, shared between clients, and in time each.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::Response;
use distill::handshake::Limits;
use http_body::Frame;
use tokio::time::Sleep;
use tonic::Status;

use crate::client::Client;
use crate::error::TeacherError;
use crate::metrics::Metrics;
use crate::room::{Room, Taken};

/// The calls that are such streams.
const WATCHES: [&str; 2] = ["/Watch", "/ServerReflectionInfo"];
/// When somebody whom the bound kept out should come again.
const PAUSE: Duration = Duration::from_secs(5);

/// The bounds, shared by all connections.
#[derive(Clone, Debug)]
pub struct Watches {
    room: Room,
    limit: usize,
    timeout: Duration,
    metrics: Metrics,
}

impl Watches {
    /// As many as there may be connections, each for as long as a stream may be open.
    pub fn new(limits: &Limits, metrics: Metrics) -> Self {
        let (limit, timeout) = (limits.max_connections, limits.stream_timeout);
        Self { room: Room::new(limit), limit, timeout, metrics }
    }
}

/// Middleware of every call: bounds those that are such streams.
pub async fn bound(State(bounds): State<Watches>, request: Request, next: Next) -> Response {
    if !WATCHES.iter().any(|end| request.uri().path().ends_with(end)) {
        return next.run(request).await;
    }
    let Some(taken) = bounds.room.take(&Client::of(request.extensions()), 1) else {
        let error = TeacherError::Watches { limit: bounds.limit, pause: PAUSE };
        bounds.metrics.refused(error.reason());
        return Status::from(error).into_http::<Body>();
    };
    let over = Box::pin(tokio::time::sleep(bounds.timeout));
    let response = next.run(request).await;
    response.map(|body| Body::new(Watched { body, over, bounds, taken: Some(taken) }))
}

/// The answers of one such stream, until its time is over.
struct Watched {
    body: Body,
    over: Pin<Box<Sleep>>,
    bounds: Watches,
    /// None once the stream has ended because of its time.
    taken: Option<Taken>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.taken.is_none() {
            return Poll::Ready(None);
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Pending if self.over.as_mut().poll(cx).is_ready() => {
                self.taken = None;
                let error = TeacherError::StreamTime { seconds: self.bounds.timeout.as_secs() };
                self.bounds.metrics.refused(error.reason());
                let mut trailers = HeaderMap::new();
                let told = Status::from(error).add_header(&mut trailers);
                let frame = told.map(|()| Frame::trailers(trailers)).map_err(axum::Error::new);
                Poll::Ready(Some(frame))
            }
            other @ (Poll::Ready(_) | Poll::Pending) => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}
