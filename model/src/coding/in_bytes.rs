//! A decoder's sums by products of bytes (AVX512-VNNI: eight times the operations of an `f64`
//! instruction), exact like those in `f64`.
//!
//! An entry of the decoding matrix is below 2^23 in magnitude; entry + 2^23 has three bytes, the digits.
//! Numbers of the first directions, where most are not 0, meet each digit's matrix in 32-bit sums of
//! at most 255 · 128 · 8,192, and `Σ entry · n = Σ_d 256^d · sum_d - 2^23 · Σ n`. Numbers that take more
//! than a byte, and those few that are not 0 in the directions after, are added one by one.

use std::arch::x86_64::{
    __m256i, __m512i, _mm256_loadu_si256, _mm256_storeu_ps, _mm512_add_pd, _mm512_castsi512_si256,
    _mm512_cvtepi32_pd, _mm512_cvtpd_ps, _mm512_dpbusd_epi32, _mm512_extracti64x4_epi64,
    _mm512_fmadd_pd, _mm512_load_si512, _mm512_loadu_pd, _mm512_mul_pd, _mm512_set1_epi32,
    _mm512_set1_pd, _mm512_setzero_si512,
};
use std::cell::RefCell;

use distill::coded::{Code, Rung};

/// Rows of a tile: its sums take 24 of the 32 registers.
const ROWS: usize = 8;
/// Bytes of an entry.
const DIGITS: usize = 3;
/// Columns of a panel: the 32-bit sums of a register.
const COLUMNS: usize = 16;
/// Directions an instruction takes at once.
const QUAD: usize = 4;
/// What is added to an entry.
const OFFSET: i32 = 1 << 23;
/// A direction of which fewer numbers than this share are not 0 is cheaper added one by one.
const LEAST_SHARE: f64 = 0.09;

/// One digit of the entries of [`COLUMNS`] columns in a [`QUAD`] of directions.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([u8; COLUMNS * QUAD]);

/// A decoding matrix in digits, for one step.
#[derive(Clone, Debug)]
pub(super) struct Digits {
    width: usize,
    directions: usize,
    /// Of the directions that are multiplied in full.
    quads: usize,
    /// `[panels, quads, DIGITS]`
    panels: Vec<Line>,
    /// Entries `[directions, panels · COLUMNS]`.
    by_direction: Vec<i32>,
    /// `[panels · COLUMNS]`
    mean: Vec<f64>,
    unit: f64,
}

/// A number that is added alone: what is left of it.
#[derive(Clone, Copy, Debug)]
struct Rest {
    direction: u32,
    number: i32,
}

/// Numbers of some rows, apart.
#[derive(Debug, Default)]
struct Split {
    /// `[rows, QUAD · quads]`: what fits a byte, of the directions multiplied in full.
    bytes: Vec<i8>,
    /// Of each row, the sum of its bytes.
    sums: Vec<i32>,
    rests: Vec<Rest>,
    /// Of each row, where its rests end.
    ends: Vec<usize>,
}

thread_local! {
    /// Kept from one call to the next.
    static SPLIT: RefCell<Split> = RefCell::default();
}

/// Whether this processor has the instructions.
fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

impl Digits {
    /// Of this code's matrix, for numbers of this step; none where the processor does not multiply bytes
    /// or an entry takes more than 24 bits.
    pub(super) fn of(code: &Code, rung: Rung) -> Option<Self> {
        let small = |entry: &i32| (-OFFSET..OFFSET).contains(entry);
        if !available() || !code.matrix().iter().all(small) {
            return None;
        }
        let (width, directions) = (code.width(), code.directions());
        let padded = width.next_multiple_of(COLUMNS);
        let mut by_direction = vec![0; directions * padded];
        for (column, entries) in code.matrix().chunks_exact(directions).enumerate() {
            for (direction, &entry) in entries.iter().enumerate() {
                by_direction[direction * padded + column] = entry;
            }
        }
        let quads = code.frequent(rung, LEAST_SHARE).div_ceil(QUAD);
        let digit = |direction: usize, column: usize, digit: usize| {
            let entry = by_direction.get(direction * padded + column).copied().unwrap_or(0);
            ((entry + OFFSET) >> (8 * digit)) as u8
        };
        let mut panels = Vec::with_capacity(padded / COLUMNS * quads * DIGITS);
        for panel in 0..padded / COLUMNS {
            for (quad, of) in (0..quads).flat_map(|quad| (0..DIGITS).map(move |of| (quad, of))) {
                let byte =
                    |at: usize| digit(quad * QUAD + at % QUAD, panel * COLUMNS + at / QUAD, of);
                panels.push(Line(std::array::from_fn(byte)));
            }
        }
        let mut mean: Vec<f64> = code.mean().iter().map(|&x| f64::from(x)).collect();
        mean.resize(padded, 0.0);
        let unit = code.unit(rung);
        Some(Self { width, directions, quads, panels, by_direction, mean, unit })
    }

    /// The hidden states `[rows, width]` of numbers `[rows, directions]`.
    pub(super) fn reconstruct(&self, numbers: &[i16], values: &mut [f32]) {
        assert_eq!(numbers.len() / self.directions, values.len() / self.width, "rows");
        SPLIT.with_borrow_mut(|split| {
            #[expect(unsafe_code, reason = "instructions not every processor has")]
            // SAFETY: there are digits only where the processor has them.
            unsafe {
                self.split(numbers, split);
                self.fill(split, values);
            }
        });
    }

    /// Takes numbers apart.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn split(&self, numbers: &[i16], split: &mut Split) {
        let stride = QUAD * self.quads;
        let rows = numbers.len() / self.directions;
        split.bytes.clear();
        split.bytes.resize(rows.next_multiple_of(ROWS) * stride, 0);
        split.sums.clear();
        split.rests.clear();
        split.ends.clear();
        for (row, numbers) in numbers.chunks_exact(self.directions).enumerate() {
            let (full, rare) = numbers.split_at(stride.min(self.directions));
            let bytes = &mut split.bytes[row * stride..][..full.len()];
            let (mut sum, mut whole) = (0, true);
            for (byte, &number) in bytes.iter_mut().zip(full) {
                let clamped = number.clamp(-128, 127);
                *byte = clamped as i8;
                sum += i32::from(clamped);
                whole &= clamped == number;
            }
            split.sums.push(sum);
            if !whole {
                rests(full, 0, |number| number - number.clamp(-128, 127), &mut split.rests);
            }
            rests(rare, full.len(), |number| number, &mut split.rests);
            split.ends.push(split.rests.len());
        }
    }

    /// A tile after the other, those of a panel in turn: its digits stay near.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn fill(&self, split: &Split, values: &mut [f32]) {
        let stride = QUAD * self.quads;
        let rows = values.len() / self.width;
        for column in (0..self.width).step_by(COLUMNS) {
            let lines = self.quads * DIGITS;
            let panel = &self.panels[column / COLUMNS * lines..][..lines];
            for first in (0..rows).step_by(ROWS) {
                let bytes = &split.bytes[first * stride..][..ROWS * stride];
                let sums = tile(bytes, panel);
                for (row, sums) in (first..rows).zip(&sums) {
                    let begin = row.checked_sub(1).map_or(0, |before| split.ends[before]);
                    let rests = &split.rests[begin..split.ends[row]];
                    let states = self.finish(sums, split.sums[row], rests, column);
                    let to =
                        &mut values[row * self.width..][column..self.width.min(column + COLUMNS)];
                    to.copy_from_slice(&states[..to.len()]);
                }
            }
        }
    }

    /// From the sums of one row and panel to its part of the hidden state.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn finish(&self, sums: &Sums, bytes: i32, rests: &[Rest], column: usize) -> [f32; COLUMNS] {
        let offset = _mm512_set1_pd(-f64::from(OFFSET) * f64::from(bytes));
        let mut halves = [offset; 2];
        for (digit, &sum) in sums.iter().enumerate() {
            let scale = _mm512_set1_pd(f64::from(1 << (8 * digit)));
            let of_digit = [_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64::<1>(sum)];
            for (half, of_digit) in halves.iter_mut().zip(of_digit) {
                *half = _mm512_fmadd_pd(_mm512_cvtepi32_pd(of_digit), scale, *half);
            }
        }
        for rest in rests {
            let entries = &self.by_direction[rest.direction as usize * self.mean.len() + column..];
            let number = _mm512_set1_pd(f64::from(rest.number));
            for (half, entries) in halves.iter_mut().zip(entries[..COLUMNS].chunks_exact(8)) {
                *half = _mm512_fmadd_pd(_mm512_cvtepi32_pd(eight(entries)), number, *half);
            }
        }
        let mut states = [0.0; COLUMNS];
        let means = self.mean[column..][..COLUMNS].chunks_exact(8);
        for ((half, mean), to) in halves.iter().zip(means).zip(states.chunks_exact_mut(8)) {
            #[expect(unsafe_code, reason = "registers from and to slices")]
            // SAFETY: both hold eight numbers.
            unsafe {
                // Rounded twice, as everywhere: not one instruction for both.
                let scaled = _mm512_mul_pd(*half, _mm512_set1_pd(self.unit));
                let state = _mm512_add_pd(scaled, _mm512_loadu_pd(mean.as_ptr()));
                _mm256_storeu_ps(to.as_mut_ptr(), _mm512_cvtpd_ps(state));
            }
        }
        states
    }
}

/// For each digit, the sums of a row over all directions multiplied in full.
type Sums = [__m512i; DIGITS];

/// Rows of bytes `[ROWS, QUAD · quads]` times a panel.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn tile(bytes: &[i8], panel: &[Line]) -> [Sums; ROWS] {
    let stride = bytes.len() / ROWS;
    assert_eq!(stride * DIGITS, panel.len() * QUAD, "a line for each digit of a quad");
    let mut sums = [[_mm512_setzero_si512(); DIGITS]; ROWS];
    for (quad, lines) in panel.as_chunks::<DIGITS>().0.iter().enumerate() {
        #[expect(unsafe_code, reason = "the innermost loop checks no bounds")]
        // SAFETY: a line is a register, aligned; four bytes of each row are there for each quad.
        unsafe {
            let digits = lines.each_ref().map(|line| _mm512_load_si512(line.0.as_ptr().cast()));
            for (row, sums) in sums.iter_mut().enumerate() {
                let four = bytes.as_ptr().add(row * stride + quad * QUAD);
                let four = _mm512_set1_epi32(four.cast::<i32>().read_unaligned());
                for (sum, digit) in sums.iter_mut().zip(digits) {
                    *sum = _mm512_dpbusd_epi32(*sum, digit, four);
                }
            }
        }
    }
    sums
}

/// Notes what `rest` leaves of numbers, of directions from `first` on, where that is not 0.
#[inline]
fn rests(numbers: &[i16], first: usize, rest: impl Fn(i16) -> i16, found: &mut Vec<Rest>) {
    for (chunk, numbers) in numbers.chunks(32).enumerate() {
        // Most are 0 throughout.
        if numbers.iter().fold(0, |any, &number| any | rest(number)) == 0 {
            continue;
        }
        for (at, &number) in numbers.iter().enumerate().filter(|(_, number)| rest(**number) != 0) {
            let direction = (first + chunk * 32 + at) as u32;
            found.push(Rest { direction, number: i32::from(rest(number)) });
        }
    }
}

#[target_feature(enable = "avx512f,avx512vl")]
fn eight(entries: &[i32]) -> __m256i {
    assert_eq!(entries.len(), 8, "half a register of entries");
    #[expect(unsafe_code, reason = "a register from a slice")]
    // SAFETY: it holds eight, as just checked.
    unsafe {
        _mm256_loadu_si256(entries.as_ptr().cast())
    }
}
