//! One record: a header that can be believed or not by itself, and a payload with its checksum.
//!
//! `"LREC" | payload length u32 | key [32] | XXH3-64 of the payload u64 | XXH3-64 of the 48 bytes
//! before, the segment's number u32 and the record's offset u32 | payload`, numbers little-endian.
//! The place is part of the header's checksum: bytes of a record that stand anywhere else, in
//! another payload for instance, are not taken for one.

use super::index::Place;
use super::key::Key;
use crate::fingerprint::payload_checksum;

/// First bytes of a record.
pub(super) const MAGIC: &[u8; 4] = b"LREC";

/// Bytes of a record before its payload.
pub const HEADER_BYTES: usize = 56;

/// Longest payload.
pub const MAX_PAYLOAD_BYTES: usize = 1 << 30;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whose payload it is.
    pub key: Key,
    /// Bytes of the payload, at most [`MAX_PAYLOAD_BYTES`].
    pub length: u32,
    /// XXH3-64 of the payload.
    pub checksum: u64,
}

impl Header {
    /// Reads the header at a place; none when these bytes are no header of this place.
    pub fn read(bytes: &[u8; HEADER_BYTES], place: Place) -> Option<Self> {
        let (body, check) = bytes.split_at(48);
        if &body[..4] != MAGIC || check != header_checksum(body, place).to_le_bytes() {
            return None;
        }
        let length = u32::from_le_bytes(array(&body[4..8])?);
        let header = Self {
            key: Key(array(&body[8..40])?),
            length,
            checksum: u64::from_le_bytes(array(&body[40..])?),
        };
        (length as usize <= MAX_PAYLOAD_BYTES).then_some(header)
    }
}

/// Appends to `out` the bytes of the record that is to stand at `place`; false, and nothing is
/// appended, where the payload is longer than [`MAX_PAYLOAD_BYTES`].
pub fn write_record(out: &mut Vec<u8>, key: &Key, payload: &[u8], place: Place) -> bool {
    if payload.len() > MAX_PAYLOAD_BYTES {
        return false;
    }
    let start = out.len();
    out.reserve(HEADER_BYTES + payload.len());
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&key.0);
    out.extend_from_slice(&payload_checksum(&[payload]).to_le_bytes());
    let check = header_checksum(&out[start..], place);
    out.extend_from_slice(&check.to_le_bytes());
    out.extend_from_slice(payload);
    true
}

/// Whether these bytes are the payload that a header announces.
pub fn payload_is(payload: &[u8], header: &Header) -> bool {
    payload.len() == header.length as usize && payload_checksum(&[payload]) == header.checksum
}

fn header_checksum(body: &[u8], place: Place) -> u64 {
    payload_checksum(&[body, &place.segment.to_le_bytes(), &place.offset.to_le_bytes()])
}

pub(super) fn array<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.try_into().ok()
}
