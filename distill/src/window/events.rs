//! What the window is told, and what it asks to be done.

use std::time::Duration;

use crate::backoff::Backoff;

/// Bounds of the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSettings {
    /// Most sequences that have a place, at least 1.
    pub max_requests: usize,
    /// Most tokens that have a place. A single sequence above it is let in when it is alone.
    pub max_tokens: usize,
    /// How long one sequence is tried again after its first failure, outages apart, or a teacher
    /// after nothing was heard of any, before the window gives up.
    pub give_up_after: Duration,
    /// How long a connected teacher may say nothing while it owes answers.
    pub max_silence: Duration,
    /// Waits between attempts.
    pub backoff: Backoff,
}

impl Default for WindowSettings {
    /// 32 sequences, 65,536 tokens; gives up after 5 minutes; 2 minutes of silence.
    fn default() -> Self {
        Self {
            max_requests: 32,
            max_tokens: 65_536,
            give_up_after: Duration::from_secs(300),
            max_silence: Duration::from_secs(120),
            backoff: Backoff::default(),
        }
    }
}

/// What happened. Teachers are numbered from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Time has passed.
    Tick,
    /// A stream to the teacher is open and its handshake passed.
    Connected {
        /// Which teacher.
        teacher: usize,
        /// Requests it reads ahead on one stream.
        max_in_flight: usize,
    },
    /// The stream ended, or could not be opened. Every request it owed is lost.
    Disconnected {
        /// Which teacher.
        teacher: usize,
        /// What was reported, with the teacher's address.
        error: String,
        /// The pause the teacher asked for before the next attempt; zero where it asked for none.
        pause: Duration,
    },
    /// Part of an answer came.
    Heard {
        /// Which teacher.
        teacher: usize,
    },
    /// The whole answer for a sequence came and was found good.
    Answered {
        /// Which teacher.
        teacher: usize,
        /// Which sequence.
        id: u64,
    },
    /// One request failed in a way that may pass; the stream goes on.
    Failed {
        /// Which teacher.
        teacher: usize,
        /// Which sequence.
        id: u64,
        /// What was reported.
        error: String,
        /// The pause the teacher asked for; zero where it asked for none.
        pause: Duration,
    },
    /// One request was refused for good.
    Refused {
        /// Which teacher.
        teacher: usize,
        /// Which sequence.
        id: u64,
        /// What was reported.
        error: String,
    },
}

/// What is to be done, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Open a stream; answer with [`Event::Connected`] or [`Event::Disconnected`].
    Connect {
        /// Which teacher.
        teacher: usize,
    },
    /// Drop the stream; no answer is wanted.
    Disconnect {
        /// Which teacher.
        teacher: usize,
    },
    /// Send the request for a sequence.
    Send {
        /// Which sequence.
        id: u64,
        /// To which teacher.
        teacher: usize,
    },
    /// Hand the answer of a sequence to whoever waits: ids come out as 0, 1, 2, ...
    Deliver {
        /// Which sequence.
        id: u64,
    },
    /// An answer nobody waits for: drop it.
    Ignore {
        /// Which sequence.
        id: u64,
        /// Who sent it.
        teacher: usize,
        /// Why it is not wanted.
        why: Unwanted,
    },
    /// Nothing to do before this time, unless something happens: then report [`Event::Tick`].
    Wait {
        /// The time.
        until: Duration,
    },
    /// Stop. The window does nothing more.
    GiveUp {
        /// Why.
        reason: GiveUp,
    },
}

/// Why an answer is not wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unwanted {
    /// The sequence has been answered before.
    Duplicate,
    /// No sequence of this id was ever submitted.
    Unknown,
}

/// Why the window stopped trying.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GiveUp {
    /// One sequence could not be scored in the time allowed.
    #[error(
        "sequence {id} could not be scored: {attempts} attempts in {:.1} s (limit {:.1} s), the \
         last error: {last_error}",
        tried_for.as_secs_f64(), limit.as_secs_f64()
    )]
    Sequence {
        /// Which sequence.
        id: u64,
        /// Requests sent for it.
        attempts: u32,
        /// Since its first failure, outages apart.
        tried_for: Duration,
        /// The time allowed.
        limit: Duration,
        /// The last error reported.
        last_error: String,
    },
    /// No teacher said a word in the time allowed, and none is connected.
    #[error(
        "no teacher answers: {attempts} attempts to reach one in {:.1} s (limit {:.1} s), the \
         last error: {last_error}",
        tried_for.as_secs_f64(), limit.as_secs_f64()
    )]
    Unreachable {
        /// Connections tried.
        attempts: u32,
        /// Since the last teacher was lost, or since the start.
        tried_for: Duration,
        /// The time allowed.
        limit: Duration,
        /// The last error reported.
        last_error: String,
    },
    /// A request was refused for good.
    #[error("sequence {id} was refused: {error}")]
    Refused {
        /// Which sequence.
        id: u64,
        /// Which teacher.
        teacher: usize,
        /// What it said.
        error: String,
    },
}
