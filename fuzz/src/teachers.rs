//! The teachers that inputs are tried against: small ones, whose bounds a few bytes reach.

use distill::codec::Codec;
use distill::fingerprint::Fingerprint;
use distill::handshake::{Limits, PROTOCOL_VERSION, SignalKind, TeacherFacts};
use proto::limits::{DEFAULT_LIMITS, MIN_REPLY_BYTES};

pub(crate) const MODEL: Fingerprint = Fingerprint([7; 32]);
pub(crate) const TOKENIZER: Fingerprint = Fingerprint([9; 32]);

/// Number of teachers.
pub(crate) const TEACHERS: usize = 4;

/// A teacher that offers everything, over so many classes for so many ids.
fn teacher(vocab_size: usize, tokenizer_size: usize, limits: Limits) -> TeacherFacts {
    TeacherFacts {
        model: "fuzzed".to_owned(),
        revision: String::new(),
        model_fingerprint: MODEL,
        tokenizer_fingerprint: TOKENIZER,
        vocab_size,
        tokenizer_size,
        hidden_size: 0,
        limits,
        signals: vec![SignalKind::TopK, SignalKind::Candidates],
        codecs: Codec::ALL.to_vec(),
        protocol_version: PROTOCOL_VERSION,
        server_version: "0.1.0".to_owned(),
        dtype: "f32".to_owned(),
        device: "cpu".to_owned(),
        parameters: 1,
    }
}

/// One of the [`TEACHERS`].
pub(crate) fn numbered(number: usize) -> TeacherFacts {
    let short =
        Limits { max_sequence_tokens: 12, max_top_k: 16, max_text_bytes: 20, ..DEFAULT_LIMITS };
    match number {
        0 => teacher(96, 90, short),
        // One row of the raw codec fits for k up to 494 only.
        1 => teacher(2000, 2000, Limits { max_reply_bytes: MIN_REPLY_BYTES, ..DEFAULT_LIMITS }),
        // More classes than any codec but the raw one names.
        2 => TeacherFacts {
            signals: vec![SignalKind::Candidates],
            ..teacher((1 << 24) + 1, 1 << 24, short)
        },
        _ => TeacherFacts {
            signals: vec![SignalKind::TopK],
            codecs: vec![Codec::Raw],
            ..teacher(5, 5, short)
        },
    }
}
