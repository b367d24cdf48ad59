//! The bounded queue before the device: who is admitted, and whose turn it is.
//!
//! Every client has the same share of the device, counted in tokens, whatever it has waiting: each
//! carries the tokens it was served, and the one with the fewest is next (start-time fair queueing,
//! Goyal, Vin and Cheng 1996). And every client may have as much waiting as is still free
//! ([`crate::share`]).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Duration;

use crate::share::may_have;

/// Sequences of one client that are looked at for one that fits into the rest of a batch.
const LOOK_AHEAD: usize = 64;
/// Pauses a refused client is asked for: at least, at most, and where nothing was computed yet.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_secs(10), Duration::from_secs(1)];

/// How much may wait, over all clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueBounds {
    /// Sequences.
    pub sequences: usize,
    /// Tokens.
    pub tokens: usize,
}

/// In which order one client's own sequences are taken: the higher first. Between clients it makes
/// no difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// After the others.
    Low,
    /// In the order of arrival.
    #[default]
    Normal,
    /// Before the others.
    High,
}

/// Why a sequence was not admitted. Numbers are those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueFull {
    /// As many sequences wait as may.
    #[error(
        "{queued} sequences wait for the device, {own} of them this client's, of {limit} allowed; \
         a client may have as many waiting as are still free; send it again later"
    )]
    Sequences {
        /// This client's.
        own: usize,
        /// All of them.
        queued: usize,
        /// Sequences allowed.
        limit: usize,
    },
    /// The tokens waiting and those of this sequence are more than may wait.
    #[error(
        "{queued} tokens wait for the device, {own} of them this client's, and {wanted} more do \
         not fit into the {limit} allowed; a client may have as many waiting as are still free; \
         send it again later"
    )]
    Tokens {
        /// This client's.
        own: usize,
        /// All of them.
        queued: usize,
        /// Tokens of this sequence.
        wanted: usize,
        /// Tokens allowed.
        limit: usize,
    },
}

/// What waits for the device. `C` names clients, `T` is what is queued.
#[derive(Debug)]
pub struct FairQueue<C, T> {
    bounds: QueueBounds,
    clients: BTreeMap<C, Client<T>>,
    sequences: usize,
    tokens: usize,
    /// What the client whose turn it was had been served before: where newcomers begin.
    clock: u64,
    arrivals: u64,
    /// The client whose sequence did not fit into the last batch: it opens the next one.
    passed_over: Option<C>,
}

/// One client.
#[derive(Debug)]
struct Client<T> {
    /// Tokens it was served, counted from where it began.
    served: u64,
    tokens: usize,
    /// By priority, lowest first.
    waiting: [VecDeque<Waiting<T>>; 3],
}

#[derive(Debug)]
struct Waiting<T> {
    arrival: u64,
    tokens: usize,
    item: T,
}

/// A client's place: first the one that was served the fewest tokens, among equals the one that
/// waits longest. An arrival is nobody else's.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Turn<C>(Reverse<(u64, u64)>, C);

impl<C> Turn<C> {
    fn client(self) -> C {
        self.1
    }
}

impl<T> Client<T> {
    fn new(clock: u64) -> Self {
        Self { served: clock, tokens: 0, waiting: [const { VecDeque::new() }; 3] }
    }

    fn sequences(&self) -> usize {
        self.waiting.iter().map(VecDeque::len).sum()
    }

    /// The first arrival of its highest priority.
    fn head(&self) -> Option<&Waiting<T>> {
        self.waiting.iter().rev().find_map(VecDeque::front)
    }

    /// When its turn is; none with nothing waiting.
    fn turn<C: Clone>(&self, name: &C) -> Option<Turn<C>> {
        Some(Turn(Reverse((self.served, self.head()?.arrival)), name.clone()))
    }

    /// Removes the first sequence of at most `most` tokens, not looking far.
    fn take(&mut self, most: usize) -> Option<Waiting<T>> {
        let mut looked_at = 0;
        for queue in self.waiting.iter_mut().rev() {
            let near = queue.iter().take(LOOK_AHEAD - looked_at);
            let Some(at) = near.clone().position(|waiting| waiting.tokens <= most) else {
                looked_at += near.len();
                continue;
            };
            let taken = queue.remove(at)?;
            self.tokens -= taken.tokens;
            self.served += taken.tokens as u64;
            return Some(taken);
        }
        None
    }
}

impl<C: Ord + Clone, T> FairQueue<C, T> {
    /// An empty queue.
    pub fn new(bounds: QueueBounds) -> Self {
        Self {
            bounds,
            clients: BTreeMap::new(),
            sequences: 0,
            tokens: 0,
            clock: 0,
            arrivals: 0,
            passed_over: None,
        }
    }

    /// Whether a sequence of `tokens` tokens of this client may join. An empty queue admits any one
    /// sequence, so that a sequence longer than the token bound is slow and not impossible.
    ///
    /// # Errors
    /// The bound that was reached.
    pub fn admits(&self, client: &C, tokens: usize) -> Result<(), QueueFull> {
        if self.is_empty() {
            return Ok(());
        }
        let known = self.clients.get(client);
        let QueueBounds { sequences: limit, tokens: token_limit } = self.bounds;
        let own = known.map_or(0, Client::sequences);
        if !may_have(own, 1, self.sequences, limit) {
            return Err(QueueFull::Sequences { own, queued: self.sequences, limit });
        }
        let own = known.map_or(0, |client| client.tokens);
        if !may_have(own, tokens, self.tokens, token_limit) {
            let (queued, limit) = (self.tokens, token_limit);
            return Err(QueueFull::Tokens { own, queued, wanted: tokens, limit });
        }
        Ok(())
    }

    /// Adds a sequence that [`FairQueue::admits`].
    pub fn push(&mut self, client: C, priority: Priority, tokens: usize, item: T) {
        let clock = self.clock;
        let client = self.clients.entry(client).or_insert_with(|| Client::new(clock));
        if client.tokens == 0 {
            // Whoever had nothing waiting does not save up its share.
            client.served = client.served.max(clock);
        }
        client.tokens += tokens;
        let arrival = self.arrivals;
        client.waiting[priority as usize].push_back(Waiting { arrival, tokens, item });
        self.arrivals += 1;
        self.sequences += 1;
        self.tokens += tokens;
    }

    /// Takes a batch of at most `budget` tokens, and at least one sequence when there is one: the
    /// clients' in turn; of what does not fit, others that do take the place, once.
    pub fn take_batch(&mut self, budget: usize) -> Vec<T> {
        let mut batch = Vec::new();
        let mut room = budget;
        let first = self.passed_over.take().filter(|client| self.head_of(client).is_some());
        let mut turns: BinaryHeap<_> =
            self.clients.iter().filter_map(|(name, client)| client.turn(name)).collect();
        let mut next = first.or_else(|| turns.pop().map(Turn::client));
        while let Some(client) = next {
            let most = if batch.is_empty() { usize::MAX } else { room };
            if self.head_of(&client).is_some_and(|head| head.tokens > most) {
                self.passed_over.get_or_insert_with(|| client.clone());
            }
            // Who has nothing that fits has no further turn.
            if let Some(taken) = self.take(&client, most) {
                room = room.saturating_sub(taken.tokens);
                batch.push(taken.item);
                turns.extend(self.clients.get(&client).and_then(|waits| waits.turn(&client)));
            }
            next = if room > 0 { self.next_turn(&mut turns) } else { None };
        }
        self.forget();
        batch
    }

    /// The client whose turn it is. One that had a turn before its time has an old entry as well.
    fn next_turn(&self, turns: &mut BinaryHeap<Turn<C>>) -> Option<C> {
        loop {
            let turn = turns.pop()?;
            let now = self.clients.get(&turn.1).and_then(|client| client.turn(&turn.1));
            if now.is_some_and(|now| now == turn) {
                return Some(turn.client());
            }
        }
    }

    /// Forgets clients with nothing waiting. Who is ahead of the clock is remembered, or coming anew
    /// would be a way to jump the queue; while nothing waits nobody is behind, and all begin alike.
    fn forget(&mut self) {
        if self.is_empty() {
            let ahead = self.clients.values().map(|client| client.served).max();
            self.clock = ahead.unwrap_or(0).max(self.clock);
            return self.clients.clear();
        }
        let clock = self.clock;
        self.clients.retain(|_, client| client.tokens > 0 || client.served > clock);
        // Those that come once each are never behind the clock: the most served stay known.
        let mut ahead: Vec<u64> = self.idle().map(|client| client.served).collect();
        let Some(surplus) = ahead.len().checked_sub(self.bounds.sequences + 1) else { return };
        let (_, most, _) = ahead.select_nth_unstable(surplus);
        let most = *most;
        self.clients.retain(|_, client| client.tokens > 0 || client.served > most);
    }

    fn idle(&self) -> impl Iterator<Item = &Client<T>> {
        self.clients.values().filter(|client| client.tokens == 0)
    }

    fn head_of(&self, client: &C) -> Option<&Waiting<T>> {
        self.clients.get(client)?.head()
    }

    fn take(&mut self, client: &C, most: usize) -> Option<Waiting<T>> {
        let client = self.clients.get_mut(client)?;
        let began = client.served;
        let taken = client.take(most)?;
        self.clock = self.clock.max(began);
        self.sequences -= 1;
        self.tokens -= taken.tokens;
        Some(taken)
    }

    /// Removes everything nobody waits for any more and says how many that were.
    pub fn drop_unwanted(&mut self, wanted: impl Fn(&T) -> bool) -> usize {
        let before = self.sequences;
        for client in self.clients.values_mut() {
            client.waiting.iter_mut().for_each(|queue| queue.retain(|w| wanted(&w.item)));
            client.tokens = client.waiting.iter().flatten().map(|waiting| waiting.tokens).sum();
        }
        self.sequences = self.clients.values().map(Client::sequences).sum();
        self.tokens = self.clients.values().map(|client| client.tokens).sum();
        self.forget();
        before - self.sequences
    }

    /// What has waited longest; none when nothing waits.
    pub fn oldest(&self) -> Option<&T> {
        let all = self.clients.values().flat_map(|client| &client.waiting);
        all.filter_map(VecDeque::front).min_by_key(|waiting| waiting.arrival).map(|w| &w.item)
    }

    /// Sequences waiting.
    pub fn len(&self) -> usize {
        self.sequences
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.sequences == 0
    }

    /// Tokens waiting.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

/// After what time a refused client should come again: when what waits now has been computed, at
/// the rate of late; none computed yet is no rate.
pub fn pause(tokens: usize, tokens_per_second: f64) -> Duration {
    let [least, most, unknown] = PAUSES;
    let seconds = tokens as f64 / tokens_per_second;
    match seconds.is_finite() {
        true => Duration::from_secs_f64(seconds.min(most.as_secs_f64())).max(least),
        false => unknown,
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
