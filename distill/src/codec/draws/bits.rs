//! Numbers of any width one after another in bytes, the first in the lowest bits.

/// Bits that are written one after another.
#[derive(Debug, Default)]
pub(super) struct BitWriter {
    bytes: Vec<u8>,
    /// Bits not written yet, the first of them lowest; fewer than 8.
    word: u64,
    filled: u32,
}

impl BitWriter {
    /// Goes on behind these bytes.
    pub(super) fn behind(bytes: Vec<u8>) -> Self {
        Self { bytes, word: 0, filled: 0 }
    }

    /// The `width` lower bits of a number, at most 32.
    pub(super) fn put(&mut self, value: u32, width: u32) {
        self.word |= (u64::from(value) & ((1 << width) - 1)) << self.filled;
        self.filled += width;
        while self.filled >= 8 {
            self.bytes.push(self.word as u8);
            self.word >>= 8;
            self.filled -= 8;
        }
    }

    /// So many bits 0 and a bit 1.
    pub(super) fn put_unary(&mut self, zeros: u32) {
        for _ in 0..zeros / 32 {
            self.put(0, 32);
        }
        self.put(0, zeros % 32);
        self.put(1, 1);
    }

    /// All bytes, the last filled up with bits 0.
    pub(super) fn finish(mut self) -> Vec<u8> {
        if self.filled > 0 {
            self.bytes.push(self.word as u8);
        }
        self.bytes
    }
}

/// Bits that are read one after another.
#[derive(Debug)]
pub(super) struct BitReader<'a> {
    bytes: &'a [u8],
    /// Bits read.
    at: usize,
}

/// Bits that are there at a time, whatever their place in the first byte.
const AT_ONCE: u32 = 57;

impl<'a> BitReader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bits that are left.
    pub(super) fn left(&self) -> usize {
        8 * self.bytes.len() - self.at
    }

    /// The next bits, the first of them lowest: 57 at least, 0 where none are left.
    fn ahead(&self) -> u64 {
        let rest = &self.bytes[self.at / 8..];
        let mut word = [0; 8];
        let there = rest.len().min(8);
        word[..there].copy_from_slice(&rest[..there]);
        u64::from_le_bytes(word) >> (self.at % 8)
    }

    /// A number of `width` bits, at most 32; none where as many are not left.
    pub(super) fn take(&mut self, width: u32) -> Option<u32> {
        if self.left() < width as usize {
            return None;
        }
        let value = self.ahead() & ((1 << width) - 1);
        self.at += width as usize;
        Some(value as u32)
    }

    /// How many bits are 0 before the next 1, which is read too; none where no bit is 1 any more.
    pub(super) fn take_unary(&mut self) -> Option<usize> {
        let start = self.at;
        loop {
            let zeros = self.ahead().trailing_zeros();
            if zeros < AT_ONCE {
                self.at += zeros as usize + 1;
                return Some(self.at - 1 - start);
            }
            if self.left() <= AT_ONCE as usize {
                return None;
            }
            self.at += AT_ONCE as usize;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bits_are_the_lowest() {
        let mut bits = BitWriter::behind(vec![9]);
        bits.put(0b101, 3);
        bits.put_unary(2);
        bits.put(u32::MAX, 0);
        bits.put(0x1234_5678, 32);
        // 101, then 0, 0, 1, then the word from bit 6 on: 0x12345678 << 6 | 0b100101.
        let word = 0x1234_5678u64 << 6 | 0b10_0101;
        let wanted = [&[9][..], &word.to_le_bytes()[..5]].concat();
        assert_eq!(bits.finish(), wanted);
    }

    #[test]
    fn what_was_written_is_read_and_no_more() {
        let widths = [0, 1, 7, 8, 13, 31, 32];
        let unary = [0, 1, 31, 32, 33, 56, 57, 58, 200];
        let mut bits = BitWriter::default();
        for (width, zeros) in widths.iter().cycle().zip(unary) {
            bits.put(0x9e37_79b9, *width);
            bits.put_unary(zeros);
        }
        let bytes = bits.finish();
        let mut bits = BitReader::new(&bytes);
        for (width, zeros) in widths.iter().cycle().zip(unary) {
            let wanted = (0x9e37_79b9u64 & ((1 << width) - 1)) as u32;
            assert_eq!(bits.take(*width), Some(wanted));
            assert_eq!(bits.take_unary(), Some(zeros as usize));
        }
        assert!(bits.left() < 8);
        assert_eq!((bits.take(8), bits.take_unary()), (None, None));
        assert_eq!(BitReader::new(&[0; 40]).take_unary(), None);
        assert_eq!(BitReader::new(&[]).take_unary(), None);
        assert_eq!(BitReader::new(&[]).take(0), Some(0));
    }
}
