//! [`super::Codec::Raw`]: every number as it is.

use super::{arrays, floats, put_floats, put_words};
use crate::signal::TopK;

pub(super) fn encode(ids: &[u32], values: &[f32], log_z: &[f32], log_rest: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; 4 * (log_z.len() + log_rest.len() + ids.len() + values.len())];
    let (z, rest) = bytes.split_at_mut(4 * log_z.len());
    let (mass, rest) = rest.split_at_mut(4 * log_rest.len());
    let (id, value) = rest.split_at_mut(4 * ids.len());
    put_floats(z, log_z);
    put_floats(mass, log_rest);
    put_words(id, ids.iter().copied());
    put_floats(value, values);
    bytes
}

/// The bytes are as many as such a signal has.
pub(super) fn decode(bytes: &[u8], rows: usize, k: usize, sent: bool) -> TopK {
    let (log_z, rest) = bytes.split_at(4 * rows);
    let (log_rest, rest) = rest.split_at(4 * rows);
    let (ids, values) = rest.split_at(if sent { 4 * rows * k } else { 0 });
    let ids = arrays(ids).map(u32::from_le_bytes).collect();
    TopK { k, ids, scaled: floats(values), log_z: floats(log_z), log_rest: floats(log_rest) }
}
