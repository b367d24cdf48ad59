//! What can go wrong between this run and its teacher; every error names its address.

use std::time::Duration;

use client::Fault;
use distill::handshake::Mismatch;
use distill::window::GiveUp;

/// Why a teacher cannot be used, or can no longer.
#[derive(Debug, thiserror::Error)]
pub enum TeacherError {
    /// It cannot be used, or no longer.
    #[error(transparent)]
    Client(#[from] client::Error),
    /// Nobody answered in the time allowed.
    #[error(
        "teacher {url} could not be reached: {attempts} attempts in {:.1} s, the last error: \
         {last_error}. Is a teacher running there? --teacher-timeout ({} s) bounds the wait",
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
    /// Stopped by a signal while waiting for a teacher.
    #[error("stopped while waiting for teacher {url}")]
    Stopped {
        /// The address.
        url: String,
    },
    /// Teacher and student do not fit.
    #[error("teacher {url} and the student do not fit: {source}")]
    Mismatch {
        /// The address.
        url: String,
        /// What differs, both values.
        source: Mismatch,
    },
    /// Another tokenizer, found by what it makes of a text.
    #[error(
        "teacher {url} and the student have different tokenizers: token {place} of the same text is \
         {} there and {} here. Distillation compares token by token, so both models must use the \
         same tokenizer", id(*found), id(*wanted)
    )]
    Tokens {
        /// The address.
        url: String,
        /// Index of the first token that differs.
        place: usize,
        /// The teacher's; none at its end.
        found: Option<u32>,
        /// The student's; none at its end.
        wanted: Option<u32>,
    },
    /// Reached, and silent afterwards.
    #[error("teacher {url} does not answer: {reason}")]
    Silent {
        /// The address.
        url: String,
        /// What went wrong.
        reason: String,
    },
    /// An answer that is not one to what was asked.
    #[error("teacher {url}, row {row}: {source}")]
    Reply {
        /// The address.
        url: String,
        /// Index of the row in its set.
        row: usize,
        /// What is wrong with it, both values.
        source: Fault,
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
    /// An answer that only a cache could give, and does not.
    #[error(
        "row {row}: --cache {place} has no answer about it that can be used{}, and no --teacher is \
         given to ask for it", reason.as_ref().map(|r| format!(" ({r})")).unwrap_or_default()
    )]
    NotKept {
        /// The cache.
        place: String,
        /// Index of the row in its set.
        row: usize,
        /// What is wrong with the one it has.
        reason: Option<String>,
    },
    /// The network side of this program ended.
    #[error("the network thread ended unexpectedly; this is a fault of this program")]
    Ended,
    /// No network runtime.
    #[error("cannot start the network thread: {0}")]
    Runtime(std::io::Error),
}

/// An id, or that there is none.
fn id(token: Option<u32>) -> String {
    token.map_or_else(|| "nothing".to_owned(), |id| id.to_string())
}
