//! What happens too often to be told each time: said at once, then counted, so that a flood of it is
//! none of the log's.

use std::time::{Duration, Instant};

/// Says when it is time to tell.
#[derive(Debug)]
pub struct Seldom {
    every: Duration,
    untold: u64,
    told: Option<Instant>,
}

impl Seldom {
    /// At most once in this time.
    pub fn every(every: Duration) -> Self {
        Self { every, untold: 0, told: None }
    }

    /// Counts one; gives the number there were since the last time when it is time to say it.
    pub fn count(&mut self, now: Instant) -> Option<u64> {
        self.untold += 1;
        if self.told.is_some_and(|told| now < told + self.every) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_is_told_at_once_and_then_counted_for_a_while() {
        let every = Duration::from_secs(10);
        let (mut seldom, begin) = (Seldom::every(every), Instant::now());
        assert_eq!(seldom.count(begin), Some(1));
        for _ in 0..5000 {
            assert_eq!(seldom.count(begin + every / 2), None);
        }
        assert_eq!(seldom.count(begin + every), Some(5001));
        assert_eq!(seldom.count(begin + every), None);
    }
}
