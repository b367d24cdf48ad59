//! [`super::Codec::Compact`] and [`super::Codec::Compact8`]: ids as short as ascending ones can be,
//! values in 16-bit or 8-bit fixed point beside them, and a head that says what all of it is.
//!
//! Sorting is most of the work, both ways: once by id to write, once by value to read.

use std::ops::Range;

use super::ascending::Ascending;
use super::scale::Scale;
use super::{Codec, CodecError, Layout, arrays, check_classes, floats, put_floats};
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
    let scales = [top, step];
    let of_ids = layout.classes.map(|classes| Ascending::new(k, classes)).zip(Some([lower, upper]));
    match layout.codec {
        Codec::Compact8 => put_rows::<1>(k, ids, values, scales, of_ids, codes)?,
        _ => put_rows::<2>(k, ids, values, scales, of_ids, codes)?,
    }
    Ok(bytes)
}

/// Scales, ids and codes of `W` bytes.
fn put_rows<const W: usize>(
    k: usize,
    ids: &[u32],
    values: &[f32],
    [tops, steps]: [&mut [u8]; 2],
    mut of_ids: Option<(Ascending, [&mut [u8]; 2])>,
    codes: &mut [u8],
) -> Result<(), CodecError> {
    let most = most::<W>();
    let mut keys = vec![0; if of_ids.is_some() { k } else { 0 }];
    let scales = tops.as_chunks_mut().0.iter_mut().zip(steps.as_chunks_mut().0);
    let rows = values.chunks_exact(k).zip(codes.chunks_exact_mut(k * W));
    for (row, ((values, codes), (top, step))) in rows.zip(scales).enumerate() {
        let scale = Scale::of(values, most);
        scale.check_last(row, most)?;
        *top = scale.top.to_le_bytes();
        *step = scale.step.to_le_bytes();
        let codes = codes.as_chunks_mut::<W>().0;
        let Some((ascending, [lower, upper])) = &mut of_ids else {
            scale.put_codes(values, codes, |code| narrow(code as u16));
            continue;
        };
        scale.put_codes(values, &mut keys, |code| code & u64::from(u16::MAX));
        for (key, &id) in keys.iter_mut().zip(&ids[row * k..]) {
            *key |= u64::from(id) << 16;
        }
        keys.sort_unstable();
        ascending.put(row, keys.iter().map(|key| (key >> 16) as u32), lower, upper)?;
        for (code, key) in codes.iter_mut().zip(&keys) {
            *code = narrow(*key as u16);
        }
    }
    Ok(())
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
    let of_ids = layout.classes.map(|classes| (Ascending::new(k, classes), [lower, upper]));
    let (ids, scaled) = match layout.codec {
        Codec::Compact8 => read_rows::<1>(k, [top, step], of_ids, codes)?,
        _ => read_rows::<2>(k, [top, step], of_ids, codes)?,
    };
    Ok(TopK { k, ids, scaled, log_z: floats(log_z), log_rest: floats(log_rest) })
}

/// Ids and values of codes of `W` bytes.
fn read_rows<const W: usize>(
    k: usize,
    [tops, steps]: [&[u8]; 2],
    of_ids: Option<(Ascending, [&[u8]; 2])>,
    codes: &[u8],
) -> Result<(Vec<u32>, Vec<f32>), CodecError> {
    let entries = codes.len() / W;
    let mut scaled = Vec::with_capacity(entries);
    let mut ids = Vec::with_capacity(if of_ids.is_some() { entries } else { 0 });
    let (mut read, mut keys, mut scratch) = (Vec::new(), Vec::new(), Vec::new());
    let scales = arrays(tops).zip(arrays(steps)).enumerate();
    for ((row, (top, step)), codes) in scales.zip(codes.chunks_exact(k * W)) {
        let scale = Scale::read(row, top, step)?;
        let values = arrays::<W>(codes).map(|code| scale.value(wide(code)));
        let Some((ascending, [lower, upper])) = of_ids else {
            scaled.extend(values);
            continue;
        };
        ascending.read(row, lower, upper, &mut scratch, &mut read)?;
        keys.clear();
        keys.extend(values.zip(&read).map(|(value, &id)| key(value, id)));
        keys.sort_unstable();
        ids.extend(keys.iter().map(|&key| key as u32));
        scaled.extend(keys.iter().map(|&key| value_of(key)));
    }
    Ok((ids, scaled))
}

/// What is smaller the larger the value, and of equal ones the smaller the id. No row has both 0 and
/// -0: the largest value, one of them, is all its others' beginning.
fn key(value: f32, id: u32) -> u64 {
    let bits = value.to_bits();
    let falling = if bits >> 31 == 0 { !(bits | SIGN) } else { bits };
    u64::from(falling) << 32 | u64::from(id)
}

/// The value in a key.
fn value_of(key: u64) -> f32 {
    let falling = (key >> 32) as u32;
    f32::from_bits(if falling >> 31 == 0 { !(falling | SIGN) } else { falling })
}

/// The bit of float32 that says a number is negative.
const SIGN: u32 = 1 << 31;

/// The largest code of `W` bytes.
fn most<const W: usize>() -> u16 {
    if W == 1 { u8::MAX.into() } else { u16::MAX }
}

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
