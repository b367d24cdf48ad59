//! Requests in flight: which sequence goes to which teacher when, what is tried again, and when to
//! stop trying.
//!
//! A pure state machine. The shell around it owns the streams and the clock; it reports [`Event`]s
//! and carries out [`Command`]s. Results come out in the order in which sequences went in.
//!
//! * A sequence takes a *place* when it is submitted and keeps it until it is delivered, so answers
//!   waiting for an earlier one are bounded too. Places are bounded in number and in tokens.
//! * A sequence whose request failed waits for a backoff and goes out again, to any teacher. One
//!   whose teacher was lost goes out again at once if another teacher is there.
//! * A teacher that is silent for too long with requests unanswered is disconnected: its stream
//!   cannot be trusted to answer any more.
//! * Scoring is idempotent, so an answer is taken from whichever teacher sends it first.
//! * Every wait is counted once. While no teacher can be heard (an *outage*: from the loss of the
//!   last stream to the first word about a request) the clock of the outage runs and those of the
//!   sequences stand still; else a sequence's own clock runs from its first failure. A stream that
//!   opens and breaks again without a word does not end an outage, so a request that brings every
//!   teacher down cannot keep the window trying for ever.
//!
//! Times are durations since any fixed moment; random numbers are uniform in [0, 1).

use std::collections::VecDeque;
use std::time::Duration;

mod events;
mod teacher;

pub use events::{Command, Event, GiveUp, Unwanted, WindowSettings};
use teacher::{Link, Teacher};

/// The window.
#[derive(Clone, Debug)]
pub struct Window {
    settings: WindowSettings,
    teachers: Vec<Teacher>,
    /// Sequences that have a place; the first one is the next to deliver.
    places: VecDeque<Place>,
    first_id: u64,
    tokens: usize,
    /// Since when nothing has been heard of any teacher; none while one is well.
    outage: Option<Outage>,
    given_up: bool,
}

/// Longest pause a teacher's word can bring about.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
struct Place {
    tokens: usize,
    state: State,
    attempts: u32,
    /// Time of the first failure, moved on by the outages since.
    failed_first: Option<Duration>,
    /// Failures of its own requests in a row, for the backoff.
    failures: u32,
    last_error: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting { not_before: Duration },
    Sent { teacher: usize },
    Answered,
}

#[derive(Clone, Debug)]
struct Outage {
    since: Duration,
    attempts: u32,
    last_error: String,
}

impl Outage {
    fn new(since: Duration) -> Self {
        Self { since, attempts: 0, last_error: "none yet".to_string() }
    }
}

impl Window {
    /// An empty window on `teachers` teachers (at least 1), none of them connected yet.
    pub fn new(settings: WindowSettings, teachers: usize, now: Duration) -> Self {
        Self {
            settings,
            teachers: (0..teachers.max(1)).map(|_| Teacher::new(now)).collect(),
            places: VecDeque::new(),
            first_id: 0,
            tokens: 0,
            outage: Some(Outage::new(now)),
            given_up: false,
        }
    }

    /// Whether a sequence of this many tokens can be submitted now.
    pub fn has_room(&self, tokens: usize) -> bool {
        let fits = self.places.len() < self.settings.max_requests
            && self.tokens.saturating_add(tokens) <= self.settings.max_tokens;
        fits || self.places.is_empty()
    }

    /// Gives a sequence of `tokens` tokens a place and returns its id (0 for the first, then one
    /// more each time); none, and nothing changed, when there is no room. Follow it, or several of
    /// it, with [`Window::on`] and [`Event::Tick`].
    pub fn submit(&mut self, tokens: usize) -> Option<u64> {
        if !self.has_room(tokens) {
            return None;
        }
        let id = self.first_id + self.places.len() as u64;
        self.tokens += tokens;
        self.places.push_back(Place {
            tokens,
            state: State::Waiting { not_before: Duration::ZERO },
            attempts: 0,
            failed_first: None,
            failures: 0,
            last_error: String::new(),
        });
        Some(id)
    }

    /// Sequences submitted and not delivered.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether everything submitted has been delivered.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Tokens of the sequences submitted and not delivered.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Takes note of an event and says what to do about it. Teachers that do not exist are ignored.
    pub fn on(&mut self, event: Event, now: Duration, random: f64) -> Vec<Command> {
        let mut commands = Vec::new();
        if self.given_up {
            return commands;
        }
        self.note(event, now, random, &mut commands);
        self.drop_silent_teachers(now, random, &mut commands);
        if !self.given_up {
            self.give_up_if_late(now, &mut commands);
        }
        if self.given_up {
            return commands;
        }
        self.deliver(&mut commands);
        self.connect(now, &mut commands);
        self.send(now, &mut commands);
        commands.extend(self.next_time(now).map(|until| Command::Wait { until }));
        commands
    }

    fn note(&mut self, event: Event, now: Duration, random: f64, commands: &mut Vec<Command>) {
        match event {
            Event::Tick => {}
            Event::Connected { teacher, max_in_flight } => {
                let asked = |teacher: &&mut Teacher| teacher.link == Link::Connecting;
                if let Some(teacher) = self.teachers.get_mut(teacher).filter(asked) {
                    teacher.connected(max_in_flight, now);
                    // With nothing to ask, a stream is all that can be had of a teacher.
                    if self.places.iter().all(|place| place.state == State::Answered) {
                        self.end_outage(now);
                    }
                }
            }
            Event::Disconnected { teacher, error, pause } => {
                self.lose(teacher, &error, now, random, pause);
            }
            Event::Heard { teacher } => self.heard(teacher, now),
            Event::Answered { teacher, id } => self.answered(teacher, id, now, commands),
            Event::Failed { teacher, id, error, pause } => {
                let pause = pause.min(LONGEST_PAUSE).max(self.backoff_of(id, random));
                self.failed(teacher, id, error, now, pause);
            }
            Event::Refused { teacher, id, error } => {
                if self.place(id).is_some_and(|place| place.state == (State::Sent { teacher })) {
                    self.give_up(GiveUp::Refused { id, teacher, error }, commands);
                }
            }
        }
    }

    /// A teacher said something about a request.
    fn heard(&mut self, index: usize, now: Duration) {
        let Some(teacher) = self.teachers.get_mut(index) else { return };
        teacher.heard = now;
        // What a lost stream still had to say tells nothing of the teacher now.
        if self.is_connected() {
            self.end_outage(now);
        }
    }

    /// A teacher is well again: the clocks of the sequences run on from where they stood.
    fn end_outage(&mut self, now: Duration) {
        let Some(outage) = self.outage.take() else { return };
        for failed in self.places.iter_mut().filter_map(|place| place.failed_first.as_mut()) {
            *failed = failed.saturating_add(now.saturating_sub(outage.since.max(*failed)));
        }
    }

    fn answered(&mut self, teacher: usize, id: u64, now: Duration, commands: &mut Vec<Command>) {
        self.heard(teacher, now);
        if let Some(teacher) = self.teachers.get_mut(teacher) {
            // A teacher that answers is well: its next loss begins a new row of failures.
            teacher.failures = 0;
        }
        let answered_before = id < self.first_id;
        let Some(place) = self.place(id) else {
            let why = if answered_before { Unwanted::Duplicate } else { Unwanted::Unknown };
            return commands.push(Command::Ignore { id, teacher, why });
        };
        let state = std::mem::replace(&mut place.state, State::Answered);
        let tokens = place.tokens;
        match state {
            State::Answered => {
                commands.push(Command::Ignore { id, teacher, why: Unwanted::Duplicate });
            }
            State::Sent { teacher } => self.teachers[teacher].release(tokens),
            State::Waiting { .. } => {}
        }
    }

    /// The pause after one more failure of a sequence.
    fn backoff_of(&mut self, id: u64, random: f64) -> Duration {
        let backoff = self.settings.backoff;
        let failures = self.place(id).map_or(0, |place| place.failures);
        backoff.delay(failures.saturating_add(1), random)
    }

    fn failed(&mut self, teacher: usize, id: u64, error: String, now: Duration, pause: Duration) {
        self.heard(teacher, now);
        let Some(place) = self.place(id) else { return };
        // A late word about an attempt that is over changes nothing.
        if place.state != (State::Sent { teacher }) {
            return;
        }
        place.failures = place.failures.saturating_add(1);
        place.fail(error, now, now.saturating_add(pause));
        let tokens = place.tokens;
        self.teachers[teacher].release(tokens);
    }

    /// The stream of a teacher is gone: what it owed waits again, and so does the connection.
    fn lose(&mut self, index: usize, error: &str, now: Duration, random: f64, pause: Duration) {
        let Some(teacher) = self.teachers.get_mut(index) else { return };
        if matches!(teacher.link, Link::Down { .. }) {
            return;
        }
        let backoff = self.settings.backoff.delay(teacher.failures.saturating_add(1), random);
        teacher.lost(now.saturating_add(backoff.max(pause.min(LONGEST_PAUSE))));
        for place in &mut self.places {
            if place.state == (State::Sent { teacher: index }) {
                place.fail(error.to_string(), now, now);
            }
        }
        if !self.is_connected() {
            let outage = self.outage.get_or_insert_with(|| Outage::new(now));
            outage.last_error = error.to_string();
        }
    }

    fn drop_silent_teachers(&mut self, now: Duration, random: f64, commands: &mut Vec<Command>) {
        let limit = self.settings.max_silence;
        for teacher in 0..self.teachers.len() {
            if self.teachers[teacher].silent_at(limit).is_some_and(|at| at <= now) {
                let seconds = limit.as_secs_f64();
                let error =
                    format!("teacher {teacher} owed answers and was silent for {seconds} s");
                self.lose(teacher, &error, now, random, Duration::ZERO);
                commands.push(Command::Disconnect { teacher });
            }
        }
    }

    fn give_up_if_late(&mut self, now: Duration, commands: &mut Vec<Command>) {
        let limit = self.settings.give_up_after;
        if let Some(outage) = &self.outage {
            let tried_for = now.saturating_sub(outage.since);
            if tried_for >= limit && !self.is_connected() {
                let (attempts, last_error) = (outage.attempts, outage.last_error.clone());
                let reason = GiveUp::Unreachable { attempts, tried_for, limit, last_error };
                self.give_up(reason, commands);
            }
            return;
        }
        for (id, place) in (self.first_id..).zip(&self.places) {
            let late = place.unanswered_since().map(|since| now.saturating_sub(since));
            if let Some(tried_for) = late.filter(|tried_for| *tried_for >= limit) {
                let (attempts, last_error) = (place.attempts, place.last_error.clone());
                let reason = GiveUp::Sequence { id, attempts, tried_for, limit, last_error };
                return self.give_up(reason, commands);
            }
        }
    }

    fn give_up(&mut self, reason: GiveUp, commands: &mut Vec<Command>) {
        self.given_up = true;
        commands.push(Command::GiveUp { reason });
    }

    fn deliver(&mut self, commands: &mut Vec<Command>) {
        while let Some(place) = self.places.pop_front_if(|place| place.state == State::Answered) {
            self.tokens -= place.tokens;
            commands.push(Command::Deliver { id: self.first_id });
            self.first_id += 1;
        }
    }

    fn connect(&mut self, now: Duration, commands: &mut Vec<Command>) {
        for (index, teacher) in self.teachers.iter_mut().enumerate() {
            if matches!(teacher.link, Link::Down { not_before } if not_before <= now) {
                teacher.link = Link::Connecting;
                if let Some(outage) = &mut self.outage {
                    outage.attempts += 1;
                }
                commands.push(Command::Connect { teacher: index });
            }
        }
    }

    /// Sends what may go, the oldest first, each to the teacher that owes the fewest tokens.
    fn send(&mut self, now: Duration, commands: &mut Vec<Command>) {
        for (id, place) in (self.first_id..).zip(&mut self.places) {
            if !matches!(place.state, State::Waiting { not_before } if not_before <= now) {
                continue;
            }
            let ready = self.teachers.iter().enumerate().filter(|(_, teacher)| teacher.has_room());
            let Some((index, _)) = ready.min_by_key(|(_, teacher)| teacher.owed_tokens) else {
                break;
            };
            place.state = State::Sent { teacher: index };
            place.attempts = place.attempts.saturating_add(1);
            self.teachers[index].take(place.tokens, now);
            commands.push(Command::Send { id, teacher: index });
        }
    }

    /// The next time at which something is due by itself.
    fn next_time(&self, now: Duration) -> Option<Duration> {
        let limit = self.settings.give_up_after;
        // A stream that is open will speak, break, or be silent for too long.
        let outage = self.outage.as_ref().filter(|_| !self.is_connected());
        let outage = outage.map(|outage| outage.since.saturating_add(limit));
        let teachers =
            self.teachers.iter().flat_map(|teacher| teacher.times(self.settings.max_silence));
        let running = self.places.iter().filter(|_| self.outage.is_none());
        let failing = running.filter_map(Place::unanswered_since);
        let deadlines = failing.map(|since| since.saturating_add(limit));
        let retries = self.places.iter().filter_map(|place| match place.state {
            // A sequence that waits for a teacher rather than for a time moves with an event.
            State::Waiting { not_before } if not_before > now => Some(not_before),
            State::Waiting { .. } | State::Sent { .. } | State::Answered => None,
        });
        outage.into_iter().chain(teachers).chain(deadlines).chain(retries).min()
    }

    fn is_connected(&self) -> bool {
        self.teachers.iter().any(Teacher::is_up)
    }

    fn place(&mut self, id: u64) -> Option<&mut Place> {
        let index = id.checked_sub(self.first_id)?;
        self.places.get_mut(usize::try_from(index).ok()?)
    }
}

impl Place {
    fn fail(&mut self, error: String, now: Duration, not_before: Duration) {
        self.state = State::Waiting { not_before };
        self.failed_first.get_or_insert(now);
        self.last_error = error;
    }

    /// Since when it has been failing, while it has no answer.
    fn unanswered_since(&self) -> Option<Duration> {
        self.failed_first.filter(|_| self.state != State::Answered)
    }
}

#[cfg(test)]
mod tests;
