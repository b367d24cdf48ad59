//! Values in fixed point between a row's largest and smallest.

use super::CodecError;

/// The largest number below a half.
const ALMOST_HALF: f64 = 0.5f64.next_down();

/// From here on a float64 has no fraction.
const NO_FRACTION: f64 = 4_503_599_627_370_496.0;

/// The fixed point of one row.
pub(super) struct Scale {
    /// The row's largest value.
    pub(super) top: f32,
    /// What one more in the code takes from it.
    pub(super) step: f32,
}

impl Scale {
    /// For codes up to `most`. The step is rounded up, so that the smallest value never needs a code
    /// beyond it.
    pub(super) fn of(row: &[f32], most: u16) -> Self {
        let top = extreme(row, |value, best| value > best);
        let smallest = extreme(row, |value, best| value < best);
        let exact = (f64::from(top) - f64::from(smallest)) / f64::from(most);
        let nearest = exact as f32;
        let step = if f64::from(nearest) < exact { nearest.next_up() } else { nearest };
        Self { top, step }
    }

    /// As it came, numbers both.
    pub(super) fn read(row: usize, top: [u8; 4], step: [u8; 4]) -> Result<Self, CodecError> {
        let scale = Self { top: f32::from_le_bytes(top), step: f32::from_le_bytes(step) };
        for (what, found) in [("the largest value", scale.top), ("the step", scale.step)] {
            if !found.is_finite() {
                return Err(CodecError::NotFinite { row, what, found });
            }
        }
        Ok(scale)
    }

    /// Whether the code `most`, the step being rounded up, still ends at a number.
    pub(super) fn check_last(&self, row: usize, most: u16) -> Result<(), CodecError> {
        let found = self.value(most);
        if !found.is_finite() {
            let what = "the smallest value, in steps from the largest,";
            return Err(CodecError::NotFinite { row, what, found });
        }
        Ok(())
    }

    /// The codes of values of this row, as `written`: steps below the top, halves rounded up. The step
    /// being rounded up, there are never `most` and a half of them. Of the number that `written` takes
    /// the lower 16 bits are the code.
    pub(super) fn put_codes<C: Copy>(
        &self,
        values: &[f32],
        codes: &mut [C],
        written: impl Fn(u64) -> C,
    ) {
        if self.step == 0.0 {
            return codes.fill(written(0));
        }
        let (top, step) = (f64::from(self.top), f64::from(self.step));
        for (code, &value) in codes.iter_mut().zip(values) {
            *code = written(rounded((top - f64::from(value)) / step));
        }
    }

    /// What a code means.
    pub(super) fn value(&self, code: u16) -> f32 {
        (f64::from(self.top) - f64::from(code) * f64::from(self.step)) as f32
    }
}

/// `x.round()` of `0 <= x < 2^51` in the lower bits of a number, as SSE2 has no instruction for it.
///
/// Adding a half would make 1 of the largest number below it; adding that number makes 0 of it, and
/// `n + 1` of every `n + 1/2` still. Adding `NO_FRACTION` then rounds to the nearest integer, which
/// is one too many where it is above the sum.
fn rounded(x: f64) -> u64 {
    let sum = x + ALMOST_HALF;
    let nearest = sum + NO_FRACTION;
    nearest.to_bits() - u64::from(nearest - NO_FRACTION > sum)
}

/// The largest or smallest of a row, as `beats` says; of 0 and -0, which are equal, the first.
fn extreme(row: &[f32], beats: impl Fn(f32, f32) -> bool) -> f32 {
    let better = |best: f32, value: f32| if beats(value, best) { value } else { best };
    let mut lanes = [row[0]; 4];
    let (groups, rest) = row.as_chunks::<4>();
    for group in groups {
        for (lane, &value) in lanes.iter_mut().zip(group) {
            *lane = better(*lane, value);
        }
    }
    let best = lanes.into_iter().chain(rest.iter().copied()).fold(row[0], better);
    if best == 0.0 { row.iter().copied().find(|&value| value == 0.0).unwrap_or(best) } else { best }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_the_standard_library() {
        for n in 0..65_535 {
            for at in [f64::from(n), f64::from(n) + 0.5, f64::from(n) + 1.0] {
                let (mut down, mut up) = (at, at);
                for _ in 0..4 {
                    assert_eq!(rounded(up) as u16, up.round() as u16, "{up:e}");
                    assert_eq!(rounded(down) as u16, down.round() as u16, "{down:e}");
                    (down, up) = (down.next_down().max(0.0), up.next_up());
                }
            }
        }
    }
}
