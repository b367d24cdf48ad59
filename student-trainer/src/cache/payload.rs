//! A teacher's answer about a row as the payload of a record, and back: the one place of the cache
//! that knows what a signal is.
//!
//! `kind u16 (1: top-k) | version u16 (1) | codec u16 (1 packed, 2 raw, as on the wire) | 0 u16 |
//! tokens n u32 | ranges r u32 | positions R u32 | k u32 | classes u32 | tokens u32[n] | (first u32,
//! end u32)[r] | the signal in its codec | log-probabilities of the next token f32[R]`, little-endian.
//! Tokens and ranges are in it so that a record can be held against its name, and exported. The signal
//! is kept to the bit as it was received, so a cached run computes what the first one did.

use std::ops::Range;

use distill::batch::Sequence;
use distill::codec::{self, Codec, CodecError, Ids, Layout};

use crate::feed::Scored;

const HEAD: usize = 28;
const KIND_TOP_K: u16 = 1;
const VERSION: u16 = 1;
/// The codecs' numbers, as on the wire. What is written is raw.
const PACKED: u16 = 1;
const RAW: u16 = 2;

/// Why a payload cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PayloadError {
    #[error("it is of kind {kind} and version {version}, this program reads kind 1, version 1")]
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
    #[error(transparent)]
    Signal(#[from] CodecError),
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
) -> Result<Vec<u8>, CodecError> {
    let ranges = row.scored_ranges();
    write_said(&row.ids, &ranges, scored, classes)
}

/// The payload of an answer about these positions of these tokens.
pub(crate) fn write_said(
    tokens: &[u32],
    ranges: &[Range<u32>],
    scored: &Scored,
    classes: usize,
) -> Result<Vec<u8>, CodecError> {
    let (rows, k) = (scored.signal.rows(), scored.signal.k);
    let signal = codec::encode(&scored.signal, 0..rows, Layout::PLAIN)?;
    let mut bytes =
        Vec::with_capacity(HEAD + 4 * tokens.len() + 8 * ranges.len() + signal.len() + 4 * rows);
    for half in [KIND_TOP_K, VERSION, RAW, 0] {
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

/// Reads the payload of the answer about `row`, over `classes` classes.
///
/// # Errors
/// [`PayloadError`]; also when it is about another row. No bytes make it panic, and it reserves no more
/// than they warrant.
pub(crate) fn read(bytes: &[u8], row: &Sequence, classes: usize) -> Result<Scored, PayloadError> {
    let parts = Parts::of(bytes)?;
    let ranges: Vec<_> = parts.ranges().collect();
    if parts.tokens != codec::token_bytes(&row.ids) || ranges != row.scored_ranges() {
        return Err(PayloadError::Name);
    }
    parts.scored(classes)
}

/// Reads a payload with all that it is about.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_said(bytes: &[u8], classes: usize) -> Result<Said, PayloadError> {
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
    Ok(Said { tokens, ranges, scored: parts.scored(classes)? })
}

/// A payload, taken apart.
struct Parts<'a> {
    codec: Codec,
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
        let (kind, version) = (half(0), half(2));
        if (kind, version) != (KIND_TOP_K, VERSION) {
            return Err(PayloadError::Kind { kind, version });
        }
        let codec = codec_of(half(4))?;
        let [tokens, ranges, rows, k] = [word(8), word(12), word(16), word(20)];
        let lengths = [
            4usize.saturating_mul(tokens),
            8usize.saturating_mul(ranges),
            rows.saturating_mul(Layout { codec, ..Layout::PLAIN }.row_bytes(k)),
            4usize.saturating_mul(rows),
        ];
        let wanted = lengths.iter().fold(HEAD, |sum, &length| sum.saturating_add(length));
        if found != wanted {
            return Err(PayloadError::Length { found, wanted });
        }
        let (tokens, rest) = rest.split_at(lengths[0]);
        let (ranges, rest) = rest.split_at(lengths[1]);
        let (signal, next) = rest.split_at(lengths[2]);
        let parts = Self { codec, rows, k, tokens, ranges, signal, next };
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

    fn scored(&self, classes: usize) -> Result<Scored, PayloadError> {
        let signal =
            codec::decode(self.signal, self.rows, self.k, self.codec, Ids::Sent { classes })?;
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
