//! How fast a run goes, over its last steps.

use std::collections::VecDeque;

use student_trainer::observer::StepReport;

/// Steps looked back on.
const WINDOW: usize = 32;

/// Tokens, time and waiting of the last steps.
#[derive(Debug, Default)]
pub(super) struct Pace {
    steps: VecDeque<(f64, f64, f64)>,
}

impl Pace {
    /// Takes a step into account.
    pub(super) fn add(&mut self, report: &StepReport) {
        if self.steps.len() == WINDOW {
            self.steps.pop_front();
        }
        let tokens = report.tokens as f64;
        let seconds = tokens / report.tokens_per_second.max(f64::MIN_POSITIVE);
        self.steps.push_back((tokens, seconds, report.teacher_wait_seconds));
    }

    /// Tokens a second.
    pub(super) fn tokens_per_second(&self) -> f64 {
        let (tokens, seconds, _) = self.sums();
        if seconds > 0.0 { tokens / seconds } else { 0.0 }
    }

    /// Share of the time spent waiting for the teacher, 0 to 1.
    pub(super) fn wait_share(&self) -> f64 {
        let (_, seconds, wait) = self.sums();
        if seconds > 0.0 { (wait / seconds).clamp(0.0, 1.0) } else { 0.0 }
    }

    /// Seconds that `steps` more steps will take at this pace.
    pub(super) fn seconds_for(&self, steps: u64) -> f64 {
        let (_, seconds, _) = self.sums();
        steps as f64 * seconds / self.steps.len().max(1) as f64
    }

    fn sums(&self) -> (f64, f64, f64) {
        self.steps.iter().fold((0.0, 0.0, 0.0), |(a, b, c), (x, y, z)| (a + x, b + y, c + z))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::tests::step;

    #[test]
    fn the_pace_is_that_of_the_last_steps_only() {
        let mut pace = Pace::default();
        assert_eq!(
            (pace.tokens_per_second(), pace.wait_share(), pace.seconds_for(9)),
            (0., 0., 0.)
        );
        for n in 0..WINDOW as u64 {
            pace.add(&StepReport { tokens: 1, tokens_per_second: 0.001, ..step(n) });
        }
        // 512 tokens at 4096 a second: 0.125 s a step, of which 0.03125 s are waiting.
        (0..WINDOW as u64).for_each(|n| pace.add(&step(n)));
        assert_eq!(pace.tokens_per_second(), 4096.0);
        assert_eq!(pace.wait_share(), 0.25);
        assert_eq!(pace.seconds_for(16), 2.0);
    }
}
