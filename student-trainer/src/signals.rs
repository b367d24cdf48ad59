//! What a teacher says of the rows of one set: asked for once and kept in memory as far as a budget
//! goes, so that a later epoch or evaluation asks only for what found no room.
//!
//! Which rows are kept is known beforehand from their lengths alone: the first of the set that fit.

use std::sync::Arc;
use std::time::Duration;

use distill::batch::Sequence;
use distill::codec::Layout;

use crate::feed::{Ask, Feed, Scored};
use crate::memory;
use crate::stop::Stop;
use crate::teacher::{Network, Teacher, TeacherError};

/// A teacher's answers about the rows of a set.
#[derive(Debug)]
pub struct Signals {
    teacher: Teacher,
    ask: Ask,
    set: Arc<[Sequence]>,
    /// Answers of the rows that are kept, once they are there.
    kept: Vec<Option<Scored>>,
    feed: Option<Feed>,
}

impl Signals {
    /// Answers of `teacher` about `set`, at most `budget` bytes of them kept. Nothing is asked yet.
    pub fn new(teacher: Teacher, ask: Ask, set: Arc<[Sequence]>, budget: u64) -> Self {
        let mut left = budget;
        let fits = |row: &&Sequence| match left.checked_sub(kept_bytes(row, ask.top_k)) {
            Some(rest) => {
                left = rest;
                true
            }
            None => false,
        };
        let kept = vec![None; set.iter().take_while(fits).count()];
        Self { teacher, ask, set, kept, feed: None }
    }

    /// Rows whose answers are kept, of all.
    pub fn coverage(&self) -> [usize; 2] {
        [self.kept.len(), self.set.len()]
    }

    /// Whether the answers say how much mass they leave out.
    pub fn knows_mass(&self) -> bool {
        self.teacher.knows_mass(f64::from(self.ask.temperature))
    }

    /// Begins to ask for the rows of `order` that are not kept, each kept row once.
    pub fn follow(
        &mut self,
        network: &Network,
        order: impl Iterator<Item = usize> + Send + 'static,
    ) {
        let mut known: Vec<bool> = self.kept.iter().map(Option::is_some).collect();
        let order = order.filter(move |&row| match known.get_mut(row) {
            Some(known) => !std::mem::replace(known, true),
            None => true,
        });
        let set = Arc::clone(&self.set);
        self.feed = Some(Feed::start(network, &self.teacher, set, order, self.ask));
    }

    /// The answers of the next `rows` of the order followed; none when a stop was asked for. Blocks
    /// the calling thread.
    ///
    /// # Errors
    /// Those of [`Feed::next`].
    pub fn take(
        &mut self,
        rows: &[usize],
        stop: &Stop,
    ) -> Result<Option<Vec<Scored>>, TeacherError> {
        let mut answers = Vec::with_capacity(rows.len());
        for &row in rows {
            if let Some(Some(known)) = self.kept.get(row) {
                answers.push(known.clone());
                continue;
            }
            let Some(feed) = &mut self.feed else { return Ok(None) };
            let Some(answer) = feed.next(stop)? else { return Ok(None) };
            if let Some(place) = self.kept.get_mut(row) {
                // Its bytes have travelled once.
                *place = Some(Scored { wire_bytes: 0, ..answer.clone() });
            }
            answers.push(answer);
        }
        Ok(Some(answers))
    }

    /// Time spent waiting for the teacher since the last call of this.
    pub fn take_waited(&mut self) -> Duration {
        self.feed.as_mut().map(Feed::take_waited).unwrap_or_default()
    }
}

/// The memory that is free, in bytes, less what a teacher's answers about these sets will take of it.
pub(crate) fn free_beside(
    sets: Option<[&[Sequence]; 2]>,
    top_k: usize,
    budget: u64,
) -> Option<u64> {
    let answers = sets.into_iter().flatten().map(|set| bytes_to_keep(set, top_k, budget));
    Some(memory::available()?.saturating_sub(answers.fold(0, u64::saturating_add)))
}

/// Memory that the answers about a set will take once all that may be kept are there, in bytes.
pub(crate) fn bytes_to_keep(set: &[Sequence], top_k: usize, budget: u64) -> u64 {
    set.iter().map(|row| kept_bytes(row, top_k)).fold(0, u64::saturating_add).min(budget)
}

/// What a row's answer takes in memory, about: as much as the codec that packs nothing makes of it.
fn kept_bytes(row: &Sequence, top_k: usize) -> u64 {
    let position = Layout::PLAIN.row_bytes(top_k) + size_of::<f32>();
    (size_of::<Option<Scored>>() + row.scored().count().saturating_mul(position)) as u64
}

#[cfg(test)]
#[path = "signals_tests.rs"]
mod tests;
