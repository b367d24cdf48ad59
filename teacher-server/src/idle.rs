//! Connections nobody uses: each counts its open requests, and one that has had none for too long is
//! to be closed.
//!
//! What keeps a connection is an open request, not bytes: a peer that answers pings, or sends the
//! head of a request a byte at a time, would otherwise hold its place for ever. Nor does a request
//! whose answer nobody takes: no one else ends it, for what waits for room in an HTTP/2 window is
//! the transport's.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::client::Peer;
use crate::room::KeptRoom;

/// The requests open on one connection; clones share the count.
#[derive(Clone, Debug)]
pub struct OpenRequests(Arc<Mutex<Count>>);

#[derive(Debug)]
struct Count {
    /// By their numbers, and when the transport took a part of the answer for which it has not found
    /// room since; none while it asks for more.
    open: BTreeMap<u64, Option<Instant>>,
    begun: u64,
    /// When the last one ended, or the connection was accepted.
    idle_since: Instant,
}

/// One open request; it counts until this is dropped.
#[derive(Debug)]
pub struct OpenRequest {
    requests: OpenRequests,
    number: u64,
}

impl OpenRequests {
    /// None open yet.
    pub fn new(now: Instant) -> Self {
        let count = Count { open: BTreeMap::new(), begun: 0, idle_since: now };
        Self(Arc::new(Mutex::new(count)))
    }

    fn count(&self) -> MutexGuard<'_, Count> {
        // Numbers are in order whatever panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request begins.
    fn begin(&self) -> OpenRequest {
        let mut count = self.count();
        count.begun += 1;
        let number = count.begun;
        count.open.insert(number, None);
        OpenRequest { requests: self.clone(), number }
    }

    /// Since when none is open but those whose answers have been left unread for `reader`; none
    /// while one is.
    fn idle_since(&self, reader: Duration) -> Option<Instant> {
        let count = self.count();
        let mut parts = count.open.values();
        parts.try_fold(count.idle_since, |since, taken| Some(since.max((*taken)? + reader)))
    }
}

impl OpenRequest {
    /// The transport asks for a part of the answer, or has just taken one.
    fn part(&self, taken: Option<Instant>) {
        self.requests.count().open.insert(self.number, taken);
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let mut count = self.requests.count();
        count.open.remove(&self.number);
        count.idle_since = Instant::now();
    }
}

/// Says when a connection has been without a request for too long.
#[derive(Debug)]
pub struct IdleDeadline {
    requests: OpenRequests,
    limit: Duration,
    reader: Duration,
    heard: bool,
    timer: Pin<Box<Sleep>>,
}

impl IdleDeadline {
    /// For a connection accepted now: `first_byte` to send anything at all, and `limit` at a time
    /// without an open request; one whose answer is left unread counts for `reader`.
    pub fn new(first_byte: Duration, limit: Duration, reader: Duration) -> Self {
        let now = Instant::now();
        let timer = Box::pin(tokio::time::sleep_until(now + first_byte.min(limit)));
        Self { requests: OpenRequests::new(now), limit, reader, heard: false, timer }
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
            let due = self.requests.idle_since(self.reader).unwrap_or(now) + self.limit;
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
    let open = request.extensions().get::<Peer>().map(|peer| peer.requests.begin());
    let mut response = next.run(request).await;
    let held = response.extensions_mut().remove::<KeptRoom>();
    response.map(|body| Body::new(Counted { body, open, _held: held }))
}

/// The body of an answer, the mark of its request among the open ones, and the room that the answer
/// takes where its handler says so.
struct Counted {
    body: Body,
    open: Option<OpenRequest>,
    _held: Option<KeptRoom>,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Some(open) = &self.open {
            // Asked again at once where there is room for more.
            open.part(polled.is_ready().then(Instant::now));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
