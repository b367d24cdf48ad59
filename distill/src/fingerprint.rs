//! Proof that two programs speak of the same model, tokenizer, tokens and bytes.

use std::fmt;
use std::str::FromStr;

use xxhash_rust::xxh3::Xxh3;

/// A 256-bit digest of a model or a tokenizer, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub [u8; 32]);

/// A text that is not a fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is 64 hexadecimal digits, found {found:?}")]
pub struct NotAFingerprint {
    /// What was found, at most its first 80 characters.
    pub found: String,
}

impl Fingerprint {
    /// Bytes of a fingerprint that travel with each reply.
    pub const PREFIX_BYTES: usize = 16;

    /// BLAKE3 over these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The first half, which travels with each reply.
    pub fn prefix(&self) -> &[u8] {
        &self.0[..Self::PREFIX_BYTES]
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl FromStr for Fingerprint {
    type Err = NotAFingerprint;

    fn from_str(text: &str) -> Result<Self, NotAFingerprint> {
        let wrong = || NotAFingerprint { found: text.chars().take(80).collect() };
        if text.len() != 64 {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digit = |d: u8| char::from(d).to_digit(16).ok_or_else(wrong);
            *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
        }
        Ok(Self(bytes))
    }
}

/// XXH3-64 (seed 0) over token ids as u32 little-endian: proof that both sides speak of the same
/// sequence.
pub fn token_checksum(ids: &[u32]) -> u64 {
    payload_checksum(&[&crate::codec::token_bytes(ids)])
}

/// XXH3-64 (seed 0) over byte strings one after another.
pub fn payload_checksum(parts: &[&[u8]]) -> u64 {
    let mut hasher = Xxh3::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_are_the_same_fingerprint() {
        let fingerprint = Fingerprint(std::array::from_fn(|i| (i * 9) as u8));
        let text = "0009121b242d363f48515a636c757e879099a2abb4bdc6cfd8e1eaf3fc050e17";
        assert_eq!(fingerprint.to_string(), text);
        assert_eq!(text.parse(), Ok(fingerprint));
        assert_eq!(text.to_uppercase().parse(), Ok(fingerprint));
        assert_eq!(fingerprint.prefix(), &fingerprint.0[..16]);
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "00", &"g".repeat(64), &"é".repeat(32), &"+1".repeat(32)] {
            let error = text.parse::<Fingerprint>().unwrap_err();
            assert_eq!(error.found, text);
        }
    }

    // >>> import struct, xxhash  # python-xxhash 4.1, the reference C code
    // >>> xxhash.xxh3_64_intdigest(b"")
    // >>> xxhash.xxh3_64_intdigest(struct.pack("<3I", 1, 2, 151935))
    // >>> xxhash.xxh3_64_intdigest(bytes(range(256)) * 5)
    #[test]
    fn checksums_are_xxh3() {
        assert_eq!(payload_checksum(&[]), 0x2d06_8005_38d3_94c2);
        assert_eq!(token_checksum(&[1, 2, 151_935]), 0xf747_4a94_e3a8_17ba);
        let bytes: Vec<u8> = (0..5).flat_map(|_| 0..=255).collect();
        assert_eq!(payload_checksum(&[&bytes[..300], &[], &bytes[300..]]), 0x4844_b009_e164_352e);
    }
}
