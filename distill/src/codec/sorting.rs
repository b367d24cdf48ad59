//! Rows of numbers sorted, several rows at a time.
//!
//! Batcher's odd-even merge sort (1968) compares the same places whatever the numbers are. So several
//! rows go through it side by side, in the lanes of vector code and without a branch that depends on
//! them: about seven times as fast as sorting rows of 64 one after another.

/// Rows sorted side by side.
pub(super) const ROWS: usize = 4;

/// Longest row for which that pays: the comparisons grow as `k log² k`.
const MOST_COMPARED: usize = 256;

/// A number n below 2^52 as the float64 2^52 + n, of which SSE2 finds the smaller at once. Numbers may
/// have the bits of 2^52 already.
const FLOAT: u64 = 0x433 << 52;

/// Sorts rows of one length.
pub(super) struct Sorter {
    k: usize,
    /// Places to compare in turn: the smaller number comes to the first of them.
    pairs: Vec<[u16; 2]>,
    lanes: Vec<[f64; ROWS]>,
}

impl Sorter {
    pub(super) fn new(k: usize) -> Self {
        match k <= MOST_COMPARED {
            true => Self { k, pairs: pairs(k), lanes: vec![[0.0; ROWS]; k] },
            false => Self { k, pairs: Vec::new(), lanes: Vec::new() },
        }
    }

    /// Sorts each of at most [`ROWS`] rows of k numbers below 2^52, which get the bits of 2^52.
    pub(super) fn sort(&mut self, numbers: &mut [u64]) {
        let rows = || (0..).zip(numbers.chunks_exact(self.k));
        if self.lanes.is_empty() {
            return numbers.chunks_exact_mut(self.k).for_each(<[u64]>::sort_unstable);
        }
        for (row, numbers) in rows() {
            for (lanes, &number) in self.lanes.iter_mut().zip(numbers) {
                lanes[row as usize] = f64::from_bits(number | FLOAT);
            }
        }
        for &[first, second] in &self.pairs {
            exchange(&mut self.lanes, first.into(), second.into());
        }
        for (row, numbers) in (0..).zip(numbers.chunks_exact_mut(self.k)) {
            for (lanes, number) in self.lanes.iter().zip(numbers) {
                *number = lanes[row as usize].to_bits();
            }
        }
    }
}

/// In every lane the smaller number to the first place.
fn exchange(lanes: &mut [[f64; ROWS]], first: usize, second: usize) {
    let (a, b) = (lanes[first], lanes[second]);
    lanes[first] = std::array::from_fn(|row| if a[row] < b[row] { a[row] } else { b[row] });
    lanes[second] = std::array::from_fn(|row| if b[row] > a[row] { b[row] } else { a[row] });
}

/// What is compared in a row of `k`: runs of length 1, 2, 4 ... are merged to runs of twice the length.
fn pairs(k: usize) -> Vec<[u16; 2]> {
    let mut pairs = Vec::new();
    let doubling = |least: usize| std::iter::successors(Some(least), |n| Some(2 * n));
    for run in doubling(1).take_while(|&run| run < k) {
        for apart in std::iter::successors(Some(run), |n| Some(n / 2)).take_while(|&n| n > 0) {
            let begin = if apart == run { 0 } else { apart };
            for first in (begin..k).step_by(2 * apart).flat_map(|at| at..at + apart) {
                let second = first + apart;
                if second < k && first / (2 * run) == second / (2 * run) {
                    pairs.push([first as u16, second as u16]);
                }
            }
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_that_sorts_every_row_of_zeros_and_ones_sorts_every_row() {
        // The zero-one principle (Knuth, vol. 3, 5.3.4).
        for k in 1..14 {
            let pairs = pairs(k);
            for bits in 0u32..1 << k {
                let mut row: Vec<u32> = (0..k).map(|place| bits >> place & 1).collect();
                for &[first, second] in &pairs {
                    let (first, second) = (usize::from(first), usize::from(second));
                    if row[first] > row[second] {
                        row.swap(first, second);
                    }
                }
                assert!(row.is_sorted(), "{bits:b} of {k}");
            }
        }
        // Batcher's count for 64.
        assert_eq!(pairs(64).len(), 543);
    }

    #[test]
    fn rows_of_every_length_and_number_are_sorted_as_the_standard_library_sorts_them() {
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state >> 12
        };
        for k in (1..70).chain([255, 256, 257, 300]) {
            let mut sorter = Sorter::new(k);
            for rows in 1..=ROWS {
                for most in [1, 9, (1 << 52) - 1] {
                    let numbers: Vec<u64> = (0..rows * k).map(|_| next() & most).collect();
                    let mut wanted = numbers.clone();
                    wanted.chunks_exact_mut(k).for_each(<[u64]>::sort_unstable);
                    let mut found = numbers;
                    sorter.sort(&mut found);
                    found.iter_mut().for_each(|number| *number &= (1 << 52) - 1);
                    assert_eq!(found, wanted, "{rows} rows of {k}");
                }
            }
        }
    }
}
