//! Which rows are computed at once: as many as was asked for, and where memory is short no more tokens than it takes.

use std::ops::Range;

/// The bounds of a batch that goes to the device as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtOnce {
    rows: usize,
    tokens: Option<usize>,
}

impl AtOnce {
    /// So many rows; at least one.
    pub fn rows(rows: usize) -> Self {
        Self { rows: rows.max(1), tokens: None }
    }

    /// The same with at most so many tokens; a longer row goes alone.
    #[must_use]
    pub fn at_most(self, tokens: usize) -> Self {
        Self { tokens: Some(tokens), ..self }
    }

    /// Rows of these lengths in groups that follow each other. Each is within one of those that there are without a bound
    /// on tokens.
    pub fn groups(&self, lengths: impl IntoIterator<Item = usize>) -> Vec<Range<usize>> {
        let mut groups: Vec<Range<usize>> = Vec::new();
        let mut tokens = 0_usize;
        for (row, length) in lengths.into_iter().enumerate() {
            let full = self.tokens.is_some_and(|most| tokens.saturating_add(length) > most);
            match groups.last_mut() {
                Some(group) if !row.is_multiple_of(self.rows) && !full => {
                    group.end += 1;
                    tokens += length;
                }
                Some(_) | None => {
                    groups.push(row..row + 1);
                    tokens = length;
                }
            }
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_grouped_in_their_order() {
        let groups = |at_once: AtOnce| at_once.groups([5, 3, 9, 2, 2, 2, 7]);
        assert_eq!(groups(AtOnce::rows(3)), [0..3, 3..6, 6..7]);
        assert_eq!(groups(AtOnce::rows(0)).len(), 7);
        assert_eq!(groups(AtOnce::rows(3).at_most(17)), groups(AtOnce::rows(3)));
        // Within the three of each batch; a row that is too long goes alone.
        assert_eq!(groups(AtOnce::rows(3).at_most(8)), [0..2, 2..3, 3..6, 6..7]);
        assert_eq!(groups(AtOnce::rows(3).at_most(5)), [0..1, 1..2, 2..3, 3..5, 5..6, 6..7]);
        assert!(AtOnce::rows(3).groups([]).is_empty());
    }
}
