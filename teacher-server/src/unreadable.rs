//! Bytes that are no message of the call are their sender's fault, INVALID_ARGUMENT. tonic, which
//! reads them, calls them INTERNAL, as if the server had failed.

use std::error::Error as _;

use axum::body::Body;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::error::TeacherError;

/// Middleware of every call: mends the status of a call that ended before its handler, because its
/// one message could not be read.
pub async fn blame_sender(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    match response.extensions().get::<Status>().cloned().map(mended) {
        Some(Ok(status)) => status.into_http::<Body>(),
        Some(Err(_)) | None => response,
    }
}

/// Why a message of a stream did not come.
pub fn of_stream(status: Status) -> TeacherError {
    let status = mended(status).unwrap_or_else(|as_it_was| as_it_was);
    let pause = status.get_details_retry_info().and_then(|retry| retry.retry_delay);
    TeacherError::Unreadable { code: status.code(), message: status.message().to_owned(), pause }
}

/// INVALID_ARGUMENT in place of tonic's INTERNAL; any other status comes back as the error. What
/// this server calls INTERNAL carries its [`crate::error::TeacherError`] as the source, and a
/// transport that broke carries the transport's.
fn mended(status: Status) -> Result<Status, Status> {
    match status.code() == Code::Internal && status.source().is_none() {
        true => Ok(Status::invalid_argument(format!("not a request: {}", status.message()))),
        false => Err(status),
    }
}
