//! Why a signal cannot be written as bytes, or bytes are no signal.

use super::{Codec, MAX_PACKED_CLASSES};

/// Why a signal cannot be written as bytes, or bytes are no signal.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CodecError {
    /// Rows of no entries.
    #[error("a signal of 0 entries a row: wanted at least 1")]
    ZeroEntries,
    /// More entries a row than classes.
    #[error("a signal of {k} entries a row over {classes} classes")]
    TooManyEntries {
        /// Entries a row.
        k: usize,
        /// Classes.
        classes: usize,
    },
    /// Too many classes for ids of three bytes.
    #[error("{classes} classes, but the codec packed names at most {MAX_PACKED_CLASSES}: use raw")]
    PackedClasses {
        /// Classes (on encoding: 1 + the id found).
        classes: usize,
    },
    /// A wrong number of bytes.
    #[error("{rows} rows of {k} entries in codec {codec} take {wanted} bytes, found {found}")]
    Length {
        /// The layout.
        codec: Codec,
        /// Rows announced.
        rows: usize,
        /// Entries a row.
        k: usize,
        /// Bytes wanted.
        wanted: usize,
        /// Bytes found.
        found: usize,
    },
    /// Arrays of a signal that do not belong together.
    #[error("{rows} rows of {k} entries need {wanted} {array}, found {found}")]
    Shape {
        /// Rows of the signal.
        rows: usize,
        /// Entries a row.
        k: usize,
        /// Which array.
        array: &'static str,
        /// Its length as wanted.
        wanted: usize,
        /// Its length as found.
        found: usize,
    },
    /// An id that is no class.
    #[error("row {row}: id {found} is not below the number of classes {classes}")]
    Id {
        /// Row in the signal.
        row: usize,
        /// The id.
        found: u32,
        /// Classes.
        classes: usize,
    },
    /// An id twice in a row.
    #[error("row {row}: id {found} appears twice")]
    DuplicateId {
        /// Row in the signal.
        row: usize,
        /// The id.
        found: u32,
    },
    /// A number that is none.
    #[error("row {row}: {what} is {found}, wanted a finite number")]
    NotFinite {
        /// Row in the signal.
        row: usize,
        /// Which number.
        what: &'static str,
        /// The number.
        found: f32,
    },
}
