//! Why a request was not answered, as HTTP says it; each dialect has a body of its own for it.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tonic::Code;

use crate::error::TeacherError;

/// When to come again where an error does not say.
const PAUSE: Duration = Duration::from_secs(1);

/// Characters of a message about a request, which may quote it.
const MOST_TOLD: usize = 500;

/// What is told instead of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// The status: below 500 where the request has to change, 503 where it may come again.
    pub status: StatusCode,
    /// For people.
    pub message: String,
    /// The field it is about, where there is one.
    pub field: Option<&'static str>,
    /// When to come again.
    pub pause: Option<Duration>,
    /// The same as a gRPC status, and why: labels of the metrics.
    pub code: Code,
    /// Why.
    pub reason: &'static str,
}

impl Problem {
    /// A request that cannot be meant.
    pub fn invalid(message: impl Into<String>) -> Self {
        let (status, message) = (StatusCode::BAD_REQUEST, told(message.into()));
        let (code, reason) = (Code::InvalidArgument, "invalid");
        Self { status, message, field: None, pause: None, code, reason }
    }

    /// The same, about a field.
    pub fn field(field: &'static str, message: impl Into<String>) -> Self {
        Self { field: Some(field), ..Self::invalid(message) }
    }

    /// The answer, its body as TRL's server has it.
    pub fn into_trl(self) -> Response {
        let body = json!({ "detail": self.message });
        self.respond(&body)
    }

    /// The answer, its body as vLLM has it.
    pub fn into_vllm(self) -> Response {
        let kind = match self.status {
            StatusCode::NOT_FOUND => "NotFoundError",
            StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailableError",
            status if status.is_server_error() => "InternalServerError",
            _ => "BadRequestError",
        };
        let code = self.status.as_u16();
        let body = json!({ "error": {
            "message": self.message, "type": kind, "param": self.field, "code": code,
        }});
        self.respond(&body)
    }

    fn respond(&self, body: &Value) -> Response {
        let json = [(header::CONTENT_TYPE, "application/json")];
        let mut response = (self.status, json, body.to_string()).into_response();
        if let Some(pause) = self.pause {
            // Whole seconds; 0 would be no pause.
            let seconds = pause.as_secs_f64().ceil().max(1.0) as u64;
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// A message no longer than it need be: what is quoted may be as long as a body.
fn told(mut message: String) -> String {
    if let Some((end, _)) = message.char_indices().nth(MOST_TOLD) {
        message.truncate(end);
        message.push('…');
        message.shrink_to_fit();
    }
    message
}

impl From<TeacherError> for Problem {
    fn from(error: TeacherError) -> Self {
        let (message, code, reason) = (error.to_string(), error.code(), error.reason());
        let again = code == Code::ResourceExhausted || code == Code::Unavailable;
        // Without a pause where it would be as large the next time: clients come again by it.
        let pause = again.then(|| error.pause().unwrap_or(PAUSE));
        let status = if matches!(error, TeacherError::BodyBytes { .. }) {
            StatusCode::PAYLOAD_TOO_LARGE
        } else if matches!(error, TeacherError::BodyEncoding(_)) {
            StatusCode::UNSUPPORTED_MEDIA_TYPE
        } else if matches!(error, TeacherError::RequestTime { .. }) {
            StatusCode::GATEWAY_TIMEOUT
        } else if again {
            StatusCode::SERVICE_UNAVAILABLE
        } else if code == Code::DeadlineExceeded {
            StatusCode::REQUEST_TIMEOUT
        } else if code == Code::Internal {
            StatusCode::INTERNAL_SERVER_ERROR
        } else {
            StatusCode::BAD_REQUEST
        };
        Self { status, message, field: None, pause, code, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_short_whatever_it_quotes() {
        let long = "ä".repeat(1 << 20);
        let problem = Problem::field("model", format!("The model `{long}` does not exist."));
        assert!(problem.message.len() < 4 * MOST_TOLD, "{} bytes", problem.message.len());
        assert!(problem.message.starts_with("The model `ä") && problem.message.ends_with('…'));
        assert_eq!(Problem::invalid("short").message, "short");
    }
}
