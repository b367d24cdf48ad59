//! [`super::Codec::Compact`] and [`super::Codec::Compact8`]: ids as short as ascending ones can be,
//! values in 16-bit or 8-bit fixed point beside them, and a head that says what all of it is.
//!
//! Most of the work is sorting, by id to write and by value to read.

use std::ops::Range;

use super::ascending::Ascending;
use super::scale::Scale;
use super::{Codec, CodecError, Layout, arrays, check_classes, floats, put_floats, put_words};
use crate::signal::TopK;

/// Bytes of the head.
pub(super) const HEAD: usize = 20;
/// What it begins with.
const MAGIC: [u8; 3] = *b"LTK";
/// The version written and read here.
const VERSION: u8 = 1;
/// What stands in the head behind these.
const FIELDS: [(&str, Range<usize>); 6] = [
    ("number of bits a value", 4..5),
    ("mark of ids among the bytes", 5..6),
    ("reserved number", 6..8),
    ("number of rows", 8..12),
    ("number of entries a row", 12..16),
    ("number of classes", 16..20),
];

/// The head of such bytes.
fn head(layout: Layout, rows: usize, k: usize) -> [u8; HEAD] {
    let number = |number| u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes();
    let mut head = [0; HEAD];
    head[..3].copy_from_slice(&MAGIC);
    head[3] = VERSION;
    head[4] = if layout.codec == Codec::Compact8 { 8 } else { 16 };
    head[5] = u8::from(layout.classes.is_some());
    head[8..12].copy_from_slice(&number(rows));
    head[12..16].copy_from_slice(&number(k));
    head[16..20].copy_from_slice(&number(layout.classes.unwrap_or(0)));
    head
}

/// Whether bytes begin as those of such a signal; too few for a head are another's to refuse.
pub(super) fn check_head(
    bytes: &[u8],
    layout: Layout,
    rows: usize,
    k: usize,
) -> Result<(), CodecError> {
    let Some((found, _)) = bytes.split_first_chunk::<HEAD>() else { return Ok(()) };
    if found[..3] != MAGIC {
        let found = [found[0], found[1], found[2]];
        return Err(CodecError::Magic { codec: layout.codec, found });
    }
    if found[3] != VERSION {
        return Err(CodecError::Version { found: found[3], known: VERSION });
    }
    let wanted = head(layout, rows, k);
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, &byte| n << 8 | u32::from(byte));
    for (what, at) in FIELDS {
        let (found, wanted) = (number(&found[at.clone()]), number(&wanted[at]));
        if found != wanted {
            return Err(CodecError::Head { what, found, wanted });
        }
    }
    Ok(())
}

/// Lengths of the arrays behind the head: tops, steps, `log_z`, `log_rest`, lower bits of the ids and
/// upper parts of them, codes.
fn lengths(layout: Layout, rows: usize, k: usize) -> [usize; 7] {
    let ids = layout.classes.map(|classes| Ascending::new(k, classes));
    let (lower, upper) = ids.map_or((0, 0), |ids| (ids.lower_bytes(), ids.upper_bytes()));
    let code = if layout.codec == Codec::Compact8 { 1 } else { 2 };
    [4, 4, 4, 4, lower, upper, k * code].map(|of_a_row| of_a_row * rows)
}

/// Every number is finite (`log_rest` may be -inf).
pub(super) fn encode(
    layout: Layout,
    k: usize,
    ids: &[u32],
    values: &[f32],
    log_z: &[f32],
    log_rest: &[f32],
) -> Result<Vec<u8>, CodecError> {
    let rows = log_z.len();
    if let Some(classes) = layout.classes {
        check_classes(k, layout.codec, classes)?;
    }
    let mut bytes = vec![0; layout.bytes(rows, k)];
    let (of_head, mut rest) = bytes.split_at_mut(HEAD);
    of_head.copy_from_slice(&head(layout, rows, k));
    let [top, step, z, mass, lower, upper, codes] = lengths(layout, rows, k).map(|length| {
        let (array, others) = std::mem::take(&mut rest).split_at_mut(length);
        rest = others;
        array
    });
    put_floats(z, log_z);
    put_floats(mass, log_rest);
    let most = if layout.codec == Codec::Compact8 { u8::MAX.into() } else { u16::MAX };
    let scale = |(row, values)| {
        let scale = Scale::of(values, most);
        scale.check_last(row, most).map(|()| scale)
    };
    let scales = values.chunks_exact(k).enumerate().map(scale).collect::<Result<Vec<_>, _>>()?;
    put_words(top, scales.iter().map(|scale| scale.top.to_bits()));
    put_words(step, scales.iter().map(|scale| scale.step.to_bits()));
    let rows =
        Rows { k, scales, ids: layout.classes.map(|n| (Ascending::new(k, n), lower, upper)) };
    let eight = layout.codec == Codec::Compact8;
    let put = if eight { Rows::put::<1> } else { Rows::put::<2> };
    put(rows, ids, values, codes)?;
    Ok(bytes)
}

/// The bytes are as many as such a signal has, and begin as they do.
pub(super) fn decode(
    bytes: &[u8],
    layout: Layout,
    rows: usize,
    k: usize,
) -> Result<TopK, CodecError> {
    let mut rest = &bytes[HEAD..];
    let [top, step, log_z, log_rest, lower, upper, codes] =
        lengths(layout, rows, k).map(|length| {
            let (array, others) = rest.split_at(length);
            rest = others;
            array
        });
    let scales = arrays(top).zip(arrays(step)).enumerate();
    let scales = scales.map(|(row, (top, step))| Scale::read(row, top, step));
    let scales = scales.collect::<Result<Vec<_>, _>>()?;
    let rows =
        Rows { k, scales, ids: layout.classes.map(|n| (Ascending::new(k, n), lower, upper)) };
    let eight = layout.codec == Codec::Compact8;
    let read = if eight { Rows::read::<1> } else { Rows::read::<2> };
    let (ids, scaled) = read(rows, codes)?;
    Ok(TopK { k, ids, scaled, log_z: floats(log_z), log_rest: floats(log_rest) })
}

/// Rows of `k` entries; the bytes of their ids, where these are among the bytes: lower bits and upper
/// parts.
struct Rows<B> {
    k: usize,
    scales: Vec<Scale>,
    ids: Option<(Ascending, B, B)>,
}

impl Rows<&mut [u8]> {
    /// Ids, and codes of `W` bytes.
    fn put<const W: usize>(
        self,
        ids: &[u32],
        values: &[f32],
        codes: &mut [u8],
    ) -> Result<(), CodecError> {
        let Self { k, scales, ids: of_ids } = self;
        let codes = codes.as_chunks_mut::<W>().0;
        let Some((ascending, lower, upper)) = of_ids else {
            let rows = values.chunks_exact(k).zip(codes.chunks_exact_mut(k));
            for (scale, (values, codes)) in scales.iter().zip(rows) {
                scale.put_codes(values, codes, |code| narrow(code as u16));
            }
            return Ok(());
        };
        let mut keys = vec![0; k];
        let rows = values.chunks_exact(k).zip(ids.chunks_exact(k)).zip(codes.chunks_exact_mut(k));
        for ((row, scale), ((values, ids), codes)) in scales.iter().enumerate().zip(rows) {
            scale.put_codes(values, &mut keys, |code| code & CODE);
            for (key, &id) in keys.iter_mut().zip(ids) {
                *key |= u64::from(id) << 16;
            }
            keys.sort_unstable();
            ascending.put(row, keys.iter().map(|key| (key >> 16) as u32), lower, upper)?;
            for (code, &key) in codes.iter_mut().zip(&keys) {
                *code = narrow(key as u16);
            }
        }
        Ok(())
    }
}

impl Rows<&[u8]> {
    /// Ids and values of codes of `W` bytes.
    fn read<const W: usize>(self, codes: &[u8]) -> Result<(Vec<u32>, Vec<f32>), CodecError> {
        let Self { k, scales, ids: of_ids } = self;
        let codes = codes.as_chunks::<W>().0;
        let mut scaled = Vec::with_capacity(codes.len());
        let Some((ascending, lower, upper)) = of_ids else {
            for (scale, codes) in scales.iter().zip(codes.chunks_exact(k)) {
                scaled.extend(codes.iter().map(|&code| scale.value(wide(code))));
            }
            return Ok((Vec::new(), scaled));
        };
        let mut ids = Vec::with_capacity(codes.len());
        let (mut keys, mut read, mut scratch) = (vec![0; k], vec![0; k], Vec::new());
        for ((row, scale), codes) in scales.iter().enumerate().zip(codes.chunks_exact(k)) {
            ascending.read(row, lower, upper, &mut scratch, &mut read)?;
            for ((key, &id), &code) in keys.iter_mut().zip(&read).zip(codes) {
                *key = falling(scale.value(wide(code))) << 32 | u64::from(id);
            }
            keys.sort_unstable();
            ids.extend(keys.iter().map(|&key| key as u32));
            scaled.extend(keys.iter().map(|key| risen(key >> 32)));
        }
        Ok((ids, scaled))
    }
}

/// A number that is smaller the larger the value. No row has both 0 and -0, since every value of it is
/// a difference from the same.
fn falling(value: f32) -> u64 {
    let bits = value.to_bits();
    u64::from(if bits & SIGN == 0 { !(bits | SIGN) } else { bits })
}

/// The value of such a number.
fn risen(falling: u64) -> f32 {
    let bits = falling as u32;
    f32::from_bits(if bits & SIGN == 0 { !(bits | SIGN) } else { bits })
}

/// The bit of a float32 that makes it negative.
const SIGN: u32 = 1 << 31;

/// A code among the bits of a number.
const CODE: u64 = u16::MAX as u64;

/// The lower bytes of a code.
fn narrow<const W: usize>(code: u16) -> [u8; W] {
    let bytes = code.to_le_bytes();
    std::array::from_fn(|byte| bytes[byte])
}

/// A code from its bytes.
fn wide<const W: usize>(bytes: [u8; W]) -> u16 {
    bytes.iter().rev().fold(0, |code, &byte| code << 8 | u16::from(byte))
}

#[cfg(test)]
#[path = "compact_tests.rs"]
mod tests;
