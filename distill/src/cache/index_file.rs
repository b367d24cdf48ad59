//! The index of one sealed segment as a file, so that opening a cache need not read its records.
//!
//! `"LIMBIDX\0" | version u32 | segment's number u32 | its length in bytes u64 | records u64 |
//! space [32] | (first 8 bytes of the key as they stand there, offset u32)[records] | XXH3-64 of all
//! before`, numbers little-endian, records in the order of the segment.

use super::FORMAT_VERSION;
use super::key::Space;
use super::record::array;
use crate::fingerprint::payload_checksum;

const INDEX_MAGIC: &[u8; 8] = b"LIMBIDX\0";
const HEAD: usize = 64;
const ENTRY: usize = 12;

/// Why bytes are not the index of a segment. The segment itself tells all that they would.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is damaged, or the index of another segment: {0}")]
pub struct IndexFileError(&'static str);

/// What an index file says.
#[derive(Clone, Copy, Debug)]
pub struct Indexed<'a> {
    /// Bytes of the segment when it was sealed.
    pub segment_bytes: u64,
    entries: &'a [[u8; ENTRY]],
}

/// The index file of a sealed segment of `segment_bytes` that holds these records: of each the first
/// eight bytes of its key, as [`super::Key::prefix`] has them, and its offset.
pub fn write_index(
    number: u32,
    space: &Space,
    segment_bytes: u64,
    records: impl ExactSizeIterator<Item = (u64, u32)>,
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + ENTRY * records.len() + 8);
    bytes.extend_from_slice(INDEX_MAGIC);
    bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes.extend_from_slice(&segment_bytes.to_le_bytes());
    bytes.extend_from_slice(&(records.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&space.0);
    for (prefix, offset) in records {
        bytes.extend_from_slice(&prefix.to_be_bytes());
        bytes.extend_from_slice(&offset.to_le_bytes());
    }
    let check = payload_checksum(&[&bytes]);
    bytes.extend_from_slice(&check.to_le_bytes());
    bytes
}

/// Reads the index file of segment `number`.
///
/// # Errors
/// [`IndexFileError`] when it is not that, or damaged.
pub fn read_index<'a>(
    bytes: &'a [u8],
    number: u32,
    space: &Space,
) -> Result<Indexed<'a>, IndexFileError> {
    let wrong = |what| Err(IndexFileError(what));
    let Some((all, check)) = bytes.split_last_chunk::<8>().filter(|(all, _)| all.len() >= HEAD)
    else {
        return wrong("it is too short");
    };
    if payload_checksum(&[all]) != u64::from_le_bytes(*check) {
        return wrong("its checksum does not match");
    }
    let (head, entries) = all.split_at(HEAD);
    let wide = |at: usize| array(&head[at..at + 8]).map_or(0, u64::from_le_bytes);
    let word = |at: usize| array(&head[at..at + 4]).map_or(0, u32::from_le_bytes);
    if &head[..8] != INDEX_MAGIC || word(8) != FORMAT_VERSION {
        return wrong("it is of another kind or version");
    }
    if word(12) != number || head[32..] != space.0 {
        return wrong("it speaks of another segment");
    }
    let (entries, rest) = entries.as_chunks::<ENTRY>();
    if !rest.is_empty() || entries.len() as u64 != wide(24) {
        return wrong("it holds another number of records than it says");
    }
    Ok(Indexed { segment_bytes: wide(16), entries })
}

impl<'a> Indexed<'a> {
    /// Records.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Of each record the first eight bytes of its key, as [`super::Key::prefix`] has them, and its offset.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (u64, u32)> + use<'a> {
        self.entries.iter().map(|&[a, b, c, d, e, f, g, h, i, j, k, l]| {
            (u64::from_be_bytes([a, b, c, d, e, f, g, h]), u32::from_le_bytes([i, j, k, l]))
        })
    }
}
