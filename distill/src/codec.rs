//! Signals as bytes: four layouts of [`TopK`], all little-endian (docs/wire.md has them to the bit).
//!
//! For `R` rows of `k` entries, one array after another:
//! * [`Codec::Packed`]: `top f32[R] | step f32[R] | log_z f32[R] | log_rest f32[R] | ids u24[R*k] |
//!   codes u16[R*k]`; the value of an entry is `top - code * step`.
//! * [`Codec::Raw`]: `log_z f32[R] | log_rest f32[R] | ids u32[R*k] | values f32[R*k]`.
//! * [`Codec::Compact`] and [`Codec::Compact8`]: `head [20] | top f32[R] | step f32[R] | log_z f32[R] |
//!   log_rest f32[R] | lower bits of the ids [R] | upper bits of the ids [R] | codes u16 or u8 [R*k]`,
//!   entries by ascending id. The reader puts them back: by descending value as it is read, of equal
//!   values the lower id first.
//!
//! Where the receiver knows the ids, having named them, their array is left out ([`Ids::Known`]).
//!
//! Of [`crate::signal::Draws`]: [`mod@draws`].

mod ascending;
mod compact;
pub mod draws;
mod error;
mod packed;
mod raw;
mod repeated;
mod scale;

use std::fmt;
use std::ops::Range;

use crate::signal::TopK;
use ascending::Ascending;
pub use error::CodecError;
use repeated::check_ids;
pub use repeated::repeated;

/// Classes that the ids of every codec but the raw one can name.
pub const MAX_PACKED_CLASSES: usize = 1 << 24;

/// How a signal is laid out in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// 5 bytes an entry and 16 a row. Values in 16-bit fixed point between the row's largest and
    /// smallest: off by at most `(largest - smallest) / 131070`, then rounded to f32.
    Packed,
    /// 8 bytes an entry and 8 a row, exact.
    Raw,
    /// As the packed one, with ids of about `2 + log2(classes / k)` bits: 250 bytes a row of 64 entries
    /// out of 151,936 classes, where the packed one takes 336.
    Compact,
    /// The same with values in 8-bit fixed point, off by at most `(largest - smallest) / 510`: 186 bytes
    /// for such a row.
    Compact8,
}

impl Codec {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Packed, Self::Raw, Self::Compact, Self::Compact8];

    /// The most that a value is off by, as a share of its row's range (largest - smallest), before it
    /// is rounded to float32.
    pub fn error_share(self) -> f64 {
        match self {
            Self::Packed | Self::Compact => 0.5 / f64::from(u16::MAX),
            Self::Compact8 => 0.5 / f64::from(u8::MAX),
            Self::Raw => 0.0,
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Packed => "packed",
            Self::Raw => "raw",
            Self::Compact => "compact",
            Self::Compact8 => "compact8",
        })
    }
}

/// A codec, and whether the ids are among the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// How numbers are laid out.
    pub codec: Codec,
    /// The number of classes of the ids among the bytes; none where the receiver named the ids and
    /// knows them.
    pub classes: Option<usize>,
}

impl Layout {
    /// Every number as it is, whatever the classes: about what a signal takes in memory.
    pub const PLAIN: Self = Self { codec: Codec::Raw, classes: Some(usize::MAX) };

    /// Bytes before the first row.
    pub fn head_bytes(self) -> usize {
        match self.codec {
            Codec::Packed | Codec::Raw => 0,
            Codec::Compact | Codec::Compact8 => compact::HEAD,
        }
    }

    /// Bytes of one row of `k` entries.
    pub fn row_bytes(self, k: usize) -> usize {
        let ids = |width: usize| k.saturating_mul(width);
        let ascending = |classes| Ascending::new(k, classes).bytes();
        let (row, value, of_ids) = match self.codec {
            Codec::Packed => (16, 2, self.classes.map(|_| ids(3))),
            Codec::Raw => (8, 4, self.classes.map(|_| ids(4))),
            Codec::Compact => (16, 2, self.classes.map(ascending)),
            Codec::Compact8 => (16, 1, self.classes.map(ascending)),
        };
        k.saturating_mul(value).saturating_add(of_ids.unwrap_or(0)).saturating_add(row)
    }

    /// Bytes of `rows` rows of `k` entries: none for no rows.
    pub fn bytes(self, rows: usize, k: usize) -> usize {
        let head = if rows == 0 { 0 } else { self.head_bytes() };
        rows.saturating_mul(self.row_bytes(k)).saturating_add(head)
    }
}

/// What a receiver knows of the ids of a signal's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ids<'a> {
    /// They are among the bytes, each below this number of classes.
    Sent {
        /// Number of classes.
        classes: usize,
    },
    /// They are these, `[rows, k]`.
    Known(&'a [u32]),
}

impl Ids<'_> {
    /// The layout of bytes of which this is known.
    pub fn layout(&self, codec: Codec) -> Layout {
        match *self {
            Ids::Sent { classes } => Layout { codec, classes: Some(classes) },
            Ids::Known(_) => Layout { codec, classes: None },
        }
    }
}

/// Writes rows of a signal as bytes.
///
/// # Errors
/// [`CodecError`] when the arrays do not belong together, a number is not finite (`log_rest` may be
/// -inf) or would not be once read (that of a row down to -3.4e38, in every codec but the raw one), or
/// the codec has no way to write an id, of the compact ones also one that comes twice. Row numbers
/// count within `rows`.
///
/// # Panics
/// When `rows` lies outside the signal.
pub fn encode(signal: &TopK, rows: Range<usize>, layout: Layout) -> Result<Vec<u8>, CodecError> {
    check_shape(signal)?;
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let k = signal.k;
    let ids =
        if layout.classes.is_some() { &signal.ids[rows.start * k..rows.end * k] } else { &[] };
    let values = &signal.scaled[rows.start * k..rows.end * k];
    let log_z = &signal.log_z[rows.clone()];
    let log_rest = &signal.log_rest[rows.clone()];
    check_numbers(k, values, log_z, log_rest)?;
    match layout.codec {
        Codec::Raw => Ok(raw::encode(ids, values, log_z, log_rest)),
        Codec::Packed => packed::encode(k, ids, values, log_z, log_rest),
        Codec::Compact | Codec::Compact8 => {
            compact::encode(layout, k, ids, values, log_z, log_rest)
        }
    }
}

/// Reads `rows` rows of `k` entries.
///
/// # Errors
/// [`CodecError`] when the length is not exactly that of such a signal, an id is no class or comes
/// twice in a row, or a number is not finite (`log_rest` may be -inf); of the compact codecs also when
/// the head says another version or shape, or ids are written in another way than they would be. No
/// bytes make it panic, and it reserves no more than the length of `bytes` warrants, and a bit a class.
pub fn decode(
    bytes: &[u8],
    rows: usize,
    k: usize,
    codec: Codec,
    ids: Ids<'_>,
) -> Result<TopK, CodecError> {
    if k == 0 {
        return Err(CodecError::ZeroEntries);
    }
    check_announced(rows, k, codec, ids)?;
    let layout = ids.layout(codec);
    let compact = matches!(codec, Codec::Compact | Codec::Compact8);
    if compact && rows > 0 {
        // First, since what another version means may have another length.
        compact::check_head(bytes, layout, rows, k)?;
    }
    let wanted = layout.bytes(rows, k);
    if bytes.len() != wanted {
        return Err(CodecError::Length { codec, rows, k, wanted, found: bytes.len() });
    }
    if rows == 0 {
        // Entries of no row may be more than any arithmetic bears.
        return Ok(TopK::new(k));
    }
    let sent = layout.classes.is_some();
    let mut signal = match codec {
        Codec::Raw => raw::decode(bytes, rows, k, sent),
        Codec::Packed => packed::decode(bytes, rows, k, sent)?,
        Codec::Compact | Codec::Compact8 => compact::decode(bytes, layout, rows, k)?,
    };
    check_numbers(k, &signal.scaled, &signal.log_z, &signal.log_rest)?;
    match ids {
        // Ascending ids below the number of classes are what the compact codecs read.
        Ids::Sent { .. } if compact => {}
        Ids::Sent { classes } => check_ids(&signal, classes)?,
        Ids::Known(ids) => signal.ids = ids.to_vec(),
    }
    Ok(signal)
}

/// Whether the codec can say such ids.
fn check_announced(rows: usize, k: usize, codec: Codec, ids: Ids<'_>) -> Result<(), CodecError> {
    match ids {
        Ids::Sent { classes } => check_classes(k, codec, classes),
        Ids::Known(ids) if ids.len() != rows.saturating_mul(k) => {
            let (wanted, found) = (rows.saturating_mul(k), ids.len());
            Err(CodecError::Shape { rows, k, array: "known ids", wanted, found })
        }
        Ids::Known(_) => Ok(()),
    }
}

fn check_classes(k: usize, codec: Codec, classes: usize) -> Result<(), CodecError> {
    if k > classes {
        return Err(CodecError::TooManyEntries { k, classes });
    }
    match codec != Codec::Raw && classes > MAX_PACKED_CLASSES {
        true => Err(CodecError::PackedClasses { classes }),
        false => Ok(()),
    }
}

/// Token ids as u32 little-endian: how a sequence travels.
pub fn token_bytes(ids: &[u32]) -> Vec<u8> {
    words(ids.iter().copied())
}

/// Token ids from u32 little-endian; none when the length is no multiple of 4.
pub fn tokens_from_bytes(bytes: &[u8]) -> Option<Vec<u32>> {
    bytes.len().is_multiple_of(4).then(|| arrays(bytes).map(u32::from_le_bytes).collect())
}

/// Numbers as f32 little-endian.
pub fn float_bytes(values: &[f32]) -> Vec<u8> {
    words(values.iter().map(|value| value.to_bits()))
}

/// Numbers from f32 little-endian; none when the length is no multiple of 4.
pub fn floats_from_bytes(bytes: &[u8]) -> Option<Vec<f32>> {
    bytes.len().is_multiple_of(4).then(|| floats(bytes))
}

fn check_shape(signal: &TopK) -> Result<(), CodecError> {
    let (rows, k) = (signal.rows(), signal.k);
    if k == 0 {
        return Err(CodecError::ZeroEntries);
    }
    let arrays = [
        ("ids", signal.ids.len(), rows * k),
        ("values", signal.scaled.len(), rows * k),
        ("masses of the rest", signal.log_rest.len(), rows),
    ];
    for (array, found, wanted) in arrays {
        if found != wanted {
            return Err(CodecError::Shape { rows, k, array, wanted, found });
        }
    }
    Ok(())
}

fn check_numbers(
    k: usize,
    values: &[f32],
    log_z: &[f32],
    log_rest: &[f32],
) -> Result<(), CodecError> {
    let wrong = |row, what, found| Err(CodecError::NotFinite { row, what, found });
    if let Some(at) = first_not(values, |value| value.is_finite()) {
        return wrong(at / k, "a value", values[at]);
    }
    if let Some(row) = first_not(log_z, |value| value.is_finite()) {
        return wrong(row, "log_z", log_z[row]);
    }
    let is_mass = |value: f32| value.is_finite() || value == f32::NEG_INFINITY;
    if let Some(row) = first_not(log_rest, is_mass) {
        return wrong(row, "log_rest", log_rest[row]);
    }
    Ok(())
}

/// Where the first value stands that is not `good`.
fn first_not(values: &[f32], good: impl Fn(f32) -> bool) -> Option<usize> {
    // Without an early exit this is vector code, and nearly always all that is needed.
    if values.iter().fold(true, |all, &value| all & good(value)) {
        return None;
    }
    values.iter().position(|&value| !good(value))
}

/// Words of four bytes, the lowest first.
fn words(values: impl ExactSizeIterator<Item = u32>) -> Vec<u8> {
    let mut bytes = vec![0; 4 * values.len()];
    put_words(&mut bytes, values);
    bytes
}

fn put_words(bytes: &mut [u8], values: impl ExactSizeIterator<Item = u32>) {
    for (bytes, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(values) {
        *bytes = value.to_le_bytes();
    }
}

fn put_floats(bytes: &mut [u8], values: &[f32]) {
    put_words(bytes, values.iter().map(|value| value.to_bits()));
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    arrays(bytes).map(f32::from_le_bytes).collect()
}

/// The bytes in groups of `N`; a rest shorter than `N` is left out.
fn arrays<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks::<N>().0.iter().copied()
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;

#[cfg(test)]
mod loss_tests;
