//! When each step of a program ran on the card.

use std::time::Instant;

use super::device::Device;
use super::error::CardError;
use super::stream::{Event, Stream};
use crate::executor::{Timed, Times};
use crate::program::Program;

/// Steps and parts with their times.
#[derive(Default)]
pub(super) struct Timeline {
    /// Before the first step of all, and the host's time then.
    start: Option<(Event, Instant)>,
    /// Of the program that runs: step and part, and what comes before each.
    pending: Vec<(String, String, Event)>,
    noted: Vec<Timed>,
}

impl Timeline {
    /// A step begins.
    pub(super) fn begin(
        &mut self,
        device: &Device,
        stream: &Stream,
        program: &Program,
        number: usize,
    ) -> Result<(), CardError> {
        let now = || {
            let event = Event::timed(device)?;
            event.record(device, stream)?;
            Ok::<_, CardError>(event)
        };
        if self.start.is_none() {
            // Once it has come the host's clock and the card's can be laid side by side.
            let event = now()?;
            event.wait(device)?;
            self.start = Some((event, Instant::now()));
        }
        let part = program.parts.iter().rev().find(|(first, _)| *first <= number);
        let part = part.map_or_else(String::new, |(_, name)| name.clone());
        self.pending.push((program.steps[number].name(), part, now()?));
        Ok(())
    }

    /// The last step of a program has been put into the stream: its times are read.
    pub(super) fn end(&mut self, device: &Device, stream: &Stream) -> Result<(), CardError> {
        let Some((start, _)) = &self.start else { return Ok(()) };
        let end = Event::timed(device)?;
        end.record(device, stream)?;
        end.wait(device)?;
        let since = |event: &Event| Ok(1e3 * f64::from(event.since(device, start)?));
        let mut times: Vec<f64> = self
            .pending
            .iter()
            .map(|(.., event)| since(event))
            .collect::<Result<_, CardError>>()?;
        times.push(since(&end)?);
        for ((name, part, _), ends) in self.pending.drain(..).zip(times.windows(2)) {
            self.noted.push(Timed { name, part, ends: [ends[0], ends[1]] });
        }
        Ok(())
    }

    /// All that was noted; none where nothing ran.
    pub(super) fn times(self) -> Option<Times> {
        let (_, since) = self.start?;
        Some(Times { since, steps: self.noted })
    }
}
