//! Ascending ids in about `2 + log2(classes / k)` bits each: the code of Elias (1974) and Fano (1971).
//!
//! The lower bits of every id are kept as they are. What is left of it, its upper part, ascends in
//! small steps and is written in unary: of the ids in turn, that of rank `i` sets the bit `upper + i`.

use super::CodecError;

/// How `k` ids below `classes` are written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ascending {
    k: usize,
    classes: usize,
    /// Bits of an id that are kept as they are: `floor(log2(classes / k))`.
    lower: u32,
}

/// Bytes beyond the last that reading words of four touches.
const BEYOND: usize = 4;

impl Ascending {
    /// Of any numbers; ids are written and read with `1 <= k <= classes <= 2^24` only.
    pub(super) fn new(k: usize, classes: usize) -> Self {
        let each = classes.checked_div(k).unwrap_or(0).max(1);
        Self { k, classes, lower: each.ilog2() }
    }

    /// Bytes of the lower bits of a row.
    pub(super) fn lower_bytes(self) -> usize {
        self.k.saturating_mul(self.lower as usize).div_ceil(8)
    }

    /// Bytes of the upper parts of a row.
    pub(super) fn upper_bytes(self) -> usize {
        self.k.saturating_add(self.classes.saturating_sub(1) >> self.lower).div_ceil(8)
    }

    /// Bytes of a row.
    pub(super) fn bytes(self) -> usize {
        self.lower_bytes().saturating_add(self.upper_bytes())
    }

    fn mask(self) -> u32 {
        (1 << self.lower) - 1
    }

    /// Writes the ids of a row, which do not fall, among the bytes of all rows, which are still 0.
    ///
    /// # Errors
    /// [`CodecError`] when one comes twice or is no class.
    pub(super) fn put(
        self,
        row: usize,
        ids: impl DoubleEndedIterator<Item = u32> + Clone,
        lower: &mut [u8],
        upper: &mut [u8],
    ) -> Result<(), CodecError> {
        let mut twice = ids.clone().zip(ids.clone().skip(1)).filter(|(id, next)| id == next);
        if let Some((found, _)) = twice.next() {
            return Err(CodecError::DuplicateId { row, found });
        }
        let largest = ids.clone().next_back();
        if let Some(found) = largest.filter(|&id| id as usize >= self.classes) {
            return Err(CodecError::Id { row, found, classes: self.classes });
        }
        let (lower_bytes, upper_bytes) = (self.lower_bytes(), self.upper_bytes());
        self.put_upper(ids.clone(), &mut upper[row * upper_bytes..][..upper_bytes]);
        self.put_lower(ids, &mut lower[row * lower_bytes..][..lower_bytes]);
        Ok(())
    }

    fn put_upper(self, ids: impl Iterator<Item = u32>, upper: &mut [u8]) {
        for (rank, id) in ids.enumerate() {
            let place = (id >> self.lower) as usize + rank;
            upper[place / 8] |= 1 << (place % 8);
        }
    }

    fn put_lower(self, ids: impl Iterator<Item = u32>, lower: &mut [u8]) {
        let (mut word, mut filled, mut at) = (0u64, 0, 0);
        for id in ids {
            word |= u64::from(id & self.mask()) << filled;
            filled += self.lower;
            if filled >= 32 {
                lower[at..at + 4].copy_from_slice(&(word as u32).to_le_bytes());
                (word, filled, at) = (word >> 32, filled - 32, at + 4);
            }
        }
        let rest = &mut lower[at..];
        rest.copy_from_slice(&word.to_le_bytes()[..rest.len()]);
    }

    /// Reads the ids of a row among the bytes of all rows into `ids`, k of them; `scratch` is anything.
    ///
    /// # Errors
    /// [`CodecError`] where they do not ascend or are no classes, or a bit is set that is nobody's: a
    /// row has one way to be written.
    pub(super) fn read(
        self,
        row: usize,
        lower: &[u8],
        upper: &[u8],
        scratch: &mut Vec<u8>,
        ids: &mut [u32],
    ) -> Result<(), CodecError> {
        let (lower_bytes, upper_bytes) = (self.lower_bytes(), self.upper_bytes());
        let lower = &lower[row * lower_bytes..][..lower_bytes];
        let upper = &upper[row * upper_bytes..][..upper_bytes];
        let found = upper.iter().map(|byte| byte.count_ones() as usize).sum();
        if found != self.k {
            return Err(CodecError::Places { row, found, wanted: self.k });
        }
        let used = self.k * self.lower as usize % 8;
        if used != 0 && lower.last().is_some_and(|last| last >> used != 0) {
            return Err(CodecError::Padding { row });
        }
        self.read_upper(upper, ids);
        self.read_lower(lower, scratch, ids);
        self.check(row, ids)
    }

    fn check(self, row: usize, ids: &[u32]) -> Result<(), CodecError> {
        // Without an early exit this is vector code, and nearly always all that is needed.
        let falls = |pair: &[u32]| pair[0] >= pair[1];
        if ids.windows(2).fold(false, |any, pair| any | falls(pair)) {
            let at = ids.windows(2).position(falls).unwrap_or_default();
            return Err(CodecError::Order { row, before: ids[at], found: ids[at + 1] });
        }
        match ids.last() {
            // A bit beyond those of the classes makes an id that is none.
            Some(&found) if found as usize >= self.classes => {
                Err(CodecError::Id { row, found, classes: self.classes })
            }
            _ => Ok(()),
        }
    }

    /// Puts the upper parts there; as many bits are set as there are ids.
    fn read_upper(self, upper: &[u8], ids: &mut [u32]) {
        let mut rank = 0;
        for (number, bytes) in upper.chunks(8).enumerate() {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            let mut word = u64::from_le_bytes(whole);
            while word != 0 {
                let place = 64 * number + word.trailing_zeros() as usize;
                ids[rank] = ((place - rank) as u32) << self.lower;
                rank += 1;
                word &= word - 1;
            }
        }
    }

    fn read_lower(self, lower: &[u8], scratch: &mut Vec<u8>, ids: &mut [u32]) {
        scratch.clear();
        scratch.extend_from_slice(lower);
        scratch.resize(lower.len() + BEYOND, 0);
        for (rank, id) in ids.iter_mut().enumerate() {
            let bit = rank * self.lower as usize;
            let word: [u8; 4] = std::array::from_fn(|byte| scratch[bit / 8 + byte]);
            // At most 7 + 24 bits are wanted of it.
            *id |= u32::from_le_bytes(word) >> (bit % 8) & self.mask();
        }
    }
}
