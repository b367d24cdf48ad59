//! Requests: written by the client, checked by the server.

use std::ops::Range;

use distill::codec::{self, Codec, MAX_PACKED_CLASSES};
use distill::handshake::{SignalKind, TeacherFacts};

use super::{ScoreJob, codec_from_wire, codec_to_wire, reply};
use crate::limits::{MAX_TEMPERATURE, MIN_TEMPERATURE};
use crate::v1;

/// Why a request is refused: the value found, the one allowed, and what to do.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RequestError {
    /// No tokens.
    #[error("the sequence is empty: send at least one token")]
    Empty,
    /// Bytes that are no u32s.
    #[error("tokens has {found} bytes: wanted a multiple of 4 (u32 little-endian)")]
    TokenBytes {
        /// Number of bytes.
        found: usize,
    },
    /// More tokens than the server takes.
    #[error(
        "the sequence has {found} tokens, this server takes at most {limit} (max_sequence_tokens)"
    )]
    TooLong {
        /// Tokens of the sequence.
        found: usize,
        /// Tokens allowed.
        limit: usize,
    },
    /// A number of classes that leaves out tokens or that the model lacks.
    #[error(
        "vocab_size {found}: wanted 0 (all {vocab_size} classes of this model) or \
         {tokenizer_size} (ids of its tokenizer) to {vocab_size}"
    )]
    Classes {
        /// The number asked.
        found: usize,
        /// Ids of the teacher's tokenizer.
        tokenizer_size: usize,
        /// Rows of the teacher's output matrix.
        vocab_size: usize,
    },
    /// A token that is no class.
    #[error("token id {found} at position {position} is not below the {classes} classes")]
    TokenId {
        /// Position in the sequence.
        position: usize,
        /// The id.
        found: u32,
        /// Classes.
        classes: usize,
    },
    /// A range of no positions.
    #[error("positions[{index}] is {first}..{end}: a range holds at least one position")]
    EmptyRange {
        /// Index of the range in the request.
        index: usize,
        /// First position.
        first: u32,
        /// One past the last position.
        end: u32,
    },
    /// A range beyond the sequence.
    #[error("positions[{index}] is {first}..{end}, but the sequence has {length} tokens")]
    RangeBounds {
        /// Index of the range in the request.
        index: usize,
        /// First position.
        first: u32,
        /// One past the last position.
        end: u32,
        /// Tokens of the sequence.
        length: usize,
    },
    /// A range that begins before the one before it ends.
    #[error(
        "positions[{index}] begins at {first}, before the end {previous_end} of the range before \
         it: ranges are ascending and disjoint"
    )]
    RangeOrder {
        /// Index of the range in the request.
        index: usize,
        /// First position.
        first: u32,
        /// End of the range before.
        previous_end: u32,
    },
    /// A temperature nothing can be divided by.
    #[error("temperature {found}: wanted a number from {MIN_TEMPERATURE} to {MAX_TEMPERATURE}")]
    Temperature {
        /// The temperature asked.
        found: f32,
    },
    /// No signal named.
    #[error("signal is not set: say what is wanted, SIGNAL_KIND_TOP_K (1) for instance")]
    NoSignal,
    /// A signal of another contract.
    #[error("signal {found} is not known to this server: it offers {offered}")]
    UnknownSignal {
        /// The number.
        found: i32,
        /// What is offered.
        offered: String,
    },
    /// A signal this server does not send.
    #[error("signal {found} is not offered by this server: it offers {offered}")]
    SignalNotOffered {
        /// The signal.
        found: SignalKind,
        /// What is offered.
        offered: String,
    },
    /// A codec of another contract.
    #[error("codec {found} is not known to this server: it offers {offered}")]
    UnknownCodec {
        /// The number.
        found: i32,
        /// What is offered.
        offered: String,
    },
    /// A codec this server does not send.
    #[error("codec {found} is not offered by this server: it offers {offered}")]
    CodecNotOffered {
        /// The codec.
        found: Codec,
        /// What is offered.
        offered: String,
    },
    /// A k of zero.
    #[error("top_k is 0: wanted at least 1")]
    ZeroTopK,
    /// A k above the server's bound.
    #[error("top_k {found} is above this server's limit {limit} (max_top_k)")]
    TopKLimit {
        /// The k asked.
        found: usize,
        /// The largest allowed.
        limit: usize,
    },
    /// A k above the number of classes.
    #[error("top_k {found} is above the number of classes {classes}")]
    TopKClasses {
        /// The k asked.
        found: usize,
        /// Classes.
        classes: usize,
    },
    /// More classes than the packed codec can name.
    #[error(
        "{classes} classes, but CODEC_PACKED names at most {MAX_PACKED_CLASSES}: ask for CODEC_RAW"
    )]
    PackedClasses {
        /// Classes.
        classes: usize,
    },
    /// One position alone that exceeds a reply.
    #[error(
        "one position of top_k {k} in codec {codec} takes a reply of {found} bytes, this server \
         sends at most {limit} (max_reply_bytes): lower top_k or use the codec packed"
    )]
    RowTooLarge {
        /// Entries a position.
        k: usize,
        /// The layout.
        codec: Codec,
        /// Bytes of a reply with one position.
        found: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// A text whose bytes alone are too many.
    #[error(
        "the text has {found} bytes, this server takes at most {limit} (max_text_bytes): shorten \
         it, or send its tokens to Score"
    )]
    TextBytes {
        /// Bytes of the text.
        found: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// `ScoreText` without text.
    #[error("the text is empty: it encodes to no tokens")]
    EmptyText,
}

/// What a request asks, every bound checked against what this server is.
///
/// # Errors
/// [`RequestError`]; the request's id is `request.id`.
pub fn score_job(
    request: &v1::ScoreRequest,
    server: &TeacherFacts,
) -> Result<ScoreJob, RequestError> {
    check_temperature(request.temperature)?;
    check_signal(request.signal, server)?;
    let codec = check_codec(request.codec, server)?;
    let classes = check_classes(request.vocab_size as usize, server)?;
    let k = request.top_k as usize;
    check_top_k(k, classes, server)?;
    check_row(k, codec, classes, server)?;
    let tokens = check_tokens(&request.tokens, classes, server)?;
    let ranges = check_ranges(&request.positions, tokens.len())?;
    let temperature = request.temperature;
    Ok(ScoreJob { id: request.id, tokens, ranges, temperature, k, codec, classes })
}

/// The request for a job.
pub fn score_request(job: &ScoreJob) -> v1::ScoreRequest {
    let range = |range: &Range<u32>| v1::PositionRange { first: range.start, end: range.end };
    v1::ScoreRequest {
        id: job.id,
        tokens: codec::token_bytes(&job.tokens).into(),
        positions: job.ranges.iter().map(range).collect(),
        temperature: job.temperature,
        signal: v1::SignalKind::TopK.into(),
        top_k: job.k as u32,
        codec: codec_to_wire(job.codec).into(),
        vocab_size: job.classes as u32,
    }
}

pub(super) fn check_temperature(found: f32) -> Result<(), RequestError> {
    match (MIN_TEMPERATURE..=MAX_TEMPERATURE).contains(&found) {
        true => Ok(()),
        false => Err(RequestError::Temperature { found }),
    }
}

pub(super) fn check_top_k(
    found: usize,
    classes: usize,
    server: &TeacherFacts,
) -> Result<(), RequestError> {
    if found == 0 {
        return Err(RequestError::ZeroTopK);
    }
    if found > classes {
        return Err(RequestError::TopKClasses { found, classes });
    }
    let limit = server.limits.max_top_k;
    if found > limit {
        return Err(RequestError::TopKLimit { found, limit });
    }
    Ok(())
}

fn check_signal(number: i32, server: &TeacherFacts) -> Result<(), RequestError> {
    let offered = || names(&server.signals);
    let signal = match v1::SignalKind::try_from(number) {
        Err(_) => return Err(RequestError::UnknownSignal { found: number, offered: offered() }),
        Ok(v1::SignalKind::Unspecified) => return Err(RequestError::NoSignal),
        Ok(v1::SignalKind::TopK) => SignalKind::TopK,
    };
    match server.signals.contains(&signal) {
        true => Ok(()),
        false => Err(RequestError::SignalNotOffered { found: signal, offered: offered() }),
    }
}

fn check_codec(number: i32, server: &TeacherFacts) -> Result<Codec, RequestError> {
    let offered = || names(&server.codecs);
    let codec = codec_from_wire(number)
        .ok_or_else(|| RequestError::UnknownCodec { found: number, offered: offered() })?;
    match server.codecs.contains(&codec) {
        true => Ok(codec),
        false => Err(RequestError::CodecNotOffered { found: codec, offered: offered() }),
    }
}

fn check_classes(found: usize, server: &TeacherFacts) -> Result<usize, RequestError> {
    let (tokenizer_size, vocab_size) = (server.tokenizer_size, server.vocab_size);
    match found {
        0 => Ok(vocab_size),
        _ if found < tokenizer_size || found > vocab_size => {
            Err(RequestError::Classes { found, tokenizer_size, vocab_size })
        }
        _ => Ok(found),
    }
}

/// One position must fit into a reply, or no reply could be made.
fn check_row(
    k: usize,
    codec: Codec,
    classes: usize,
    server: &TeacherFacts,
) -> Result<(), RequestError> {
    if codec == Codec::Packed && classes > MAX_PACKED_CLASSES {
        return Err(RequestError::PackedClasses { classes });
    }
    let (found, limit) = (reply::message_bytes(1, k, codec), server.limits.max_reply_bytes);
    if found > limit {
        return Err(RequestError::RowTooLarge { k, codec, found, limit });
    }
    Ok(())
}

fn check_tokens(
    bytes: &[u8],
    classes: usize,
    server: &TeacherFacts,
) -> Result<Vec<u32>, RequestError> {
    let limit = server.limits.max_sequence_tokens;
    if bytes.len() / 4 > limit {
        return Err(RequestError::TooLong { found: bytes.len() / 4, limit });
    }
    let tokens =
        codec::tokens_from_bytes(bytes).ok_or(RequestError::TokenBytes { found: bytes.len() })?;
    if tokens.is_empty() {
        return Err(RequestError::Empty);
    }
    match tokens.iter().position(|&id| id as usize >= classes) {
        None => Ok(tokens),
        Some(position) => Err(RequestError::TokenId { position, found: tokens[position], classes }),
    }
}

fn check_ranges(
    ranges: &[v1::PositionRange],
    length: usize,
) -> Result<Vec<Range<u32>>, RequestError> {
    let mut previous_end = 0;
    for (index, &v1::PositionRange { first, end }) in ranges.iter().enumerate() {
        if first >= end {
            return Err(RequestError::EmptyRange { index, first, end });
        }
        if end as usize > length {
            return Err(RequestError::RangeBounds { index, first, end, length });
        }
        if first < previous_end {
            return Err(RequestError::RangeOrder { index, first, previous_end });
        }
        previous_end = end;
    }
    if ranges.is_empty() {
        let all = 0..length as u32;
        return Ok(vec![all]);
    }
    Ok(ranges.iter().map(|range| range.first..range.end).collect())
}

fn names<T: std::fmt::Display>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
pub(crate) mod tests;
