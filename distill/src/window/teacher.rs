//! What the window knows of one teacher.

use std::time::Duration;

/// One teacher: its stream and what it owes.
#[derive(Clone, Debug)]
pub(super) struct Teacher {
    pub(super) link: Link,
    /// Streams lost or not opened since the last answer.
    pub(super) failures: u32,
    /// When it last said anything, or began to owe.
    pub(super) heard: Duration,
    pub(super) owed_tokens: usize,
    owed_requests: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Down { not_before: Duration },
    Connecting,
    Up { max_in_flight: usize },
}

impl Teacher {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            link: Link::Down { not_before: now },
            failures: 0,
            heard: now,
            owed_tokens: 0,
            owed_requests: 0,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.link, Link::Up { .. })
    }

    pub(super) fn has_room(&self) -> bool {
        matches!(self.link, Link::Up { max_in_flight } if self.owed_requests < max_in_flight)
    }

    pub(super) fn connected(&mut self, max_in_flight: usize, now: Duration) {
        self.link = Link::Up { max_in_flight: max_in_flight.max(1) };
        self.heard = now;
    }

    pub(super) fn lost(&mut self, not_before: Duration) {
        self.failures = self.failures.saturating_add(1);
        self.link = Link::Down { not_before };
        (self.owed_requests, self.owed_tokens) = (0, 0);
    }

    pub(super) fn take(&mut self, tokens: usize, now: Duration) {
        if self.owed_requests == 0 {
            self.heard = now;
        }
        self.owed_requests += 1;
        self.owed_tokens += tokens;
    }

    pub(super) fn release(&mut self, tokens: usize) {
        self.owed_requests -= 1;
        self.owed_tokens -= tokens;
    }

    /// When its silence becomes too long, if it owes anything.
    pub(super) fn silent_at(&self, max_silence: Duration) -> Option<Duration> {
        (self.is_up() && self.owed_requests > 0).then(|| self.heard.saturating_add(max_silence))
    }

    /// The times at which something is due with it.
    pub(super) fn times(&self, max_silence: Duration) -> impl Iterator<Item = Duration> {
        let retry = match self.link {
            Link::Down { not_before } => Some(not_before),
            Link::Connecting | Link::Up { .. } => None,
        };
        retry.into_iter().chain(self.silent_at(max_silence))
    }
}
