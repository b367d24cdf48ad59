//! Why a request is refused.

use distill::codec::{Codec, MAX_PACKED_CLASSES};
use distill::coded::Rung;
use distill::handshake::SignalKind;
use distill::hidden::HiddenForm;

use crate::limits::{MAX_DRAWS, MAX_TEMPERATURE, MIN_TEMPERATURE};

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
    /// A priority of another contract.
    #[error("priority {found} is not known to this server: it has 1 (low) to 3 (high)")]
    UnknownPriority {
        /// The number.
        found: i32,
    },
    /// A field beside a signal that takes no notice of it.
    #[error("{field} is set, but the signal asked for is {signal}, of which it means nothing")]
    Stray {
        /// The field.
        field: &'static str,
        /// The signal.
        signal: SignalKind,
    },
    /// No draws, or more than a position has.
    #[error("draws {found}: wanted 1 to {MAX_DRAWS}")]
    Draws {
        /// The number asked.
        found: u32,
    },
    /// A form of another contract.
    #[error("hidden_form {found} is not known to this server: it has 1 (f32) to 4 (int4)")]
    UnknownForm {
        /// The number.
        found: i32,
    },
    /// A step no code has.
    #[error("rung {found}: wanted {} to {}", Rung::FINEST.0, Rung::COARSEST.0)]
    Rung {
        /// The number asked.
        found: i32,
    },
    /// A digest that is none.
    #[error("code_fingerprint has {found} bytes: wanted the 32 of the code that GetDecoder names")]
    CodeBytes {
        /// Number of bytes.
        found: usize,
    },
    /// A number of candidates that fits no positions.
    #[error(
        "candidates has {found} bytes: wanted 4 for each of top_k {k} ids (the same at every \
         position) or of {k} ids for each of the {rows} positions wanted"
    )]
    CandidateBytes {
        /// Number of bytes.
        found: usize,
        /// Candidates a position.
        k: usize,
        /// Positions wanted.
        rows: usize,
    },
    /// A candidate that is no class.
    #[error(
        "candidate {found} (number {index} of its position, row {row}) is not below the \
             {classes} classes"
    )]
    CandidateId {
        /// Row among the positions wanted.
        row: usize,
        /// Index among the row's candidates.
        index: usize,
        /// The id.
        found: u32,
        /// Classes.
        classes: usize,
    },
    /// A candidate named twice.
    #[error("candidate {found} is named twice in row {row}: a repeated id would count twice")]
    DuplicateCandidate {
        /// Row among the positions wanted.
        row: usize,
        /// The id.
        found: u32,
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
    /// More classes than every codec but the raw one can name.
    #[error(
        "{classes} classes, but every codec but CODEC_RAW names at most {MAX_PACKED_CLASSES}: ask for \
         that one"
    )]
    PackedClasses {
        /// Classes.
        classes: usize,
    },
    /// One position alone that exceeds a reply.
    #[error(
        "one position of top_k {k} in codec {codec} takes a reply of {found} bytes, this server \
         sends at most {limit} (max_reply_bytes): lower top_k or use a codec of fewer bytes"
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
    /// The same of a hidden state.
    #[error(
        "one hidden state of {width} numbers in form {form} takes a reply of up to {found} bytes, this \
         server sends at most {limit} (max_reply_bytes): ask for a smaller form"
    )]
    StateTooLarge {
        /// How it is said.
        form: HiddenForm,
        /// Its numbers.
        width: usize,
        /// Bytes of a reply with one position.
        found: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The same of draws.
    #[error(
        "one position of {draws} draws and {k} exact entries takes a reply of up to {found} bytes, this \
         server sends at most {limit} (max_reply_bytes): lower draws or top_k"
    )]
    DrawsTooLarge {
        /// Draws a position.
        draws: u32,
        /// Exact entries a position.
        k: usize,
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
