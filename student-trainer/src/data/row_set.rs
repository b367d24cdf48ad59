//! The rows of a run: token sequences, and where each stands, so that errors can say it.

use std::sync::Arc;

use distill::batch::Sequence;

use super::error::Place;
use super::tokenize::Tokenized;

/// Most places an error lists.
const LISTED: usize = 3;

/// Sequences and their places. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct RowSet {
    /// The sequences.
    pub sequences: Arc<[Sequence]>,
    /// Where each of them stands, as many.
    places: Arc<[Place]>,
}

impl RowSet {
    /// Rows that stand at these places, one each.
    pub fn new(sequences: Arc<[Sequence]>, places: Arc<[Place]>) -> Self {
        debug_assert_eq!(sequences.len(), places.len());
        Self { sequences, places }
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Where a row stands: `train.jsonl, line 17`.
    pub fn place(&self, row: usize) -> String {
        self.places.get(row).map_or_else(|| format!("row {row}"), Place::to_string)
    }

    /// Where these rows stand; of many, the first ones and how many more.
    pub fn list(&self, rows: &[usize]) -> String {
        let first: Vec<_> = rows.iter().take(LISTED).map(|&row| self.place(row)).collect();
        let more = match rows.len().saturating_sub(LISTED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        first.join("; ") + &more
    }
}

impl From<Tokenized> for RowSet {
    fn from(rows: Tokenized) -> Self {
        Self::new(rows.sequences.into(), rows.places.into())
    }
}
