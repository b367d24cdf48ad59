//! Whether a teacher and a student can work together, decided before the first step.
//!
//! A tokenizer that differs, or a vocabulary cut in the wrong place, gives a loss that looks
//! healthy and teaches nonsense. So nothing is assumed: both sides state their facts, and [`check`]
//! either finds the terms of the work or names what does not fit, with both values.

use std::time::Duration;

use crate::codec::{Codec, MAX_PACKED_CLASSES};
use crate::fingerprint::Fingerprint;

/// Version of the contract this program speaks.
pub const PROTOCOL_VERSION: u32 = 1;

/// What a teacher can send of its distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalKind {
    /// The k most probable tokens and the mass of the others ([`crate::signal::TopK`]).
    TopK,
    /// The same of tokens the client names at each position.
    Candidates,
    /// Draws from the distribution ([`crate::signal::Draws`]).
    Sampled,
    /// Final hidden states, each number by itself ([`crate::hidden`]).
    Full,
    /// Final hidden states, coded ([`crate::coded`]).
    Coded,
}

impl SignalKind {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::TopK, Self::Candidates, Self::Sampled, Self::Full, Self::Coded];
}

impl std::fmt::Display for SignalKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::TopK => "top-k",
            Self::Candidates => "candidates",
            Self::Sampled => "sampled",
            Self::Full => "full",
            Self::Coded => "coded",
        })
    }
}

/// The bounds of a teacher. Those from `max_connections` on are 0 where an older teacher does not
/// state them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest sequence, in tokens.
    pub max_sequence_tokens: usize,
    /// Largest k.
    pub max_top_k: usize,
    /// Largest reply message, in bytes.
    pub max_reply_bytes: usize,
    /// Largest request message, in bytes.
    pub max_request_bytes: usize,
    /// Unanswered requests of one stream before the teacher stops reading it.
    pub max_in_flight_per_stream: usize,
    /// Tokens computed at once.
    pub max_batch_tokens: usize,
    /// Sequences that may wait for the device, over all clients.
    pub max_queued_sequences: usize,
    /// Tokens that may wait for the device, over all clients.
    pub max_queued_tokens: usize,
    /// Longest text of `ScoreText`, in bytes.
    pub max_text_bytes: usize,
    /// Connections open at a time, on each port.
    pub max_connections: usize,
    /// Calls open at a time on one connection.
    pub max_streams_per_connection: usize,
    /// Bytes of answers one stream may have the teacher hold before it is read no further.
    pub max_held_bytes_per_stream: usize,
    /// Bytes of answers that are not computed or not read yet, over all clients.
    pub max_held_bytes: usize,
    /// Bytes of unfinished request messages held, over all clients.
    pub max_unfinished_bytes: usize,
    /// Largest body of a request over HTTP, in bytes.
    pub max_http_body_bytes: usize,
    /// Texts that are encoded at a time or wait for it, over all clients.
    pub max_encoding_texts: usize,
    /// How long a stream may be open.
    pub stream_timeout: Duration,
    /// How long a stream may be open without a request and without an answer owed.
    pub stream_idle_timeout: Duration,
    /// Time in which a message that has begun must be complete.
    pub message_timeout: Duration,
    /// How long an answer may be left unread before its stream is cut.
    pub reader_timeout: Duration,
    /// How long the first sequence of a batch waits for company while the device is idle.
    pub batch_wait: Duration,
    /// How long a connection may be open without a call on it, an open stream being one.
    pub idle_timeout: Duration,
    /// How long admitted work may take after the teacher was told to stop.
    pub drain_timeout: Duration,
}

/// What a teacher states of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TeacherFacts {
    /// Hub id or directory name, for people.
    pub model: String,
    /// Commit the model was loaded from; empty for a local directory.
    pub revision: String,
    /// Digest over configuration and weights.
    pub model_fingerprint: Fingerprint,
    /// Digest over what maps text to ids.
    pub tokenizer_fingerprint: Fingerprint,
    /// Rows of the output matrix.
    pub vocab_size: usize,
    /// 1 + the largest id the tokenizer can produce.
    pub tokenizer_size: usize,
    /// Numbers of a final hidden state; 0 where these are not on offer.
    pub hidden_size: usize,
    /// Bounds on requests.
    pub limits: Limits,
    /// Signals on offer.
    pub signals: Vec<SignalKind>,
    /// Codecs on offer.
    pub codecs: Vec<Codec>,
    /// Version of the contract.
    pub protocol_version: u32,
    /// Version of the server program, for people.
    pub server_version: String,
    /// `f32`, `bf16` or `f16`, for people.
    pub dtype: String,
    /// `cpu` or `cuda:N`, for people.
    pub device: String,
    /// Number of parameters, for people.
    pub parameters: u64,
}

impl TeacherFacts {
    /// The terms of work over the first `classes` tokens, for a client that has no model of its own
    /// to hold against this one.
    pub fn terms(&self, classes: usize) -> Agreement {
        Agreement {
            classes,
            model_fingerprint: self.model_fingerprint,
            tokenizer_fingerprint: self.tokenizer_fingerprint,
            hidden_size: self.hidden_size,
            max_in_flight: self.limits.max_in_flight_per_stream,
        }
    }
}

/// What a student states of itself and of the work it wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StudentFacts {
    /// Digest over what maps text to ids.
    pub tokenizer_fingerprint: Fingerprint,
    /// Rows of the output matrix.
    pub vocab_size: usize,
    /// 1 + the largest id the tokenizer can produce.
    pub tokenizer_size: usize,
    /// Longest sequence it will ask for, in tokens.
    pub max_length: usize,
    /// Signal it wants.
    pub signal: SignalKind,
    /// Entries a position it wants: of the most probable tokens, or of those given exactly beside draws.
    pub top_k: usize,
    /// Codec it wants.
    pub codec: Codec,
}

/// The terms on which both work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// Classes the distribution is taken over, on both sides: `min(V_teacher, V_student)`.
    pub classes: usize,
    /// The model every reply must come from.
    pub model_fingerprint: Fingerprint,
    /// The tokenizer every reply's ids must belong to.
    pub tokenizer_fingerprint: Fingerprint,
    /// Numbers of a final hidden state of the teacher; 0 where it offers none.
    pub hidden_size: usize,
    /// Requests the teacher reads ahead on one stream.
    pub max_in_flight: usize,
}

/// Why a teacher and a student cannot work together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Another contract.
    #[error(
        "the teacher speaks version {teacher} of the contract, this program version {student}: \
         use releases of the same version on both sides"
    )]
    Protocol {
        /// The teacher's version.
        teacher: u32,
        /// Ours.
        student: u32,
    },
    /// Another mapping from text to ids.
    #[error(
        "the tokenizers differ: teacher {teacher} ({teacher_size} ids), student {student} \
         ({student_size} ids). Distillation compares token by token, so both models must use the \
         same tokenizer"
    )]
    Tokenizer {
        /// The teacher's digest.
        teacher: Fingerprint,
        /// Ids of the teacher's tokenizer.
        teacher_size: usize,
        /// The student's digest.
        student: Fingerprint,
        /// Ids of the student's tokenizer.
        student_size: usize,
    },
    /// An output matrix with fewer rows than the tokenizer has ids.
    #[error(
        "the teacher's output has {teacher} classes and the student's {student}, but the tokenizer \
         has {tokenizer} ids: the smaller output cannot name every token"
    )]
    Classes {
        /// Rows of the teacher's output matrix.
        teacher: usize,
        /// Rows of the student's output matrix.
        student: usize,
        /// Ids of the tokenizer.
        tokenizer: usize,
    },
    /// Sequences the teacher does not take.
    #[error(
        "the student's sequences have up to {student} tokens, the teacher takes {teacher}: lower \
         --max-length or raise the teacher's limit"
    )]
    Length {
        /// The teacher's bound.
        teacher: usize,
        /// The student's maximum.
        student: usize,
    },
    /// A k of zero.
    #[error("top-k is 0: ask for at least 1 entry a position")]
    ZeroTopK,
    /// A k above the teacher's bound.
    #[error(
        "{student} tokens a position (--top-k or --exact; of candidates twice --top-k) are above the teacher's \
         limit {teacher}: ask for fewer"
    )]
    TopKLimit {
        /// The teacher's bound.
        teacher: usize,
        /// What the student asks.
        student: usize,
    },
    /// A k above the number of classes.
    #[error(
        "{student} tokens a position (--top-k or --exact; of candidates twice --top-k) are above the {classes} \
         classes both models share: ask for fewer"
    )]
    TopKClasses {
        /// Classes on both sides.
        classes: usize,
        /// What the student asks.
        student: usize,
    },
    /// A signal the teacher does not offer.
    #[error("the student asks for the signal {student}, the teacher offers {}", list(teacher))]
    Signal {
        /// What the teacher offers.
        teacher: Vec<SignalKind>,
        /// What the student asks.
        student: SignalKind,
    },
    /// A codec the teacher does not offer.
    #[error(
        "the student asks for the codec {student}, the teacher offers {}: set --codec to one of these",
        list(teacher)
    )]
    Codec {
        /// What the teacher offers.
        teacher: Vec<Codec>,
        /// What the student asks.
        student: Codec,
    },
    /// More classes than every codec but the raw one can name.
    #[error(
        "{classes} classes, but codecs other than raw name at most {MAX_PACKED_CLASSES}: use the codec \
         raw"
    )]
    PackedClasses {
        /// Classes on both sides.
        classes: usize,
    },
}

/// Finds the terms of the work, or the first thing that does not fit.
///
/// # Errors
/// [`Mismatch`], with the teacher's value and the student's.
pub fn check(teacher: &TeacherFacts, student: &StudentFacts) -> Result<Agreement, Mismatch> {
    if teacher.protocol_version != PROTOCOL_VERSION {
        let (teacher, student) = (teacher.protocol_version, PROTOCOL_VERSION);
        return Err(Mismatch::Protocol { teacher, student });
    }
    let classes = shared_classes(teacher, student)?;
    if student.max_length > teacher.limits.max_sequence_tokens {
        let (teacher, student) = (teacher.limits.max_sequence_tokens, student.max_length);
        return Err(Mismatch::Length { teacher, student });
    }
    check_signal(teacher, student, classes)?;
    Ok(teacher.terms(classes))
}

/// Both outputs may be padded beyond the tokenizer, by different amounts: the classes in common are
/// those of the smaller one, as long as every token is among them.
fn shared_classes(teacher: &TeacherFacts, student: &StudentFacts) -> Result<usize, Mismatch> {
    let same_size = teacher.tokenizer_size == student.tokenizer_size;
    if teacher.tokenizer_fingerprint != student.tokenizer_fingerprint || !same_size {
        return Err(Mismatch::Tokenizer {
            teacher: teacher.tokenizer_fingerprint,
            teacher_size: teacher.tokenizer_size,
            student: student.tokenizer_fingerprint,
            student_size: student.tokenizer_size,
        });
    }
    let classes = teacher.vocab_size.min(student.vocab_size);
    if classes < student.tokenizer_size {
        return Err(Mismatch::Classes {
            teacher: teacher.vocab_size,
            student: student.vocab_size,
            tokenizer: student.tokenizer_size,
        });
    }
    Ok(classes)
}

fn check_signal(
    teacher: &TeacherFacts,
    student: &StudentFacts,
    classes: usize,
) -> Result<(), Mismatch> {
    if !teacher.signals.contains(&student.signal) {
        let (teacher, student) = (teacher.signals.clone(), student.signal);
        return Err(Mismatch::Signal { teacher, student });
    }
    if !teacher.codecs.contains(&student.codec) {
        let (teacher, student) = (teacher.codecs.clone(), student.codec);
        return Err(Mismatch::Codec { teacher, student });
    }
    if student.codec != Codec::Raw && classes > MAX_PACKED_CLASSES {
        return Err(Mismatch::PackedClasses { classes });
    }
    if student.top_k == 0 && matches!(student.signal, SignalKind::TopK | SignalKind::Candidates) {
        return Err(Mismatch::ZeroTopK);
    }
    if student.top_k > classes {
        return Err(Mismatch::TopKClasses { classes, student: student.top_k });
    }
    if student.top_k > teacher.limits.max_top_k {
        let (teacher, student) = (teacher.limits.max_top_k, student.top_k);
        return Err(Mismatch::TopKLimit { teacher, student });
    }
    Ok(())
}

/// `a, b`, or `nothing`.
fn list<T: std::fmt::Display>(items: &[T]) -> String {
    if items.is_empty() {
        return "nothing".to_string();
    }
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
