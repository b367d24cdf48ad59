//! How long to wait before trying again.

use std::time::Duration;

/// Exponential growth between two bounds, with jitter so that clients which failed together do not
/// return together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The longest possible delay after the first failure; each further failure doubles it.
    pub first: Duration,
    /// What the doubling stops at.
    pub longest: Duration,
}

impl Default for Backoff {
    /// 0.2 s doubling up to 10 s.
    fn default() -> Self {
        Self { first: Duration::from_millis(200), longest: Duration::from_secs(10) }
    }
}

impl Backoff {
    /// The delay after `failures` failures in a row (1 for the first), `random` drawn uniformly
    /// from [0, 1): `c / 2 + random · c / 2` with `c = min(longest, first · 2^(failures - 1))`.
    /// A random number outside its range is brought into it.
    pub fn delay(&self, failures: u32, random: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let ceiling = self.first.saturating_mul(1 << doublings).min(self.longest);
        let random = if random.is_nan() { 0.0 } else { random.clamp(0.0, 1.0) };
        let seconds = ceiling.as_secs_f64() * (0.5 + 0.5 * random);
        Duration::try_from_secs_f64(seconds).unwrap_or(self.longest).min(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn delays_double_until_the_longest() {
        let backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(5) };
        let middle: Vec<f64> =
            (1..=5).map(|failures| backoff.delay(failures, 0.5).as_secs_f64()).collect();
        assert_eq!(middle, [0.75, 1.5, 3.0, 3.75, 3.75]);
        assert_eq!(backoff.delay(1, 0.0), Duration::from_millis(500));
        assert_eq!(backoff.delay(2, f64::NAN), Duration::from_secs(1));
    }

    proptest! {
        #[test]
        fn every_delay_lies_in_the_upper_half_of_its_ceiling(
            failures in any::<u32>(),
            random in -1.0f64..2.0,
            first_ms in 1u64..100_000,
            longest_ms in 1u64..10_000_000,
        ) {
            let longest = Duration::from_millis(longest_ms);
            let backoff = Backoff { first: Duration::from_millis(first_ms), longest };
            let doublings = failures.saturating_sub(1).min(31) as i32;
            let doubled = first_ms as f64 / 1e3 * 2f64.powi(doublings);
            let ceiling = doubled.min(longest.as_secs_f64());
            let delay = backoff.delay(failures, random).as_secs_f64();
            prop_assert!(delay >= ceiling * 0.5 - 1e-9 && delay <= ceiling + 1e-9);
        }
    }
}
