//! Elementary functions and reductions over slices, written so that the compiler vectorises them.
//!
//! Each public slice function is compiled for AVX-512, AVX2 and the baseline, and picks at run
//! time. None uses a fused multiply-add, and every sum has a fixed order: the bits are the same on
//! every machine.

use half::{bf16, f16};
use multiversion::multiversion;

use super::{Floats, Precision};

/// Independent partial sums of a reduction: two registers of AVX-512.
const LANES: usize = 32;
/// Elements summed in `f32` before the sum goes on in `f64`.
const BLOCK: usize = 1024;
/// ln 2 in two parts: the first has trailing zeros, so that n·LN2_HIGH is exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// `e^x`, at most 1.25 units in the last place from the exact value.
///
/// Below -87.33 it is 0 (subnormal numbers cost a processor a hundred times as much, and a softmax
/// is full of such tails); what exceeds `f32` gives inf, NaN stays NaN. Branch-free, so that loops over it
/// become vector code: `x = n·ln 2 + r`, then a polynomial in `r` scaled by `2^n`.
#[inline(always)]
pub fn exp_f32(x: f32) -> f32 {
    // Adding and subtracting 1.5·2^23 rounds to the nearest integer, left in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // A little above ln(2^-126).
    const LOWEST: f32 = -87.33;
    // Comparisons, not clamp's min/max: these keep NaN.
    let vanishes = x < LOWEST;
    let x = if vanishes { LOWEST } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    // Minimax polynomial of (e^r - 1 - r) / r² on [-ln 2 / 2, ln 2 / 2] (Cephes, expf).
    let p = 1.987_569_1e-4_f32;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.500_000_1;
    let y = p * (r * r) + r + 1.0;
    // 2^n in two factors, for the exponents one f32 factor cannot hold.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    let y = y * power_of_two(half) * power_of_two(n.wrapping_sub(half));
    if vanishes { 0.0 } else { y }
}

/// `e^x` in `f64`, at most two units in the last place from the exact value; 0 below -708.3, where the
/// result is below the smallest normal number. Branch-free, like [`exp_f32`].
#[inline(always)]
fn exp_f64(x: f64) -> f64 {
    // Adding and subtracting 1.5·2^52 rounds to the nearest integer, left in the low bits.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    // A little above ln(2^-1022).
    const LOWEST: f64 = -708.39;
    // ln 2 in two parts, of which the first has trailing zeros.
    const HIGH: f64 = 0.693_147_180_369_123_8;
    const LOW: f64 = 1.908_214_929_270_587_7e-10;
    let vanishes = x < LOWEST;
    let x = if vanishes { LOWEST } else { x };
    let x = if x > 710.0 { 710.0 } else { x };
    let shifted = x * std::f64::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * HIGH - n * LOW;
    // The series up to r^13 / 13!: what it leaves out is 4e-18 at r = ln 2 / 2.
    let mut p = 1.0 / 6_227_020_800.0;
    for divisor in [
        479_001_600.0,
        39_916_800.0,
        3_628_800.0,
        362_880.0,
        40_320.0,
        5_040.0,
        720.0,
        120.0,
        24.0,
        6.0,
        2.0,
    ] {
        p = p * r + 1.0 / divisor;
    }
    let y = p * (r * r) + r + 1.0;
    let n = (shifted.to_bits() as i64).wrapping_sub(ROUND.to_bits() as i64);
    let half = n >> 1;
    let power = |n: i64| f64::from_bits((n.wrapping_add(1023) as u64) << 52);
    let y = y * power(half) * power(n.wrapping_sub(half));
    if vanishes { 0.0 } else { y }
}

/// `x[i] = e^x[i]` in place, as [`exp_f32`] does it for `f32`; what is below the smallest normal number
/// becomes 0.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
pub fn exp_in_place_f64(x: &mut [f64]) {
    for value in x {
        *value = exp_f64(*value);
    }
}

/// `ln x` of a finite number, at most one unit in the last place from the exact value.
///
/// What lies below the smallest normal number counts as that; NaN stays NaN. Branch-free, like
/// [`exp_f32`]: `x = 2^n (1 + f)` with 1 + f between √½ and √2, then a polynomial in `f`.
#[inline(always)]
pub fn ln_f32(x: f32) -> f32 {
    // The bits of √½.
    const LOWEST: u32 = 0x3f35_04f3;
    let x = if x < f32::MIN_POSITIVE { f32::MIN_POSITIVE } else { x };
    let n = (x.to_bits().wrapping_sub(LOWEST) as i32) >> 23;
    let f = f32::from_bits(x.to_bits().wrapping_sub((n as u32) << 23)) - 1.0;
    let n = n as f32;
    // Minimax polynomial of (ln(1 + f) - f + f² / 2) / f³ (Cephes, logf).
    let p = 7.037_683_6e-2_f32;
    let p = p * f - 0.115_146_1;
    let p = p * f + 0.116_769_99;
    let p = p * f - 0.124_201_41;
    let p = p * f + 0.142_493_23;
    let p = p * f - 0.166_680_58;
    let p = p * f + 0.200_007_15;
    let p = p * f - 0.249_999_94;
    let p = p * f + 0.333_333_3;
    let square = f * f;
    let y = p * f * square + n * LN2_LOW - 0.5 * square;
    let y = f + y + n * LN2_HIGH;
    if x.is_nan() { x } else { y }
}

/// The logistic function `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid_f32(x: f32) -> f32 {
    1.0 / (1.0 + exp_f32(-x))
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// The largest value; -inf of an empty slice. NaN is passed over.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
pub fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
        }
    }
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let of_rest = rest.iter().copied().fold(f32::NEG_INFINITY, larger);
    lanes.into_iter().fold(of_rest, larger)
}

/// `x[i] = e^(scale·x[i] - shift)` in place; the sum of the results.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
pub fn exp_in_place(x: &mut [f32], scale: f32, shift: f32) -> f64 {
    for value in x.iter_mut() {
        *value = exp_f32(*value * scale - shift);
    }
    sum_of([x], |[x]| x)
}

/// `Σ e^(scale·x[i] - shift)`, nothing stored.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
pub fn sum_exp(x: &[f32], scale: f32, shift: f32) -> f64 {
    sum_of([x], |[x]| exp_f32(x * scale - shift))
}

/// `Σ x[i]`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
pub fn sum(x: &[f32]) -> f64 {
    sum_of([x], |[x]| x)
}

/// `Σ a[i]·b[i]` of two slices of one length.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    sum_of([a, b], |[a, b]| a * b)
}

/// `acc[i] += x[i]`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
pub fn add_assign(acc: &mut [f32], x: &[f32]) {
    for (acc, x) in acc.iter_mut().zip(x) {
        *acc += x;
    }
}

/// `x[i] *= factor`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
pub fn scale_in_place(x: &mut [f32], factor: f32) {
    for x in x {
        *x *= factor;
    }
}

/// Writes `from`, rounded to `precision`, to `to` as `f32`.
pub(crate) fn convert(from: Floats<'_>, precision: Precision, to: &mut [f32]) {
    match (from, precision) {
        (Floats::F32(from), Precision::F32) => to.copy_from_slice(from),
        (Floats::F32(from), Precision::Bf16) => round_to_bf16(from, to),
        (Floats::F32(from), Precision::F16) => round_to_f16(from, to),
        (Floats::Bf16(from), Precision::F32 | Precision::Bf16) => widen_bf16(from, to),
        (Floats::F16(from), Precision::F32 | Precision::F16) => widen_f16(from, to),
        (Floats::Bf16(from), Precision::F16) => {
            for (to, from) in to.iter_mut().zip(from) {
                *to = f16::from_f32(from.to_f32()).to_f32();
            }
        }
        (Floats::F16(from), Precision::Bf16) => {
            for (to, from) in to.iter_mut().zip(from) {
                *to = bf16::from_f32(from.to_f32()).to_f32();
            }
        }
    }
}

/// The nearest bfloat16, ties to even, as `f32`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
pub fn round_to_bf16(from: &[f32], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        let bits = from.to_bits();
        // Adding 0x7fff, and one more when the last kept bit is odd, carries exactly when the
        // dropped half must round up. A NaN would wrap around: it keeps its bits, made quiet.
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
        let quiet = (bits | 0x0040_0000) & 0xffff_0000;
        *to = f32::from_bits(if from.is_nan() { quiet } else { rounded });
    }
}

/// The nearest IEEE half-precision value, ties to even, as `f32`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
pub fn round_to_f16(from: &[f32], to: &mut [f32]) {
    for (to, &x) in to.iter_mut().zip(from) {
        *to = nearest_f16(x);
    }
}

#[inline(always)]
fn nearest_f16(x: f32) -> f32 {
    let bits = x.to_bits();
    let sign = bits & 0x8000_0000;
    let size = f32::from_bits(bits & 0x7fff_ffff);
    // Normal halves keep 10 bits of the mantissa: the same carry as for bfloat16, 13 bits down.
    let size_bits = size.to_bits();
    let normal =
        f32::from_bits(size_bits.wrapping_add(0x0fff + ((size_bits >> 13) & 1)) & 0xffff_e000);
    // Subnormal halves are multiples of 2^-24: adding 0.5 puts that unit at the last bit.
    let subnormal = (size + 0.5) - 0.5;
    let rounded = if size < 6.103_515_6e-5 { subnormal } else { normal };
    let rounded = if rounded > 65_504.0 { f32::INFINITY } else { rounded };
    let rounded = if size.is_nan() { f32::NAN } else { rounded };
    f32::from_bits(rounded.to_bits() | sign)
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
fn widen_bf16(from: &[bf16], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = f32::from_bits(u32::from(from.to_bits()) << 16);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
fn widen_f16(from: &[f16], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        let bits = u32::from(from.to_bits());
        let sign = (bits & 0x8000) << 16;
        let size = (bits & 0x7fff) << 13;
        // The half's exponent is 112 below the float's: one multiplication mends it, subnormal
        // values included; infinity and NaN must keep the largest exponent.
        let scaled = f32::from_bits(size) * 5.192_297e33;
        let special = f32::from_bits(size | 0x7f80_0000);
        let value = if size >= 0x0f80_0000 { special } else { scaled };
        *to = f32::from_bits(value.to_bits() | sign);
    }
}

/// `Σ term(elements)` over the elements of slices of one length, [`BLOCK`] elements in `f32` at a
/// time, the blocks in `f64`.
#[inline(always)]
pub(crate) fn sum_of<const K: usize>(slices: [&[f32]; K], term: impl Fn([f32; K]) -> f32) -> f64 {
    let len = slices[0].len();
    let mut total = 0.0;
    for start in (0..len).step_by(BLOCK) {
        let end = len.min(start + BLOCK);
        total += f64::from(lane_sum(slices.map(|x| &x[start..end]), &term));
    }
    total
}

/// The same in `f32`: [`LANES`] interleaved sums that are then folded in halves.
#[inline(always)]
pub(crate) fn lane_sum<const K: usize>(slices: [&[f32]; K], term: impl Fn([f32; K]) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (chunks, rest) =
        (slices.map(|x| x.as_chunks::<LANES>().0), slices.map(|x| x.as_chunks::<LANES>().1));
    for at in 0..chunks[0].len() {
        let chunk = chunks.map(|chunks| &chunks[at]);
        for (i, lane) in lanes.iter_mut().enumerate() {
            *lane += term(chunk.map(|chunk| chunk[i]));
        }
    }
    for (i, lane) in lanes.iter_mut().enumerate().take(rest[0].len()) {
        *lane += term(rest.map(|rest| rest[i]));
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
#[path = "math_tests.rs"]
mod tests;
