//! Why draws cannot be written as bytes, or bytes are no draws.

use super::{HEAD_BYTES, Head};
use crate::signal::DrawsError;

/// Why draws cannot be written as bytes, or bytes are no draws.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DrawsCodecError {
    /// What the rows say cannot be.
    #[error(transparent)]
    Draws(#[from] DrawsError),
    /// Fewer bytes than a head has.
    #[error("{found} bytes: draws begin with a head of {HEAD_BYTES}")]
    NoHead {
        /// Bytes found.
        found: usize,
    },
    /// Something else.
    #[error("the bytes begin with {found:02x?}, draws with 4c 44 52 (LDR)")]
    Magic {
        /// The first bytes.
        found: [u8; 3],
    },
    /// A version that is not known here.
    #[error("version {found} of draws, known here is {known}: use programs of one version")]
    Version {
        /// The version found.
        found: u8,
        /// The version known.
        known: u8,
    },
    /// Values of an unknown kind.
    #[error(
        "{found} bits a value and reserved bytes {reserved:?}: wanted 32 or 16 bits, and zeros"
    )]
    Values {
        /// Bits a value.
        found: u8,
        /// The bytes behind them.
        reserved: [u8; 3],
    },
    /// Numbers of a head that cannot be.
    #[error(
        "{rows} rows of {draws} draws and {k} exact entries over {classes} classes: wanted 1 draw at \
         least, k at most the classes, and numbers of 32 bits"
    )]
    Impossible {
        /// Rows.
        rows: usize,
        /// Draws a row.
        draws: u32,
        /// Exact entries a row.
        k: usize,
        /// Classes.
        classes: usize,
    },
    /// A head that says something else than was asked for.
    #[error("the head says {found:?}, wanted {wanted:?}")]
    Head {
        /// What it says.
        found: Head,
        /// What was asked for.
        wanted: Head,
    },
    /// Bytes that end in a row.
    #[error("row {row}: the bytes end in it, or are no number of 32 bits")]
    EndsEarly {
        /// Row of the signal.
        row: usize,
    },
    /// Counts that sum to more than the draws.
    #[error("row {row}: more draws than {draws}")]
    TooManyDraws {
        /// Row of the signal.
        row: usize,
        /// Draws wanted.
        draws: u32,
    },
    /// An id that is no class.
    #[error("row {row}: an id beyond the {classes} classes")]
    Id {
        /// Row of the signal.
        row: usize,
        /// Classes.
        classes: usize,
    },
    /// Bits behind the last row.
    #[error("{bits} bits behind the last row: wanted fewer than 8, all 0")]
    Left {
        /// How many there are.
        bits: usize,
    },
}
