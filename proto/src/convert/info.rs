//! What a teacher states of itself, as a message and as facts.

use std::time::Duration;

use distill::codec::Codec;
use distill::coded::MAX_WIDTH;
use distill::fingerprint::{Fingerprint, NotAFingerprint};
use distill::handshake::{Limits, PROTOCOL_VERSION, SignalKind, TeacherFacts};

use super::{codec_from_wire, codec_to_wire, printable};
use crate::limits::{MAX_MESSAGE_BYTES, MIN_REPLY_BYTES};
use crate::v1;

/// Longest text of a teacher that is kept, in characters.
const MAX_TEXT: usize = 256;

/// Why a `GetInfoReply` does not describe a teacher.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InfoError {
    /// Another contract.
    #[error(
        "the teacher speaks version {found} of the contract, this program version {wanted}: use \
         releases of the same version on both sides"
    )]
    Protocol {
        /// The teacher's version.
        found: u32,
        /// Ours.
        wanted: u32,
    },
    /// A digest that is none.
    #[error("the teacher's {field}: {source}")]
    Fingerprint {
        /// The field.
        field: &'static str,
        /// What is wrong.
        source: NotAFingerprint,
    },
    /// A number outside what any teacher can mean.
    #[error("the teacher's {field} is {found}, wanted {least} to {most}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// As received.
        found: usize,
        /// Smallest sensible value.
        least: usize,
        /// Largest sensible value.
        most: usize,
    },
    /// No limits at all.
    #[error("the teacher states no limits")]
    NoLimits,
}

/// The message that states these facts.
pub fn facts_to_info(facts: &TeacherFacts) -> v1::GetInfoReply {
    let limits = &facts.limits;
    v1::GetInfoReply {
        model: facts.model.clone(),
        revision: facts.revision.clone(),
        model_fingerprint: facts.model_fingerprint.to_string(),
        tokenizer_fingerprint: facts.tokenizer_fingerprint.to_string(),
        vocab_size: saturate(facts.vocab_size),
        tokenizer_size: saturate(facts.tokenizer_size),
        limits: Some(v1::Limits {
            max_sequence_tokens: saturate(limits.max_sequence_tokens),
            max_top_k: saturate(limits.max_top_k),
            max_reply_bytes: saturate(limits.max_reply_bytes),
            max_request_bytes: saturate(limits.max_request_bytes),
            max_in_flight_per_stream: saturate(limits.max_in_flight_per_stream),
            max_batch_tokens: saturate(limits.max_batch_tokens),
            max_queued_sequences: saturate(limits.max_queued_sequences),
            max_queued_tokens: saturate(limits.max_queued_tokens),
            max_text_bytes: saturate(limits.max_text_bytes),
            max_connections: saturate(limits.max_connections),
            max_streams_per_connection: saturate(limits.max_streams_per_connection),
            max_held_bytes_per_stream: saturate(limits.max_held_bytes_per_stream),
            max_held_bytes: saturate(limits.max_held_bytes),
            max_unfinished_bytes: saturate(limits.max_unfinished_bytes),
            max_http_body_bytes: saturate(limits.max_http_body_bytes),
            max_encoding_texts: saturate(limits.max_encoding_texts),
            max_stream_seconds: seconds(limits.stream_timeout),
            idle_stream_seconds: seconds(limits.stream_idle_timeout),
            message_seconds: seconds(limits.message_timeout),
            stalled_reader_seconds: seconds(limits.reader_timeout),
            batch_wait_ms: u32::try_from(limits.batch_wait.as_millis()).unwrap_or(u32::MAX),
            idle_connection_seconds: seconds(limits.idle_timeout),
            drain_seconds: seconds(limits.drain_timeout),
        }),
        signals: facts.signals.iter().map(|&signal| signal_to_wire(signal).into()).collect(),
        codecs: facts.codecs.iter().map(|&codec| codec_to_wire(codec).into()).collect(),
        protocol_version: facts.protocol_version,
        server_version: facts.server_version.clone(),
        dtype: facts.dtype.clone(),
        device: facts.device.clone(),
        parameters: facts.parameters,
        hidden_size: saturate(facts.hidden_size),
    }
}

/// The facts a message states. Signals and codecs this program does not know are left out: a newer
/// teacher may offer more.
///
/// # Errors
/// [`InfoError`] when it speaks another version of the contract, a fingerprint is none, or a number
/// cannot be meant.
pub fn facts_from_info(info: &v1::GetInfoReply) -> Result<TeacherFacts, InfoError> {
    if info.protocol_version != PROTOCOL_VERSION {
        let (found, wanted) = (info.protocol_version, PROTOCOL_VERSION);
        return Err(InfoError::Protocol { found, wanted });
    }
    let vocab_size = in_range("vocab_size", info.vocab_size, 1, i32::MAX as usize)?;
    Ok(TeacherFacts {
        model: printable(&info.model, MAX_TEXT),
        revision: printable(&info.revision, MAX_TEXT),
        model_fingerprint: fingerprint("model_fingerprint", &info.model_fingerprint)?,
        tokenizer_fingerprint: fingerprint("tokenizer_fingerprint", &info.tokenizer_fingerprint)?,
        vocab_size,
        tokenizer_size: in_range("tokenizer_size", info.tokenizer_size, 1, vocab_size)?,
        hidden_size: in_range("hidden_size", info.hidden_size, 0, MAX_WIDTH)?,
        limits: limits(info.limits.as_ref().ok_or(InfoError::NoLimits)?)?,
        signals: info.signals.iter().filter_map(|&number| signal_from_wire(number)).collect(),
        codecs: info.codecs.iter().filter_map(|&number| offered_codec(number)).collect(),
        protocol_version: info.protocol_version,
        server_version: printable(&info.server_version, MAX_TEXT),
        dtype: printable(&info.dtype, MAX_TEXT),
        device: printable(&info.device, MAX_TEXT),
        parameters: info.parameters,
    })
}

fn limits(limits: &v1::Limits) -> Result<Limits, InfoError> {
    let count = |field, found| in_range(field, found, 1, u32::MAX as usize);
    Ok(Limits {
        max_sequence_tokens: count("max_sequence_tokens", limits.max_sequence_tokens)?,
        max_top_k: count("max_top_k", limits.max_top_k)?,
        max_reply_bytes: in_range(
            "max_reply_bytes",
            limits.max_reply_bytes,
            MIN_REPLY_BYTES,
            MAX_MESSAGE_BYTES,
        )?,
        max_request_bytes: count("max_request_bytes", limits.max_request_bytes)?,
        max_in_flight_per_stream: count(
            "max_in_flight_per_stream",
            limits.max_in_flight_per_stream,
        )?,
        max_batch_tokens: count("max_batch_tokens", limits.max_batch_tokens)?,
        max_queued_sequences: count("max_queued_sequences", limits.max_queued_sequences)?,
        max_queued_tokens: count("max_queued_tokens", limits.max_queued_tokens)?,
        max_text_bytes: count("max_text_bytes", limits.max_text_bytes)?,
        max_connections: limits.max_connections as usize,
        max_streams_per_connection: limits.max_streams_per_connection as usize,
        max_held_bytes_per_stream: limits.max_held_bytes_per_stream as usize,
        max_held_bytes: limits.max_held_bytes as usize,
        max_unfinished_bytes: limits.max_unfinished_bytes as usize,
        max_http_body_bytes: limits.max_http_body_bytes as usize,
        max_encoding_texts: limits.max_encoding_texts as usize,
        stream_timeout: from_seconds(limits.max_stream_seconds),
        stream_idle_timeout: from_seconds(limits.idle_stream_seconds),
        message_timeout: from_seconds(limits.message_seconds),
        reader_timeout: from_seconds(limits.stalled_reader_seconds),
        batch_wait: Duration::from_millis(limits.batch_wait_ms.into()),
        idle_timeout: from_seconds(limits.idle_connection_seconds),
        drain_timeout: from_seconds(limits.drain_seconds),
    })
}

fn in_range(
    field: &'static str,
    found: u32,
    least: usize,
    most: usize,
) -> Result<usize, InfoError> {
    let found = found as usize;
    match (least..=most).contains(&found) {
        true => Ok(found),
        false => Err(InfoError::OutOfRange { field, found, least, most }),
    }
}

fn fingerprint(field: &'static str, text: &str) -> Result<Fingerprint, InfoError> {
    text.parse().map_err(|source| InfoError::Fingerprint { field, source })
}

pub(super) fn signal_to_wire(signal: SignalKind) -> v1::SignalKind {
    match signal {
        SignalKind::TopK => v1::SignalKind::TopK,
        SignalKind::Candidates => v1::SignalKind::Candidates,
        SignalKind::Sampled => v1::SignalKind::Sampled,
        SignalKind::Full => v1::SignalKind::Full,
        SignalKind::Coded => v1::SignalKind::Coded,
    }
}

pub(super) fn signal_from_wire(number: i32) -> Option<SignalKind> {
    match v1::SignalKind::try_from(number).ok()? {
        v1::SignalKind::Unspecified => None,
        v1::SignalKind::TopK => Some(SignalKind::TopK),
        v1::SignalKind::Candidates => Some(SignalKind::Candidates),
        v1::SignalKind::Sampled => Some(SignalKind::Sampled),
        v1::SignalKind::Full => Some(SignalKind::Full),
        v1::SignalKind::Coded => Some(SignalKind::Coded),
    }
}

/// In an offer, unlike in a request, unspecified names no codec.
fn offered_codec(number: i32) -> Option<Codec> {
    codec_from_wire(number).filter(|_| number != v1::Codec::Unspecified as i32)
}

/// Whole seconds, rounded up: less than one is not none.
fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
}

fn from_seconds(seconds: u32) -> Duration {
    Duration::from_secs(seconds.into())
}

fn saturate(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
