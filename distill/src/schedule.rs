//! The learning rate as a function of the step: transformers' schedules under transformers' names.

use std::f64::consts::PI;
use std::fmt;
use std::str::FromStr;

/// Shape of a schedule (`--lr-scheduler-type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScheduleKind {
    /// The same rate at every step. As in transformers, warm-up steps do not apply.
    Constant,
    /// Up from 0 during the warm-up, then constant.
    ConstantWithWarmup,
    /// Up from 0 during the warm-up, then straight down to 0 at the last step.
    Linear,
    /// Up from 0 during the warm-up, then half a cosine down to 0 at the last step.
    Cosine,
}

/// A setting no schedule can be made of.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ScheduleError {
    /// A name that is no schedule.
    #[error(
        "unknown learning rate schedule {found:?}: use constant, constant_with_warmup, linear or \
         cosine"
    )]
    UnknownKind {
        /// The name.
        found: String,
    },
    /// A rate no training can use.
    #[error("learning rate {found}: it must be finite and not negative")]
    LearningRate {
        /// The rate.
        found: f64,
    },
    /// A warm-up that is neither a number of steps nor a share of them.
    #[error("warmup steps {found}: give a whole number of steps, or a share of all steps in 0..1")]
    Warmup {
        /// The value.
        found: f64,
    },
}

/// A learning rate for every step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LrSchedule {
    kind: ScheduleKind,
    learning_rate: f64,
    warmup: u64,
    steps: u64,
}

impl LrSchedule {
    /// A schedule over `steps` optimiser steps with the highest rate `learning_rate`.
    /// `warmup_steps` below 1 is a share of `steps`, rounded up; from 1 on a number of steps.
    ///
    /// # Errors
    /// [`ScheduleError`] for a rate or a warm-up that is negative or not finite, and for a warm-up
    /// above 1 with a fraction.
    pub fn new(
        kind: ScheduleKind,
        learning_rate: f64,
        warmup_steps: f64,
        steps: u64,
    ) -> Result<Self, ScheduleError> {
        if !learning_rate.is_finite() || learning_rate < 0.0 {
            return Err(ScheduleError::LearningRate { found: learning_rate });
        }
        let whole = warmup_steps < 1.0 || warmup_steps.fract() == 0.0;
        if !warmup_steps.is_finite() || warmup_steps < 0.0 || !whole {
            return Err(ScheduleError::Warmup { found: warmup_steps });
        }
        let warmup = match warmup_steps < 1.0 {
            true => (steps as f64 * warmup_steps).ceil() as u64,
            false => warmup_steps as u64,
        };
        Ok(Self { kind, learning_rate, warmup, steps })
    }

    /// The rate of optimiser step `step`, counted from 0. With a warm-up the first step's rate is
    /// 0, as it is in transformers.
    pub fn lr(&self, step: u64) -> f64 {
        self.learning_rate * self.factor(step)
    }

    /// Warm-up steps, the share resolved.
    pub fn warmup(&self) -> u64 {
        self.warmup
    }

    /// `lr_lambda` of `transformers/optimization.py`.
    fn factor(&self, step: u64) -> f64 {
        if self.kind == ScheduleKind::Constant {
            return 1.0;
        }
        if step < self.warmup {
            return step as f64 / self.warmup.max(1) as f64;
        }
        let decay_steps = self.steps.saturating_sub(self.warmup).max(1) as f64;
        match self.kind {
            ScheduleKind::Constant | ScheduleKind::ConstantWithWarmup => 1.0,
            ScheduleKind::Linear => self.steps.saturating_sub(step) as f64 / decay_steps,
            ScheduleKind::Cosine => {
                let progress = (step - self.warmup) as f64 / decay_steps;
                (0.5 * (1.0 + (PI * progress).cos())).max(0.0)
            }
        }
    }
}

impl ScheduleKind {
    /// All kinds, in the order in which they are offered.
    pub const ALL: [Self; 4] =
        [Self::Constant, Self::ConstantWithWarmup, Self::Linear, Self::Cosine];

    /// The name in transformers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Constant => "constant",
            Self::ConstantWithWarmup => "constant_with_warmup",
            Self::Linear => "linear",
            Self::Cosine => "cosine",
        }
    }
}

impl fmt::Display for ScheduleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ScheduleKind {
    type Err = ScheduleError;

    fn from_str(name: &str) -> Result<Self, ScheduleError> {
        let kind = Self::ALL.into_iter().find(|kind| kind.name() == name);
        kind.ok_or_else(|| ScheduleError::UnknownKind { found: name.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // transformers 5.23:
    // >>> def lrs(name, warmup_steps, total, count):
    // ...     optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    // ...     args = SimpleNamespace(warmup_steps=warmup_steps)
    // ...     warmup = TrainingArguments.get_warmup_steps(args, total)
    // ...     scheduler = get_scheduler(name, optimizer, warmup, total)
    // ...     for _ in range(count):
    // ...         print(scheduler.get_last_lr()[0]); optimizer.step(); scheduler.step()
    #[rustfmt::skip]
    const EXPECTED: &[(&str, f64, u64, &[f64])] = &[
        ("constant", 3.0, 8, &[2.0, 2.0, 2.0, 2.0]),
        ("constant_with_warmup", 3.0, 8,
            &[0.0, 0.6666666666666666, 1.3333333333333333, 2.0, 2.0]),
        ("linear", 3.0, 8,
            &[0.0, 0.6666666666666666, 1.3333333333333333, 2.0, 1.6, 1.2, 0.8, 0.4, 0.0]),
        ("linear", 0.0, 4, &[2.0, 1.5, 1.0, 0.5, 0.0]),
        ("cosine", 2.0, 8,
            &[0.0, 1.0, 2.0, 1.8660254037844388, 1.5, 1.0, 0.5000000000000002,
              0.1339745962155613, 0.0]),
        ("cosine", 0.25, 7,
            &[0.0, 1.0, 2.0, 1.8090169943749475, 1.3090169943749475, 0.6909830056250527,
              0.19098300562505266, 0.0]),
        ("linear", 0.1, 25,
            &[0.0, 0.6666666666666666, 1.3333333333333333, 2.0, 1.9090909090909092]),
    ];

    #[test]
    fn rates_are_those_of_transformers() {
        for (name, warmup, steps, expected) in EXPECTED {
            let schedule = LrSchedule::new(name.parse().unwrap(), 2.0, *warmup, *steps).unwrap();
            for (step, expected) in expected.iter().enumerate() {
                let found = schedule.lr(step as u64);
                let label = format!("{name}, warmup {warmup}, step {step}");
                assert!((found - expected).abs() < 1e-15, "{label}: {found}, wanted {expected}");
            }
        }
    }

    #[test]
    fn linear_stays_at_zero_after_the_last_step() {
        let schedule = LrSchedule::new(ScheduleKind::Linear, 1.0, 0.0, 3).unwrap();
        assert_eq!([3, 4, u64::MAX].map(|step| schedule.lr(step)), [0.0; 3]);
    }

    #[test]
    fn names_survive_and_settings_that_mean_nothing_are_refused() {
        for kind in ScheduleKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        let found = "polynomial".to_string();
        let error = "polynomial".parse::<ScheduleKind>().unwrap_err();
        assert_eq!(error, ScheduleError::UnknownKind { found });
        let new = |rate, warmup| LrSchedule::new(ScheduleKind::Cosine, rate, warmup, 10);
        assert_eq!(new(-1e-5, 0.0), Err(ScheduleError::LearningRate { found: -1e-5 }));
        assert!(new(f64::NAN, 0.0).is_err());
        assert_eq!(new(1.0, 1.5), Err(ScheduleError::Warmup { found: 1.5 }));
        assert_eq!(new(1.0, -1.0), Err(ScheduleError::Warmup { found: -1.0 }));
        assert!(new(1.0, f64::INFINITY).is_err() && new(1.0, f64::NAN).is_err());
    }
}
