//! Which rows are computed at once: as many as was asked for, and where memory is short no more tokens than it takes.

use std::ops::Range;

use crate::error::TrainError;

/// The bounds of a batch that goes to the device as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtOnce {
    rows: usize,
    tokens: Option<usize>,
    /// Whether what does not fit is refused.
    whole: bool,
}

impl AtOnce {
    /// So many rows; at least one.
    pub fn rows(rows: usize) -> Self {
        Self { rows: rows.max(1), tokens: None, whole: false }
    }

    /// The same with at most so many tokens; a longer row goes alone.
    #[must_use]
    pub fn at_most(self, tokens: usize) -> Self {
        Self { tokens: Some(tokens), ..self }
    }

    /// The same where what does not fit is not computed in parts.
    #[must_use]
    pub fn whole(self) -> Self {
        Self { whole: true, ..self }
    }

    /// What is computed of these rows, whose results do not depend on each other: of halves where the device's memory does
    /// not suffice for all.
    ///
    /// # Errors
    /// Those of `compute`; of want of memory where there is one row, or parts are not wanted.
    pub(crate) fn in_parts<T>(
        self,
        rows: Range<usize>,
        compute: &mut impl FnMut(Range<usize>) -> Result<T, TrainError>,
    ) -> Result<Vec<T>, TrainError> {
        match compute(rows.clone()) {
            Err(error) if error.is_out_of_memory() && rows.len() > 1 && !self.whole => {
                let middle = rows.start + rows.len() / 2;
                let mut parts = self.in_parts(rows.start..middle, compute)?;
                parts.extend(self.in_parts(middle..rows.end, compute)?);
                Ok(parts)
            }
            computed => Ok(vec![computed?]),
        }
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
    use model::qwen3::ModelError;

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

    #[test]
    fn what_does_not_fit_is_computed_in_halves_where_that_is_wanted() {
        let short = || ModelError::OutOfMemory("no room".to_owned());
        let run = |at_once: AtOnce, most: usize, rows: Range<usize>| {
            at_once.in_parts(rows, &mut |rows| match rows.len() > most {
                true => Err(short().into()),
                false => Ok(rows),
            })
        };
        let parts = AtOnce::rows(9);
        assert_eq!(run(parts, 4, 0..7).unwrap(), [0..3, 3..7]);
        assert_eq!(run(parts, 3, 3..10).unwrap(), [3..6, 6..8, 8..10]);
        assert!(run(parts, 0, 0..7).unwrap_err().is_out_of_memory());
        assert!(run(parts.whole(), 3, 0..7).unwrap_err().is_out_of_memory());
        // Another error is no reason to try again.
        let mut tries = 0;
        let failed = parts.in_parts(0..7, &mut |_| {
            tries += 1;
            Err::<(), _>(ModelError::Device("it failed".to_owned()).into())
        });
        assert!(failed.is_err() && tries == 1);
    }
}
