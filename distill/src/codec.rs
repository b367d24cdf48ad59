//! Signals as bytes: two layouts of [`TopK`], both little-endian and without padding.
//!
//! For `R` rows of `k` entries, one array after another:
//! * [`Codec::Packed`]: `top f32[R] | step f32[R] | log_z f32[R] | log_rest f32[R] | ids u24[R*k] |
//!   codes u16[R*k]`; the value of an entry is `top - code * step`.
//! * [`Codec::Raw`]: `log_z f32[R] | log_rest f32[R] | ids u32[R*k] | values f32[R*k]`.
//!
//! Where the receiver knows the ids, having named them, their array is left out ([`Ids::Known`]).

mod error;

use std::fmt;
use std::ops::Range;

use crate::signal::TopK;
pub use error::CodecError;

/// Classes an id of three bytes can name.
pub const MAX_PACKED_CLASSES: usize = 1 << 24;

/// Largest code of [`Codec::Packed`].
const MAX_CODE: f64 = 65_535.0;

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
/// -inf), or an id does not fit into three bytes of the packed codec. Row numbers count within
/// `rows`.
///
/// # Panics
/// When `rows` lies outside the signal.
pub fn encode(signal: &TopK, rows: Range<usize>, layout: Layout) -> Result<Vec<u8>, CodecError> {
    check_shape(signal)?;
    let k = signal.k;
    let ids = if layout.ids { &signal.ids[rows.start * k..rows.end * k] } else { &[] };
    let values = &signal.scaled[rows.start * k..rows.end * k];
    let log_z = &signal.log_z[rows.clone()];
    let log_rest = &signal.log_rest[rows.clone()];
    check_numbers(k, values, log_z, log_rest)?;
    let mut bytes = Vec::with_capacity(rows.len() * layout.row_bytes(k));
    match layout.codec {
        Codec::Raw => {
            put_f32(&mut bytes, log_z);
            put_f32(&mut bytes, log_rest);
            bytes.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
            put_f32(&mut bytes, values);
        }
        Codec::Packed => {
            let too_large = ids.iter().find(|&&id| id as usize >= MAX_PACKED_CLASSES);
            if let Some(&id) = too_large {
                return Err(CodecError::PackedClasses { classes: id as usize + 1 });
            }
            let scales: Vec<Scale> = values.chunks_exact(k).map(Scale::of).collect();
            bytes.extend(scales.iter().flat_map(|scale| scale.top.to_le_bytes()));
            bytes.extend(scales.iter().flat_map(|scale| scale.step.to_le_bytes()));
            put_f32(&mut bytes, log_z);
            put_f32(&mut bytes, log_rest);
            for id in ids {
                bytes.extend_from_slice(&id.to_le_bytes()[..3]);
            }
            for (row, scale) in values.chunks_exact(k).zip(&scales) {
                bytes.extend(row.iter().flat_map(|&value| scale.code(value).to_le_bytes()));
            }
        }
    }
    Ok(bytes)
}

/// Reads `rows` rows of `k` entries.
///
/// # Errors
/// [`CodecError`] when the length is not exactly that of such a signal, an id is no class or comes
/// twice in a row, or a number is not finite (`log_rest` may be -inf). No bytes make it panic, and
/// it reserves no more than the length of `bytes` warrants.
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
    let mut signal = match codec {
        Codec::Raw => decode_raw(bytes, rows, k, sent),
        Codec::Packed => decode_packed(bytes, rows, k, sent)?,
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
    ids.iter().flat_map(|id| id.to_le_bytes()).collect()
}

/// Token ids from u32 little-endian; none when the length is no multiple of 4.
pub fn tokens_from_bytes(bytes: &[u8]) -> Option<Vec<u32>> {
    bytes.len().is_multiple_of(4).then(|| arrays(bytes).map(u32::from_le_bytes).collect())
}

/// Numbers as f32 little-endian.
pub fn float_bytes(values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 * values.len());
    put_f32(&mut bytes, values);
    bytes
}

/// Numbers from f32 little-endian; none when the length is no multiple of 4.
pub fn floats_from_bytes(bytes: &[u8]) -> Option<Vec<f32>> {
    bytes.len().is_multiple_of(4).then(|| floats(bytes))
}

/// The fixed point of one row.
struct Scale {
    top: f32,
    step: f32,
}

impl Scale {
    /// The step is rounded up, so that the smallest value never needs a code beyond the largest.
    fn of(row: &[f32]) -> Self {
        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let smallest = row.iter().copied().fold(f32::INFINITY, f32::min);
        let exact = (f64::from(top) - f64::from(smallest)) / MAX_CODE;
        let nearest = exact as f32;
        let step = if f64::from(nearest) < exact { nearest.next_up() } else { nearest };
        Self { top, step }
    }

    fn code(&self, value: f32) -> u16 {
        if self.step == 0.0 {
            return 0;
        }
        ((f64::from(self.top) - f64::from(value)) / f64::from(self.step)).round() as u16
    }

    fn value(&self, code: u16) -> f32 {
        (f64::from(self.top) - f64::from(code) * f64::from(self.step)) as f32
    }
}

fn decode_raw(bytes: &[u8], rows: usize, k: usize, sent: bool) -> TopK {
    let (log_z, rest) = bytes.split_at(4 * rows);
    let (log_rest, rest) = rest.split_at(4 * rows);
    let (ids, values) = rest.split_at(if sent { 4 * rows * k } else { 0 });
    let ids = arrays(ids).map(u32::from_le_bytes).collect();
    TopK { k, ids, scaled: floats(values), log_z: floats(log_z), log_rest: floats(log_rest) }
}

fn decode_packed(bytes: &[u8], rows: usize, k: usize, sent: bool) -> Result<TopK, CodecError> {
    let (top, rest) = bytes.split_at(4 * rows);
    let (step, rest) = rest.split_at(4 * rows);
    let (log_z, rest) = rest.split_at(4 * rows);
    let (log_rest, rest) = rest.split_at(4 * rows);
    let (ids, codes) = rest.split_at(if sent { 3 * rows * k } else { 0 });
    let scales: Vec<Scale> = arrays(top)
        .zip(arrays(step))
        .map(|(top, step)| Scale { top: f32::from_le_bytes(top), step: f32::from_le_bytes(step) })
        .collect();
    for (row, scale) in scales.iter().enumerate() {
        for (what, found) in [("the largest value", scale.top), ("the step", scale.step)] {
            if !found.is_finite() {
                return Err(CodecError::NotFinite { row, what, found });
            }
        }
    }
    let ids = arrays(ids).map(|[a, b, c]| u32::from_le_bytes([a, b, c, 0])).collect();
    let mut scaled = Vec::with_capacity(rows * k);
    for (codes, scale) in codes.chunks_exact(2 * k).zip(&scales) {
        scaled.extend(arrays(codes).map(|code| scale.value(u16::from_le_bytes(code))));
    }
    Ok(TopK { k, ids, scaled, log_z: floats(log_z), log_rest: floats(log_rest) })
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
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        return wrong(at / k, "a value", values[at]);
    }
    if let Some(row) = log_z.iter().position(|value| !value.is_finite()) {
        return wrong(row, "log_z", log_z[row]);
    }
    let is_mass = |value: &f32| value.is_finite() || *value == f32::NEG_INFINITY;
    if let Some(row) = log_rest.iter().position(|value| !is_mass(value)) {
        return wrong(row, "log_rest", log_rest[row]);
    }
    Ok(())
}

/// Every id a class, and none twice in a row: a repeated id would count its mass twice.
fn check_ids(signal: &TopK, classes: usize) -> Result<(), CodecError> {
    if let Some(at) = signal.ids.iter().position(|&id| id as usize >= classes) {
        return Err(CodecError::Id { row: at / signal.k, found: signal.ids[at], classes });
    }
    match repeated(&signal.ids, signal.k, classes) {
        None => Ok(()),
        Some((row, found)) => Err(CodecError::DuplicateId { row, found }),
    }
}

/// The first row of `k` ids that holds one twice, and that id. Every id is below `classes`.
///
/// # Panics
/// When k is 0 or an id is no class.
pub fn repeated(ids: &[u32], k: usize, classes: usize) -> Option<(usize, u32)> {
    // One bit a class, few enough bytes for the nearest cache, and cleaned row by row.
    let mut seen = vec![0u64; classes.min(largest(ids)).div_ceil(64)];
    ids.chunks_exact(k).enumerate().find_map(|(row, ids)| {
        let mut again = None;
        for &id in ids {
            let (word, bit) = (&mut seen[id as usize / 64], 1u64 << (id % 64));
            again = again.or((*word & bit != 0).then_some(id));
            *word |= bit;
        }
        ids.iter().for_each(|&id| seen[id as usize / 64] = 0);
        again.map(|id| (row, id))
    })
}

/// 1 + the largest id.
fn largest(ids: &[u32]) -> usize {
    ids.iter().max().map_or(0, |&id| id as usize + 1)
}

fn put_f32(bytes: &mut Vec<u8>, values: &[f32]) {
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
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
