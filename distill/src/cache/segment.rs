//! A segment: a header and records one after another, appended to and never changed.
//!
//! `"LIMBSEG\0" | version u32 | number u32 | space [32] | 0 u64 | XXH3-64 of the 56 bytes before`,
//! numbers little-endian, then the records from byte 64 on.

use super::FORMAT_VERSION;
use super::index::Place;
use super::key::{Key, Space};
use super::record::{HEADER_BYTES, Header, MAGIC, array, payload_is};
use crate::fingerprint::{Fingerprint, payload_checksum};

const SEGMENT_MAGIC: &[u8; 8] = b"LIMBSEG\0";

/// Bytes of a segment before its first record.
pub const SEGMENT_HEADER_BYTES: usize = 64;

/// Why bytes are no segment of this cache. None of its records can be used then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// Too few bytes for a header.
    #[error("it ends after {found} bytes, within its header of {SEGMENT_HEADER_BYTES}")]
    Short {
        /// Bytes there.
        found: usize,
    },
    /// Another kind of file, or a damaged header.
    #[error("its first {SEGMENT_HEADER_BYTES} bytes are no header of a segment, or are damaged")]
    Header,
    /// A version this program does not know.
    #[error("its format is of version {found}, this program reads {FORMAT_VERSION}")]
    Version {
        /// The version there.
        found: u32,
    },
    /// A segment of another place in the order.
    #[error("it is number {found}, wanted {wanted}")]
    Number {
        /// The number there.
        found: u32,
        /// The number its name says.
        wanted: u32,
    },
    /// A segment of another cache: other model, tokenizer, signal or temperature.
    #[error(
        "it belongs to a cache of another model, tokenizer, signal or temperature (space {}, \
         wanted {})", Fingerprint(found.0), Fingerprint(wanted.0)
    )]
    Space {
        /// The space there.
        found: Space,
        /// That of the cache.
        wanted: Space,
    },
}

/// A record that is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub key: Key,
    /// Where it begins in the segment.
    pub offset: u32,
    /// Bytes of its payload.
    pub length: u32,
}

/// Bytes that are no whole record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where they begin in the segment.
    pub offset: u32,
    /// How many.
    pub bytes: u32,
    /// Whose they are, where the header can be read.
    pub key: Option<Key>,
}

/// What a segment holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// The whole records, in order.
    pub records: Vec<Found>,
    /// What is damaged between them.
    pub damaged: Vec<Damage>,
    /// An end that is no whole record: what a writer that was killed leaves. The next one cuts it off
    /// where it begins.
    pub torn: Option<Damage>,
}

/// The first bytes of a segment.
pub fn segment_header(number: u32, space: &Space) -> [u8; SEGMENT_HEADER_BYTES] {
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    bytes[..8].copy_from_slice(SEGMENT_MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&number.to_le_bytes());
    bytes[16..48].copy_from_slice(&space.0);
    let check = payload_checksum(&[&bytes[..56]]);
    bytes[56..].copy_from_slice(&check.to_le_bytes());
    bytes
}

/// Reads a segment from its first byte to its last; every checksum is checked. A damaged record is
/// named and passed over: by its length where its header can be read, else to the next header.
///
/// # Errors
/// [`SegmentError`] when the whole is not segment `number` of the cache. No bytes make it panic, and
/// it reserves no more than they warrant.
pub fn scan(bytes: &[u8], number: u32, space: &Space) -> Result<Scan, SegmentError> {
    check_header(bytes, number, space)?;
    let mut found = Scan::default();
    let mut at = SEGMENT_HEADER_BYTES;
    let damage = |from: usize, to: usize, key| Damage {
        offset: from as u32,
        bytes: (to - from) as u32,
        key,
    };
    // Places are 32 bits wide; a writer seals a segment long before.
    let bytes = &bytes[..bytes.len().min(u32::MAX as usize)];
    while at < bytes.len() {
        let Some(header) = header_at(bytes, at, number) else {
            match (at + 1..bytes.len()).find(|&next| header_at(bytes, next, number).is_some()) {
                Some(next) => found.damaged.push(damage(at, next, None)),
                None => {
                    found.torn = Some(damage(at, bytes.len(), None));
                    break;
                }
            }
            at = found.damaged.last().map_or(at, |lost| (lost.offset + lost.bytes) as usize);
            continue;
        };
        let end = at + HEADER_BYTES + header.length as usize;
        let Some(payload) = bytes.get(at + HEADER_BYTES..end) else {
            found.torn = Some(damage(at, bytes.len(), Some(header.key)));
            break;
        };
        match payload_is(payload, &header) {
            true => {
                let (offset, length) = (at as u32, header.length);
                found.records.push(Found { key: header.key, offset, length });
            }
            false => found.damaged.push(damage(at, end, Some(header.key))),
        }
        at = end;
    }
    Ok(found)
}

/// The header that begins at `at`, where one does.
fn header_at(bytes: &[u8], at: usize, segment: u32) -> Option<Header> {
    let bytes = bytes.get(at..at + HEADER_BYTES)?;
    // Looked at first, since nearly no other place begins so.
    if &bytes[..4] != MAGIC {
        return None;
    }
    Header::read(&array(bytes)?, Place { segment, offset: at as u32 })
}

fn check_header(bytes: &[u8], number: u32, space: &Space) -> Result<(), SegmentError> {
    let found = bytes.len();
    let header = bytes.get(..SEGMENT_HEADER_BYTES).ok_or(SegmentError::Short { found })?;
    let word = |at: usize| array(&header[at..at + 4]).map_or(0, u32::from_le_bytes);
    let check = payload_checksum(&[&header[..56]]);
    if &header[..8] != SEGMENT_MAGIC || header[56..] != check.to_le_bytes() {
        return Err(SegmentError::Header);
    }
    let (version, found_number) = (word(8), word(12));
    if version != FORMAT_VERSION {
        return Err(SegmentError::Version { found: version });
    }
    if header[16..48] != space.0 {
        let found = Space(array(&header[16..48]).unwrap_or_default());
        return Err(SegmentError::Space { found, wanted: *space });
    }
    if found_number != number {
        return Err(SegmentError::Number { found: found_number, wanted: number });
    }
    Ok(())
}
