//! A cache of a teacher's answers, as bytes: what a record is called, how records follow one another
//! in a segment, how a damaged segment is read, and where a record is found. No file is touched
//! here; docs/cache.md has the formats to the bit.
//!
//! Reading order: [`key`] (the name of an answer), [`record`] and [`segment`] (its bytes),
//! [`mod@index`] (where it is), [`index_file`] (the same on a disk).

pub mod index;
pub mod index_file;
pub mod key;
pub mod record;
pub mod segment;

pub use index::{Index, IndexBuilder, Place};
pub use index_file::{IndexFileError, Indexed, read_index, write_index};
pub use key::{Identity, Key, Space};
pub use record::{HEADER_BYTES, Header, MAX_PAYLOAD_BYTES, payload_is, write_record};
pub use segment::{Damage, Found, SEGMENT_HEADER_BYTES, Scan, SegmentError, scan, segment_header};

/// Version of the formats of segments and their indices, and of the key's canonical bytes. A cache of
/// another version is refused.
pub const FORMAT_VERSION: u32 = 1;

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
