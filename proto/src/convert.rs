//! Messages to what is meant by them, and back. All foreign bytes are checked here, and nowhere
//! else; wire types stop here.
//!
//! The server's side: [`facts_to_info`], [`score_job`], [`score_replies`], [`refusal`],
//! [`text_job`], [`text_reply`], [`decoder_reply`], [`fetch_replies`]. The client's:
//! [`facts_from_info`], [`score_request`], [`ReplyAssembler`], [`decoder_facts`], [`BlobAssembler`],
//! [`Reaction`].

use std::ops::Range;

use distill::codec::{Codec, Layout};
use distill::queue::Priority;
use distill::signal::Entries;

mod decoder;
mod info;
mod reply;
mod request;
mod status;
mod text;

pub use decoder::{
    BlobAssembler, BlobError, BlobFacts, DecoderError, DecoderFacts, decoder_facts, decoder_reply,
    fetch_replies,
};
pub use info::{InfoError, facts_from_info, facts_to_info};
pub use reply::{ReplyAssembler, ReplyError, Scored, SignalError, Stamp, score_replies};
pub use request::{RequestError, score_job, score_request};
pub use status::{Reaction, refusal};
pub use text::{TextJob, Times, text_job, text_reply};

/// One sequence to score: what a `ScoreRequest` means, every bound checked.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreJob {
    /// The client's name for it.
    pub id: u64,
    /// Token ids, at least one, each below `classes`.
    pub tokens: Vec<u32>,
    /// Positions wanted, ascending, disjoint, none empty, within the sequence; at least one range.
    pub ranges: Vec<Range<u32>>,
    /// The logits are divided by it. Finite and above 0; of hidden states it means nothing.
    pub temperature: f32,
    /// What is wanted of a position. Named ids are below `classes`, none twice at a position.
    pub entries: Entries,
    /// Entries a position, `1..=classes`; 0 of hidden states, and where draws are all that is wanted.
    pub k: usize,
    /// Layout of the answer, where it lists tokens.
    pub codec: Codec,
    /// Classes the distribution is taken over: ids below this number.
    pub classes: usize,
    /// Its place among its client's other requests.
    pub priority: Priority,
}

impl ScoreJob {
    /// Number of positions wanted.
    pub fn rows(&self) -> usize {
        self.ranges.iter().map(Range::len).sum()
    }

    /// How listed tokens are laid out: ids the client named do not travel back.
    pub fn layout(&self) -> Layout {
        let classes = (self.entries == Entries::Top).then_some(self.classes);
        Layout { codec: self.codec, classes }
    }

    /// The positions wanted, ascending.
    pub fn positions(&self) -> impl Iterator<Item = u32> + '_ {
        self.ranges.iter().cloned().flatten()
    }

    /// For each position wanted the token that really follows it: none at the sequence's last.
    pub fn next_tokens(&self) -> impl Iterator<Item = Option<u32>> + '_ {
        self.positions().map(|t| self.tokens.get(t as usize + 1).copied())
    }
}

/// Foreign text, made safe to print: control characters could steer a terminal.
fn printable(text: &str, most: usize) -> String {
    text.chars().take(most).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A priority as the wire names it.
fn priority_to_wire(priority: Priority) -> crate::v1::Priority {
    match priority {
        Priority::Low => crate::v1::Priority::Low,
        Priority::Normal => crate::v1::Priority::Normal,
        Priority::High => crate::v1::Priority::High,
    }
}

/// A priority from its number on the wire, where unspecified means normal; none when unknown.
fn priority_from_wire(number: i32) -> Option<Priority> {
    match crate::v1::Priority::try_from(number).ok()? {
        crate::v1::Priority::Low => Some(Priority::Low),
        crate::v1::Priority::Unspecified | crate::v1::Priority::Normal => Some(Priority::Normal),
        crate::v1::Priority::High => Some(Priority::High),
    }
}

/// A codec as the wire names it.
fn codec_to_wire(codec: Codec) -> crate::v1::Codec {
    match codec {
        Codec::Packed => crate::v1::Codec::Packed,
        Codec::Raw => crate::v1::Codec::Raw,
        Codec::Compact => crate::v1::Codec::Compact,
        Codec::Compact8 => crate::v1::Codec::Compact8,
    }
}

/// A codec from its number on the wire, where unspecified means packed; none when unknown.
fn codec_from_wire(number: i32) -> Option<Codec> {
    match crate::v1::Codec::try_from(number).ok()? {
        crate::v1::Codec::Unspecified | crate::v1::Codec::Packed => Some(Codec::Packed),
        crate::v1::Codec::Raw => Some(Codec::Raw),
        crate::v1::Codec::Compact => Some(Codec::Compact),
        crate::v1::Codec::Compact8 => Some(Codec::Compact8),
    }
}
