//! The window against a world that answers late, twice, or never, and drops streams at random.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::*;

const SEQUENCES: u64 = 40;
const MAX_IN_FLIGHT: usize = 4;

/// What really is the case, kept apart from the window's own books.
struct World {
    window: Window,
    settings: WindowSettings,
    random: ChaCha8Rng,
    now: Duration,
    streams: Vec<Stream>,
    tokens: BTreeMap<u64, usize>,
    answered: BTreeSet<u64>,
    delivered: u64,
    failed_first: BTreeMap<u64, Duration>,
    /// Since when no teacher has been heard.
    outage: Option<Duration>,
    /// Outages that are over.
    outages: Vec<(Duration, Duration)>,
    wake: Option<Duration>,
    given_up: Option<GiveUp>,
}

#[derive(Default)]
struct Stream {
    connecting: bool,
    up: bool,
    /// Requests the teacher knows of.
    pending: BTreeSet<u64>,
    /// Requests it has lost: they will never be answered on this stream.
    lost: BTreeSet<u64>,
}

impl Stream {
    fn owed(&self) -> usize {
        self.pending.len() + self.lost.len()
    }
}

impl World {
    fn new(seed: u64, teachers: usize, settings: WindowSettings) -> Self {
        Self {
            window: Window::new(settings, teachers, at(0)),
            settings,
            random: ChaCha8Rng::seed_from_u64(seed),
            now: at(0),
            streams: (0..teachers).map(|_| Stream::default()).collect(),
            tokens: BTreeMap::new(),
            answered: BTreeSet::new(),
            delivered: 0,
            failed_first: BTreeMap::new(),
            outage: Some(at(0)),
            outages: Vec::new(),
            wake: Some(at(0)),
            given_up: None,
        }
    }

    /// Submits what fits, reports the event and carries out the commands.
    fn tell(&mut self, event: Event) {
        while (self.tokens.len() as u64) < SEQUENCES {
            let tokens = self.random.random_range(1..60);
            let Some(id) = self.window.submit(tokens) else { break };
            assert_eq!(id, self.tokens.len() as u64);
            self.tokens.insert(id, tokens);
        }
        self.hear(&event);
        let random = self.random.random();
        let commands = self.window.on(event, self.now, random);
        assert!(self.given_up.is_none() || commands.is_empty(), "alive after giving up");
        self.wake = None;
        for command in commands {
            self.obey(command);
        }
        let placed = self.delivered..self.tokens.len() as u64;
        let tokens: usize = placed.clone().map(|id| self.tokens[&id]).sum();
        let alone = placed.end - placed.start == 1;
        assert!(placed.end - placed.start <= self.settings.max_requests as u64);
        assert!(tokens <= self.settings.max_tokens || alone);
        // What was delivered made room.
        let more = (self.tokens.len() as u64) < SEQUENCES && self.window.is_empty();
        if more && self.given_up.is_none() {
            self.tell(Event::Tick);
        }
    }

    /// A word about a request ends an outage while a stream is open; so does a stream that opens
    /// with nothing to ask.
    fn hear(&mut self, event: &Event) {
        let over = match event {
            Event::Answered { .. } | Event::Failed { .. } | Event::Heard { .. } => {
                self.streams.iter().any(|stream| stream.up)
            }
            Event::Connected { .. } => self.answered.len() == self.tokens.len(),
            Event::Tick | Event::Disconnected { .. } | Event::Refused { .. } => false,
        };
        if over && let Some(since) = self.outage.take() {
            self.outages.push((since, self.now));
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Connect { teacher } => {
                let stream = &mut self.streams[teacher];
                assert!(!stream.up && !stream.connecting);
                stream.connecting = true;
            }
            Command::Disconnect { teacher } => {
                assert!(self.streams[teacher].up && self.streams[teacher].owed() > 0);
                self.close(teacher);
            }
            Command::Send { id, teacher } => {
                assert!(self.streams.iter().all(|stream| !stream.pending.contains(&id)));
                assert!(id >= self.delivered && !self.answered.contains(&id));
                let stream = &mut self.streams[teacher];
                assert!(stream.up, "sent to a teacher that is not connected");
                assert!(stream.pending.insert(id));
                assert!(stream.owed() <= MAX_IN_FLIGHT);
            }
            Command::Deliver { id } => {
                assert_eq!(id, self.delivered, "out of order");
                assert!(self.answered.contains(&id), "delivered without an answer");
                self.delivered += 1;
            }
            Command::Ignore { id, .. } => {
                assert!(self.answered.contains(&id) || id >= self.tokens.len() as u64);
            }
            Command::Wait { until } => {
                assert!(until > self.now, "nothing is due, yet the time to wait for has passed");
                self.wake = Some(until);
            }
            Command::GiveUp { reason } => self.check_deadline(reason),
        }
    }

    /// Giving up is right only when the deadline has passed by the world's own clock.
    fn check_deadline(&mut self, reason: GiveUp) {
        let tried_for = match &reason {
            GiveUp::Sequence { id, .. } => {
                assert_eq!(self.outage, None, "gave up on a sequence in an outage");
                let since = self.failed_first[id];
                let of_outages =
                    self.outages.iter().map(|&(from, to)| to - from.max(since).min(to));
                self.now - since - of_outages.sum::<Duration>()
            }
            GiveUp::Unreachable { .. } => {
                assert!(self.streams.iter().all(|stream| !stream.up), "gave up while connected");
                self.now - self.outage.expect("gave up on teachers that are well")
            }
            GiveUp::Refused { .. } => panic!("nothing was refused"),
        };
        assert!(tried_for >= self.settings.give_up_after, "gave up too early: {reason}");
        self.given_up = Some(reason);
    }

    fn close(&mut self, teacher: usize) {
        let stream = std::mem::take(&mut self.streams[teacher]);
        for id in stream.pending.into_iter().chain(stream.lost) {
            self.failed_first.entry(id).or_insert(self.now);
        }
        if self.streams.iter().all(|stream| !stream.up) {
            self.outage.get_or_insert(self.now);
        }
    }

    fn break_stream(&mut self, teacher: usize) {
        self.close(teacher);
        self.tell(Event::Disconnected {
            teacher,
            error: "broken".to_string(),
            pause: Duration::ZERO,
        });
    }

    fn connect(&mut self, teacher: usize) {
        self.streams[teacher] = Stream { up: true, ..Stream::default() };
        self.tell(Event::Connected { teacher, max_in_flight: MAX_IN_FLIGHT });
    }

    fn answer(&mut self, teacher: usize, id: u64) {
        self.streams[teacher].pending.remove(&id);
        self.answered.insert(id);
        self.tell(Event::Answered { teacher, id });
    }

    fn any_pending(&mut self, teacher: usize) -> Option<u64> {
        let pending = &self.streams[teacher].pending;
        let n = self.random.random_range(0..pending.len().max(1));
        pending.iter().nth(n).copied()
    }

    /// Anything that can happen.
    fn chaos(&mut self) {
        let teacher = self.random.random_range(0..self.streams.len());
        let stream = &self.streams[teacher];
        if stream.connecting {
            match self.random.random_bool(0.5) {
                true => self.connect(teacher),
                false => self.break_stream(teacher),
            }
        } else if stream.up {
            let id = self.any_pending(teacher);
            match (self.random.random_range(0..100), id) {
                (0..50, Some(id)) => self.answer(teacher, id),
                (50..60, Some(id)) => {
                    self.streams[teacher].pending.remove(&id);
                    self.failed_first.entry(id).or_insert(self.now);
                    self.tell(Event::Failed {
                        teacher,
                        id,
                        error: "full".to_string(),
                        pause: Duration::ZERO,
                    });
                }
                (60..65, Some(id)) => {
                    self.streams[teacher].pending.remove(&id);
                    self.streams[teacher].lost.insert(id);
                }
                (65..70, _) => {
                    // Twice, or never asked.
                    let id = self.random.random_range(0..SEQUENCES * 2);
                    if self.answered.contains(&id) || id >= SEQUENCES {
                        self.tell(Event::Answered { teacher, id });
                    }
                }
                (70..75, _) => self.break_stream(teacher),
                (75..80, _) => self.tell(Event::Heard { teacher }),
                _ => self.pass_time(),
            }
        } else {
            self.pass_time();
        }
    }

    fn pass_time(&mut self) {
        let seconds = self.random.random_range(0.0..5.0);
        self.now += Duration::from_secs_f64(seconds);
        self.tell(Event::Tick);
    }

    /// From here on nothing fails any more: whatever was broken must mend by itself.
    fn calm(&mut self) {
        let ready = (0..self.streams.len()).find(|&teacher| self.streams[teacher].connecting);
        if let Some(teacher) = ready {
            return self.connect(teacher);
        }
        for teacher in 0..self.streams.len() {
            if let Some(id) = self.any_pending(teacher) {
                return self.answer(teacher, id);
            }
        }
        self.now = self.wake.expect("stuck: nothing is in flight and no time is waited for");
        self.tell(Event::Tick);
    }

    fn is_over(&self) -> bool {
        self.delivered == SEQUENCES || self.given_up.is_some()
    }
}

fn run(seed: u64, teachers: usize, give_up_after: u64, chaos: usize) -> World {
    let settings = WindowSettings { give_up_after: at(give_up_after), ..SETTINGS };
    let mut world = World::new(seed, teachers, settings);
    world.tell(Event::Tick);
    for _ in 0..chaos {
        world.chaos();
    }
    for _ in 0..1_000 {
        if world.is_over() {
            return world;
        }
        world.calm();
    }
    panic!("no end in sight: {} of {SEQUENCES} delivered", world.delivered);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn every_sequence_is_delivered_once_and_in_order(
        seed: u64,
        teachers in 1usize..4,
        chaos in 0usize..300,
    ) {
        let world = run(seed, teachers, 1_000_000, chaos);
        prop_assert_eq!(world.delivered, SEQUENCES);
        prop_assert!(world.window.is_empty());
    }

    #[test]
    fn the_window_gives_up_only_after_the_deadline(
        seed: u64,
        teachers in 1usize..4,
        give_up_after in 1u64..60,
    ) {
        let world = run(seed, teachers, give_up_after, 200);
        prop_assert!(world.delivered == SEQUENCES || world.given_up.is_some());
    }
}

/// The property above would hold for a window that never gives up, or always does.
#[test]
fn short_deadlines_end_some_runs_and_not_others() {
    let given_up = (0..200).filter(|&seed| run(seed, 2, 60, 200).given_up.is_some()).count();
    assert!((20..180).contains(&given_up), "{given_up} of 200");
}
