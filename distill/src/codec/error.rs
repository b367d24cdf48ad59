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
    /// Too many classes for every codec but the raw one.
    #[error(
        "{classes} classes, but codecs other than raw name at most {MAX_PACKED_CLASSES}: use raw"
    )]
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
    /// Bytes that do not begin as those of a compact codec.
    #[error("bytes in codec {codec} begin with 4c 54 4b (LTK), found {found:02x?}")]
    Magic {
        /// The layout.
        codec: Codec,
        /// The first bytes.
        found: [u8; 3],
    },
    /// A compact codec of another release.
    #[error(
        "version {found} of the compact codecs, this program reads version {known}: use releases of \
         the same version on both sides"
    )]
    Version {
        /// The version of the bytes.
        found: u8,
        /// The one that is known.
        known: u8,
    },
    /// A head that says something else than what was asked for.
    #[error("the {what} in the head of the bytes is {found}, wanted {wanted}")]
    Head {
        /// Which number.
        what: &'static str,
        /// The number.
        found: u32,
        /// The number as wanted.
        wanted: u32,
    },
    /// More or fewer ids than entries.
    #[error("row {row}: {found} bits place ids, wanted {wanted}, one an entry")]
    Places {
        /// Row in the signal.
        row: usize,
        /// Bits found.
        found: usize,
        /// Entries a row.
        wanted: usize,
    },
    /// Ids that do not ascend.
    #[error("row {row}: id {found} comes after id {before}, wanted ascending ids, none twice")]
    Order {
        /// Row in the signal.
        row: usize,
        /// An id.
        before: u32,
        /// The id behind it.
        found: u32,
    },
    /// A bit that belongs to no id.
    #[error("row {row}: a bit behind the lower bits of its ids is set, wanted 0")]
    Padding {
        /// Row in the signal.
        row: usize,
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
