//! The bounded queue before the device: what is admitted, and what is packed together.

use std::collections::VecDeque;

/// How much may wait, over all clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueBounds {
    /// Sequences.
    pub sequences: usize,
    /// Tokens.
    pub tokens: usize,
}

/// Why a sequence was not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueFull {
    /// As many sequences wait as may.
    #[error("{queued} sequences wait for the device, of {limit} allowed; send it again later")]
    Sequences {
        /// Sequences waiting.
        queued: usize,
        /// Sequences allowed.
        limit: usize,
    },
    /// The tokens waiting and those of this sequence are more than may wait.
    #[error(
        "{queued} tokens wait for the device and {wanted} more do not fit into the {limit} \
         allowed; send it again later"
    )]
    Tokens {
        /// Tokens waiting.
        queued: usize,
        /// Tokens of this sequence.
        wanted: usize,
        /// Tokens allowed.
        limit: usize,
    },
}

/// First in, first out; bounded by number and by tokens.
#[derive(Debug)]
pub struct Queue<T> {
    bounds: QueueBounds,
    waiting: VecDeque<(usize, T)>,
    tokens: usize,
}

impl<T> Queue<T> {
    /// An empty queue.
    pub fn new(bounds: QueueBounds) -> Self {
        Self { bounds, waiting: VecDeque::new(), tokens: 0 }
    }

    /// Whether a sequence of `tokens` tokens may join. An empty queue admits any one sequence, so
    /// that a sequence longer than the token bound is slow and not impossible.
    ///
    /// # Errors
    /// The bound that was reached.
    pub fn admits(&self, tokens: usize) -> Result<(), QueueFull> {
        let QueueBounds { sequences, tokens: limit } = self.bounds;
        if self.waiting.len() >= sequences {
            return Err(QueueFull::Sequences { queued: self.waiting.len(), limit: sequences });
        }
        if !self.waiting.is_empty() && self.tokens + tokens > limit {
            return Err(QueueFull::Tokens { queued: self.tokens, wanted: tokens, limit });
        }
        Ok(())
    }

    /// Adds a sequence that [`Queue::admits`].
    pub fn push(&mut self, tokens: usize, item: T) {
        self.tokens += tokens;
        self.waiting.push_back((tokens, item));
    }

    /// Removes everything nobody waits for any more and says how many that were.
    pub fn drop_unwanted(&mut self, wanted: impl Fn(&T) -> bool) -> usize {
        let before = self.waiting.len();
        self.waiting.retain(|(_, item)| wanted(item));
        self.tokens = self.waiting.iter().map(|(tokens, _)| tokens).sum();
        before - self.waiting.len()
    }

    /// Takes the longest run from the front that fits into `budget` tokens, and at least one
    /// sequence when there is one.
    pub fn take_batch(&mut self, budget: usize) -> Vec<T> {
        let mut batch = Vec::new();
        let mut taken = 0;
        while let Some(&(tokens, _)) = self.waiting.front() {
            if !batch.is_empty() && taken + tokens > budget {
                break;
            }
            taken += tokens;
            batch.extend(self.waiting.pop_front().map(|(_, item)| item));
        }
        self.tokens -= taken;
        batch
    }

    /// Sequences waiting.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Tokens waiting.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue_of(bounds: QueueBounds, lengths: &[usize]) -> Queue<usize> {
        let mut queue = Queue::new(bounds);
        for (name, &tokens) in lengths.iter().enumerate() {
            queue.admits(tokens).unwrap();
            queue.push(tokens, name);
        }
        queue
    }

    const BOUNDS: QueueBounds = QueueBounds { sequences: 3, tokens: 100 };

    #[test]
    fn refuses_at_either_bound_and_names_it() {
        let queue = queue_of(BOUNDS, &[60, 30]);
        assert_eq!(queue.admits(11), Err(QueueFull::Tokens { queued: 90, wanted: 11, limit: 100 }));
        assert_eq!(queue.admits(10), Ok(()));
        let queue = queue_of(BOUNDS, &[1, 1, 1]);
        assert_eq!(queue.admits(1), Err(QueueFull::Sequences { queued: 3, limit: 3 }));
    }

    #[test]
    fn an_empty_queue_admits_a_sequence_longer_than_the_bound() {
        let mut queue = queue_of(BOUNDS, &[500]);
        assert!(queue.admits(1).is_err());
        assert_eq!(queue.take_batch(50), [0]);
        assert_eq!((queue.len(), queue.tokens()), (0, 0));
    }

    #[test]
    fn batches_are_runs_from_the_front_within_the_budget() {
        let bounds = QueueBounds { sequences: 9, tokens: 1000 };
        let mut queue = queue_of(bounds, &[10, 20, 30, 5, 200, 1]);
        assert_eq!(queue.take_batch(60), [0, 1, 2]);
        assert_eq!(queue.take_batch(60), [3]);
        assert_eq!(queue.take_batch(60), [4]);
        assert_eq!(queue.tokens(), 1);
        assert_eq!(queue.take_batch(60), [5]);
        assert!(queue.take_batch(60).is_empty() && queue.is_empty());
    }

    #[test]
    fn what_nobody_waits_for_leaves_and_its_tokens_with_it() {
        let mut queue = queue_of(BOUNDS, &[50, 20, 30]);
        assert_eq!(queue.drop_unwanted(|name| *name != 1), 1);
        assert_eq!((queue.len(), queue.tokens()), (2, 80));
        assert_eq!(queue.admits(20), Ok(()));
    }
}
