//! Connections nobody uses: each counts its open requests, and one that has had none for too long is
//! to be closed.
//!
//! What keeps a connection is an open request, not bytes: a peer that answers pings, or sends the
//! head of a request a byte at a time, would otherwise hold its place for ever.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{ConnectInfo, Request};
use axum::middleware::Next;
use axum::response::Response;
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::client::Peer;

/// The requests open on one connection; clones share the count.
#[derive(Clone, Debug)]
pub struct OpenRequests(Arc<Mutex<Count>>);

#[derive(Debug)]
struct Count {
    open: usize,
    /// When the last one ended, or the connection was accepted.
    idle_since: Instant,
}

/// One open request; it counts until this is dropped.
#[derive(Debug)]
pub struct OpenRequest(OpenRequests);

impl OpenRequests {
    /// None open yet.
    pub fn new(now: Instant) -> Self {
        Self(Arc::new(Mutex::new(Count { open: 0, idle_since: now })))
    }

    fn count(&self) -> MutexGuard<'_, Count> {
        // Two numbers are in order whatever panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request begins.
    fn begin(&self) -> OpenRequest {
        self.count().open += 1;
        OpenRequest(self.clone())
    }

    /// Since when none is open; none while one is.
    fn idle_since(&self) -> Option<Instant> {
        let count = self.count();
        (count.open == 0).then_some(count.idle_since)
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let mut count = self.0.count();
        count.open -= 1;
        count.idle_since = Instant::now();
    }
}

/// Says when a connection has been without a request for too long.
#[derive(Debug)]
pub struct IdleDeadline {
    requests: OpenRequests,
    limit: Duration,
    heard: bool,
    timer: Pin<Box<Sleep>>,
}

impl IdleDeadline {
    /// For a connection accepted now: `first_byte` to send anything at all, and `limit` at a time
    /// without an open request.
    pub fn new(first_byte: Duration, limit: Duration) -> Self {
        let now = Instant::now();
        let timer = Box::pin(tokio::time::sleep_until(now + first_byte.min(limit)));
        Self { requests: OpenRequests::new(now), limit, heard: false, timer }
    }

    /// The connection's count.
    pub fn requests(&self) -> &OpenRequests {
        &self.requests
    }

    /// A byte came.
    pub fn heard(&mut self) {
        self.heard = true;
    }

    /// Whether it has passed; if not, the task is woken when that has to be asked again.
    pub fn has_passed(&mut self, cx: &mut Context<'_>) -> bool {
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let due = self.requests.idle_since().unwrap_or(now) + self.limit;
            if !self.heard || due <= now {
                return true;
            }
            self.timer.as_mut().reset(due);
        }
        false
    }
}

/// Middleware of both ports: a request is open until its answer has been sent or given up.
pub async fn count_request(request: Request, next: Next) -> Response {
    // tonic hands on what a connection says of itself as it is, axum in a wrapper of its own.
    let extensions = request.extensions();
    let of_axum = || extensions.get::<ConnectInfo<Peer>>().map(|info| &info.0);
    let peer = extensions.get::<Peer>().or_else(of_axum);
    let open = peer.map(|peer| peer.requests.begin());
    let response = next.run(request).await;
    response.map(|body| Body::new(Counted { body, _open: open }))
}

/// The body of an answer, and the mark of its request among the open ones.
struct Counted {
    body: Body,
    _open: Option<OpenRequest>,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
