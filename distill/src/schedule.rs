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
