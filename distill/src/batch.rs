//! Token sequences and packed batches: which positions exist and which are scored.

/// One training or evaluation row after tokenisation.
///
/// Position `t` is *scored* when `loss_mask[t + 1]` is true: its logits predict token `t + 1`.
/// The mask of the first token is therefore never used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Token ids, `[L]`, at least one.
    pub ids: Vec<u32>,
    /// Whether token `t` is a target, `[L]`.
    pub loss_mask: Vec<bool>,
}

/// Why a sequence or a batch cannot exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// A sequence without tokens.
    #[error("a sequence must have at least one token")]
    Empty,
    /// Ids and mask of different lengths.
    #[error("{ids} token ids but {mask} mask values")]
    Lengths {
        /// Number of ids.
        ids: usize,
        /// Number of mask values.
        mask: usize,
    },
}

impl Sequence {
    /// A sequence, its invariants checked.
    ///
    /// # Errors
    /// [`BatchError::Empty`] without tokens, [`BatchError::Lengths`] when mask and ids differ.
    pub fn new(ids: Vec<u32>, loss_mask: Vec<bool>) -> Result<Self, BatchError> {
        if ids.is_empty() {
            return Err(BatchError::Empty);
        }
        if ids.len() != loss_mask.len() {
            return Err(BatchError::Lengths { ids: ids.len(), mask: loss_mask.len() });
        }
        Ok(Self { ids, loss_mask })
    }

    /// A sequence in which every token but the first is a target.
    ///
    /// # Errors
    /// [`BatchError::Empty`] without tokens.
    pub fn all_scored(ids: Vec<u32>) -> Result<Self, BatchError> {
        let mask = vec![true; ids.len()];
        Self::new(ids, mask)
    }

    /// Number of tokens.
    #[expect(clippy::len_without_is_empty, reason = "a sequence is never empty")]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// The scored positions, ascending.
    pub fn scored(&self) -> impl Iterator<Item = usize> + '_ {
        (1..self.ids.len()).filter(|&t| self.loss_mask[t]).map(|t| t - 1)
    }

    /// The scored positions as half-open ranges `first..end`, ascending and disjoint: what is asked
    /// of a teacher.
    pub fn scored_ranges(&self) -> Vec<std::ops::Range<u32>> {
        let mut ranges: Vec<std::ops::Range<u32>> = Vec::new();
        for t in self.scored() {
            let t = t as u32;
            match ranges.last_mut() {
                Some(last) if last.end == t => last.end = t + 1,
                _ => ranges.push(t..t + 1),
            }
        }
        ranges
    }
}

/// Sequences laid end to end, without padding: `N = Σ L` tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenBatch {
    ids: Vec<u32>,
    row_ends: Vec<usize>,
    scored: Vec<u32>,
    targets: Vec<u32>,
    scored_per_row: Vec<usize>,
}

impl TokenBatch {
    /// Packs sequences in the order given.
    pub fn pack<'a>(sequences: impl IntoIterator<Item = &'a Sequence>) -> Self {
        let mut batch = Self {
            ids: Vec::new(),
            row_ends: Vec::new(),
            scored: Vec::new(),
            targets: Vec::new(),
            scored_per_row: Vec::new(),
        };
        for sequence in sequences {
            let start = batch.ids.len();
            let before = batch.scored.len();
            for t in sequence.scored() {
                batch.scored.push((start + t) as u32);
                batch.targets.push(sequence.ids[t + 1]);
            }
            batch.scored_per_row.push(batch.scored.len() - before);
            batch.ids.extend_from_slice(&sequence.ids);
            batch.row_ends.push(batch.ids.len());
        }
        batch
    }

    /// Token ids of all rows, `[N]`.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// For each row the index one past its last token, ascending; the last one is N.
    pub fn row_ends(&self) -> &[usize] {
        &self.row_ends
    }

    /// Flat indices of the scored positions, `[S]`, ascending.
    pub fn scored(&self) -> &[u32] {
        &self.scored
    }

    /// The token each scored position predicts, `[S]`.
    pub fn targets(&self) -> &[u32] {
        &self.targets
    }

    /// Number of scored positions of each row, `[rows]`.
    pub fn scored_per_row(&self) -> &[usize] {
        &self.scored_per_row
    }

    /// The rows as ranges of flat token indices.
    pub fn rows(&self) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        let starts = std::iter::once(0).chain(self.row_ends.iter().copied());
        starts.zip(self.row_ends.iter().copied()).map(|(start, end)| start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_scores_the_position_before_each_target_and_never_across_rows() {
        let first = Sequence::new(vec![7, 8, 9, 5], vec![true, false, true, true]).unwrap();
        let second = Sequence::new(vec![1], vec![true]).unwrap();
        let third = Sequence::new(vec![2, 3], vec![false, true]).unwrap();
        let batch = TokenBatch::pack([&first, &second, &third]);
        assert_eq!(batch.ids(), [7, 8, 9, 5, 1, 2, 3]);
        assert_eq!(batch.row_ends(), [4, 5, 7]);
        assert_eq!(batch.scored(), [1, 2, 5]);
        assert_eq!(batch.targets(), [9, 5, 3]);
        assert_eq!(batch.scored_per_row(), [2, 0, 1]);
        assert_eq!(batch.rows().collect::<Vec<_>>(), [0..4, 4..5, 5..7]);
    }

    #[test]
    fn scored_ranges_join_neighbours() {
        let sequence =
            Sequence::new(vec![0; 6], vec![false, true, true, false, true, false]).unwrap();
        assert_eq!(sequence.scored_ranges(), [0..2, 3..4]);
    }

    #[test]
    fn impossible_sequences_are_refused() {
        assert_eq!(Sequence::new(vec![], vec![]), Err(BatchError::Empty));
        assert_eq!(
            Sequence::new(vec![1, 2], vec![true]),
            Err(BatchError::Lengths { ids: 2, mask: 1 })
        );
    }
}
