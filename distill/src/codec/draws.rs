//! [`Draws`] as bytes: a head that says what they are, and rows of bits without gaps between them.
//!
//! How often the ids of a row were drawn is written in Elias' gamma code (1975), in which 1, nearly
//! all there is, takes one bit; the ids ascend, and the gaps between them are in Rice's code, about
//! `2 + log2(V / m)` bits each for m of V classes. To the bit: docs/wire.md.

mod bits;
mod error;

use std::ops::Range;

use half::f16;

use crate::signal::Draws;
use bits::{BitReader, BitWriter};
pub use error::DrawsCodecError;

/// Bytes of the head.
pub const HEAD_BYTES: usize = 24;
/// What it begins with.
const MAGIC: [u8; 3] = *b"LDR";
/// The version written and read here.
const VERSION: u8 = 1;

/// How the log-probabilities of exact entries are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Values {
    /// As they are.
    #[default]
    F32,
    /// As IEEE half-precision numbers, the nearest: off by at most 2^-11 of themselves, or by 2^-25. What
    /// is below -65,504, a probability of 0 in float64, becomes that.
    F16,
}

impl Values {
    fn bits(self) -> u8 {
        match self {
            Self::F32 => 32,
            Self::F16 => 16,
        }
    }
}

/// What the head of such bytes says of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Positions.
    pub rows: usize,
    /// Draws a position.
    pub draws: u32,
    /// Exact entries a position.
    pub k: usize,
    /// Classes the ids are of.
    pub classes: usize,
    /// How exact entries are written.
    pub values: Values,
}

impl Head {
    /// Of the bytes.
    ///
    /// # Errors
    /// [`DrawsCodecError`] where they are not long enough, begin otherwise or are of another version, or
    /// say what cannot be: no draws, no classes, or more exact entries than classes.
    pub fn read(bytes: &[u8]) -> Result<Self, DrawsCodecError> {
        let Some((head, _)) = bytes.split_first_chunk::<HEAD_BYTES>() else {
            return Err(DrawsCodecError::NoHead { found: bytes.len() });
        };
        if head[..3] != MAGIC {
            return Err(DrawsCodecError::Magic { found: [head[0], head[1], head[2]] });
        }
        if head[3] != VERSION {
            return Err(DrawsCodecError::Version { found: head[3], known: VERSION });
        }
        let number = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| head[at + byte]));
        let values = match (head[4], &head[5..8]) {
            (32, [0, 0, 0]) => Values::F32,
            (16, [0, 0, 0]) => Values::F16,
            (found, reserved) => {
                let reserved = [reserved[0], reserved[1], reserved[2]];
                return Err(DrawsCodecError::Values { found, reserved });
            }
        };
        let [rows, k, classes] = [8, 16, 20].map(|at| number(at) as usize);
        Self { rows, draws: number(12), k, classes, values }.possible()
    }

    /// This head, of rows that there can be.
    fn possible(self) -> Result<Self, DrawsCodecError> {
        let Self { rows, draws, k, classes, .. } = self;
        let limit = u32::MAX as usize;
        if draws == 0 || classes == 0 || k > classes || rows > limit || classes > limit {
            return Err(DrawsCodecError::Impossible { rows, draws, k, classes });
        }
        Ok(self)
    }

    fn bytes(self) -> [u8; HEAD_BYTES] {
        let mut head = [0; HEAD_BYTES];
        head[..3].copy_from_slice(&MAGIC);
        head[3] = VERSION;
        head[4] = self.values.bits();
        let numbers = [self.rows as u32, self.draws, self.k as u32, self.classes as u32];
        for (bytes, number) in head[8..].as_chunks_mut::<4>().0.iter_mut().zip(numbers) {
            *bytes = number.to_le_bytes();
        }
        head
    }

    /// Bytes that are enough for the rows and the head.
    pub fn bytes_bound(self) -> usize {
        let bits = row_bits_bound(self.draws, self.k, self.classes, self.values);
        bits.saturating_mul(self.rows).div_ceil(8).saturating_add(HEAD_BYTES)
    }
}

/// Bytes that are enough for a row: what a limit of messages is divided by, the head apart.
pub fn row_bytes_bound(draws: u32, k: usize, classes: usize, values: Values) -> usize {
    row_bits_bound(draws, k, classes, values).div_ceil(8)
}

fn row_bits_bound(draws: u32, k: usize, classes: usize, values: Values) -> usize {
    let draws = draws as usize;
    // Two draws of one id take 3 bits, and nothing takes more for each draw.
    let counts = draws.saturating_add(draws.div_ceil(2));
    let exact = match k {
        0 => 0,
        _ => k.saturating_mul(values.bits().into()).saturating_add(32),
    };
    let drawn = Gaps::bits_bound(draws.min(classes.saturating_sub(k)), classes);
    counts.saturating_add(exact).saturating_add(Gaps::bits_bound(k, classes)).saturating_add(drawn)
}

/// Writes rows of a signal over so many classes as bytes.
///
/// # Errors
/// [`DrawsCodecError::Draws`] when [`Draws::check`] refuses these rows, whose numbers count within
/// `rows`; [`DrawsCodecError::Impossible`] where a number does not fit into the head.
///
/// # Panics
/// When `rows` lies outside the signal.
pub fn encode(
    signal: &Draws,
    rows: Range<usize>,
    classes: usize,
    values: Values,
) -> Result<Vec<u8>, DrawsCodecError> {
    let signal = signal.slice(rows);
    let (rows, draws, k) = (signal.rows(), signal.draws, signal.k);
    let head = Head { rows, draws, k, classes, values }.possible()?;
    signal.check(classes)?;
    let mut bits = BitWriter::behind(head.bytes().to_vec());
    for row in 0..rows {
        if k > 0 {
            let exact = signal.exact(row);
            bits.put(signal.log_rest[row].to_bits(), 32);
            Gaps::of(k, classes).put(&mut bits, &signal.exact_ids[exact.clone()]);
            for &log_p in &signal.exact_log_p[exact] {
                match values {
                    Values::F32 => bits.put(log_p.to_bits(), 32),
                    Values::F16 => bits.put(nearest_half(log_p).to_bits().into(), 16),
                }
            }
        }
        let drawn = signal.drawn(row);
        signal.counts[drawn.clone()].iter().for_each(|&count| put_count(&mut bits, count));
        Gaps::of(drawn.len(), classes).put(&mut bits, &signal.ids[drawn]);
    }
    Ok(bits.finish())
}

/// Reads bytes that are to be what `wanted` says; of bytes nobody has asked for it is what
/// [`Head::read`] says.
///
/// # Errors
/// [`DrawsCodecError`] when the head is another, the bytes end early or go on behind the last row, or
/// a row is not what a teacher can mean ([`Draws::check`]). No bytes make it panic, and it reserves no
/// more than a multiple of their length.
pub fn decode(bytes: &[u8], wanted: &Head) -> Result<Draws, DrawsCodecError> {
    let found = Head::read(bytes)?;
    if found != *wanted {
        return Err(DrawsCodecError::Head { found, wanted: *wanted });
    }
    let mut signal = Draws::new(found.draws, found.k);
    let mut bits = BitReader::new(&bytes[HEAD_BYTES..]);
    for row in 0..found.rows {
        read_row(&mut signal, &mut bits, row, &found)?;
    }
    let left = bits.left();
    if left >= 8 || bits.take(left as u32) != Some(0) {
        return Err(DrawsCodecError::Left { bits: left });
    }
    signal.check(found.classes)?;
    Ok(signal)
}

fn read_row(
    signal: &mut Draws,
    bits: &mut BitReader<'_>,
    row: usize,
    head: &Head,
) -> Result<(), DrawsCodecError> {
    let &Head { draws, k, classes, values, .. } = head;
    let early = DrawsCodecError::EndsEarly { row };
    let mut log_rest = 0.0;
    if k > 0 {
        log_rest = f32::from_bits(bits.take(32).ok_or(early.clone())?);
        Gaps::of(k, classes).read(bits, row, k, &mut signal.exact_ids)?;
        for _ in 0..k {
            let code = bits.take(values.bits().into()).ok_or(early.clone())?;
            signal.exact_log_p.push(match values {
                Values::F32 => f32::from_bits(code),
                Values::F16 => f16::from_bits(code as u16).to_f32(),
            });
        }
    }
    signal.log_rest.push(log_rest);
    let mut left = if log_rest == f32::NEG_INFINITY { 0 } else { draws };
    let start = signal.counts.len();
    while left > 0 {
        let count = read_count(bits).ok_or(early.clone())?;
        left = left.checked_sub(count).ok_or(DrawsCodecError::TooManyDraws { row, draws })?;
        signal.counts.push(count);
    }
    let drawn = signal.counts.len() - start;
    Gaps::of(drawn, classes).read(bits, row, drawn, &mut signal.ids)?;
    signal.ends.push(signal.ids.len());
    Ok(())
}

/// Elias' gamma code: as many bits 0 as the number has behind its highest, a 1, and those.
fn put_count(bits: &mut BitWriter, count: u32) {
    let width = count.ilog2();
    bits.put_unary(width);
    bits.put(count, width);
}

/// None where the bits end, or are of a number beyond 32 bits.
fn read_count(bits: &mut BitReader<'_>) -> Option<u32> {
    let width = u32::try_from(bits.take_unary()?).ok().filter(|&width| width < 32)?;
    Some(1 << width | bits.take(width)?)
}

fn nearest_half(log_p: f32) -> f16 {
    let nearest = f16::from_f32(log_p);
    if nearest.is_infinite() { f16::MIN } else { nearest }
}

/// Rice's code of the gaps between m ascending ids of V classes: the lower `floor(log2(V / m))` bits as
/// they are, behind the rest in unary.
#[derive(Clone, Copy, Debug)]
struct Gaps {
    lower: u32,
    classes: usize,
}

impl Gaps {
    fn of(ids: usize, classes: usize) -> Self {
        Self { lower: classes.checked_div(ids).unwrap_or(0).max(1).ilog2(), classes }
    }

    /// Bits that are enough for up to so many ids.
    ///
    /// The gaps of m ids sum to V - m at most, and `V / 2^lower` is below 2 m: m ids take fewer than
    /// `m (lower + 3)` bits. In that, m times a logarithm of V / m, a smaller m may be rounded down
    /// where the largest is rounded up, by one bit an id.
    fn bits_bound(ids: usize, classes: usize) -> usize {
        ids.saturating_mul(Self::of(ids, classes).lower as usize + 4)
    }

    fn put(self, bits: &mut BitWriter, ids: &[u32]) {
        let mut next = 0;
        for &id in ids {
            let gap = id - next;
            bits.put_unary(gap >> self.lower);
            bits.put(gap, self.lower);
            next = id + 1;
        }
    }

    fn read(
        self,
        bits: &mut BitReader<'_>,
        row: usize,
        count: usize,
        ids: &mut Vec<u32>,
    ) -> Result<(), DrawsCodecError> {
        let early = DrawsCodecError::EndsEarly { row };
        let mut next = 0;
        for _ in 0..count {
            let upper = bits.take_unary().ok_or(early.clone())?;
            let lower = bits.take(self.lower).ok_or(early.clone())?;
            // What is no class at once must not overflow.
            let upper = upper.min(self.classes) as u64;
            let id = (upper << self.lower) + u64::from(lower) + next;
            if id >= self.classes as u64 {
                return Err(DrawsCodecError::Id { row, classes: self.classes });
            }
            ids.push(id as u32);
            next = id + 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod document_tests;
#[cfg(test)]
#[path = "draws_tests.rs"]
mod tests;
