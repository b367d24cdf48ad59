//! What a teacher says by examples: n draws of each position, beside k entries that are exact.

mod key;

use std::ops::Range;

pub use key::DrawKey;

use super::log_sum_exp;

/// How far the masses of a row may be from 1 together: more than the rounding of any code of them.
const MASS_TOLERANCE: f64 = 0.02;

/// n draws of each position from `p = softmax(y / T)`, and k entries of it as they are.
///
/// With k = 0 every draw is from p over all V classes. Else the k largest y of a position (ties to the
/// lower id) are given exactly, and the draws are from all *other* classes: from p over their mass,
/// which is given as `log_rest`. Where they have none (k = V) there are no draws. One draw is made in each
/// n-th part of the mass, classes in the order of their ids ([`DrawKey::uniforms`]).
///
/// Rows have as many drawn entries as different ids came; those of row r end at `ends[r]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Draws {
    /// Draws a position, n.
    pub draws: u32,
    /// Exact entries a position, 0 for none.
    pub k: usize,
    /// Ids of the exact entries, `[rows, k]`, ascending in a row.
    pub exact_ids: Vec<u32>,
    /// Their `log p` at T, `[rows, k]`.
    pub exact_log_p: Vec<f32>,
    /// Log of the mass outside the exact entries, `[rows]`: 0 with k = 0, -inf where there is none.
    pub log_rest: Vec<f32>,
    /// Where the drawn entries of each row end, `[rows]`.
    pub ends: Vec<usize>,
    /// Ids that were drawn, ascending in a row, each once.
    pub ids: Vec<u32>,
    /// How often each of them was; n together in a row.
    pub counts: Vec<u32>,
}

/// What is wrong with draws.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DrawsError {
    /// No draws.
    #[error("0 draws a position: wanted at least 1")]
    NoDraws,
    /// Arrays that do not belong together.
    #[error("{rows} rows of {k} exact entries need {wanted} {array}, found {found}")]
    Shape {
        /// Rows.
        rows: usize,
        /// Exact entries a row.
        k: usize,
        /// Which array.
        array: &'static str,
        /// Its length as wanted.
        wanted: usize,
        /// Its length as found.
        found: usize,
    },
    /// An id that is no class.
    #[error("row {row}: id {found} is not below the number of classes {classes}")]
    Id {
        /// Row of the signal.
        row: usize,
        /// The id.
        found: u32,
        /// Classes.
        classes: usize,
    },
    /// Ids that do not ascend.
    #[error("row {row}: id {found} stands behind {before}, wanted ascending ids, each once")]
    Order {
        /// Row of the signal.
        row: usize,
        /// The id before.
        before: u32,
        /// The id.
        found: u32,
    },
    /// An id that is exact and drawn.
    #[error("row {row}: id {found} was drawn, but is one of the exact entries")]
    Both {
        /// Row of the signal.
        row: usize,
        /// The id.
        found: u32,
    },
    /// An id that was never drawn.
    #[error("row {row}: id {found} was drawn 0 times: wanted ids that were drawn")]
    NeverDrawn {
        /// Row of the signal.
        row: usize,
        /// The id.
        found: u32,
    },
    /// Another number of draws.
    #[error("row {row}: {found} draws, wanted {wanted}")]
    Count {
        /// Row of the signal.
        row: usize,
        /// Draws of the row.
        found: u64,
        /// Draws a position, 0 where there is no mass to draw from.
        wanted: u32,
    },
    /// A logarithm of a probability that is none.
    #[error("row {row}: {what} is {found}, wanted a finite number, at most 0")]
    LogP {
        /// Row of the signal.
        row: usize,
        /// Which number.
        what: &'static str,
        /// The number.
        found: f32,
    },
    /// Masses that do not sum to 1.
    #[error("row {row}: the masses sum to {found:.3}, wanted 1")]
    Mass {
        /// Row of the signal.
        row: usize,
        /// Their sum.
        found: f64,
    },
}

impl Draws {
    /// Of no positions.
    pub fn new(draws: u32, k: usize) -> Self {
        Self { draws, k, ..Self::default() }
    }

    /// Number of positions.
    pub fn rows(&self) -> usize {
        self.ends.len()
    }

    /// Where the drawn entries of a row lie in `ids` and `counts`.
    pub fn drawn(&self, row: usize) -> Range<usize> {
        let start = row.checked_sub(1).map_or(0, |before| self.ends[before]);
        start..self.ends[row]
    }

    /// Where the exact entries of a row lie in `exact_ids` and `exact_log_p`.
    pub fn exact(&self, row: usize) -> Range<usize> {
        row * self.k..(row + 1) * self.k
    }

    /// Appends a position: the exact entries by ascending id, `log_rest` as above, and the draws by
    /// ascending id, one as often as it came.
    pub fn push(
        &mut self,
        exact: impl IntoIterator<Item = (u32, f32)>,
        log_rest: f32,
        drawn: impl IntoIterator<Item = u32>,
    ) {
        for (id, log_p) in exact {
            self.exact_ids.push(id);
            self.exact_log_p.push(log_p);
        }
        self.log_rest.push(log_rest);
        let start = self.ids.len();
        for id in drawn {
            match self.counts[start..].last_mut() {
                Some(count) if self.ids.last() == Some(&id) => *count += 1,
                _ => {
                    self.ids.push(id);
                    self.counts.push(1);
                }
            }
        }
        self.ends.push(self.ids.len());
    }

    /// Appends the positions of another signal of the same n and k.
    ///
    /// # Panics
    /// When n or k differs.
    pub fn append(&mut self, other: &Self) {
        let of = |signal: &Self| (signal.draws, signal.k);
        assert_eq!(of(self), of(other), "draws of different n or k cannot be joined");
        let start = self.ids.len();
        self.exact_ids.extend_from_slice(&other.exact_ids);
        self.exact_log_p.extend_from_slice(&other.exact_log_p);
        self.log_rest.extend_from_slice(&other.log_rest);
        self.ends.extend(other.ends.iter().map(|end| start + end));
        self.ids.extend_from_slice(&other.ids);
        self.counts.extend_from_slice(&other.counts);
    }

    /// The positions `rows` of this signal.
    ///
    /// # Panics
    /// When there are no such rows.
    pub fn slice(&self, rows: Range<usize>) -> Self {
        let exact = rows.start * self.k..rows.end * self.k;
        let start = rows.start.checked_sub(1).map_or(0, |before| self.ends[before]);
        let ends: Vec<usize> = self.ends[rows.clone()].iter().map(|end| end - start).collect();
        let drawn = start..start + ends.last().copied().unwrap_or(0);
        Self {
            draws: self.draws,
            k: self.k,
            exact_ids: self.exact_ids[exact.clone()].to_vec(),
            exact_log_p: self.exact_log_p[exact].to_vec(),
            log_rest: self.log_rest[rows].to_vec(),
            ends,
            ids: self.ids[drawn.clone()].to_vec(),
            counts: self.counts[drawn].to_vec(),
        }
    }

    /// The estimate of p that a row is: ids, first the exact ones, and a probability for each, in
    /// float64 and summing to 1. Every class that is not listed has 0.
    ///
    /// An exact entry has its own p, a drawn one the mass of the rest times the share of the draws that
    /// fell on it. Over draws the mean of the estimate is p, for every class.
    pub fn estimate(&self, row: usize) -> (Vec<u32>, Vec<f64>) {
        let (exact, drawn) = (self.exact(row), self.drawn(row));
        let ids = [&self.exact_ids[exact.clone()], &self.ids[drawn.clone()]].concat();
        let mut p: Vec<f64> =
            self.exact_log_p[exact].iter().map(|&log_p| f64::from(log_p).exp()).collect();
        let rest = f64::from(self.log_rest[row]).exp();
        let a_draw = rest / f64::from(self.draws);
        // What rounding on the way here took from the sum is given back in proportion.
        let sum = p.iter().sum::<f64>() + rest;
        p.extend(self.counts[drawn].iter().map(|&count| a_draw * f64::from(count)));
        p.iter_mut().for_each(|p| *p /= sum);
        (ids, p)
    }

    /// Whether this is what a teacher can mean, over so many classes.
    ///
    /// # Errors
    /// [`DrawsError`] with the first row that is wrong, and how.
    pub fn check(&self, classes: usize) -> Result<(), DrawsError> {
        if self.draws == 0 {
            return Err(DrawsError::NoDraws);
        }
        let (rows, k, drawn) = (self.rows(), self.k, self.ids.len());
        let last = self.ends.last().copied().unwrap_or(0);
        let falls = self.ends.windows(2).any(|pair| pair[0] > pair[1]);
        for (array, found, wanted) in [
            ("exact ids", self.exact_ids.len(), rows.saturating_mul(k)),
            ("exact log-probabilities", self.exact_log_p.len(), rows.saturating_mul(k)),
            ("masses of the rest", self.log_rest.len(), rows),
            ("counts", self.counts.len(), drawn),
            ("ends of rows that rise to the last id", if falls { 0 } else { last }, drawn),
        ] {
            if found != wanted {
                return Err(DrawsError::Shape { rows, k, array, wanted, found });
            }
        }
        (0..rows).try_for_each(|row| {
            self.check_masses(row)?;
            self.check_drawn(row)?;
            let (exact, drawn) = (&self.exact_ids[self.exact(row)], &self.ids[self.drawn(row)]);
            check_ids(row, exact, classes)?;
            check_ids(row, drawn, classes)?;
            let both = drawn.iter().find(|id| exact.binary_search(id).is_ok());
            both.map_or(Ok(()), |&found| Err(DrawsError::Both { row, found }))
        })
    }

    fn check_masses(&self, row: usize) -> Result<(), DrawsError> {
        let (exact, rest) = (&self.exact_log_p[self.exact(row)], self.log_rest[row]);
        let is_log = |log_p: f32| log_p.is_finite() && log_p <= 0.0;
        if let Some(&found) = exact.iter().find(|&&log_p| !is_log(log_p)) {
            return Err(DrawsError::LogP { row, what: "a log-probability", found });
        }
        if !is_log(rest) && rest != f32::NEG_INFINITY {
            return Err(DrawsError::LogP { row, what: "log_rest", found: rest });
        }
        let masses = exact.iter().chain([&rest]);
        let found: f64 = masses.map(|&log_p| f64::from(log_p).exp()).sum();
        let right = if self.k == 0 { rest == 0.0 } else { (found - 1.0).abs() <= MASS_TOLERANCE };
        if right { Ok(()) } else { Err(DrawsError::Mass { row, found }) }
    }

    fn check_drawn(&self, row: usize) -> Result<(), DrawsError> {
        let drawn = self.drawn(row);
        let counts = &self.counts[drawn.clone()];
        if let Some(at) = counts.iter().position(|&count| count == 0) {
            return Err(DrawsError::NeverDrawn { row, found: self.ids[drawn.start + at] });
        }
        let found = counts.iter().map(|&count| u64::from(count)).sum();
        let wanted = if self.log_rest[row] == f32::NEG_INFINITY { 0 } else { self.draws };
        if found == u64::from(wanted) {
            Ok(())
        } else {
            Err(DrawsError::Count { row, found, wanted })
        }
    }

    /// Appends a position drawn the slow way from all its logits (float64 throughout): the reference
    /// for every faster one. Draw i is the first class, by id, at which the sum of the probabilities to
    /// draw from exceeds `uniforms[i]`, n of them in 0..1.
    ///
    /// # Panics
    /// When there are not n uniforms, or k is above the number of logits.
    pub fn push_exact(&mut self, logits: &[f64], temperature: f64, uniforms: &[f64]) {
        assert_eq!(uniforms.len(), self.draws as usize, "a number for each draw");
        assert!(self.k <= logits.len(), "k must lie in 0..=V");
        let log_z = log_sum_exp(logits.iter().map(|y| y / temperature));
        let log_p: Vec<f64> = logits.iter().map(|y| y / temperature - log_z).collect();
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let logit = |id: u32| logits[id as usize];
        order.sort_by(|&a, &b| logit(b).total_cmp(&logit(a)).then(a.cmp(&b)));
        let (exact, others) = order.split_at_mut(self.k);
        exact.sort_unstable();
        others.sort_unstable();
        let log_rest = log_sum_exp(others.iter().map(|&id| log_p[id as usize]));
        let mut drawn = Vec::new();
        for uniform in uniforms.iter().filter(|_| !others.is_empty()) {
            let mut sum = 0.0;
            let exceeds = |&&id: &&u32| {
                sum += (log_p[id as usize] - log_rest).exp();
                sum > *uniform
            };
            drawn.push(others.iter().find(exceeds).copied().unwrap_or(others[others.len() - 1]));
        }
        drawn.sort_unstable();
        let exact: Vec<(u32, f32)> =
            exact.iter().map(|&id| (id, log_p[id as usize] as f32)).collect();
        self.push(exact, if self.k == 0 { 0.0 } else { log_rest as f32 }, drawn);
    }
}

/// Ascending and below the number of classes.
fn check_ids(row: usize, ids: &[u32], classes: usize) -> Result<(), DrawsError> {
    if let Some(pair) = ids.windows(2).find(|pair| pair[0] >= pair[1]) {
        return Err(DrawsError::Order { row, before: pair[0], found: pair[1] });
    }
    match ids.last() {
        Some(&found) if found as usize >= classes => Err(DrawsError::Id { row, found, classes }),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "draws_tests.rs"]
mod tests;
