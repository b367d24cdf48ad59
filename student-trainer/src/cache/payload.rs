//! A teacher's answer about a row as the payload of a record, and back: the one place of the cache
//! that knows what a signal is.
//!
//! `kind u16 (1: top-k, 2: draws, 3: hidden states) | version u16 (1) | codec u16 (of a top-k: 1 packed,
//! 2 raw, as on the wire; else 0) | 0 u16 | tokens n u32 | ranges r u32 | positions R u32 | k u32 |
//! classes u32 | tokens u32[n] | (first u32, end u32)[r] | the signal | log-probabilities of the next token
//! f32[R], not of hidden states`, little-endian. A top-k is in its codec, draws are as on the wire, hidden
//! states are `parts p u32 | (rows u32, bytes u32)[p] | the parts as on the wire`. Tokens and ranges are in
//! it so that a record can be held against its name, and exported. The signal is kept to the bit as it was
//! received, so a cached run computes what the first one did.

use std::ops::Range;

use distill::batch::Sequence;
use distill::codec::draws::{self, DrawsCodecError, Head, Values};
use distill::codec::{self, Codec, CodecError, Ids, Layout};
use distill::hidden::{HiddenError, HiddenForm, HiddenRows};
use distill::signal::Signal;

use crate::feed::Scored;

const HEAD: usize = 28;
const KIND_TOP_K: u16 = 1;
const KIND_DRAWS: u16 = 2;
const KIND_HIDDEN: u16 = 3;
const VERSION: u16 = 1;
/// The codecs' numbers, as on the wire. What is written is raw.
const PACKED: u16 = 1;
const RAW: u16 = 2;

/// What all payloads of a cache are about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct About {
    /// Classes the distributions are taken over.
    pub(crate) classes: usize,
    /// How hidden states are said, and how many numbers they have; none where it keeps no such.
    pub(crate) states: Option<(HiddenForm, usize)>,
}

/// Why a payload cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PayloadError {
    #[error(
        "it is of kind {kind} and version {version}, this program reads kinds 1 to 3, version 1"
    )]
    Kind { kind: u16, version: u16 },
    #[error("its codec is {0}; 1 (packed) and 2 (raw) are known")]
    Codec(u16),
    #[error("it has {found} bytes, what it announces takes {wanted}")]
    Length { found: usize, wanted: usize },
    #[error("its ranges do not hold the {rows} positions it announces")]
    Ranges { rows: usize },
    #[error("it is about other tokens or positions than its name")]
    Name,
    #[error("the log-probability of the token after a position is {0}")]
    Next(f32),
    #[error("it is of another kind than the cache keeps")]
    Other,
    #[error(transparent)]
    Signal(#[from] CodecError),
    #[error(transparent)]
    Draws(#[from] DrawsCodecError),
    #[error(transparent)]
    Hidden(#[from] HiddenError),
}

/// What a payload says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Said {
    /// The tokens it is about.
    pub(crate) tokens: Vec<u32>,
    /// The positions it is about.
    pub(crate) ranges: Vec<Range<u32>>,
    /// The answer.
    pub(crate) scored: Scored,
}

/// The payload of an answer about a row.
pub(crate) fn write(
    row: &Sequence,
    scored: &Scored,
    classes: usize,
) -> Result<Vec<u8>, PayloadError> {
    let ranges = row.scored_ranges();
    write_said(&row.ids, &ranges, scored, classes)
}

/// The payload of an answer about these positions of these tokens.
pub(crate) fn write_said(
    tokens: &[u32],
    ranges: &[Range<u32>],
    scored: &Scored,
    classes: usize,
) -> Result<Vec<u8>, PayloadError> {
    let rows = scored.signal.rows();
    let (kind, codec, k, signal) = match &scored.signal {
        Signal::TopK(signal) => {
            (KIND_TOP_K, RAW, signal.k, codec::encode(signal, 0..rows, Layout::PLAIN)?)
        }
        Signal::Drawn(signal) => {
            (KIND_DRAWS, 0, signal.k, draws::encode(signal, 0..rows, classes, Values::F32)?)
        }
        Signal::Hidden(states) => (KIND_HIDDEN, 0, 0, parts_as_bytes(states)),
    };
    let mut bytes =
        Vec::with_capacity(HEAD + 4 * tokens.len() + 8 * ranges.len() + signal.len() + 4 * rows);
    for half in [kind, VERSION, codec, 0] {
        bytes.extend_from_slice(&half.to_le_bytes());
    }
    for count in [tokens.len(), ranges.len(), rows, k, classes] {
        bytes.extend_from_slice(&(count as u32).to_le_bytes());
    }
    bytes.extend_from_slice(&codec::token_bytes(tokens));
    for range in ranges {
        bytes.extend_from_slice(&range.start.to_le_bytes());
        bytes.extend_from_slice(&range.end.to_le_bytes());
    }
    bytes.extend_from_slice(&signal);
    bytes.extend_from_slice(&codec::float_bytes(&scored.next_logprob));
    Ok(bytes)
}

fn parts_as_bytes(states: &HiddenRows) -> Vec<u8> {
    let lengths = states.parts.iter().flat_map(|(rows, bytes)| [*rows as u32, bytes.len() as u32]);
    let words: Vec<u32> = std::iter::once(states.parts.len() as u32).chain(lengths).collect();
    let mut all = codec::token_bytes(&words);
    states.parts.iter().for_each(|(_, bytes)| all.extend_from_slice(bytes));
    all
}

/// The parts of hidden states, `rows` together.
fn parts_of_bytes(
    bytes: &[u8],
    rows: usize,
    (form, width): (HiddenForm, usize),
) -> Result<HiddenRows, PayloadError> {
    let short = |wanted: usize| PayloadError::Length { found: bytes.len(), wanted };
    let words = |bytes: &[u8]| codec::tokens_from_bytes(bytes).unwrap_or_default();
    let (count, rest) = bytes.split_at_checked(4).ok_or_else(|| short(4))?;
    let count = words(count)[0] as usize;
    let of_lengths = count.saturating_mul(8);
    let lengths = rest.split_at_checked(of_lengths).ok_or_else(|| short(of_lengths))?;
    let (lengths, mut rest) = (words(lengths.0), lengths.1);
    let mut states = HiddenRows::new(form, width);
    for pair in lengths.chunks_exact(2) {
        let (of_rows, length) = (pair[0] as usize, pair[1] as usize);
        let (part, after) = rest.split_at_checked(length).ok_or_else(|| short(length))?;
        rest = after;
        states.push(of_rows, part.to_vec())?;
    }
    match rest.is_empty() && states.rows() == rows {
        true => Ok(states),
        false => Err(PayloadError::Ranges { rows }),
    }
}

/// Reads the payload of the answer about `row`.
///
/// # Errors
/// [`PayloadError`]; also when it is about another row. No bytes make it panic, and it reserves no more
/// than they warrant.
pub(crate) fn read(bytes: &[u8], row: &Sequence, about: About) -> Result<Scored, PayloadError> {
    let parts = Parts::of(bytes)?;
    let ranges: Vec<_> = parts.ranges().collect();
    if parts.tokens != codec::token_bytes(&row.ids) || ranges != row.scored_ranges() {
        return Err(PayloadError::Name);
    }
    parts.scored(about)
}

/// Reads a payload with all that it is about.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_said(bytes: &[u8], about: About) -> Result<Said, PayloadError> {
    let parts = Parts::of(bytes)?;
    let tokens = codec::tokens_from_bytes(parts.tokens).unwrap_or_default();
    let ranges: Vec<_> = parts.ranges().collect();
    let mut end = 0;
    for range in &ranges {
        if range.start < end || range.end <= range.start || range.end as usize > tokens.len() {
            return Err(PayloadError::Ranges { rows: parts.rows });
        }
        end = range.end;
    }
    Ok(Said { tokens, ranges, scored: parts.scored(about)? })
}

/// A payload, taken apart.
struct Parts<'a> {
    kind: u16,
    codec: u16,
    rows: usize,
    k: usize,
    tokens: &'a [u8],
    ranges: &'a [u8],
    signal: &'a [u8],
    next: &'a [u8],
}

impl<'a> Parts<'a> {
    fn of(bytes: &'a [u8]) -> Result<Self, PayloadError> {
        let found = bytes.len();
        let short = PayloadError::Length { found, wanted: HEAD };
        let (head, rest) = bytes.split_first_chunk::<HEAD>().ok_or(short)?;
        let half = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
        let word = |at: usize| {
            u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize
        };
        let (kind, version, codec) = (half(0), half(2), half(4));
        if !(KIND_TOP_K..=KIND_HIDDEN).contains(&kind) || version != VERSION {
            return Err(PayloadError::Kind { kind, version });
        }
        let [tokens, ranges, rows, k] = [word(8), word(12), word(16), word(20)];
        let of_tokens = 4usize.saturating_mul(tokens);
        let of_ranges = 8usize.saturating_mul(ranges);
        let of_next = if kind == KIND_HIDDEN { 0 } else { 4usize.saturating_mul(rows) };
        let around =
            HEAD.saturating_add(of_tokens).saturating_add(of_ranges).saturating_add(of_next);
        let of_signal = found.saturating_sub(around);
        let wanted = match kind {
            KIND_TOP_K => {
                let layout = Layout { codec: codec_of(codec)?, ..Layout::PLAIN };
                around.saturating_add(rows.saturating_mul(layout.row_bytes(k)))
            }
            // These say themselves how long they are.
            _ => around.saturating_add(of_signal),
        };
        if found != wanted {
            return Err(PayloadError::Length { found, wanted });
        }
        let (tokens, rest) = rest.split_at(of_tokens);
        let (ranges, rest) = rest.split_at(of_ranges);
        let (signal, next) = rest.split_at(of_signal);
        let parts = Self { kind, codec, rows, k, tokens, ranges, signal, next };
        let positions = parts.ranges().fold(0usize, |sum, range| sum.saturating_add(range.len()));
        if positions != rows {
            return Err(PayloadError::Ranges { rows });
        }
        Ok(parts)
    }

    fn ranges(&self) -> impl Iterator<Item = Range<u32>> + use<'a> {
        self.ranges.as_chunks::<8>().0.iter().map(|&[a, b, c, d, e, f, g, h]| {
            u32::from_le_bytes([a, b, c, d])..u32::from_le_bytes([e, f, g, h])
        })
    }

    fn scored(&self, About { classes, states }: About) -> Result<Scored, PayloadError> {
        let (rows, k) = (self.rows, self.k);
        let signal = match (self.kind, states) {
            (KIND_TOP_K, None) => {
                let codec = codec_of(self.codec)?;
                codec::decode(self.signal, rows, k, codec, Ids::Sent { classes })?.into()
            }
            (KIND_DRAWS, None) => {
                let found = Head::read(self.signal)?;
                let wanted = Head { rows, k, classes, values: Values::F32, ..found };
                Signal::Drawn(draws::decode(self.signal, &wanted)?)
            }
            (KIND_HIDDEN, Some(states)) => {
                Signal::Hidden(parts_of_bytes(self.signal, rows, states)?)
            }
            _ => return Err(PayloadError::Other),
        };
        let next_logprob = codec::floats_from_bytes(self.next).unwrap_or_default();
        // NaN where it is not known, as of a file that does not have it.
        match next_logprob.iter().find(|value| value.is_infinite()) {
            Some(&value) => Err(PayloadError::Next(value)),
            None => Ok(Scored { signal, next_logprob, wire_bytes: 0 }),
        }
    }
}

fn codec_of(number: u16) -> Result<Codec, PayloadError> {
    match number {
        PACKED => Ok(Codec::Packed),
        RAW => Ok(Codec::Raw),
        other => Err(PayloadError::Codec(other)),
    }
}

#[cfg(test)]
#[path = "payload_tests.rs"]
mod tests;
