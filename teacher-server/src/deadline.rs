//! The deadline a client sets for a call, `grpc-timeout`: kept for the whole of it.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tokio::time::Instant;
use tonic::Status;

use crate::error::TeacherError;

/// When a call has to be over, as its client wants it.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(pub Instant);

/// Middleware of every call: ends one whose first words do not come before its deadline, and hands
/// the deadline on to streams, which see to the rest.
pub async fn keep(mut request: Request, next: Next) -> Response {
    let Some(timeout) = timeout_of(request.headers()) else { return next.run(request).await };
    let Some(deadline) = Instant::now().checked_add(timeout) else {
        return next.run(request).await;
    };
    request.extensions_mut().insert(Deadline(deadline));
    let late = |_| Status::from(TeacherError::Deadline).into_http::<Body>();
    tokio::time::timeout_at(deadline, next.run(request)).await.unwrap_or_else(late)
}

/// At most eight digits and a unit (the gRPC protocol over HTTP/2); what is none of that is passed
/// over, as other servers do.
fn timeout_of(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout").map(HeaderValue::to_str)?.ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_read_and_nonsense_is_no_deadline() {
        let timeout = |text: &str| {
            let value = HeaderValue::from_str(text).unwrap();
            timeout_of(&HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), value)]))
        };
        let good = [
            ("2H", 7_200_000_000_000u64),
            ("3M", 180_000_000_000),
            ("4S", 4_000_000_000),
            ("5m", 5_000_000),
            ("6u", 6000),
            ("99999999n", 99_999_999),
        ];
        for (text, nanoseconds) in good {
            assert_eq!(timeout(text), Some(Duration::from_nanos(nanoseconds)), "{text}");
        }
        for text in ["", "S", "5", "-5S", "+5S", "123456789S", "5 S", "5s", "1.5S"] {
            assert_eq!(timeout(text), None, "{text}");
        }
        assert_eq!(timeout_of(&HeaderMap::new()), None);
    }
}
