//! Exponentials of logits at two temperatures in one pass, and what is made of them.
//!
//! The logits that belong to a top-k signal are set to -inf beforehand, so that these are sums
//! over all *other* classes with a scale of their own; the few left out are added in `f64`. A row
//! comes in blocks of classes, whose sums are put together in `f64` too. Where T is a small whole number
//! one exponential serves both: `e^x` is the T-th power of `e^(x / T)`.

use multiversion::multiversion;

use crate::ops::math::exp_f32;

/// Partial sums side by side: two registers of AVX-512.
const LANES: usize = 32;
/// Elements summed in `f32` before the sum goes on in `f64`.
pub(super) const BLOCK: usize = 1024;

/// Sums over logits z, relative to the largest of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RestSums {
    /// The largest logit, 0 where all are -inf.
    pub(crate) max: f64,
    /// `Σ exp(z_j - max)`; at least 1 unless all are -inf, NaN when a logit is NaN or +inf.
    pub(crate) at_one: f64,
    /// `Σ exp((z_j - max) / T)`.
    pub(crate) at_t: f64,
}

impl RestSums {
    /// The sums over no logits.
    pub(crate) const NONE: Self = Self { max: 0.0, at_one: 0.0, at_t: 0.0 };

    /// The two sums of logits whose largest is `max`. At T = 1 they are one.
    pub(crate) fn of(row: &[f32], max: f32, temperature: f64) -> Self {
        let max = reference_point(max);
        let (at_one, at_t) = if temperature == 1.0 {
            let sum = sum_one(row, max);
            (sum, sum)
        } else {
            sum_both(row, max, Tempering::of(temperature))
        };
        Self { max: f64::from(max), at_one, at_t }
    }

    /// The sums of one logit.
    pub(crate) fn of_one(logit: f32) -> Self {
        Self { max: f64::from(logit), at_one: 1.0, at_t: 1.0 }
    }

    /// The sums over these logits and others.
    pub(crate) fn and(self, other: Self, temperature: f64) -> Self {
        if other.at_one == 0.0 {
            return self;
        }
        if self.at_one == 0.0 {
            return other;
        }
        let max = self.max.max(other.max);
        let (ours, theirs) = (self.max - max, other.max - max);
        Self {
            max,
            at_one: self.at_one * ours.exp() + other.at_one * theirs.exp(),
            at_t: self.at_t * (ours / temperature).exp()
                + other.at_t * (theirs / temperature).exp(),
        }
    }

    /// `log Σ exp(z_j)`.
    pub(crate) fn log_at_one(&self) -> f64 {
        self.max + self.at_one.ln()
    }

    /// `log Σ exp(z_j / T)`.
    pub(crate) fn log_at_t(&self, temperature: f64) -> f64 {
        self.max / temperature + self.at_t.ln()
    }
}

/// `log(exp(first) + Σ exp(others))`; NaN when any of them is NaN or +inf.
pub(crate) fn log_sum(first: f64, others: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = others.clone().fold(first, f64::max);
    if largest == f64::NEG_INFINITY || first.is_nan() {
        // All -inf, or NaN among them: the plain sum says which.
        return first + others.sum::<f64>();
    }
    let sum = (first - largest).exp() + others.map(|x| (x - largest).exp()).sum::<f64>();
    largest + sum.ln()
}

/// What is subtracted: the largest logit, but 0 for a row of nothing but -inf.
pub(super) fn reference_point(max: f32) -> f32 {
    if max == f32::NEG_INFINITY { 0.0 } else { max }
}

/// The first index that holds `value`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
pub(crate) fn position_of(row: &[f32], value: f32) -> Option<usize> {
    for (number, chunk) in row.chunks(256).enumerate() {
        // Without an early exit inside the chunk this is vector code.
        if chunk.iter().fold(false, |found, &x| found | (x == value)) {
            let inside = chunk.iter().position(|&x| x == value)?;
            return Some(number * 256 + inside);
        }
    }
    None
}

/// `z = a·exp(z - max) + b·exp((z - max) / T)` in place.
pub(crate) fn blend(row: &mut [f32], max: f64, temperature: f64, a: f64, b: f64) {
    // The largest logit is one of them, so nothing is lost.
    let max = max as f32;
    if temperature == 1.0 {
        blend_one(row, max, (a + b) as f32);
    } else {
        blend_both(row, max, Tempering::of(temperature), [a as f32, b as f32]);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
fn blend_one(row: &mut [f32], max: f32, a: f32) {
    for z in row {
        *z = a * exp_f32(*z - max);
    }
}

/// A temperature other than 1.
#[derive(Clone, Copy)]
struct Tempering {
    inverse: f32,
    /// The temperature where it is a whole number up to [`HIGHEST_POWER`]; else 0.
    power: u32,
}

/// Above it an exponential costs no more than the multiplications.
const HIGHEST_POWER: u32 = 8;

impl Tempering {
    fn of(temperature: f64) -> Self {
        let whole = (2..=HIGHEST_POWER).find(|&power| f64::from(power) == temperature);
        Self { inverse: (1.0 / temperature) as f32, power: whole.unwrap_or(0) }
    }
}

/// `e^x` and `e^(x / T)`; `POWER` is T where that is a whole number, else 0.
#[inline(always)]
fn both<const POWER: u32>(x: f32, inverse_t: f32) -> (f32, f32) {
    let tempered = exp_f32(x * inverse_t);
    if POWER == 0 {
        return (exp_f32(x), tempered);
    }
    // What would be below the smallest normal number is 0, as of every exponential here.
    let base = if x < -87.33 { 0.0 } else { tempered };
    let mut plain = base;
    for _ in 1..POWER {
        plain *= base;
    }
    (plain, tempered)
}

/// Calls `$body` with the power of a [`Tempering`] as a constant.
macro_rules! with_power {
    ($power:expr, $body:ident($($argument:expr),*)) => {
        match $power {
            2 => $body::<2>($($argument),*),
            3 => $body::<3>($($argument),*),
            4 => $body::<4>($($argument),*),
            5 => $body::<5>($($argument),*),
            6 => $body::<6>($($argument),*),
            7 => $body::<7>($($argument),*),
            8 => $body::<8>($($argument),*),
            _ => $body::<0>($($argument),*),
        }
    };
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
fn blend_both(row: &mut [f32], max: f32, tempering: Tempering, weights: [f32; 2]) {
    with_power!(tempering.power, blend_at(row, max, tempering.inverse, weights));
}

#[inline(always)]
fn blend_at<const POWER: u32>(row: &mut [f32], max: f32, inverse_t: f32, [a, b]: [f32; 2]) {
    for z in row {
        let (plain, tempered) = both::<POWER>(*z - max, inverse_t);
        *z = a * plain + b * tempered;
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
fn sum_one(row: &[f32], max: f32) -> f64 {
    // Exponentials go through a block on the stack: a loop that only stores is vector code.
    let mut space = [0.0_f32; BLOCK];
    let mut sum = 0.0;
    for block in row.chunks(BLOCK) {
        let exps = &mut space[..block.len()];
        for (e, &z) in exps.iter_mut().zip(block) {
            *e = exp_f32(z - max);
        }
        sum += f64::from(sum_block(exps));
    }
    sum
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
fn sum_both(row: &[f32], max: f32, tempering: Tempering) -> (f64, f64) {
    with_power!(tempering.power, sum_at(row, max, tempering.inverse))
}

#[inline(always)]
fn sum_at<const POWER: u32>(row: &[f32], max: f32, inverse_t: f32) -> (f64, f64) {
    let mut space = [[0.0_f32; BLOCK]; 2];
    let (mut at_one, mut at_t) = (0.0, 0.0);
    for block in row.chunks(BLOCK) {
        let [one, tempered] = &mut space;
        let (one, tempered) = (&mut one[..block.len()], &mut tempered[..block.len()]);
        for ((e, t), &z) in one.iter_mut().zip(tempered.iter_mut()).zip(block) {
            (*e, *t) = both::<POWER>(z - max, inverse_t);
        }
        at_one += f64::from(sum_block(one));
        at_t += f64::from(sum_block(tempered));
    }
    (at_one, at_t)
}

/// `Σ x`, in [`LANES`] interleaved sums folded in halves: a fixed order.
#[inline(always)]
pub(super) fn sum_block(x: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += x;
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += x;
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
mod tests {
    use super::*;
    use crate::ops::math;

    #[test]
    fn sums_meet_float64_and_keep_what_is_not_finite() {
        let row: Vec<f32> = (0..2500).map(|i| ((i * 37) % 101) as f32 * 0.37 - 9.0).collect();
        let max = math::max(&row);
        for t in [1.0, 0.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0] {
            let sum = |t: f64| -> f64 {
                row.iter().map(|&z| ((f64::from(z) - f64::from(max)) / t).exp()).sum()
            };
            let wanted = sum(t);
            let sums = RestSums::of(&row, max, t);
            assert!((sums.at_t / wanted - 1.0).abs() < 3e-7, "{t}");
            assert!((sums.at_one / sum(1.0) - 1.0).abs() < 3e-7, "{t}");
            let (mut parts, mut blended) = (RestSums::NONE, row.clone());
            for part in row.chunks(777) {
                parts = parts.and(RestSums::of(part, math::max(part), t), t);
            }
            assert_eq!(parts.max, sums.max);
            assert!((parts.at_t / wanted - 1.0).abs() < 3e-7, "in parts, {t}");
            blend(&mut blended, sums.max, t, 0.5, -2.0);
            for (z, found) in row.iter().zip(&blended) {
                let below = f64::from(z - max);
                let [plain, tempered] = [0.5 * below.exp(), -2.0 * (below / t).exp()];
                let off = (f64::from(*found) - plain - tempered).abs();
                assert!(off < 1e-6 * (plain - tempered), "{t}: {off}");
            }
        }
        // What vanishes at 1 and not at T.
        let far = [0.0, -90.0, -100.0, -430.0];
        let sums = RestSums::of(&far, 0.0, 5.0);
        let wanted: f64 = far.iter().map(|&z| (f64::from(z) / 5.0).exp()).sum();
        assert!(sums.at_one == 1.0 && (sums.at_t / wanted - 1.0).abs() < 1e-7);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut spoilt = row.clone();
            spoilt[1234] = bad;
            let sums = RestSums::of(&spoilt, math::max(&spoilt), 5.0);
            assert!(sums.log_at_one().is_nan() && sums.log_at_t(5.0).is_nan());
        }
        let nothing = RestSums::of(&[f32::NEG_INFINITY; 3], f32::NEG_INFINITY, 2.0);
        assert_eq!((nothing.at_one, nothing.at_t), (0.0, 0.0));
        assert_eq!(nothing.log_at_t(2.0), f64::NEG_INFINITY);
        let far_below = RestSums::of_one(-1e4);
        for sums in [nothing.and(far_below, 2.0), far_below.and(nothing, 2.0)] {
            assert_eq!((sums.log_at_one(), sums.log_at_t(2.0)), (-1e4, -5e3));
        }
    }

    #[test]
    fn a_sum_of_logs_keeps_nan_and_survives_nothing_at_all() {
        let none = f64::NEG_INFINITY;
        assert_eq!(log_sum(none, [none, none].into_iter()), none);
        assert!((log_sum(none, [1e4, 1e4].into_iter()) - 1e4 - 2f64.ln()).abs() < 1e-11);
        assert!((log_sum(-1e4, [-1e4].into_iter()) + 1e4 - 2f64.ln()).abs() < 1e-11);
        for [first, other] in
            [[f64::NAN, 1.0], [1.0, f64::NAN], [none, f64::NAN], [1.0, f64::INFINITY]]
        {
            assert!(log_sum(first, [other].into_iter()).is_nan(), "{first} {other}");
        }
    }

    #[test]
    fn the_first_of_equal_values_is_found() {
        let mut row = vec![0.0f32; 1000];
        assert_eq!(position_of(&row, 2.0), None);
        row[999] = 2.0;
        assert_eq!(position_of(&row, 2.0), Some(999));
        row[300] = 2.0;
        assert_eq!(position_of(&row, 2.0), Some(300));
    }
}
