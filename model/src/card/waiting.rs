//! Programs of a learner that were started, until somebody asks what they came to.

use std::collections::VecDeque;

use kernels::counting::SLOTS;
use kernels::executor::{Executor, Inputs, Outputs};
use kernels::program::{Program, View};

use super::loss::Losses;

/// Programs in the order in which they were started.
pub(super) struct Waiting<X: Executor> {
    programs: VecDeque<Waits<X>>,
    /// The number of the next one.
    next: u64,
}

struct Waits<X: Executor> {
    number: u64,
    of: Of,
    state: State<X>,
}

/// What a program puts out.
pub(super) enum Of {
    /// The losses of rows with so many scored positions each.
    Losses(Losses, Vec<usize>),
    /// The norm `[1]` float64, and what came of the step ([`kernels::adamw::Clipping::outcome`]).
    Update { norm: View, outcome: View },
}

impl Of {
    /// Of a step, whether it was made.
    pub(super) fn is_made(&self, outputs: &Outputs) -> Option<bool> {
        match self {
            Self::Update { outcome, .. } => Some(outputs.get::<u32>(*outcome)[0] == 0),
            Self::Losses(..) => None,
        }
    }
}

enum State<X: Executor> {
    Running(X::Running),
    Ended(Outputs),
}

impl<X: Executor> Default for Waiting<X> {
    fn default() -> Self {
        Self { programs: VecDeque::new(), next: 0 }
    }
}

impl<X: Executor> Waiting<X> {
    pub(super) fn is_empty(&self) -> bool {
        self.programs.is_empty()
    }

    /// Steps among them.
    pub(super) fn steps(&self) -> u64 {
        let is_step = |waits: &&Waits<X>| matches!(waits.of, Of::Update { .. });
        self.programs.iter().filter(is_step).count() as u64
    }

    /// Starts a program; gives its number. Of the places that the device has one stays free, for what else is asked of it.
    pub(super) fn start(
        &mut self,
        on: &mut X,
        (program, inputs): (&Program, &Inputs),
        of: Of,
    ) -> Result<u64, X::Error> {
        let running = self.programs.iter().filter(|waits| waits.state.is_running()).count();
        if running + 1 >= SLOTS {
            self.end_next(on)?;
        }
        let state = State::Running(on.start(program, inputs)?);
        let number = self.next;
        self.next += 1;
        self.programs.push_back(Waits { number, of, state });
        Ok(number)
    }

    /// What the program of this number has put out; none where that was asked for before, or is lost.
    pub(super) fn finish(
        &mut self,
        on: &mut X,
        number: u64,
    ) -> Result<Option<(Of, Outputs)>, X::Error> {
        let is_it = |waits: &Waits<X>| waits.number == number;
        while self.programs.iter().any(|waits| is_it(waits) && waits.state.is_running()) {
            self.end_next(on)?;
        }
        let place = self.programs.iter().position(is_it);
        Ok(match place.and_then(|place| self.programs.remove(place)) {
            Some(Waits { of, state: State::Ended(outputs), .. }) => Some((of, outputs)),
            Some(Waits { state: State::Running(_), .. }) | None => None,
        })
    }

    /// Waits for all of them and forgets those behind the last step. Gives whether all steps that stay were made.
    ///
    /// # Errors
    /// When the device fails: what ran then is lost.
    pub(super) fn give_up(&mut self, on: &mut X) -> Result<bool, X::Error> {
        let mut failed = None;
        while self.programs.iter().any(|waits| waits.state.is_running()) {
            failed = failed.or(self.end_next(on).err());
        }
        if let Some(error) = failed {
            return Err(error);
        }
        while self.programs.pop_back_if(|waits| matches!(waits.of, Of::Losses(..))).is_some() {}
        let is_sound = |waits: &Waits<X>| match &waits.state {
            State::Ended(outputs) => waits.of.is_made(outputs) != Some(false),
            State::Running(_) => false,
        };
        Ok(self.programs.iter().all(is_sound))
    }

    /// Waits for all of them and forgets them; gives what they put out, where the device did not fail.
    pub(super) fn forget(&mut self, on: &mut X) -> Vec<(Of, Outputs)> {
        let ended = |waits: Waits<X>| match waits.state {
            State::Ended(outputs) => Some((waits.of, outputs)),
            State::Running(running) => Some((waits.of, on.finish(running).ok()?)),
        };
        self.programs.drain(..).filter_map(ended).collect()
    }

    /// Waits for the one among those that run that was started first. Where the device fails it is lost.
    fn end_next(&mut self, on: &mut X) -> Result<(), X::Error> {
        let Some(place) = self.programs.iter().position(|waits| waits.state.is_running()) else {
            return Ok(());
        };
        let Some(Waits { number, of, state: State::Running(running) }) =
            self.programs.remove(place)
        else {
            return Ok(());
        };
        let state = State::Ended(on.finish(running)?);
        self.programs.insert(place, Waits { number, of, state });
        Ok(())
    }
}

impl<X: Executor> State<X> {
    fn is_running(&self) -> bool {
        matches!(self, Self::Running(_))
    }
}
