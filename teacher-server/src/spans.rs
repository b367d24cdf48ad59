//! What is told of every call: a span that carries its name, who asks and for what, and at the end
//! what came of it.
//!
//! The span of a call is at level `info`, so that whatever the log says of it carries the call's name;
//! the line for each call, and the span and the line for each sequence of a `Score` stream, are at
//! `debug`: by default they are none of the log's, and cost nothing.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;
use http_body::{Frame, SizeHint};
use proto::convert::{ScoreJob, Times};
use proto::v1::ScoreRequest;
use tonic::{Code, Status};
use tracing::field::Empty;
use tracing::{Instrument as _, Span};

use crate::metrics::code_name;
use crate::request_id::{HEADER, RequestId};
use crate::telemetry;

/// Longest path that is told whole, in bytes; all that lead anywhere are shorter.
const LONGEST_PATH: usize = 100;

/// Middleware of both ports, around all others: gives a call its name and its span, sends the name back
/// with whatever is answered, and tells the outcome once the answer has been sent or given up.
pub async fn follow(mut request: Request, next: Next) -> Response {
    let id = RequestId::of(request.headers());
    let span = of_call(&id, &request);
    request.extensions_mut().insert(id.clone());
    let mut ending = Ending::of(span.clone());
    let mut response = next.run(request).instrument(span).await;
    response.headers_mut().insert(HEADER, id.into_header());
    ending.begin(&response);
    response.map(|body| Body::new(Followed { body, ending }))
}

fn of_call(id: &RequestId, request: &Request) -> Span {
    // Without its query, which may hold what is nobody else's.
    let path = request.uri().path();
    let method = &path[..path.floor_char_boundary(LONGEST_PATH)];
    let span = tracing::info_span!(
        "call",
        // Texts, not what they display: those are quoted, and stay on their line whatever is in them.
        request_id = id.as_str(),
        method,
        client = Empty,
        sequences = Empty,
        tokens = Empty,
        positions = Empty,
        k = Empty,
        queue_ms = Empty,
        compute_ms = Empty,
        bytes = Empty,
        ms = Empty,
        code = Empty,
        status = Empty,
        otel.name = Empty,
        otel.kind = Empty,
    );
    telemetry::adopt(&span, request.headers(), method);
    span
}

/// The span of one request of a stream, within the stream's own.
pub fn of_sequence(call: &RequestId, request: &ScoreRequest) -> Span {
    tracing::debug_span!(
        "sequence",
        request_id = call.as_str(),
        id = request.id,
        tokens = request.tokens.len() / 4,
        positions = Empty,
        k = request.top_k,
        queue_ms = Empty,
        compute_ms = Empty,
        bytes = Empty,
        code = Empty,
    )
}

/// Tells of a call's span what is asked with it.
pub fn asks<'a>(span: &Span, jobs: impl Iterator<Item = &'a ScoreJob>) {
    if span.is_disabled() {
        return;
    }
    let (mut sequences, mut tokens, mut positions, mut k) = (0, 0, 0, 0);
    for job in jobs {
        sequences += 1;
        tokens += job.tokens.len();
        positions += job.rows();
        k = job.k;
    }
    span.record("sequences", sequences).record("tokens", tokens);
    span.record("positions", positions).record("k", k);
}

/// Tells of a span how long its sequences waited for the device, and how long that took.
pub fn took(span: &Span, times: Times) {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    span.record("queue_ms", ms(times.queued)).record("compute_ms", ms(times.computed));
}

/// Tells of a sequence's span what came of it: its status, and the bytes of the arrays sent.
pub fn sequence_ends(span: &Span, code: Code, bytes: usize) {
    span.record("bytes", bytes);
    outcome(span, code);
}

fn outcome(span: &Span, code: Code) {
    span.record("code", code_name(code));
    // The server's own faults (OpenTelemetry's conventions for gRPC).
    let fault = matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    );
    if fault {
        telemetry::failed(span, code_name(code));
    }
}

/// What is told of a call at its end.
struct Ending {
    span: Span,
    since: Instant,
    bytes: u64,
    /// The outcome, once it is known; none of it before there is an answer.
    code: Option<Code>,
    /// The status of an answer that is none of gRPC's.
    status: Option<u16>,
    /// Whether the answer was sent to its end.
    whole: bool,
}

impl Ending {
    fn of(span: Span) -> Self {
        Self { span, since: Instant::now(), bytes: 0, code: None, status: None, whole: false }
    }

    /// The head of the answer is there.
    fn begin(&mut self, response: &Response) {
        self.whole = response.body().is_end_stream();
        let kind = response.headers().get(header::CONTENT_TYPE);
        if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
            self.read_code(response.headers());
        } else {
            self.status = Some(response.status().as_u16());
        }
    }

    /// gRPC's outcome is in the trailers, or in the head of an answer that has only one.
    fn read_code(&mut self, fields: &HeaderMap) {
        let code = fields.get(Status::GRPC_STATUS);
        self.code = code.map(|code| Code::from_bytes(code.as_bytes())).or(self.code);
    }

    fn tell(&self) {
        let span = &self.span;
        span.record("bytes", self.bytes).record("ms", self.since.elapsed().as_secs_f64() * 1e3);
        match (self.status, self.code) {
            (Some(status), _) if self.whole => {
                span.record("status", status);
                if status >= 500 {
                    telemetry::failed(span, "the answer's status is of a fault of the server");
                }
            }
            (None, Some(code)) => outcome(span, code),
            (Some(_) | None, _) => outcome(span, Code::Cancelled),
        }
        tracing::debug!(parent: span, "answered");
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if !self.span.is_disabled() {
            self.tell();
        }
    }
}

/// The body of an answer, followed to its end.
struct Followed {
    body: Body,
    ending: Ending,
}

impl HttpBody for Followed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            if let Some(bytes) = frame.data_ref() {
                self.ending.bytes += bytes.len() as u64;
            } else if let Some(trailers) = frame.trailers_ref() {
                self.ending.read_code(trailers);
            }
        }
        self.ending.whole = matches!(polled, Poll::Ready(None)) || self.body.is_end_stream();
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
