//! Requests: written by the client, checked by the server.

mod error;

use std::ops::Range;

use distill::codec::{self, Codec, Layout, MAX_PACKED_CLASSES};
use distill::handshake::{SignalKind, TeacherFacts};
use distill::signal::Entries;

use super::{
    ScoreJob, codec_from_wire, codec_to_wire, priority_from_wire, priority_to_wire, reply,
};
use crate::limits::{MAX_TEMPERATURE, MIN_TEMPERATURE};
use crate::v1;
pub use error::RequestError;

/// What a request asks, every bound checked against what this server is.
///
/// # Errors
/// [`RequestError`]; the request's id is `request.id`.
pub fn score_job(
    request: &v1::ScoreRequest,
    server: &TeacherFacts,
) -> Result<ScoreJob, RequestError> {
    check_temperature(request.temperature)?;
    let signal = check_signal(request.signal, server)?;
    let codec = check_codec(request.codec, server)?;
    let classes = check_classes(request.vocab_size as usize, server)?;
    let k = request.top_k as usize;
    check_top_k(k, classes, server)?;
    let layout = Layout { codec, classes: (signal == SignalKind::TopK).then_some(classes) };
    check_row(k, layout, server)?;
    let unknown = RequestError::UnknownPriority { found: request.priority };
    let priority = priority_from_wire(request.priority).ok_or(unknown)?;
    let tokens = check_tokens(&request.tokens, classes, server)?;
    let ranges = check_ranges(&request.positions, tokens.len())?;
    let rows = ranges.iter().map(Range::len).sum();
    let entries = check_candidates(&request.candidates, signal, k, rows, classes)?;
    let (id, temperature) = (request.id, request.temperature);
    Ok(ScoreJob { id, tokens, ranges, temperature, entries, k, codec, classes, priority })
}

/// The request for a job.
pub fn score_request(job: &ScoreJob) -> v1::ScoreRequest {
    let range = |range: &Range<u32>| v1::PositionRange { first: range.start, end: range.end };
    let (signal, candidates) = match &job.entries {
        Entries::Top => (v1::SignalKind::TopK, Vec::new()),
        Entries::Named(ids) => (v1::SignalKind::Candidates, codec::token_bytes(ids)),
    };
    v1::ScoreRequest {
        id: job.id,
        tokens: codec::token_bytes(&job.tokens).into(),
        positions: job.ranges.iter().map(range).collect(),
        temperature: job.temperature,
        signal: signal.into(),
        top_k: job.k as u32,
        codec: codec_to_wire(job.codec).into(),
        vocab_size: job.classes as u32,
        candidates: candidates.into(),
        priority: priority_to_wire(job.priority).into(),
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

fn check_signal(number: i32, server: &TeacherFacts) -> Result<SignalKind, RequestError> {
    let offered = || names(&server.signals);
    let signal = match v1::SignalKind::try_from(number) {
        Err(_) => return Err(RequestError::UnknownSignal { found: number, offered: offered() }),
        Ok(v1::SignalKind::Unspecified) => return Err(RequestError::NoSignal),
        Ok(v1::SignalKind::TopK) => SignalKind::TopK,
        Ok(v1::SignalKind::Candidates) => SignalKind::Candidates,
    };
    match server.signals.contains(&signal) {
        true => Ok(signal),
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
fn check_row(k: usize, layout: Layout, server: &TeacherFacts) -> Result<(), RequestError> {
    let Layout { codec, classes } = layout;
    if let Some(classes) = classes.filter(|&n| codec != Codec::Raw && n > MAX_PACKED_CLASSES) {
        return Err(RequestError::PackedClasses { classes });
    }
    let (found, limit) = (reply::message_bytes(1, k, layout), server.limits.max_reply_bytes);
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

fn check_candidates(
    bytes: &[u8],
    signal: SignalKind,
    k: usize,
    rows: usize,
    classes: usize,
) -> Result<Entries, RequestError> {
    let found = bytes.len();
    if signal == SignalKind::TopK {
        return match found {
            0 => Ok(Entries::Top),
            _ => Err(RequestError::StrayCandidates { found, signal }),
        };
    }
    let ids = codec::tokens_from_bytes(bytes).filter(|ids| [k, k * rows].contains(&ids.len()));
    let ids = ids.ok_or(RequestError::CandidateBytes { found, k, rows })?;
    if let Some(at) = ids.iter().position(|&id| id as usize >= classes) {
        let (row, index, found) = (at / k, at % k, ids[at]);
        return Err(RequestError::CandidateId { row, index, found, classes });
    }
    match codec::repeated(&ids, k, classes) {
        None => Ok(Entries::Named(ids)),
        Some((row, found)) => Err(RequestError::DuplicateCandidate { row, found }),
    }
}

fn names<T: std::fmt::Display>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
pub(crate) mod tests;
