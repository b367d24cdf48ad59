//! Why a request was not answered, and the one map from that to a gRPC status.

use std::sync::Arc;

use distill::codec::CodecError;
use proto::convert::RequestError;
use tonic::{Code, Status};

use crate::queue::QueueFull;
use crate::scorer::NotFinite;

/// Everything a caller may be told.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TeacherError {
    /// The model is not there yet.
    #[error("the teacher is loading its model; try again in a moment")]
    Loading,
    /// The server was told to stop.
    #[error("the teacher is shutting down; send the request to another one or later")]
    Draining,
    /// The thread that owns the device ended.
    #[error("the teacher lost its device; it has to be restarted")]
    Stopped,
    /// The request breaks a rule of the contract.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Two unanswered requests of one name.
    #[error("id {id} is that of an unanswered request of this stream; every one needs its own")]
    DuplicateId {
        /// The id.
        id: u64,
    },
    /// A text that cannot be scored in one reply.
    #[error(
        "{tokens} tokens with {k} candidates each are more than the {most} candidates of one \
         ScoreText reply; lower top_k, shorten the text, or use Score"
    )]
    TextReply {
        /// Tokens of the text.
        tokens: usize,
        /// Candidates a token.
        k: usize,
        /// Candidates of a reply.
        most: usize,
    },
    /// The tokenizer could not encode the text.
    #[error("the text cannot be encoded: {0}")]
    Text(String),
    /// A bound on what may wait was reached.
    #[error(transparent)]
    Full(#[from] QueueFull),
    /// The model produced a number that cannot be.
    #[error(transparent)]
    NotFinite(#[from] NotFinite),
    /// The device or the model failed on this sequence alone.
    #[error("the model failed on this sequence: {0}")]
    Scorer(String),
    /// The model's answer could not be put into messages.
    #[error("the model's answer is not one: {0}")]
    Answer(#[from] CodecError),
    /// A bug of the server.
    #[error("the teacher met a bug: {0}")]
    Panicked(String),
}

impl TeacherError {
    /// The canonical status code.
    pub fn code(&self) -> Code {
        match self {
            Self::Loading | Self::Draining | Self::Stopped => Code::Unavailable,
            Self::Request(error) => error.code(),
            Self::DuplicateId { .. } | Self::TextReply { .. } | Self::Text(_) => {
                Code::InvalidArgument
            }
            Self::Full(_) => Code::ResourceExhausted,
            Self::NotFinite(_) | Self::Scorer(_) | Self::Answer(_) | Self::Panicked(_) => {
                Code::Internal
            }
        }
    }
}

impl From<TeacherError> for Status {
    fn from(error: TeacherError) -> Self {
        let mut status = Self::new(error.code(), error.to_string());
        // By its source `unreadable` tells a status of ours from one of tonic's.
        status.set_source(Arc::new(error));
        status
    }
}

/// What a panic said.
pub fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a text")
        .to_owned()
}
