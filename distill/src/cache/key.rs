//! What an answer is called: a digest of everything it depends on.
//!
//! BLAKE3 and not a faster checksum: a cache may be shared, and nobody must be able to make two rows
//! of one name. It takes about a microsecond a row.

use std::ops::Range;

use super::FORMAT_VERSION;
use crate::fingerprint::Fingerprint;

/// First bytes of what a space is the digest of.
const SPACE_TAG: &[u8; 16] = b"limbeck space\0\0\0";
/// First bytes of what a key is the digest of.
const KEY_TAG: &[u8; 16] = b"limbeck key\0\0\0\0\0";

/// What all answers of a cache have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    /// The teacher's weights and configuration.
    pub model: Fingerprint,
    /// What maps text to ids.
    pub tokenizer: Fingerprint,
    /// Classes the distributions are taken over.
    pub classes: u32,
    /// The signal and its parameters in words, such as `top-k k=64`.
    pub signal: String,
    /// The temperature, where the signal depends on it.
    pub temperature: Option<f32>,
}

/// The digest of an [`Identity`] and the format's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space(pub [u8; 32]);

/// The name of one answer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub [u8; 32]);

impl Identity {
    /// Its digest: BLAKE3 over `"limbeck space\0\0\0" | version u32 | model [32] | tokenizer [32] |
    /// classes u32 | whether T counts u32 | bits of T as f32 (else 0) u32 | signal, UTF-8`, numbers
    /// little-endian.
    pub fn space(&self) -> Space {
        let mut hasher = blake3::Hasher::new();
        hasher.update(SPACE_TAG).update(&FORMAT_VERSION.to_le_bytes());
        hasher.update(&self.model.0).update(&self.tokenizer.0);
        let bits = self.temperature.map_or(0, f32::to_bits);
        for word in [self.classes, u32::from(self.temperature.is_some()), bits] {
            hasher.update(&word.to_le_bytes());
        }
        hasher.update(self.signal.as_bytes());
        Space(*hasher.finalize().as_bytes())
    }
}

impl Space {
    /// The name of the answer about `ranges` of the positions of `tokens`: BLAKE3 over
    /// `"limbeck key\0\0\0\0\0" | space [32] | n u32 | r u32 | tokens u32[n] | (first u32, end u32)[r]`,
    /// numbers little-endian.
    pub fn key(&self, tokens: &[u32], ranges: &[Range<u32>]) -> Key {
        let mut bytes = Vec::with_capacity(56 + 4 * tokens.len() + 8 * ranges.len());
        bytes.extend_from_slice(KEY_TAG);
        bytes.extend_from_slice(&self.0);
        let counts = [tokens.len() as u32, ranges.len() as u32];
        let ends = ranges.iter().flat_map(|range| [range.start, range.end]);
        for word in counts.into_iter().chain(tokens.iter().copied()).chain(ends) {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        Key(*blake3::hash(&bytes).as_bytes())
    }
}

impl Key {
    /// Its first eight bytes, as an index holds them.
    pub fn prefix(&self) -> u64 {
        let [first, ..] = self.0.as_chunks::<8>().0 else { return 0 };
        u64::from_be_bytes(*first)
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Fingerprint(self.0).fmt(f)
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({self})")
    }
}
