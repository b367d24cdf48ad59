//! [`super::Codec::Packed`]: ids of three bytes, values in 16-bit fixed point.
//!
//! Loops go over several lanes or whole groups without an early exit, which the compiler makes
//! vector code of; nothing here is unsafe or depends on the processor.

use super::scale::Scale;
use super::{CodecError, MAX_PACKED_CLASSES, arrays, floats, put_floats};
use crate::signal::TopK;

/// The three lower bytes of an id.
const ID: u32 = MAX_PACKED_CLASSES as u32 - 1;

/// Every number is finite (`log_rest` may be -inf). A row whose smallest value is the smallest float32,
/// or nearly, is refused: the step being rounded up, its last step would end beyond.
pub(super) fn encode(
    k: usize,
    ids: &[u32],
    values: &[f32],
    log_z: &[f32],
    log_rest: &[f32],
) -> Result<Vec<u8>, CodecError> {
    let column = 4 * log_z.len();
    let mut bytes = vec![0; 4 * column + 3 * ids.len() + 2 * values.len()];
    let (top, rest) = bytes.split_at_mut(column);
    let (step, rest) = rest.split_at_mut(column);
    let (z, rest) = rest.split_at_mut(column);
    let (mass, rest) = rest.split_at_mut(column);
    let (id, code) = rest.split_at_mut(3 * ids.len());
    put_ids(id, ids)?;
    put_floats(z, log_z);
    put_floats(mass, log_rest);
    let scales = top.as_chunks_mut::<4>().0.iter_mut().zip(step.as_chunks_mut::<4>().0);
    let rows = values.chunks_exact(k).zip(code.chunks_exact_mut(2 * k));
    for (row, ((values, codes), (top, step))) in rows.zip(scales).enumerate() {
        let scale = Scale::of(values, u16::MAX);
        scale.check_last(row, u16::MAX)?;
        *top = scale.top.to_le_bytes();
        *step = scale.step.to_le_bytes();
        let codes = codes.as_chunks_mut::<2>().0;
        scale.put_codes(values, codes, |code| (code as u16).to_le_bytes());
    }
    Ok(bytes)
}

/// The bytes are as many as such a signal has.
pub(super) fn decode(bytes: &[u8], rows: usize, k: usize, sent: bool) -> Result<TopK, CodecError> {
    let (top, rest) = bytes.split_at(4 * rows);
    let (step, rest) = rest.split_at(4 * rows);
    let (log_z, rest) = rest.split_at(4 * rows);
    let (log_rest, rest) = rest.split_at(4 * rows);
    let (ids, codes) = rest.split_at(if sent { 3 * rows * k } else { 0 });
    let scales = arrays(top).zip(arrays(step)).enumerate();
    let mut scaled = Vec::with_capacity(rows * k);
    for ((row, (top, step)), codes) in scales.zip(codes.chunks_exact(2 * k)) {
        let scale = Scale::read(row, top, step)?;
        scaled.extend(arrays(codes).map(|code| scale.value(u16::from_le_bytes(code))));
    }
    let (log_z, log_rest) = (floats(log_z), floats(log_rest));
    Ok(TopK { k, ids: read_ids(ids), scaled, log_z, log_rest })
}

/// Three bytes an id.
fn put_ids(bytes: &mut [u8], ids: &[u32]) -> Result<(), CodecError> {
    let (groups, rest) = ids.as_chunks::<4>();
    let (of_groups, of_rest) = bytes.as_chunks_mut::<12>();
    let mut all = 0;
    for (bytes, &[a, b, c, d]) in of_groups.iter_mut().zip(groups) {
        all |= a | b | c | d;
        let low = u64::from(a) | u64::from(b) << 24 | u64::from(c) << 48;
        bytes[..8].copy_from_slice(&low.to_le_bytes());
        bytes[8..].copy_from_slice(&(c >> 16 | d << 8).to_le_bytes());
    }
    for (bytes, id) in of_rest.as_chunks_mut::<3>().0.iter_mut().zip(rest) {
        all |= id;
        bytes.copy_from_slice(&id.to_le_bytes()[..3]);
    }
    let too_large = if all > ID { ids.iter().find(|&&id| id > ID) } else { None };
    too_large.map_or(Ok(()), |&id| Err(CodecError::PackedClasses { classes: id as usize + 1 }))
}

/// Ids of three bytes.
fn read_ids(bytes: &[u8]) -> Vec<u32> {
    let mut ids = vec![0; bytes.len() / 3];
    let (groups, rest) = bytes.as_chunks::<12>();
    let (of_groups, of_rest) = ids.as_chunks_mut::<4>();
    for (ids, bytes) in of_groups.iter_mut().zip(groups) {
        let word = |at| u32::from_le_bytes(std::array::from_fn(|i: usize| bytes[at + i]));
        let (x, y, z) = (word(0), word(4), word(8));
        *ids = [x & ID, (x >> 24 | y << 8) & ID, (y >> 16 | z << 16) & ID, z >> 8];
    }
    for (id, &[a, b, c]) in of_rest.iter_mut().zip(rest.as_chunks::<3>().0) {
        *id = u32::from_le_bytes([a, b, c, 0]);
    }
    ids
}

#[cfg(test)]
#[path = "packed_tests.rs"]
mod tests;
