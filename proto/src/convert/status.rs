//! Refusals, and what a client does about a status.

use std::time::Duration;

use tonic::Code;

use super::RequestError;
use crate::v1;

/// What a client does about a failure with this status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// It may pass: try again after a backoff, until the deadline.
    Retry,
    /// It will not pass: stop and show it.
    Stop,
}

impl Reaction {
    /// The reaction to a status, of a stream or of a single request (docs/wire.md, failures).
    /// Scoring is idempotent, so everything that may be the connection's fault is tried again.
    pub fn to(code: Code) -> Self {
        match code {
            // UNKNOWN, INTERNAL and CANCELLED are how a broken HTTP/2 stream shows in tonic.
            Code::Unavailable
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Internal
            | Code::Unknown => Self::Retry,
            Code::Ok
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::DataLoss
            | Code::Unauthenticated => Self::Stop,
        }
    }
}

/// The message that refuses one request and leaves the stream as it is; `retry_after` is when trying
/// again makes sense, where it does.
pub fn refusal(
    id: u64,
    code: Code,
    message: impl Into<String>,
    retry_after: Option<Duration>,
) -> v1::ScoreReply {
    let milliseconds = |pause: Duration| u32::try_from(pause.as_millis()).unwrap_or(u32::MAX);
    let error = v1::ScoreError {
        code: code as i32,
        message: message.into(),
        retry_after_ms: retry_after.map_or(0, milliseconds),
    };
    v1::ScoreReply { id, last: true, error: Some(error), ..Default::default() }
}

impl RequestError {
    /// The one map from what is wrong with a request to a gRPC status.
    pub fn code(&self) -> Code {
        match self {
            Self::Empty
            | Self::TokenBytes { .. }
            | Self::TooLong { .. }
            | Self::Classes { .. }
            | Self::TokenId { .. }
            | Self::EmptyRange { .. }
            | Self::RangeBounds { .. }
            | Self::RangeOrder { .. }
            | Self::Temperature { .. }
            | Self::NoSignal
            | Self::UnknownSignal { .. }
            | Self::SignalNotOffered { .. }
            | Self::UnknownCodec { .. }
            | Self::CodecNotOffered { .. }
            | Self::UnknownPriority { .. }
            | Self::Stray { .. }
            | Self::Draws { .. }
            | Self::UnknownForm { .. }
            | Self::Rung { .. }
            | Self::CodeBytes { .. }
            | Self::StateTooLarge { .. }
            | Self::DrawsTooLarge { .. }
            | Self::CandidateBytes { .. }
            | Self::CandidateId { .. }
            | Self::DuplicateCandidate { .. }
            | Self::ZeroTopK
            | Self::TopKLimit { .. }
            | Self::TopKClasses { .. }
            | Self::PackedClasses { .. }
            | Self::RowTooLarge { .. }
            | Self::TextBytes { .. }
            | Self::EmptyText => Code::InvalidArgument,
        }
    }
}

impl From<RequestError> for tonic::Status {
    fn from(error: RequestError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}
