//! What can go wrong with a teacher; every error names its address.

use std::path::PathBuf;
use std::time::Duration;

use distill::fingerprint::Fingerprint;
use proto::convert::{DecoderError, InfoError, Reaction, ReplyError};

use crate::vllm;

/// Why a teacher cannot be used. Trying again does not help.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not an address.
    #[error("teacher {url}: {reason}; wanted: an address such as grpc://127.0.0.1:50051")]
    Address {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An address, and what was given to reach it, that do not fit.
    #[error("teacher {url}: {reason}")]
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
        advice: String,
    },
    /// Something else listens there.
    #[error(
        "teacher {url}: {found}; give the address that teacher-server prints as grpc=HOST:PORT \
         when it has started"
    )]
    NotATeacher {
        /// The address.
        url: String,
        /// What listens there.
        found: String,
    },
    /// Something else than vLLM's dialect.
    #[error(
        "teacher {url}: {found}; give the address of a vLLM server, such as \
         vllm+http://127.0.0.1:8000"
    )]
    NotVllm {
        /// The address.
        url: String,
        /// What listens there.
        found: String,
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
    /// An account of itself that is none.
    #[error("teacher {url} cannot be used: {source}")]
    Info {
        /// The address.
        url: String,
        /// What is wrong with it.
        source: InfoError,
    },
    /// A description of what hidden states are read with that is none.
    #[error("teacher {url} cannot be used: {source}")]
    Decoder {
        /// The address.
        url: String,
        /// What is wrong with it.
        source: DecoderError,
    },
    /// What was fetched cannot be kept.
    #[error("cannot keep what the teacher's hidden states are read with: {}: {source}; another place for it may be \
         named (--decoder-dir)", path.display())]
    Keep {
        /// Where it was to be.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
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
}

/// How an attempt failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Trying again may help.
    #[error("{0}")]
    Passing(String),
    /// The same, and the teacher says when: not before a pause.
    #[error("{reason}")]
    Busy {
        /// What it said.
        reason: String,
        /// How long it asks to be left alone.
        pause: Duration,
    },
    /// Trying again may help, and no teacher has answered: the connection broke, or something else listens.
    #[error("{0}")]
    Garbled(String),
    /// It will not.
    #[error(transparent)]
    Final(#[from] Error),
}

impl Failure {
    /// The pause the teacher asked for before the next attempt; zero where it asked for none.
    pub fn pause(&self) -> Duration {
        if let Self::Busy { pause, .. } = self { *pause } else { Duration::ZERO }
    }
}

/// What is wrong with the answer to one request; the others are not touched by it.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A refusal, or an answer to something else.
    #[error(transparent)]
    Reply(#[from] ReplyError),
    /// The same of a server that speaks vLLM's dialect.
    #[error(transparent)]
    Vllm(#[from] vllm::AnswerError),
}

impl Fault {
    /// What to do about it.
    pub fn reaction(&self) -> Reaction {
        match self {
            Self::Reply(error) => error.reaction(),
            Self::Vllm(error) => error.reaction(),
        }
    }

    /// The pause the teacher asked for before the next attempt; zero where it asked for none.
    pub fn pause(&self) -> Duration {
        match self {
            Self::Reply(error) => error.pause(),
            Self::Vllm(error) => error.pause(),
        }
    }
}
