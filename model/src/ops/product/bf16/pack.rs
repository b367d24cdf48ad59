//! Operands rounded to bfloat16 and laid out for the kernel: two terms of the sum that follow one
//! another make one 32-bit pair, the first in the low half.

use std::arch::x86_64::{
    __m512bh, __m512i, _mm256_maskz_loadu_epi16, _mm512_castsi256_si512, _mm512_cvtne2ps_pbh,
    _mm512_inserti64x4, _mm512_maskz_loadu_epi16, _mm512_maskz_loadu_ps, _mm512_permutexvar_epi16,
    _mm512_set_epi16, _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_storeu_si512,
    _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use half::bf16;

use super::kernel::{COLUMNS, ROWS};
use crate::ops::product::MatRef;
use crate::ops::{Floats, Precision};

/// Pairs in a register.
const LANES: usize = 16;
/// Terms in a register.
const TERMS: usize = 2 * LANES;

/// Rows of an operand, rounded.
pub(super) struct Rows<'a> {
    data: &'a [u32],
    row_stride: usize,
    pair_stride: usize,
    /// Pairs of terms of each row.
    pub(super) pairs: usize,
}

impl<'a> Rows<'a> {
    /// Rounds `a` `[rows, depth]` into `space`; an odd last term is paired with 0. The rows that
    /// fill up the last tile hold anything.
    pub(super) fn round(a: MatRef<'_>, space: &'a mut Vec<u32>) -> Self {
        match a.data {
            Floats::F32(values) => Self::of(values, a, space),
            Floats::Bf16(values) => Self::of(values, a, space),
            Floats::F16(_) => Self::round(a.widened(Precision::F32, &mut Vec::new()), space),
        }
    }

    #[expect(unsafe_code, reason = "instructions not every processor has")]
    fn of<T: Element>(values: &[T], a: MatRef<'_>, space: &'a mut Vec<u32>) -> Self {
        let (rows, pairs) = (a.rows.next_multiple_of(ROWS), a.cols.div_ceil(2));
        if a.col_stride != 1 {
            let pair_stride = rows.next_multiple_of(LANES);
            let data = room(space, pairs * pair_stride);
            // SAFETY: the driver asserted that this processor has the instructions.
            unsafe { pairs_across(values, a.col_stride, [a.cols, a.rows], data, pair_stride) };
            return Self { data, row_stride: 1, pair_stride, pairs };
        }
        let row_stride = pairs.next_multiple_of(LANES);
        let data = room(space, rows * row_stride);
        for row in 0..a.rows {
            let to = &mut data[row * row_stride..][..row_stride];
            // SAFETY: as above.
            unsafe { pairs_along(&values[row * a.row_stride..][..a.cols], to) };
        }
        Self { data, row_stride, pair_stride: 1, pairs }
    }

    /// From a row on: the pairs, and the strides from row to row and from pair to pair.
    pub(super) fn from(&self, row: usize) -> (&[u32], usize, usize) {
        (&self.data[row * self.row_stride..], self.row_stride, self.pair_stride)
    }
}

/// Rounds `b` `[depth, columns]`, at most [`COLUMNS`] of them, into `space`: for each pair of terms
/// its place in all columns, 0 where there is none.
pub(super) fn panel<'a>(b: MatRef<'_>, space: &'a mut Vec<u32>) -> &'a [u32] {
    match b.data {
        Floats::F32(values) => panel_of(values, b, space),
        Floats::Bf16(values) => panel_of(values, b, space),
        Floats::F16(_) => panel(b.widened(Precision::F32, &mut Vec::new()), space),
    }
}

#[expect(unsafe_code, reason = "instructions not every processor has")]
fn panel_of<'a, T: Element>(values: &[T], b: MatRef<'_>, space: &'a mut Vec<u32>) -> &'a [u32] {
    let pairs = b.rows.div_ceil(2);
    let data = room(space, pairs.next_multiple_of(LANES) * COLUMNS);
    if b.col_stride == 1 {
        // SAFETY: the driver asserted that this processor has the instructions.
        unsafe { pairs_across(values, b.row_stride, [b.rows, b.cols], data, COLUMNS) };
    } else {
        for first in (0..COLUMNS).step_by(LANES) {
            let columns = first..b.cols.clamp(first, first + LANES);
            let column = |at: usize| &values[(first + at) * b.col_stride..][..b.rows];
            let columns: [&[T]; LANES] =
                std::array::from_fn(|at| if at < columns.len() { column(at) } else { &[] });
            // SAFETY: as above.
            unsafe { pairs_transposed(columns, b.rows, &mut data[first..]) };
        }
    }
    data
}

/// The first `len` elements of `space`, which grows to hold them.
fn room(space: &mut Vec<u32>, len: usize) -> &mut [u32] {
    if space.len() < len {
        space.resize(len, 0);
    }
    &mut space[..len]
}

/// The pairs of terms that lie one behind another; `to` holds whole registers.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,bmi2")]
fn pairs_along<T: Element>(terms: &[T], to: &mut [u32]) {
    assert_eq!(to.len(), terms.len().div_ceil(2).next_multiple_of(LANES));
    #[expect(unsafe_code, reason = "pointers in the loop")]
    // SAFETY: of `terms` at most what is left is read,
    // and `to` has room for whole registers, as just checked.
    unsafe {
        for at in (0..terms.len()).step_by(TERMS) {
            let register = T::along(terms.as_ptr().add(at), terms.len() - at);
            store(register, to.as_mut_ptr().add(at / 2));
        }
    }
}

/// The pairs of terms that lie `stride` elements apart, for `width` places that lie one behind
/// another: those of the first two terms at all places, then those of the next two, `to_stride`
/// apart.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,bmi2")]
fn pairs_across<T: Element>(
    values: &[T],
    stride: usize,
    [terms, width]: [usize; 2],
    to: &mut [u32],
    to_stride: usize,
) {
    let pairs = terms.div_ceil(2);
    assert!(terms == 0 || values.len() >= (terms - 1) * stride + width, "terms that are not there");
    assert!(width <= to_stride && to_stride.is_multiple_of(LANES) && to.len() >= pairs * to_stride);
    #[expect(unsafe_code, reason = "pointers in the loop")]
    // SAFETY: of a term at most the places that are
    // left are read (none of one beyond the last), and `to` has whole registers for them all.
    unsafe {
        for pair in 0..pairs {
            let first = values.as_ptr().add(2 * pair * stride);
            let second = first.wrapping_add(stride);
            let whole = 2 * pair + 1 < terms;
            let to = to.as_mut_ptr().add(pair * to_stride);
            for at in (0..to_stride).step_by(LANES) {
                let left = width.saturating_sub(at);
                let lefts = [left, if whole { left } else { 0 }];
                let pairs = T::interleaved(first.wrapping_add(at), second.wrapping_add(at), lefts);
                store(pairs, to.add(at));
            }
        }
    }
}

/// The pairs of terms of 16 columns in each of which they lie one behind another (fewer columns:
/// the others are empty), as [`pairs_across`] lays them out, [`COLUMNS`] apart.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,bmi2")]
fn pairs_transposed<T: Element>(columns: [&[T]; LANES], terms: usize, to: &mut [u32]) {
    let registers = terms.div_ceil(TERMS);
    assert!(columns.iter().all(|column| column.is_empty() || column.len() == terms));
    assert!(registers == 0 || to.len() >= (LANES * registers - 1) * COLUMNS + LANES);
    #[expect(unsafe_code, reason = "pointers in the loop")]
    // SAFETY: of a column at most what is left is
    // read, and `to` has room for whole registers, as just checked.
    unsafe {
        for register in 0..registers {
            let at = register * TERMS;
            let mut rows = [_mm512_setzero_si512(); LANES];
            for (row, column) in rows.iter_mut().zip(&columns) {
                let left = column.len().saturating_sub(at);
                *row = T::along(column.as_ptr().wrapping_add(at), left);
            }
            for (pair, row) in transposed(rows).into_iter().enumerate() {
                store(row, to.as_mut_ptr().add((register * LANES + pair) * COLUMNS));
            }
        }
    }
}

/// A type an operand is stored in.
#[expect(unsafe_code, reason = "reads through pointers, with instructions not all have")]
trait Element: Copy {
    /// Up to [`TERMS`] values from `from` on, `left` of which may be read, rounded; 0 beyond them.
    ///
    /// # Safety
    /// `left` values must be there; the processor must have AVX512-BF16. So for the other.
    unsafe fn along(from: *const Self, left: usize) -> __m512i;

    /// Up to [`LANES`] values from `first` on and as many from `second` on, rounded, in turn;
    /// `lefts` of them may be read, 0 stands for those beyond.
    unsafe fn interleaved(first: *const Self, second: *const Self, lefts: [usize; 2]) -> __m512i;
}

#[expect(unsafe_code, reason = "instructions not every processor has")]
impl Element for f32 {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,bmi2")]
    #[inline]
    unsafe fn along(from: *const Self, left: usize) -> __m512i {
        // SAFETY: the masks leave out what may not be read.
        unsafe {
            let low = _mm512_maskz_loadu_ps(first_lanes(left) as u16, from);
            let rest = first_lanes(left.saturating_sub(LANES)) as u16;
            let high = _mm512_maskz_loadu_ps(rest, from.wrapping_add(LANES));
            as_bits(_mm512_cvtne2ps_pbh(high, low))
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,bmi2")]
    #[inline]
    unsafe fn interleaved(first: *const Self, second: *const Self, lefts: [usize; 2]) -> __m512i {
        // SAFETY: the masks leave out what may not be read.
        unsafe {
            let [low, high] = lefts.map(|left| first_lanes(left) as u16);
            let low = _mm512_maskz_loadu_ps(low, first);
            let high = _mm512_maskz_loadu_ps(high, second);
            in_turn(as_bits(_mm512_cvtne2ps_pbh(high, low)))
        }
    }
}

#[expect(unsafe_code, reason = "instructions not every processor has")]
impl Element for bf16 {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,bmi2")]
    #[inline]
    unsafe fn along(from: *const Self, left: usize) -> __m512i {
        // SAFETY: the mask leaves out what may not be read.
        unsafe { _mm512_maskz_loadu_epi16(first_lanes(left), from.cast()) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,bmi2")]
    #[inline]
    unsafe fn interleaved(first: *const Self, second: *const Self, lefts: [usize; 2]) -> __m512i {
        // SAFETY: the masks leave out what may not be read.
        unsafe {
            let [low, high] = lefts.map(|left| first_lanes(left) as u16);
            let low = _mm256_maskz_loadu_epi16(low, first.cast());
            let high = _mm256_maskz_loadu_epi16(high, second.cast());
            in_turn(_mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high))
        }
    }
}

/// The first `count` lanes (all, when there are fewer).
#[inline(always)]
fn first_lanes(count: usize) -> u32 {
    u32::MAX.checked_shr(32 - count.min(32) as u32).unwrap_or(0)
}

#[target_feature(enable = "avx512f")]
#[inline]
fn as_bits(register: __m512bh) -> __m512i {
    #[expect(unsafe_code, reason = "one register under another name")]
    // SAFETY: both are 64 bytes, and every pattern of bits is a value of both.
    unsafe {
        std::mem::transmute(register)
    }
}

/// The 16-bit values of the lower half and of the upper half in turn.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn in_turn(halves: __m512i) -> __m512i {
    let order = _mm512_set_epi16(
        31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4,
        19, 3, 18, 2, 17, 1, 16, 0,
    );
    _mm512_permutexvar_epi16(order, halves)
}

/// Rows and columns of 16 registers exchanged: by twos, by fours, then whole quarters.
#[target_feature(enable = "avx512f")]
#[inline]
fn transposed(rows: [__m512i; LANES]) -> [__m512i; LANES] {
    let mut quads = [_mm512_setzero_si512(); LANES];
    for group in 0..4 {
        let [a, b, c, d] = [0, 1, 2, 3].map(|row| rows[4 * group + row]);
        let (low, high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (low2, high2) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        quads[4 * group] = _mm512_unpacklo_epi64(low, low2);
        quads[4 * group + 1] = _mm512_unpackhi_epi64(low, low2);
        quads[4 * group + 2] = _mm512_unpacklo_epi64(high, high2);
        quads[4 * group + 3] = _mm512_unpackhi_epi64(high, high2);
    }
    let mut columns = [_mm512_setzero_si512(); LANES];
    for column in 0..4 {
        let [a, b, c, d] = [0, 1, 2, 3].map(|group| quads[4 * group + column]);
        // Even and odd quarters of two groups at a time.
        const EVEN: i32 = 0b10_00_10_00;
        const ODD: i32 = 0b11_01_11_01;
        let even = [_mm512_shuffle_i32x4::<EVEN>(a, b), _mm512_shuffle_i32x4::<EVEN>(c, d)];
        let odd = [_mm512_shuffle_i32x4::<ODD>(a, b), _mm512_shuffle_i32x4::<ODD>(c, d)];
        columns[column] = _mm512_shuffle_i32x4::<EVEN>(even[0], even[1]);
        columns[column + 4] = _mm512_shuffle_i32x4::<EVEN>(odd[0], odd[1]);
        columns[column + 8] = _mm512_shuffle_i32x4::<ODD>(even[0], even[1]);
        columns[column + 12] = _mm512_shuffle_i32x4::<ODD>(odd[0], odd[1]);
    }
    columns
}

/// Stores a register at `to`, which has room for it.
#[target_feature(enable = "avx512f")]
#[inline]
#[expect(unsafe_code, reason = "a store through a pointer")]
unsafe fn store(register: __m512i, to: *mut u32) {
    // SAFETY: promised by the caller.
    unsafe { _mm512_storeu_si512(to.cast(), register) }
}
