//! Why a request was not answered, and the one map from that to a gRPC status.

use tonic::{Code, Status};

use crate::queue::QueueFull;

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
    /// The request breaks a rule of the contract; the text names it with both values.
    #[error("{0}")]
    Request(String),
    /// A bound on what may wait was reached.
    #[error(transparent)]
    Full(#[from] QueueFull),
    /// The model produced a number that cannot be.
    #[error("the model gave NaN or an infinity at row {row} of this request; nothing was sent")]
    NotFinite {
        /// The first such row.
        row: usize,
    },
    /// The device or the model failed on this sequence alone.
    #[error("the model failed on this sequence: {0}")]
    Scorer(String),
    /// A bug of the server.
    #[error("the teacher met a bug: {0}")]
    Panicked(String),
}

impl TeacherError {
    /// The canonical status code.
    pub fn code(&self) -> Code {
        match self {
            Self::Loading | Self::Draining | Self::Stopped => Code::Unavailable,
            Self::Request(_) => Code::InvalidArgument,
            Self::Full(_) => Code::ResourceExhausted,
            Self::NotFinite { .. } | Self::Scorer(_) | Self::Panicked(_) => Code::Internal,
        }
    }
}

impl From<TeacherError> for Status {
    fn from(error: TeacherError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

/// What a panic said.
pub fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a text")
        .to_owned()
}
