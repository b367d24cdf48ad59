//! Requests: written by the client, checked by the server.

mod error;

use std::ops::Range;

use distill::codec::{self, Codec, Layout, MAX_PACKED_CLASSES};
use distill::coded::Rung;
use distill::fingerprint::Fingerprint;
use distill::handshake::{SignalKind, TeacherFacts};
use distill::hidden::HiddenForm;
use distill::signal::Entries;

use super::info::{signal_from_wire, signal_to_wire};
use super::{
    ScoreJob, codec_from_wire, codec_to_wire, priority_from_wire, priority_to_wire, reply,
};
use crate::limits::{MAX_DRAWS, MAX_TEMPERATURE, MIN_TEMPERATURE};
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
    let signal = check_signal(request.signal, server)?;
    let hidden = matches!(signal, SignalKind::Full | SignalKind::Coded);
    if !hidden {
        check_temperature(request.temperature)?;
    }
    let codec = check_codec(request.codec, server)?;
    let classes = check_classes(request.vocab_size as usize, server)?;
    check_strays(request, signal)?;
    let k = request.top_k as usize;
    match signal {
        SignalKind::TopK | SignalKind::Candidates => check_top_k(k, classes, server)?,
        SignalKind::Sampled => check_most_entries(k, classes, server)?,
        SignalKind::Full | SignalKind::Coded => {}
    }
    let unknown = RequestError::UnknownPriority { found: request.priority };
    let priority = priority_from_wire(request.priority).ok_or(unknown)?;
    let tokens = check_tokens(&request.tokens, classes, server)?;
    let ranges = check_ranges(&request.positions, tokens.len())?;
    let rows = ranges.iter().map(Range::len).sum();
    let entries = match signal {
        SignalKind::TopK => Entries::Top,
        SignalKind::Candidates => check_candidates(&request.candidates, k, rows, classes)?,
        SignalKind::Sampled => check_draws(request)?,
        SignalKind::Full => Entries::Hidden(check_form(request.hidden_form)?),
        SignalKind::Coded => Entries::Hidden(check_coded(request)?),
    };
    let (id, temperature) = (request.id, request.temperature);
    let job = ScoreJob { id, tokens, ranges, temperature, entries, k, codec, classes, priority };
    check_row(&job, server)?;
    Ok(job)
}

/// The request for a job.
pub fn score_request(job: &ScoreJob) -> v1::ScoreRequest {
    let range = |range: &Range<u32>| v1::PositionRange { first: range.start, end: range.end };
    let mut request = v1::ScoreRequest {
        id: job.id,
        tokens: codec::token_bytes(&job.tokens).into(),
        positions: job.ranges.iter().map(range).collect(),
        temperature: job.temperature,
        signal: signal_to_wire(job.entries.kind()).into(),
        top_k: job.k as u32,
        codec: codec_to_wire(job.codec).into(),
        vocab_size: job.classes as u32,
        priority: priority_to_wire(job.priority).into(),
        ..Default::default()
    };
    match &job.entries {
        Entries::Top => {}
        Entries::Named(ids) => request.candidates = codec::token_bytes(ids).into(),
        Entries::Drawn { draws, seed } => (request.draws, request.seed) = (*draws, *seed),
        Entries::Hidden(HiddenForm::Coded { code, rung }) => {
            (request.rung, request.code_fingerprint) = (rung.0.into(), code.0.to_vec().into());
        }
        Entries::Hidden(form) => request.hidden_form = form_to_wire(*form).into(),
    }
    request
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
    check_most_entries(found, classes, server)
}

fn check_most_entries(
    found: usize,
    classes: usize,
    server: &TeacherFacts,
) -> Result<(), RequestError> {
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
    if number == v1::SignalKind::Unspecified as i32 {
        return Err(RequestError::NoSignal);
    }
    let unknown = || RequestError::UnknownSignal { found: number, offered: offered() };
    let signal = signal_from_wire(number).ok_or_else(unknown)?;
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
fn check_row(job: &ScoreJob, server: &TeacherFacts) -> Result<(), RequestError> {
    let Layout { codec, classes } = job.layout();
    let lists = !matches!(job.entries, Entries::Hidden(_) | Entries::Drawn { .. });
    let too_many = |&n: &usize| lists && codec != Codec::Raw && n > MAX_PACKED_CLASSES;
    if let Some(classes) = classes.filter(too_many) {
        return Err(RequestError::PackedClasses { classes });
    }
    let (found, limit) = (reply::message_bytes(1, job, server), server.limits.max_reply_bytes);
    if found <= limit {
        return Ok(());
    }
    let k = job.k;
    Err(match job.entries {
        Entries::Hidden(form) => {
            RequestError::StateTooLarge { form, width: server.hidden_size, found, limit }
        }
        Entries::Top | Entries::Named(_) => RequestError::RowTooLarge { k, codec, found, limit },
        Entries::Drawn { draws, .. } => RequestError::DrawsTooLarge { draws, k, found, limit },
    })
}

/// What belongs to another signal would be forgotten in silence.
fn check_strays(request: &v1::ScoreRequest, signal: SignalKind) -> Result<(), RequestError> {
    use SignalKind::{Candidates, Coded, Full, Sampled};
    let lists = !matches!(signal, Full | Coded);
    let fields = [
        ("top_k", request.top_k != 0, lists),
        ("candidates", !request.candidates.is_empty(), signal == Candidates),
        ("draws", request.draws != 0, signal == Sampled),
        ("seed", request.seed != 0, signal == Sampled),
        ("hidden_form", request.hidden_form != 0, signal == Full),
        ("rung", request.rung != 0, signal == Coded),
        ("code_fingerprint", !request.code_fingerprint.is_empty(), signal == Coded),
    ];
    match fields.into_iter().find(|&(_, is_set, belongs)| is_set && !belongs) {
        None => Ok(()),
        Some((field, ..)) => Err(RequestError::Stray { field, signal }),
    }
}

fn check_draws(request: &v1::ScoreRequest) -> Result<Entries, RequestError> {
    let (draws, seed) = (request.draws, request.seed);
    match (1..=MAX_DRAWS).contains(&draws) {
        true => Ok(Entries::Drawn { draws, seed }),
        false => Err(RequestError::Draws { found: draws }),
    }
}

fn check_form(number: i32) -> Result<HiddenForm, RequestError> {
    match v1::HiddenForm::try_from(number) {
        Ok(v1::HiddenForm::F32) => Ok(HiddenForm::F32),
        Ok(v1::HiddenForm::Unspecified | v1::HiddenForm::Bf16) => Ok(HiddenForm::Bf16),
        Ok(v1::HiddenForm::Int8) => Ok(HiddenForm::Int8),
        Ok(v1::HiddenForm::Int4) => Ok(HiddenForm::Int4),
        Err(_) => Err(RequestError::UnknownForm { found: number }),
    }
}

/// A form as the wire names it; that of coded states is said by the signal itself.
fn form_to_wire(form: HiddenForm) -> v1::HiddenForm {
    match form {
        HiddenForm::F32 => v1::HiddenForm::F32,
        HiddenForm::Bf16 => v1::HiddenForm::Bf16,
        HiddenForm::Int8 => v1::HiddenForm::Int8,
        HiddenForm::Int4 => v1::HiddenForm::Int4,
        HiddenForm::Coded { .. } => v1::HiddenForm::Unspecified,
    }
}

fn check_coded(request: &v1::ScoreRequest) -> Result<HiddenForm, RequestError> {
    let found = request.rung;
    let rung = i16::try_from(found).map(Rung).ok();
    let rung = rung.filter(|rung| (Rung::FINEST..=Rung::COARSEST).contains(rung));
    let rung = rung.ok_or(RequestError::Rung { found })?;
    let code = <[u8; 32]>::try_from(&request.code_fingerprint[..]);
    let code =
        code.map_err(|_| RequestError::CodeBytes { found: request.code_fingerprint.len() })?;
    Ok(HiddenForm::Coded { code: Fingerprint(code), rung })
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
    k: usize,
    rows: usize,
    classes: usize,
) -> Result<Entries, RequestError> {
    let found = bytes.len();
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
