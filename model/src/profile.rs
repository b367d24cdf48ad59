//! Where the time goes: spans of the host's clock and, on a card, every step of its programs, as a Chrome trace
//! (`chrome://tracing`, Perfetto; the format is "Trace Event Format", Google 2016) in which gaps can be seen.
//!
//! Of many turns, steps of a run or batches of a server, some are looked at: noting times makes a card slower, and the
//! first turns are not like the others.

mod place;

use std::fmt;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

use kernels::executor::{Timed, Times};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

pub use place::{PlaceError, check};

use crate::files;
use crate::language_model::LanguageModel;

/// How every trace begins.
const OPENING: &str = "{\"displayTimeUnit\"";

/// The first and the last turn that are looked at, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turns {
    first: u64,
    last: u64,
}

impl Default for Turns {
    fn default() -> Self {
        Self { first: 3, last: 8 }
    }
}

impl Serialize for Turns {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for Turns {
    type Err = String;

    /// `FIRST..LAST`, both looked at.
    fn from_str(text: &str) -> Result<Self, String> {
        let ends = text.split_once("..").and_then(|(first, last)| {
            Some((first.trim().parse::<u64>().ok()?, last.trim().parse::<u64>().ok()?))
        });
        match ends {
            Some((first, last)) if 1 <= first && first <= last => Ok(Self { first, last }),
            Some(_) | None => Err(format!("{text} is not FIRST..LAST, as 3..8, from 1")),
        }
    }
}

impl fmt::Display for Turns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.first, self.last)
    }
}

/// What a turn did to the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trace {
    /// Nothing.
    Unchanged,
    /// It is there.
    Written,
    /// There is none, since none of its turns came, and none will.
    Missed,
}

/// What is to be noted of which turns, and where it goes.
#[derive(Debug)]
pub struct Profiling {
    path: PathBuf,
    turns: Turns,
    running: Option<Profile>,
    done: bool,
}

impl Profiling {
    /// Of these turns, to a file.
    pub fn new(path: PathBuf, turns: Turns) -> Self {
        Self { path, turns, running: None, done: false }
    }

    /// Where it goes.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Of which turns it is.
    pub fn turns(&self) -> Turns {
        self.turns
    }

    /// A turn begins.
    pub fn begins(&mut self, turn: u64, model: &dyn LanguageModel) {
        let wanted = (self.turns.first..=self.turns.last).contains(&turn);
        if wanted && self.running.is_none() && !self.done {
            model.note_times();
            self.running = Some(Profile::begin());
        }
    }

    /// Something that has gone on since then ends.
    pub fn span(&mut self, name: impl Into<String>, since: Instant) {
        if let Some(profile) = &mut self.running {
            profile.span(name, [since, Instant::now()]);
        }
    }

    /// A turn has ended; after the last one the file is written.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn ends(&mut self, turn: u64, model: &dyn LanguageModel) -> io::Result<Trace> {
        if turn < self.turns.last { Ok(Trace::Unchanged) } else { self.close(model) }
    }

    /// No more turns come: what was noted is written, where that is anything. What has become of the file is said once.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn close(&mut self, model: &dyn LanguageModel) -> io::Result<Trace> {
        let was_done = std::mem::replace(&mut self.done, true);
        let Some(mut profile) = self.running.take() else {
            return Ok(if was_done { Trace::Unchanged } else { Trace::Missed });
        };
        if let Some(times) = model.take_times() {
            profile.steps(&times);
        }
        profile.write(&self.path)?;
        Ok(Trace::Written)
    }
}

/// Rows of the trace, in this order.
const ROWS: [&str; 3] = ["host", "card: parts", "card: steps"];
const HOST: usize = 0;
const PARTS: usize = 1;
const STEPS: usize = 2;

/// Spans of time.
#[derive(Debug)]
pub struct Profile {
    began: Instant,
    spans: Vec<Span>,
}

#[derive(Debug)]
struct Span {
    row: usize,
    name: String,
    /// Microseconds since the profile began.
    ends: [f64; 2],
}

impl Profile {
    /// None yet.
    pub fn begin() -> Self {
        Self { began: Instant::now(), spans: Vec::new() }
    }

    /// Adds one of the host. One that began before the profile counts from then.
    pub fn span(&mut self, name: impl Into<String>, ends: [Instant; 2]) {
        let ends = ends.map(|end| self.microseconds(end));
        self.spans.push(Span { row: HOST, name: name.into(), ends });
    }

    /// Adds what ran on a card: its steps, and the parts that follow each other.
    pub fn steps(&mut self, times: &Times) {
        let zero = self.microseconds(times.since);
        let shifted = |ends: [f64; 2]| ends.map(|end| zero + end);
        for part in times.steps.chunk_by(|a, b| a.part == b.part) {
            let ([first, ..], [.., last]) = (part, part) else { continue };
            let ends = shifted([first.ends[0], last.ends[1]]);
            self.spans.push(Span { row: PARTS, name: first.part.clone(), ends });
        }
        let step = |Timed { name, ends, .. }: &Timed| Span {
            row: STEPS,
            name: name.clone(),
            ends: shifted(*ends),
        };
        self.spans.extend(times.steps.iter().map(step));
    }

    fn microseconds(&self, at: Instant) -> f64 {
        1e6 * at.saturating_duration_since(self.began).as_secs_f64()
    }

    /// Writes them as a Chrome trace, what holds others before these. A file that is there is replaced once this one
    /// is whole.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut spans: Vec<&Span> = self.spans.iter().collect();
        spans.sort_by(|a, b| {
            let key = |span: &Span| (span.row, span.ends[0], -span.ends[1]);
            key(a).partial_cmp(&key(b)).unwrap_or(std::cmp::Ordering::Equal)
        });
        let rows = ROWS.iter().enumerate().filter(|(row, _)| spans.iter().any(|s| s.row == *row));
        let named = rows.map(|(row, name)| {
            json!({"name": "thread_name", "ph": "M", "pid": 0, "tid": row, "args": {"name": name}})
        });
        let timed = spans.iter().map(|span| {
            // To the nanosecond.
            let [first, last] = span.ends.map(|end| (1e3 * end).round() / 1e3);
            json!({
                "name": span.name, "ph": "X", "pid": 0, "tid": span.row,
                "ts": first, "dur": ((last - first) * 1e3).round() / 1e3,
            })
        });
        let events: Vec<Value> = named.chain(timed).collect();
        files::write(path, |file| {
            write!(file, "{OPENING}:\"ms\",\"traceEvents\":[")?;
            for (at, event) in events.iter().enumerate() {
                write!(file, "{}\n{event}", if at == 0 { "" } else { "," })?;
            }
            writeln!(file, "\n]}}")
        })
    }
}

#[cfg(test)]
#[path = "profile_tests.rs"]
mod tests;
