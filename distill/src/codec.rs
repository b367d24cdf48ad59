//! Signals as bytes: two layouts of [`TopK`], both little-endian and without padding.
//!
//! For `R` rows of `k` entries, one array after another:
//! * [`Codec::Packed`]: `top f32[R] | step f32[R] | log_z f32[R] | log_rest f32[R] | ids u24[R*k] |
//!   codes u16[R*k]`; the value of an entry is `top - code * step`.
//! * [`Codec::Raw`]: `log_z f32[R] | log_rest f32[R] | ids u32[R*k] | values f32[R*k]`.
//!
//! Where the receiver knows the ids, having named them, their array is left out ([`Ids::Known`]).
//!
//! Of [`crate::signal::Draws`]: [`mod@draws`].

pub mod draws;
mod error;
mod packed;
mod raw;

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use crate::signal::TopK;
pub use error::CodecError;

/// Classes an id of three bytes can name.
pub const MAX_PACKED_CLASSES: usize = 1 << 24;

/// How a signal is laid out in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// 5 bytes an entry and 16 a row. Values in 16-bit fixed point between the row's largest and
    /// smallest: off by at most `(largest - smallest) / 131070`, then rounded to f32.
    Packed,
    /// 8 bytes an entry and 8 a row, exact.
    Raw,
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Packed => "packed",
            Self::Raw => "raw",
        })
    }
}

/// A codec, and whether the ids are among the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// How numbers are laid out.
    pub codec: Codec,
    /// False where the receiver named the ids and knows them.
    pub ids: bool,
}

impl Layout {
    /// Bytes of one row of `k` entries.
    pub fn row_bytes(self, k: usize) -> usize {
        let (row, id, value) = match self.codec {
            Codec::Packed => (16, 3, 2),
            Codec::Raw => (8, 4, 4),
        };
        let entry = value + if self.ids { id } else { 0 };
        k.saturating_mul(entry).saturating_add(row)
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

/// Writes rows of a signal as bytes.
///
/// # Errors
/// [`CodecError`] when the arrays do not belong together, a number is not finite (`log_rest` may be
/// -inf) or would not be once read (the packed codec's, at -3.4e38), or an id does not fit into three
/// bytes of the packed codec. Row numbers count within `rows`.
///
/// # Panics
/// When `rows` lies outside the signal.
pub fn encode(signal: &TopK, rows: Range<usize>, layout: Layout) -> Result<Vec<u8>, CodecError> {
    check_shape(signal)?;
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let k = signal.k;
    let ids = if layout.ids { &signal.ids[rows.start * k..rows.end * k] } else { &[] };
    let values = &signal.scaled[rows.start * k..rows.end * k];
    let log_z = &signal.log_z[rows.clone()];
    let log_rest = &signal.log_rest[rows.clone()];
    check_numbers(k, values, log_z, log_rest)?;
    match layout.codec {
        Codec::Raw => Ok(raw::encode(ids, values, log_z, log_rest)),
        Codec::Packed => packed::encode(k, ids, values, log_z, log_rest),
    }
}

/// Reads `rows` rows of `k` entries.
///
/// # Errors
/// [`CodecError`] when the length is not exactly that of such a signal, an id is no class or comes
/// twice in a row, or a number is not finite (`log_rest` may be -inf). No bytes make it panic, and
/// it reserves no more than the length of `bytes` warrants, and a bit a class.
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
    let sent = check_announced(rows, k, codec, ids)?;
    let wanted = rows.saturating_mul(Layout { codec, ids: sent }.row_bytes(k));
    if bytes.len() != wanted {
        return Err(CodecError::Length { codec, rows, k, wanted, found: bytes.len() });
    }
    if rows == 0 {
        // Entries of no row may be more than any arithmetic bears.
        return Ok(TopK::new(k));
    }
    let mut signal = match codec {
        Codec::Raw => raw::decode(bytes, rows, k, sent),
        Codec::Packed => packed::decode(bytes, rows, k, sent)?,
    };
    check_numbers(k, &signal.scaled, &signal.log_z, &signal.log_rest)?;
    match ids {
        Ids::Sent { classes } => check_ids(&signal, classes)?,
        Ids::Known(ids) => signal.ids = ids.to_vec(),
    }
    Ok(signal)
}

/// Whether such ids are among the bytes.
fn check_announced(rows: usize, k: usize, codec: Codec, ids: Ids<'_>) -> Result<bool, CodecError> {
    match ids {
        Ids::Sent { classes } if k > classes => Err(CodecError::TooManyEntries { k, classes }),
        Ids::Sent { classes } if codec == Codec::Packed && classes > MAX_PACKED_CLASSES => {
            Err(CodecError::PackedClasses { classes })
        }
        Ids::Sent { .. } => Ok(true),
        Ids::Known(ids) if ids.len() != rows.saturating_mul(k) => {
            let (wanted, found) = (rows.saturating_mul(k), ids.len());
            Err(CodecError::Shape { rows, k, array: "known ids", wanted, found })
        }
        Ids::Known(_) => Ok(false),
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

/// Every id a class, and none twice in a row: a repeated id would count its mass twice.
fn check_ids(signal: &TopK, classes: usize) -> Result<(), CodecError> {
    let (ids, k) = (&signal.ids, signal.k);
    let bound = bound(ids);
    if bound > classes {
        let at = ids.iter().position(|&id| id as usize >= classes).unwrap_or_default();
        return Err(CodecError::Id { row: at / k, found: ids[at], classes });
    }
    match repeated_below(ids, k, bound) {
        None => Ok(()),
        Some((row, found)) => Err(CodecError::DuplicateId { row, found }),
    }
}

/// The first row of `k` ids that holds one twice, and that id. Every id is below `classes`.
///
/// # Panics
/// When k is 0 or an id is no class.
pub fn repeated(ids: &[u32], k: usize, classes: usize) -> Option<(usize, u32)> {
    repeated_below(ids, k, classes.min(bound(ids)))
}

fn repeated_below(ids: &[u32], k: usize, bound: usize) -> Option<(usize, u32)> {
    let mut rows = ids.chunks_exact(k).enumerate();
    let mut exact = Seen { words: Vec::new(), bound };
    let (row, ids) = if k <= MOST_MARKED && ids.len() >= MARKS {
        let mut marks = Marks { of: vec![0; MARKS], mark: 0 };
        rows.find(|(_, ids)| marks.meet(ids) && exact.twice(ids))?
    } else {
        rows.find(|(_, ids)| exact.twice(ids))?
    };
    let mut before = BTreeSet::new();
    ids.iter().find(|&&id| !before.insert(id)).map(|&id| (row, id))
}

/// Places for marks, so many that they stay in the nearest cache. For fewer ids than that it does not
/// pay to make them.
const MARKS: usize = 1 << 14;
/// Longest row for which [`Marks`] say no more often than they leave it open.
const MOST_MARKED: usize = 128;

/// Which ids of a row may be the same: those that meet at a place. Each row has a mark of its own, so
/// that nothing need be cleaned after it.
struct Marks {
    of: Vec<u8>,
    mark: u8,
}

impl Marks {
    fn meet(&mut self, ids: &[u32]) -> bool {
        self.mark = self.mark.wrapping_add(1);
        if self.mark == 0 {
            self.of.fill(0);
            self.mark = 1;
        }
        let (mark, mut met) = (self.mark, false);
        let of = &mut self.of[..MARKS];
        by_fours(ids, |id| {
            let place = &mut of[id as usize % MARKS];
            met |= *place == mark;
            *place = mark;
        });
        met
    }
}

/// Which ids a row has: one bit a class below `bound`, made when first needed.
struct Seen {
    words: Vec<u64>,
    bound: usize,
}

impl Seen {
    fn twice(&mut self, ids: &[u32]) -> bool {
        self.words.resize(self.bound.div_ceil(64), 0);
        let (seen, mut twice) = (&mut self.words, 0);
        by_fours(ids, |id| {
            let word = &mut seen[id as usize / 64];
            twice |= *word >> (id % 64);
            *word |= 1 << (id % 64);
        });
        by_fours(ids, |id| seen[id as usize / 64] = 0);
        twice & 1 != 0
    }
}

/// One after another, in a loop unrolled.
#[inline]
fn by_fours(ids: &[u32], mut each: impl FnMut(u32)) {
    let (groups, rest) = ids.as_chunks::<4>();
    for group in groups {
        group.iter().for_each(|&id| each(id));
    }
    rest.iter().for_each(|&id| each(id));
}

/// 1 + the largest id.
fn bound(ids: &[u32]) -> usize {
    ids.iter().max().map_or(0, |&id| id as usize + 1)
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
