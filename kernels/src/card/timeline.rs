//! When each step of a program ran on the card.

use std::time::Instant;

use super::device::Device;
use super::error::CardError;
use super::stream::{Event, Stream};
use crate::executor::{Timed, Times};
use crate::program::Program;

/// Steps and parts, and events whose times are read once all is over: nobody waits for one of them before.
#[derive(Default)]
pub(super) struct Timeline {
    /// Before the first step of all, and the host's time then.
    start: Option<(Event, Instant)>,
    steps: Vec<Noted>,
}

struct Noted {
    name: String,
    part: String,
    begin: Event,
    /// Where a program ends with it; else it ends where the next one begins.
    end: Option<Event>,
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
        let name = program.steps[number].name();
        self.steps.push(Noted { name, part, begin: now()?, end: None });
        Ok(())
    }

    /// The last step of a program has been put into the stream.
    pub(super) fn end(&mut self, device: &Device, stream: &Stream) -> Result<(), CardError> {
        if let Some(last) = self.steps.last_mut() {
            let end = Event::timed(device)?;
            end.record(device, stream)?;
            last.end = Some(end);
        }
        Ok(())
    }

    /// All that was noted, once all of it is over; none where nothing ran, or the card has failed.
    pub(super) fn times(self, device: &Device) -> Option<Times> {
        let (start, since) = self.start?;
        let at = |event: &Event| Some(1e3 * f64::from(event.since(device, &start).ok()?));
        let mut steps = Vec::with_capacity(self.steps.len());
        for (number, Noted { name, part, begin, end }) in self.steps.iter().enumerate() {
            // The last one of a program that could not be put in whole has no end.
            let next = || Some(&self.steps.get(number + 1)?.begin);
            let Some(end) = end.as_ref().or_else(next) else { break };
            let (name, part) = (name.clone(), part.clone());
            steps.push(Timed { name, part, ends: [at(begin)?, at(end)?] });
        }
        Some(Times { since, steps })
    }
}
