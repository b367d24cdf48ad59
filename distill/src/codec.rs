//! Signals as bytes: two layouts of [`TopK`], both little-endian and without padding.
//!
//! For `R` rows of `k` entries, one array after another:
//! * [`Codec::Packed`]: `top f32[R] | step f32[R] | log_z f32[R] | log_rest f32[R] | ids u24[R*k] |
//!   codes u16[R*k]`; the value of an entry is `top - code * step`.
//! * [`Codec::Raw`]: `log_z f32[R] | log_rest f32[R] | ids u32[R*k] | values f32[R*k]`.

use std::fmt;
use std::ops::Range;

use crate::signal::TopK;

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

/// Bytes of one row of `k` entries.
pub fn row_bytes(k: usize, codec: Codec) -> usize {
    match codec {
        Codec::Packed => k.saturating_mul(5).saturating_add(16),
        Codec::Raw => k.saturating_mul(8).saturating_add(8),
    }
}

/// Writes a signal as bytes.
///
/// # Errors
/// [`CodecError`] when the arrays do not belong together, a number is not finite (`log_rest` may be
/// -inf), or an id does not fit into three bytes of the packed codec.
pub fn encode(signal: &TopK, codec: Codec) -> Result<Vec<u8>, CodecError> {
    encode_rows(signal, 0..signal.rows(), codec)
}

/// Writes some rows of a signal as bytes, as [`encode`] does all of them.
///
/// # Errors
/// As [`encode`]; row numbers in errors count within `rows`.
///
/// # Panics
/// When `rows` lies outside the signal.
pub fn encode_rows(signal: &TopK, rows: Range<usize>, codec: Codec) -> Result<Vec<u8>, CodecError> {
    check_shape(signal)?;
    let k = signal.k;
    let ids = &signal.ids[rows.start * k..rows.end * k];
    let values = &signal.scaled[rows.start * k..rows.end * k];
    let log_z = &signal.log_z[rows.clone()];
    let log_rest = &signal.log_rest[rows.clone()];
    check_numbers(k, values, log_z, log_rest)?;
    let mut bytes = Vec::with_capacity(rows.len() * row_bytes(k, codec));
    match codec {
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

/// Reads `rows` rows of `k` entries over `classes` classes.
///
/// # Errors
/// [`CodecError`] when the length is not exactly that of such a signal, an id is no class or comes
/// twice in a row, or a number is not finite (`log_rest` may be -inf). No bytes make it panic, and
/// it reserves no more than the length of `bytes` warrants.
pub fn decode(
    bytes: &[u8],
    rows: usize,
    k: usize,
    classes: usize,
    codec: Codec,
) -> Result<TopK, CodecError> {
    if k == 0 {
        return Err(CodecError::ZeroEntries);
    }
    if k > classes {
        return Err(CodecError::TooManyEntries { k, classes });
    }
    if codec == Codec::Packed && classes > MAX_PACKED_CLASSES {
        return Err(CodecError::PackedClasses { classes });
    }
    let wanted = rows.saturating_mul(row_bytes(k, codec));
    if bytes.len() != wanted {
        return Err(CodecError::Length { codec, rows, k, wanted, found: bytes.len() });
    }
    let signal = match codec {
        Codec::Raw => {
            let (log_z, rest) = bytes.split_at(4 * rows);
            let (log_rest, rest) = rest.split_at(4 * rows);
            let (ids, values) = rest.split_at(4 * rows * k);
            let ids = arrays(ids).map(u32::from_le_bytes).collect();
            let scaled = floats(values);
            TopK { k, ids, scaled, log_z: floats(log_z), log_rest: floats(log_rest) }
        }
        Codec::Packed => decode_packed(bytes, rows, k)?,
    };
    check_numbers(k, &signal.scaled, &signal.log_z, &signal.log_rest)?;
    check_ids(&signal, classes)?;
    Ok(signal)
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

fn decode_packed(bytes: &[u8], rows: usize, k: usize) -> Result<TopK, CodecError> {
    let (top, rest) = bytes.split_at(4 * rows);
    let (step, rest) = rest.split_at(4 * rows);
    let (log_z, rest) = rest.split_at(4 * rows);
    let (log_rest, rest) = rest.split_at(4 * rows);
    let (ids, codes) = rest.split_at(3 * rows * k);
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
    let mut sorted = Vec::with_capacity(signal.k);
    for (row, ids) in signal.ids.chunks_exact(signal.k).enumerate() {
        sorted.clear();
        sorted.extend_from_slice(ids);
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(CodecError::DuplicateId { row, found: pair[0] });
        }
    }
    Ok(())
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
