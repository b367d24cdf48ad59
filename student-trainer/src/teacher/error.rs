//! What can go wrong with a teacher; every error names its address.

use std::time::Duration;

use distill::fingerprint::Fingerprint;
use distill::handshake::Mismatch;
use distill::window::GiveUp;
use proto::convert::{InfoError, ReplyError};

/// Why a teacher cannot be used, or can no longer.
#[derive(Debug, thiserror::Error)]
pub enum TeacherError {
    /// Not an address.
    #[error("--teacher {url}: {reason}; wanted: an address such as grpc://127.0.0.1:50051")]
    Address {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An address, and what was given to reach it, that do not fit.
    #[error("--teacher {url}: {reason}")]
    Access {
        /// The address.
        url: String,
        /// What does not fit, and the remedy.
        reason: String,
    },
    /// An encrypted connection that one of the two sides did not trust.
    #[error("teacher {url}: no connection that can be trusted: {reason}; {advice}")]
    Untrusted {
        /// The address.
        url: String,
        /// What was found wrong.
        reason: String,
        /// What to do.
        advice: &'static str,
    },
    /// Nobody answered in the time allowed.
    #[error(
        "teacher {url} could not be reached: {attempts} attempts in {:.1} s, the last error: \
         {last_error}. Is teacher-server running there? --teacher-timeout ({} s) bounds the wait",
        tried_for.as_secs_f64(), limit.as_secs_f64()
    )]
    Unreachable {
        /// The address.
        url: String,
        /// Connections tried.
        attempts: u32,
        /// For how long.
        tried_for: Duration,
        /// The time allowed.
        limit: Duration,
        /// The last thing that went wrong.
        last_error: String,
    },
    /// Something else listens there.
    #[error(
        "--teacher {url}: {found}; give the address that teacher-server prints as grpc=HOST:PORT \
         when it has started"
    )]
    NotATeacher {
        /// The address.
        url: String,
        /// What listens there.
        found: String,
    },
    /// Stopped by a signal while waiting for a teacher.
    #[error("stopped while waiting for teacher {url}")]
    Stopped {
        /// The address.
        url: String,
    },
    /// A call that trying again would not mend.
    #[error("teacher {url} refused {call}: {code:?}: {message}")]
    Refused {
        /// The address.
        url: String,
        /// The call.
        call: &'static str,
        /// The status.
        code: tonic::Code,
        /// The teacher's own words.
        message: String,
    },
    /// Teacher and student do not fit.
    #[error("teacher {url} and the student do not fit: {source}")]
    Mismatch {
        /// The address.
        url: String,
        /// What differs, both values.
        source: Mismatch,
    },
    /// An account of itself that is none.
    #[error("teacher {url} cannot be used: {source}")]
    Info {
        /// The address.
        url: String,
        /// What is wrong with it.
        source: InfoError,
    },
    /// An answer that is not one to what was asked.
    #[error("teacher {url}, row {row}: {source}")]
    Reply {
        /// The address.
        url: String,
        /// Index of the row in its set.
        row: usize,
        /// What is wrong with it, both values.
        source: ReplyError,
    },
    /// Another model or tokenizer answers at an address.
    #[error(
        "teacher {url} now serves another {what}: fingerprint {found}, the run began with \
         {wanted}; a run learns from one teacher: restore it, or start a new run"
    )]
    Changed {
        /// The address.
        url: String,
        /// `model` or `tokenizer`.
        what: &'static str,
        /// The fingerprint now.
        found: Fingerprint,
        /// The fingerprint of the run.
        wanted: Fingerprint,
    },
    /// What comes through the wire is not about the positions asked.
    #[error("teacher {url} failed the alignment proof on row {row}, position {position}: {reason}")]
    Alignment {
        /// The address.
        url: String,
        /// Row of the training set.
        row: usize,
        /// Position in it.
        position: usize,
        /// What was found and what was expected.
        reason: String,
    },
    /// Lost on the way, and not found again in the time allowed.
    #[error("teacher {urls}{}: {reason}", row.map(|r| format!(" (row {r})")).unwrap_or_default())]
    Lost {
        /// The addresses, a comma between them.
        urls: String,
        /// Index of the row in its set, when one row is the cause.
        row: Option<usize>,
        /// What was tried, and for how long.
        reason: GiveUp,
    },
    /// The network side of this program ended.
    #[error("the network thread ended unexpectedly; this is a fault of this program")]
    Ended,
    /// No network runtime.
    #[error("cannot start the network thread: {0}")]
    Runtime(std::io::Error),
}
