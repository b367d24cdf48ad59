//! Why a request was not answered, and the one map from that to a gRPC status.

use std::sync::Arc;
use std::time::Duration;

use distill::fingerprint::Fingerprint;
use distill::queue::QueueFull;
use proto::convert::{RequestError, SignalError};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::access::Denied;
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
    /// Hidden states are to be coded by a code this teacher does not have.
    #[error(
        "hidden states were asked for by the code {wanted}, this teacher's is {}: start it with the calibration \
         of that code (--calibration-dir; one that was replaced is there under a name that ends in .before), or \
         begin anew with the code that GetDecoder names; what was coded by another cannot be mixed with it",
        held.map_or_else(|| "not made yet".to_owned(), |held| held.to_string())
    )]
    OtherCode {
        /// As asked.
        wanted: Fingerprint,
        /// The teacher's.
        held: Option<Fingerprint>,
    },
    /// This teacher makes no code of its hidden states.
    #[error("no coded hidden states are to be had of this teacher: {0}")]
    NoCode(String),
    /// Hidden states of a teacher that gives none.
    #[error("this teacher offers no hidden states: ask for top-k, candidates or draws")]
    NoDecoder,
    /// Bytes of a name this teacher does not have.
    #[error("no blob {name}: GetDecoder says what there is")]
    NoBlob {
        /// As asked, at most its first 80 characters.
        name: String,
    },
    /// An offset behind the end.
    #[error("offset {offset} lies behind the {bytes} bytes of the blob")]
    BlobOffset {
        /// As asked.
        offset: u64,
        /// Bytes of the blob.
        bytes: usize,
    },
    /// The thread that owns the device ended.
    #[error("the teacher lost its device; it has to be restarted")]
    Stopped,
    /// The request breaks a rule of the contract.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// What came on a stream was no request, or the transport broke.
    #[error("{message}")]
    Unreadable {
        /// The status.
        code: Code,
        /// What was wrong.
        message: String,
        /// When to come again, where that helps.
        pause: Option<Duration>,
    },
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
    #[error("{full}")]
    Full {
        /// The bound.
        full: QueueFull,
        /// When to come again.
        pause: Duration,
    },
    /// As many texts are being encoded, or wait for it, as may.
    #[error(
        "as many texts are being encoded or wait for it as may, {limit} in all \
         (max_encoding_texts), of which a client may have as many as are still free; send it again \
         later, or send tokens to Score"
    )]
    Encoding {
        /// Texts allowed.
        limit: usize,
        /// When to come again.
        pause: Duration,
    },
    /// As many streams only listen as may.
    #[error(
        "as many streams of health's Watch and of reflection are open as may be, {limit} in all \
         (max_connections), of which a client may have as many as are still free; close one, or ask \
         again later"
    )]
    Watches {
        /// Streams allowed.
        limit: usize,
        /// When to come again.
        pause: Duration,
    },
    /// The stream has been open for as long as one may.
    #[error(
        "this stream has been open for {seconds} s, as long as one may (--stream-timeout); what it \
         asked is answered: open another"
    )]
    StreamTime {
        /// Seconds allowed.
        seconds: u64,
    },
    /// A request over HTTP took longer than a stream may be open.
    #[error(
        "the request was not answered within {seconds} s, as long as one may take \
         (--stream-timeout); send fewer sequences at a time, or send it again when the server has \
         less to do"
    )]
    RequestTime {
        /// Seconds allowed.
        seconds: f64,
    },
    /// Nothing was asked on the stream for too long.
    #[error(
        "nothing was asked on this stream for {seconds} s (--stream-idle-timeout); open another \
         when there is something to ask"
    )]
    StreamIdle {
        /// Seconds allowed.
        seconds: u64,
    },
    /// No room for the bytes of one more unfinished message.
    #[error(
        "unfinished requests hold as many bytes as they may, {limit} in all \
         (max_unfinished_bytes), of which a client may have as many as are still free; send it again \
         later"
    )]
    Unfinished {
        /// Bytes allowed.
        limit: usize,
        /// When to come again.
        pause: Duration,
    },
    /// No room for one more answer.
    #[error(
        "answers that are not computed or not read yet take as many bytes as they may, {limit} in all \
         (max_held_bytes), of which a client may have as many as are still free; read what was \
         answered, and send it again later"
    )]
    Held {
        /// Bytes allowed.
        limit: usize,
        /// When to come again.
        pause: Duration,
    },
    /// A body over HTTP that is too large, or ended early.
    #[error(
        "a body has at most {limit} bytes (--max-http-body-bytes); send fewer sequences at a time"
    )]
    BodyBytes {
        /// Bytes allowed.
        limit: usize,
    },
    /// A body in a form that would have to be unpacked.
    #[error("the body is encoded ({0}); send it as it is, without content-encoding")]
    BodyEncoding(String),
    /// A body that breaks off, or is not in the form its head announces.
    #[error("the body cannot be read to its end: {0}; send as many bytes as its head announces")]
    Body(String),
    /// The rest of a message did not come.
    #[error("the rest of a message did not come within {seconds} s (--message-timeout)")]
    MessageTime {
        /// Seconds allowed.
        seconds: f64,
    },
    /// The request ended before its message did.
    #[error("not a request: it ended in the middle of a message")]
    CutOff,
    /// Nobody took the answers.
    #[error("an answer was left unread for {seconds} s (--reader-timeout); the stream was cut")]
    Unread {
        /// Seconds allowed.
        seconds: f64,
    },
    /// Somebody this server does not know.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The client's own deadline has passed.
    #[error("the deadline the client set (grpc-timeout) has passed")]
    Deadline,
    /// The device's memory did not suffice for this sequence alone.
    #[error(
        "the device has not enough memory for this sequence of {tokens} tokens alone: {reason}; \
         send a shorter one, or ask for fewer positions"
    )]
    OutOfMemory {
        /// Tokens of the sequence.
        tokens: usize,
        /// What the device said.
        reason: String,
        /// When to come again.
        pause: Duration,
    },
    /// The model produced a number that cannot be.
    #[error(transparent)]
    NotFinite(#[from] NotFinite),
    /// The device or the model failed on this sequence alone.
    #[error("the model failed on this sequence: {0}")]
    Scorer(String),
    /// The model's answer could not be put into messages.
    #[error("the model's answer is not one: {0}")]
    Answer(#[from] SignalError),
    /// A bug of the server.
    #[error("the teacher met a bug: {0}")]
    Panicked(String),
}

impl TeacherError {
    /// The canonical status code.
    pub fn code(&self) -> Code {
        match self {
            Self::Loading
            | Self::Draining
            | Self::Stopped
            | Self::StreamTime { .. }
            | Self::StreamIdle { .. } => Code::Unavailable,
            Self::Deadline | Self::MessageTime { .. } | Self::RequestTime { .. } => {
                Code::DeadlineExceeded
            }
            Self::Unread { .. } => Code::Aborted,
            Self::Denied(_) => Code::Unauthenticated,
            Self::Request(error) => error.code(),
            Self::Unreadable { code, .. } => *code,
            Self::DuplicateId { .. }
            | Self::TextReply { .. }
            | Self::Text(_)
            | Self::CutOff
            | Self::Body(_)
            | Self::BodyEncoding(_)
            | Self::BodyBytes { .. } => Code::InvalidArgument,
            Self::Full { .. }
            | Self::Encoding { .. }
            | Self::Watches { .. }
            | Self::Unfinished { .. }
            | Self::Held { .. }
            | Self::OutOfMemory { .. } => Code::ResourceExhausted,
            Self::OtherCode { .. } | Self::NoCode(_) => Code::FailedPrecondition,
            Self::NoDecoder => Code::Unimplemented,
            Self::NoBlob { .. } => Code::NotFound,
            Self::BlobOffset { .. } => Code::OutOfRange,
            Self::NotFinite(_) | Self::Scorer(_) | Self::Answer(_) | Self::Panicked(_) => {
                Code::Internal
            }
        }
    }
}

impl TeacherError {
    /// Why a request was refused, as a label of the metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
            Self::Request(_)
            | Self::Unreadable { .. }
            | Self::DuplicateId { .. }
            | Self::TextReply { .. }
            | Self::Text(_)
            | Self::CutOff
            | Self::Body(_)
            | Self::BodyEncoding(_)
            | Self::BodyBytes { .. }
            | Self::NoDecoder
            | Self::NoBlob { .. }
            | Self::BlobOffset { .. } => "invalid",
            Self::OtherCode { .. } | Self::NoCode(_) => "code",
            Self::Full { full: QueueFull::Sequences { .. }, .. } => "queued_sequences",
            Self::Full { full: QueueFull::Tokens { .. }, .. } => "queued_tokens",
            Self::Encoding { .. } => "encoding_texts",
            Self::Watches { .. } => "watches",
            Self::StreamTime { .. } => "stream_time",
            Self::RequestTime { .. } => "request_time",
            Self::StreamIdle { .. } => "stream_idle",
            Self::Unfinished { .. } => "unfinished_bytes",
            Self::Held { .. } => "held_bytes",
            Self::MessageTime { .. } => "message_time",
            Self::Unread { .. } => "unread",
            Self::Deadline => "deadline",
            Self::Denied(_) => "unauthenticated",
            Self::OutOfMemory { .. } => "out_of_memory",
            Self::NotFinite(_) => "non_finite",
            Self::Scorer(_) | Self::Answer(_) => "model",
            Self::Panicked(_) => "bug",
        }
    }

    /// When trying again makes sense, where a bound of the server's was reached.
    pub fn pause(&self) -> Option<Duration> {
        if let Self::Full { pause, .. }
        | Self::Encoding { pause, .. }
        | Self::Watches { pause, .. }
        | Self::Unfinished { pause, .. }
        | Self::Held { pause, .. }
        | Self::OutOfMemory { pause, .. } = self
        {
            return Some(*pause);
        }
        if let Self::Unreadable { pause, .. } = self { *pause } else { None }
    }
}

impl From<TeacherError> for Status {
    fn from(error: TeacherError) -> Self {
        let (code, text) = (error.code(), error.to_string());
        let mut status = match error.pause() {
            None => Self::new(code, text),
            Some(pause) => {
                let details = ErrorDetails::with_retry_info(Some(pause));
                Self::with_error_details(code, text, details)
            }
        };
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
