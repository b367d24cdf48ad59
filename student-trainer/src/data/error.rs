//! Why data cannot be used: always with the file, and the line where there is one.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a row came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: Arc<Path>,
    /// Line (JSON lines) or row (JSON array, Parquet), from 1.
    pub number: u64,
    /// What the number counts.
    pub unit: &'static str,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} {}", self.file.display(), self.unit, self.number)
    }
}

/// The row shapes accepted, for messages.
pub const ACCEPTED: &str = "messages (or conversations), prompt + completion, \
    instruction + response or output (and input), question + answer, or text";

/// Why data cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The hub.
    #[error(transparent)]
    Hub(#[from] hub::source::HubError),
    /// No such file.
    #[error(
        "no data file \"{spec}\": give a path, a glob such as \"data/*.jsonl\", or \
         hf://datasets/ORG/NAME@REV/SPLIT"
    )]
    NotFound {
        /// What was asked for.
        spec: String,
    },
    /// A glob without matches.
    #[error("no file matches \"{spec}\"")]
    NoMatch {
        /// The glob.
        spec: String,
    },
    /// A glob that is none.
    #[error("\"{spec}\" is not a valid glob: {reason}")]
    BadGlob {
        /// The glob.
        spec: String,
        /// Why.
        reason: String,
    },
    /// A directory in place of a file.
    #[error("{path} is a directory; name its files with a glob, as \"{path}/*.jsonl\"")]
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// An ending that says nothing.
    #[error(
        "{path}: cannot tell the format; accepted are .jsonl, .ndjson, .json (each also with .gz \
         or .zst) and .parquet"
    )]
    Format {
        /// The file.
        path: PathBuf,
    },
    /// Reading failed.
    #[error("cannot read {path}{after}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Where it failed, ready to be read after the name.
        after: String,
        /// The system's or the decompressor's reason.
        source: std::io::Error,
    },
    /// A line longer than the bound.
    #[error("{place}: longer than {limit} bytes; split the row, or shorten it")]
    TooLong {
        /// Where.
        place: Place,
        /// The bound.
        limit: usize,
    },
    /// Not UTF-8.
    #[error("{place}: not UTF-8 (bad byte {byte:#04x} at column {column})")]
    NotText {
        /// Where.
        place: Place,
        /// The first bad byte.
        byte: u8,
        /// Its place in the line, from 1, in bytes.
        column: usize,
    },
    /// Not JSON.
    #[error("{place}: not valid JSON: {reason}")]
    NotJson {
        /// Where.
        place: Place,
        /// The parser's reason.
        reason: String,
    },
    /// JSON, but not an object.
    #[error("{place}: a row must be a JSON object like {{\"text\": \"...\"}}, found {found}")]
    NotAnObject {
        /// Where.
        place: Place,
        /// What was found.
        found: &'static str,
    },
    /// No known shape.
    #[error("{place}: found the columns [{found}]; accepted are {ACCEPTED}")]
    Columns {
        /// Where.
        place: Place,
        /// The names found.
        found: String,
    },
    /// A column of the wrong kind.
    #[error("{place}: column \"{column}\" holds {found}, wanted {wanted}")]
    Value {
        /// Where.
        place: Place,
        /// The column.
        column: String,
        /// What it holds.
        found: String,
        /// What was wanted.
        wanted: &'static str,
    },
    /// A Parquet file that cannot be read.
    #[error("{path} is not a Parquet file that can be read: {reason}")]
    Parquet {
        /// The file.
        path: PathBuf,
        /// The reader's reason.
        reason: String,
    },
    /// Nothing to learn from.
    #[error("\"{spec}\" has no rows ({files} file(s) read)")]
    NoRows {
        /// What was asked for.
        spec: String,
        /// Files read.
        files: usize,
    },
    /// A conversation, and no template.
    #[error(
        "{place} is a conversation, but the model has no chat template; add chat_template.jinja \
         to it, or use --chat-template none"
    )]
    NoTemplate {
        /// The first such row.
        place: Place,
    },
    /// A text row cannot pass through a template.
    #[error(
        "{place} is plain text, which no chat template can take; leave --chat-template at its \
         default or set it to none, or give prompt + completion"
    )]
    TextThroughTemplate {
        /// The first such row.
        place: Place,
    },
    /// The template failed on a row.
    #[error("{place}: {source}")]
    Chat {
        /// The row.
        place: Place,
        /// Why.
        source: hub::chat::ChatError,
    },
    /// The answers cannot be told from the rest.
    #[error(
        "{place}: chat template {template} writes message {message} differently when messages \
         follow it, so which tokens are the answer cannot be told; use --loss-on all"
    )]
    Turns {
        /// The row.
        place: Place,
        /// The template's file.
        template: PathBuf,
        /// The assistant's message, from 1.
        message: usize,
    },
    /// A row longer than the model can take.
    #[error(
        "{place} has {tokens} tokens within --max-length {max_length}, but the model has only \
         {positions} positions (max_position_embeddings in its config.json); give --max-length \
         {positions}"
    )]
    Positions {
        /// The first such row.
        place: Place,
        /// Its tokens, after it was cut to the length limit.
        tokens: usize,
        /// The length limit.
        max_length: usize,
        /// What the model takes.
        positions: usize,
    },
    /// The tokenizer failed on a row.
    #[error("{place}: {source}")]
    Tokenizer {
        /// The row.
        place: Place,
        /// Why.
        source: Box<hub::tokenizer::TokenizerError>,
    },
    /// Conversations, and nobody answers in them.
    #[error(
        "none of the {rows} rows has an assistant message, so there is no answer to learn (the \
         first is {place}); give rows that have one, or learn what is asked with --loss-on all"
    )]
    NoAnswer {
        /// Rows read.
        rows: usize,
        /// The first of them.
        place: Place,
    },
    /// Rows, but all were cut before the first token to learn from, or have none.
    #[error(
        "none of the {rows} rows has a scored token within {max_length} tokens ({cut} were cut \
         there); {}",
        if *cut > 0 {
            "raise --max-length, or use --loss-on all"
        } else {
            "a row needs a text of two tokens, or an answer, that is not empty"
        }
    )]
    NothingScored {
        /// Rows read.
        rows: usize,
        /// Rows longer than the limit.
        cut: usize,
        /// The length limit.
        max_length: usize,
    },
}
