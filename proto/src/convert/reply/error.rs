//! Why a reply is not the answer to what was asked.

use std::time::Duration;

use distill::codec::Codec;
use tonic::Code;

use super::SignalError;
use crate::convert::Reaction;

/// Why a reply is not the answer to what was asked. Both values in each.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ReplyError {
    /// The teacher refused the request.
    #[error("request {id}: the teacher refused it with {code:?}: {message}")]
    Refused {
        /// The request.
        id: u64,
        /// The status.
        code: Code,
        /// The teacher's words.
        message: String,
        /// The pause the teacher asked for before the next attempt; zero where it asked for none.
        pause: Duration,
    },
    /// Another request's reply.
    #[error("the reply is to request {found}, wanted {wanted}")]
    Id {
        /// As received.
        found: u64,
        /// As asked.
        wanted: u64,
    },
    /// More after the end.
    #[error("request {id}: a message came after the one marked as the last")]
    AfterLast {
        /// The request.
        id: u64,
    },
    /// Another temperature.
    #[error("request {id}: the teacher applied temperature {found}, asked was {wanted}")]
    Temperature {
        /// The request.
        id: u64,
        /// As received.
        found: f32,
        /// As asked.
        wanted: f32,
    },
    /// Another sequence.
    #[error(
        "request {id}: the teacher scored other tokens: their checksum is {found:016x}, ours \
         {wanted:016x}"
    )]
    Tokens {
        /// The request.
        id: u64,
        /// As received.
        found: u64,
        /// Of what was sent.
        wanted: u64,
    },
    /// Another model.
    #[error(
        "request {id}: the answer comes from the model {found}, the handshake was with {wanted}: \
         the teacher was exchanged while it served"
    )]
    Model {
        /// The request.
        id: u64,
        /// As received, hexadecimal.
        found: String,
        /// As agreed, hexadecimal.
        wanted: String,
    },
    /// Another tokenizer.
    #[error(
        "request {id}: the answer comes from a teacher with the tokenizer {found}, the handshake \
         was with {wanted}: the teacher was exchanged while it served"
    )]
    Tokenizer {
        /// The request.
        id: u64,
        /// As received, hexadecimal.
        found: String,
        /// As agreed, hexadecimal.
        wanted: String,
    },
    /// No word of a tokenizer.
    #[error(
        "request {id}: the reply carries no tokenizer_fingerprint, wanted {wanted}: the teacher is \
         of an older release; use the same one on both sides"
    )]
    NoTokenizer {
        /// The request.
        id: u64,
        /// As agreed, hexadecimal.
        wanted: String,
    },
    /// Another code.
    #[error("request {id}: hidden states are coded by the code {found}, asked was {wanted}")]
    Code {
        /// The request.
        id: u64,
        /// As received, hexadecimal.
        found: String,
        /// As asked, hexadecimal.
        wanted: String,
    },
    /// Damaged bytes.
    #[error("request {id}: the payload's checksum is {found:016x}, the reply says {wanted:016x}")]
    Payload {
        /// The request.
        id: u64,
        /// Of the bytes received.
        found: u64,
        /// As the reply says.
        wanted: u64,
    },
    /// Positions out of order.
    #[error("request {id}: a message begins at position {found}, wanted {wanted}")]
    Position {
        /// The request.
        id: u64,
        /// As received.
        found: u32,
        /// The next position not yet answered.
        wanted: u32,
    },
    /// More or fewer positions than asked, or none in a message.
    #[error(
        "request {id}: a message of {found} rows, marked as the last: {last}, where {wanted} rows \
         were still to come"
    )]
    Rows {
        /// The request.
        id: u64,
        /// Rows of the message.
        found: usize,
        /// Rows not yet answered.
        wanted: usize,
        /// Whether it was marked as the last.
        last: bool,
    },
    /// Another number of entries.
    #[error("request {id}: the reply has {found} entries a position, asked were {wanted}")]
    TopK {
        /// The request.
        id: u64,
        /// As received.
        found: usize,
        /// As asked.
        wanted: usize,
    },
    /// Another layout.
    #[error("request {id}: the reply's codec is number {found}, asked was {wanted}")]
    Codec {
        /// The request.
        id: u64,
        /// As received.
        found: i32,
        /// As asked.
        wanted: Codec,
    },
    /// A wrong number of next-token bytes.
    #[error("request {id}: next_logprob has {found} bytes, wanted {wanted}")]
    NextBytes {
        /// The request.
        id: u64,
        /// As received.
        found: usize,
        /// 4 a row.
        wanted: usize,
    },
    /// A next-token log-probability that is none.
    #[error("request {id}: next_logprob at position {position} is {found}, wanted {wanted}")]
    NextLogprob {
        /// The request.
        id: u64,
        /// The position.
        position: u32,
        /// As received.
        found: f32,
        /// What it must be.
        wanted: &'static str,
    },
    /// Bytes that are no such signal.
    #[error("request {id}, rows from position {first_position}: {source}")]
    Signal {
        /// The request.
        id: u64,
        /// Position of row 0 in `source`.
        first_position: u32,
        /// What is wrong.
        source: SignalError,
    },
}

impl ReplyError {
    /// What to do about it: a refusal may pass, a wrong answer will not.
    pub fn reaction(&self) -> Reaction {
        match self {
            Self::Refused { code, .. } => Reaction::to(*code),
            Self::Id { .. }
            | Self::AfterLast { .. }
            | Self::Temperature { .. }
            | Self::Tokens { .. }
            | Self::Model { .. }
            | Self::Tokenizer { .. }
            | Self::NoTokenizer { .. }
            | Self::Code { .. }
            | Self::Payload { .. }
            | Self::Position { .. }
            | Self::Rows { .. }
            | Self::TopK { .. }
            | Self::Codec { .. }
            | Self::NextBytes { .. }
            | Self::NextLogprob { .. }
            | Self::Signal { .. } => Reaction::Stop,
        }
    }

    /// The pause the teacher asked for before the next attempt.
    pub fn pause(&self) -> Duration {
        if let Self::Refused { pause, .. } = self { *pause } else { Duration::ZERO }
    }
}
