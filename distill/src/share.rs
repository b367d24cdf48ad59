//! A bound that many share: each may take as much as is still free (dynamic thresholds, Choudhury and
//! Hahne 1998). Alone that is half of it, the next finds half of what is left, and what comes free is
//! for those who have little.

use std::collections::BTreeMap;

/// Whether somebody who has `own` of what is `taken` in all may have `more`, of `limit`.
pub fn may_have(own: usize, more: usize, taken: usize, limit: usize) -> bool {
    own.saturating_add(more) <= limit.saturating_sub(taken)
}

/// Who has how much of a bound. `C` names clients.
#[derive(Debug)]
pub struct Shares<C> {
    limit: usize,
    taken: usize,
    by_client: BTreeMap<C, usize>,
}

impl<C: Ord + Clone> Shares<C> {
    /// Nobody has anything yet.
    pub fn new(limit: usize) -> Self {
        Self { limit, taken: 0, by_client: BTreeMap::new() }
    }

    /// Takes `more` for a client; false when that is more than it may have.
    #[must_use]
    pub fn take(&mut self, client: &C, more: usize) -> bool {
        self.extend(client, 0, more)
    }

    /// Takes `more` to what a client has of one thing, `part`, already: what comes bit by bit may
    /// become as large as what is taken at once. False when that is more than it may have.
    #[must_use]
    pub fn extend(&mut self, client: &C, part: usize, more: usize) -> bool {
        let own = self.by_client.get(client).copied().unwrap_or(0);
        if !may_have(own, more, self.taken.saturating_sub(part), self.limit) {
            return false;
        }
        self.taken += more;
        *self.by_client.entry(client.clone()).or_default() += more;
        true
    }

    /// Gives back what was taken.
    ///
    /// # Panics
    /// When the client has less than that.
    pub fn give_back(&mut self, client: &C, amount: usize) {
        let own = self.by_client.get(client).copied().unwrap_or(0);
        assert!(own >= amount, "more is given back than was taken");
        self.taken -= amount;
        match own - amount {
            0 => drop(self.by_client.remove(client)),
            left => drop(self.by_client.insert(client.clone(), left)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_cannot_take_what_others_need_and_everything_comes_back() {
        let mut shares = Shares::new(100);
        assert!(shares.take(&"a", 50) && !shares.take(&"a", 1));
        assert!(shares.take(&"b", 25) && !shares.take(&"b", 1));
        assert!(!shares.take(&"c", 26) && shares.take(&"c", 25));
        assert!(!shares.take(&"d", 1) && shares.take(&"d", 0));
        shares.give_back(&"a", 50);
        // 50 are free: b has 25 of its own already, d nothing.
        assert!(!shares.take(&"b", 26) && shares.take(&"d", 50));
        for (client, amount) in [("b", 25), ("c", 25), ("d", 50)] {
            shares.give_back(&client, amount);
        }
        assert!(shares.take(&"e", 100), "a bound nobody uses is one client's");
    }

    #[test]
    fn what_comes_bit_by_bit_may_become_as_large_as_what_comes_at_once() {
        let mut shares = Shares::new(100);
        assert!((0..100).all(|part| shares.extend(&"a", part, 1)), "alone it has all");
        assert!(!shares.extend(&"a", 100, 1));
        shares.give_back(&"a", 100);
        assert!(shares.take(&"b", 30) && shares.take(&"a", 20));
        // Of 70 that b leaves, 20 are for another of a's: one of 30 is as much as it may have.
        assert!(shares.extend(&"a", 0, 10) && shares.extend(&"a", 10, 20));
        assert!(!shares.extend(&"a", 30, 1) && !shares.take(&"a", 1));
    }

    #[test]
    fn numbers_at_their_ends_do_not_wrap() {
        let mut shares = Shares::new(usize::MAX);
        assert!(shares.take(&1, usize::MAX) && !shares.take(&2, 1));
        assert!(!may_have(usize::MAX, 1, 0, usize::MAX - 1));
        assert!(!may_have(0, 1, 9, 5));
    }
}
