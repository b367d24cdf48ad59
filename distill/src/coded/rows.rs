//! Rows of numbers as bytes, in blocks that can be read alone.

use super::ans::{Decoder, EMPTY_BYTES, Encoder, Interval, TOTAL};
use super::tables::{Coding, MAX_NUMBER};
use super::{Code, CodedError, Rung};

/// First byte of coded rows.
pub(super) const KIND: u8 = 0xC0;
/// Version of this layout.
pub(super) const VERSION: u8 = 1;
/// Kind, version, rung.
pub(super) const HEADER_BYTES: usize = 4;
/// Rows of a block.
pub const BLOCK_ROWS: usize = 64;

/// A row of which no silent direction speaks.
const PLAIN: Interval = Interval { start: 0, width: 4000 };
/// A row with exceptions: numbers of silent directions.
const WITH_EXCEPTIONS: Interval = Interval { start: 4000, width: 92 };
/// A row as it is, in float32.
const VERBATIM: Interval = Interval { start: 4092, width: 4 };

/// Rows of hidden states as numbers of steps, and those that have none as they are.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbers {
    /// `[rows, directions]`; 0 where a row is verbatim.
    pub numbers: Vec<i16>,
    /// Rows that travel as float32, `[width]` each, by their places.
    pub verbatim: Vec<(usize, Vec<f32>)>,
}

/// Writes rows: numbers `[rows, directions]`, and the hidden states `[rows, width]` they stand for, which
/// are needed where a number is out of range.
///
/// # Panics
/// When the arrays are not of these shapes.
pub(super) fn encode(code: &Code, rung: Rung, numbers: &[i32], hidden: &[f32]) -> Vec<u8> {
    let (directions, width) = (code.directions(), code.width());
    let rows = hidden.len() / width;
    assert_eq!([rows * width, rows * directions], [hidden.len(), numbers.len()], "whole rows");
    let codings = code.codings(rung);
    let blocks = rows.div_ceil(BLOCK_ROWS);
    let mut bytes = vec![KIND, VERSION];
    bytes.extend(rung.0.to_le_bytes());
    let index = bytes.len();
    bytes.resize(index + 4 * blocks.saturating_sub(1), 0);
    let mut encoder = Encoder::default();
    for block in 0..blocks {
        let start = bytes.len();
        for row in block * BLOCK_ROWS..rows.min((block + 1) * BLOCK_ROWS) {
            let numbers = &numbers[row * directions..(row + 1) * directions];
            put_row(&mut encoder, &codings, numbers, &hidden[row * width..(row + 1) * width]);
        }
        encoder.finish(&mut bytes);
        let length = (bytes.len() - start) as u32;
        if block + 1 < blocks {
            bytes[index + 4 * block..][..4].copy_from_slice(&length.to_le_bytes());
        }
    }
    bytes
}

fn put_row(encoder: &mut Encoder, codings: &[Coding<'_>], numbers: &[i32], hidden: &[f32]) {
    let (spoken, silent) = numbers.split_at(codings.len());
    if numbers.iter().any(|number| number.unsigned_abs() > MAX_NUMBER as u32) {
        encoder.put(VERBATIM);
        return hidden.iter().for_each(|value| encoder.put_bits(value.to_bits(), 32));
    }
    let exceptions = silent.iter().filter(|&&number| number != 0).count();
    if exceptions == 0 {
        encoder.put(PLAIN);
    } else {
        encoder.put(WITH_EXCEPTIONS);
        encoder.put_number(exceptions as u32 - 1);
        let bits = place_bits(silent.len());
        for (place, &number) in silent.iter().enumerate().filter(|(_, number)| **number != 0) {
            encoder.put_bits(place as u32, bits);
            encoder.put_bits(u32::from(number < 0), 1);
            encoder.put_number(number.unsigned_abs() - 1);
        }
    }
    for (coding, &number) in codings.iter().zip(spoken) {
        coding.put(number, encoder);
    }
}

/// Bits that name one of `count` places.
fn place_bits(count: usize) -> u32 {
    count.next_power_of_two().ilog2()
}

/// Reads `rows` rows.
///
/// # Errors
/// [`CodedError`] when the bytes are no such rows of this code. No bytes make it panic; it reserves no
/// more than `rows` rows, which the caller has asked for.
pub(super) fn decode(code: &Code, bytes: &[u8], rows: usize) -> Result<Numbers, CodedError> {
    let blocks = Blocks::of(bytes, rows)?;
    let codings = code.codings(blocks.rung);
    let mut all = Numbers { numbers: vec![0; rows * code.directions()], verbatim: Vec::new() };
    for block in 0..rows.div_ceil(BLOCK_ROWS) {
        let these = block * BLOCK_ROWS..rows.min((block + 1) * BLOCK_ROWS);
        decode_block(code, &codings, blocks.bytes(block), these, 0, &mut all)?;
    }
    Ok(all)
}

/// Reads the rows `wanted` of `rows`, and of the blocks only those they lie in.
///
/// # Errors
/// As [`decode`].
///
/// # Panics
/// When `wanted` goes beyond the rows.
pub(super) fn decode_range(
    code: &Code,
    bytes: &[u8],
    rows: usize,
    wanted: std::ops::Range<usize>,
) -> Result<Numbers, CodedError> {
    assert!(wanted.start <= wanted.end && wanted.end <= rows, "rows within the bytes");
    let blocks = Blocks::of(bytes, rows)?;
    let (first, end) = (wanted.start / BLOCK_ROWS, wanted.end.div_ceil(BLOCK_ROWS));
    let base = first * BLOCK_ROWS;
    let (directions, codings) = (code.directions(), code.codings(blocks.rung));
    let read = rows.min(end * BLOCK_ROWS).saturating_sub(base);
    let mut all = Numbers { numbers: vec![0; read * directions], verbatim: Vec::new() };
    for block in first..end {
        let these = block * BLOCK_ROWS..rows.min((block + 1) * BLOCK_ROWS);
        decode_block(code, &codings, blocks.bytes(block), these, base, &mut all)?;
    }
    let skipped = wanted.start - base;
    all.numbers.drain(..skipped * directions);
    all.numbers.truncate(wanted.len() * directions);
    all.verbatim.retain(|(row, _)| (skipped..skipped + wanted.len()).contains(row));
    all.verbatim.iter_mut().for_each(|(row, _)| *row -= skipped);
    Ok(all)
}

/// The step that coded rows are in.
///
/// # Errors
/// [`CodedError`] when the bytes do not begin as coded rows do.
pub fn rung_of(bytes: &[u8]) -> Result<Rung, CodedError> {
    let header = bytes.first_chunk::<HEADER_BYTES>();
    let &[kind, version, low, high] = header.ok_or(CodedError::Short { found: bytes.len() })?;
    if kind != KIND || version != VERSION {
        return Err(CodedError::Kind { kind, version });
    }
    let rung = Rung(i16::from_le_bytes([low, high]));
    match (Rung::FINEST..=Rung::COARSEST).contains(&rung) {
        true => Ok(rung),
        false => Err(CodedError::Damaged { row: 0, what: "a step out of range" }),
    }
}

/// Where the blocks of coded rows lie.
struct Blocks<'a> {
    rung: Rung,
    bytes: &'a [u8],
    /// Of each block and, last, of what would follow.
    starts: Vec<usize>,
}

impl<'a> Blocks<'a> {
    fn of(bytes: &'a [u8], rows: usize) -> Result<Self, CodedError> {
        let rung = rung_of(bytes)?;
        let blocks = rows.div_ceil(BLOCK_ROWS);
        let rest = &bytes[HEADER_BYTES..];
        let short = CodedError::Short { found: bytes.len() };
        let index = blocks.saturating_sub(1).saturating_mul(4);
        let (index, body) = rest.split_at_checked(index).ok_or(short.clone())?;
        let mut starts = Vec::with_capacity(blocks + 1);
        let mut start = 0usize;
        for length in index.as_chunks::<4>().0 {
            starts.push(start);
            start = start.saturating_add(u32::from_le_bytes(*length) as usize);
        }
        if blocks > 0 {
            starts.push(start);
        }
        let least = if blocks > 0 { EMPTY_BYTES } else { 0 };
        if start > body.len() || body.len() - start < least {
            return Err(short);
        }
        if blocks == 0 && !body.is_empty() {
            return Err(CodedError::Damaged { row: 0, what: "bytes after the last row" });
        }
        starts.push(body.len());
        Ok(Self { rung, bytes: body, starts })
    }

    fn bytes(&self, block: usize) -> &'a [u8] {
        &self.bytes[self.starts[block]..self.starts[block + 1]]
    }
}

/// Reads the rows `these` from their block into `all`, which begins with the row `base`.
fn decode_block(
    code: &Code,
    codings: &[Coding<'_>],
    bytes: &[u8],
    these: std::ops::Range<usize>,
    base: usize,
    all: &mut Numbers,
) -> Result<(), CodedError> {
    let damaged = |row, what| CodedError::Damaged { row, what };
    let mut decoder =
        Decoder::new(bytes).ok_or(damaged(these.start, "a block of a length no block has"))?;
    let directions = code.directions();
    for row in these.clone() {
        let at = row - base;
        let numbers = &mut all.numbers[at * directions..(at + 1) * directions];
        match get_row(&mut decoder, codings, numbers, code.width()) {
            Ok(None) => {}
            Ok(Some(hidden)) => all.verbatim.push((at, hidden)),
            Err(what) => return Err(damaged(row, what)),
        }
    }
    match decoder.is_complete() {
        true => Ok(()),
        false => Err(damaged(these.start, "a block that does not end where its rows do")),
    }
}

/// One row into `numbers`; or its hidden state where it is verbatim.
fn get_row(
    decoder: &mut Decoder<'_>,
    codings: &[Coding<'_>],
    numbers: &mut [i16],
    width: usize,
) -> Result<Option<Vec<f32>>, &'static str> {
    let kinds = [PLAIN, WITH_EXCEPTIONS, VERBATIM];
    let place = decoder.peek();
    let of_kind = |kind: &Interval| place < u32::from(kind.start) + u32::from(kind.width);
    let kind = kinds.into_iter().find(of_kind).unwrap_or(VERBATIM);
    debug_assert!(place < TOTAL, "a place is one of {TOTAL}");
    decoder.take(u32::from(kind.width), place - u32::from(kind.start));
    if kind == VERBATIM {
        let hidden: Vec<f32> = (0..width).map(|_| f32::from_bits(decoder.bits(32))).collect();
        let finite = hidden.iter().all(|value| value.is_finite());
        return if finite { Ok(Some(hidden)) } else { Err("a number that is not finite") };
    }
    let (spoken, silent) = numbers.split_at_mut(codings.len());
    if kind == WITH_EXCEPTIONS {
        get_exceptions(decoder, silent)?;
    }
    let mut sound = true;
    for (coding, number) in codings.iter().zip(spoken) {
        let found = coding.get(decoder).ok_or("an escaped number of too many bits")?;
        sound &= found.unsigned_abs() <= MAX_NUMBER as u32;
        *number = found as i16;
    }
    if sound { Ok(None) } else { Err("a number beyond the largest there is") }
}

fn get_exceptions(decoder: &mut Decoder<'_>, silent: &mut [i16]) -> Result<(), &'static str> {
    let count = decoder.number(16).ok_or("too many exceptions")? as usize + 1;
    if count > silent.len() {
        return Err("more exceptions than silent directions");
    }
    let bits = place_bits(silent.len());
    for _ in 0..count {
        let place = decoder.bits(bits) as usize;
        let negative = decoder.bits(1) == 1;
        let magnitude = decoder.number(15).ok_or("an exception of too many bits")? + 1;
        let slot = silent.get_mut(place).ok_or("an exception in no direction")?;
        if *slot != 0 || magnitude > MAX_NUMBER as u32 {
            return Err("an exception told twice, or too large");
        }
        *slot = if negative { -(magnitude as i16) } else { magnitude as i16 };
    }
    Ok(())
}
