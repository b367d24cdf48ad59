//! When each step ran, as a Chrome trace.

use std::io::Write as _;
use std::path::Path;

use super::device::Device;
use super::error::CardError;
use super::stream::{Event, Stream};
use crate::program::Program;

/// Steps and parts with their times.
#[derive(Default)]
pub(super) struct Timeline {
    /// Before the first step of all.
    start: Option<Event>,
    /// Of the program that runs: before each step.
    pending: Vec<(String, String, Event)>,
    /// Step, part, microseconds since the start: first and last.
    noted: Vec<(String, String, [f64; 2])>,
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
            self.start = Some(now()?);
        }
        let part = program.parts.iter().rev().find(|(first, _)| *first <= number);
        let part = part.map_or_else(String::new, |(_, name)| name.clone());
        self.pending.push((program.steps[number].name(), part, now()?));
        Ok(())
    }

    /// The last step of a program has been put into the stream: its times are read.
    pub(super) fn end(&mut self, device: &Device, stream: &Stream) -> Result<(), CardError> {
        let Some(start) = &self.start else { return Ok(()) };
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
        for ((step, part, _), ends) in self.pending.drain(..).zip(times.windows(2)) {
            self.noted.push((step, part, [ends[0], ends[1]]));
        }
        Ok(())
    }

    /// Writes it; two rows, of parts and of steps.
    pub(super) fn write(self, path: &Path) -> std::io::Result<()> {
        let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
        write!(file, "{{\"displayTimeUnit\":\"ms\",\"traceEvents\":[")?;
        let mut separator = "";
        let mut event = |name: &str, row: u32, [first, last]: [f64; 2]| {
            let duration = last - first;
            let written = write!(
                file,
                "{separator}\n{{\"name\":\"{name}\",\"ph\":\"X\",\"pid\":0,\"tid\":{row},\"ts\":{first:.3},\
                 \"dur\":{duration:.3}}}"
            );
            separator = ",";
            written
        };
        let mut part: Option<(&str, [f64; 2])> = None;
        for (step, of, ends) in &self.noted {
            event(step, 1, *ends)?;
            part = match part {
                Some((name, [first, _])) if name == of => Some((name, [first, ends[1]])),
                other => {
                    if let Some((name, ends)) = other {
                        event(name, 0, ends)?;
                    }
                    Some((of, *ends))
                }
            };
        }
        if let Some((name, ends)) = part {
            event(name, 0, ends)?;
        }
        writeln!(file, "\n]}}")?;
        file.flush()
    }
}
