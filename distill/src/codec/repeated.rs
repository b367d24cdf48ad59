//! Ids that come twice in a row of a signal.

use std::collections::BTreeSet;

use super::CodecError;
use crate::signal::TopK;

/// Every id a class, and none twice in a row: a repeated id would count its mass twice.
pub(super) fn check_ids(signal: &TopK, classes: usize) -> Result<(), CodecError> {
    let (ids, k) = (&signal.ids, signal.k);
    let bound = bound(ids);
    if bound > classes {
        let at = ids.iter().position(|&id| id as usize >= classes).unwrap_or_default();
        return Err(CodecError::Id { row: at / k, found: ids[at], classes });
    }
    match repeated_below(ids, k, bound) {
        None => Ok(()),
        Some((row, found)) => Err(CodecError::DuplicateId { row, found }),
    }
}

/// The first row of `k` ids that holds one twice, and that id. Every id is below `classes`.
///
/// # Panics
/// When k is 0 or an id is no class.
pub fn repeated(ids: &[u32], k: usize, classes: usize) -> Option<(usize, u32)> {
    repeated_below(ids, k, classes.min(bound(ids)))
}

fn repeated_below(ids: &[u32], k: usize, bound: usize) -> Option<(usize, u32)> {
    let mut rows = ids.chunks_exact(k).enumerate();
    let mut exact = Seen { words: Vec::new(), bound };
    let (row, ids) = if k <= MOST_MARKED && ids.len() >= MARKS {
        let mut marks = Marks { of: vec![0; MARKS], mark: 0 };
        rows.find(|(_, ids)| marks.meet(ids) && exact.twice(ids))?
    } else {
        rows.find(|(_, ids)| exact.twice(ids))?
    };
    let mut before = BTreeSet::new();
    ids.iter().find(|&&id| !before.insert(id)).map(|&id| (row, id))
}

/// Places for marks, so many that they stay in the nearest cache. For fewer ids than that it does not
/// pay to make them.
const MARKS: usize = 1 << 14;
/// Longest row for which [`Marks`] say no more often than they leave it open.
const MOST_MARKED: usize = 128;

/// Which ids of a row may be the same: those that meet at a place. Each row has a mark of its own, so
/// that nothing need be cleaned after it.
struct Marks {
    of: Vec<u8>,
    mark: u8,
}

impl Marks {
    fn meet(&mut self, ids: &[u32]) -> bool {
        self.mark = self.mark.wrapping_add(1);
        if self.mark == 0 {
            self.of.fill(0);
            self.mark = 1;
        }
        let (mark, mut met) = (self.mark, false);
        let of = &mut self.of[..MARKS];
        by_fours(ids, |id| {
            let place = &mut of[id as usize % MARKS];
            met |= *place == mark;
            *place = mark;
        });
        met
    }
}

/// Which ids a row has: one bit a class below `bound`, made when first needed.
struct Seen {
    words: Vec<u64>,
    bound: usize,
}

impl Seen {
    fn twice(&mut self, ids: &[u32]) -> bool {
        self.words.resize(self.bound.div_ceil(64), 0);
        let (seen, mut twice) = (&mut self.words, 0);
        by_fours(ids, |id| {
            let word = &mut seen[id as usize / 64];
            twice |= *word >> (id % 64);
            *word |= 1 << (id % 64);
        });
        by_fours(ids, |id| seen[id as usize / 64] = 0);
        twice & 1 != 0
    }
}

/// One after another, in a loop unrolled.
#[inline]
fn by_fours(ids: &[u32], mut each: impl FnMut(u32)) {
    let (groups, rest) = ids.as_chunks::<4>();
    for group in groups {
        group.iter().for_each(|&id| each(id));
    }
    rest.iter().for_each(|&id| each(id));
}

/// 1 + the largest id.
fn bound(ids: &[u32]) -> usize {
    ids.iter().max().map_or(0, |&id| id as usize + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_ids_are_found_wherever_they_stand() {
        for k in [2, 3, 4, 5, 64, 67] {
            let distinct: Vec<u32> = (0..3 * k as u32).map(|n| n * 2_371 % 151_936).collect();
            assert_eq!(repeated(&distinct, k, 151_936), None);
            // In two rows is not twice in a row.
            let row = &distinct[..k];
            let last = [&row[..k - 1], &row[..1]].concat();
            assert_eq!(repeated(&[row, row, &last].concat(), k, 151_936), Some((2, row[0])));
            for (first, second) in (0..k).flat_map(|a| (a + 1..k).map(move |b| (a, b))) {
                let mut ids = distinct.clone();
                ids[k + second] = ids[k + first];
                // The same in the row after it comes too late.
                ids[2 * k + 1] = ids[2 * k];
                assert_eq!(
                    repeated(&ids, k, 151_936),
                    Some((1, ids[k + first])),
                    "{first} {second}"
                );
            }
        }
        // Rows so long that the other way of looking is taken, and so many that marks come again.
        for (k, count) in [(128, 200), (129, 3), (1000, 2), (64, 700), (3, 6_000)] {
            let row: Vec<u32> = (0..k as u32).map(|n| n * 2_371 % 151_936).collect();
            let mut ids = row.repeat(count);
            assert_eq!(repeated(&ids, k, 151_936), None, "{k}");
            // 16,384 apart: the same place, other ids.
            ids[k * (count - 1) + 1] = ids[0] + 16_384;
            assert_eq!(repeated(&ids, k, 151_936), None, "{k}");
            ids[k * count - 1] = ids[0];
            assert_eq!(repeated(&ids, k, 151_936), Some((count - 1, ids[0])), "{k}");
        }
        // Of several, the one whose second place comes first.
        assert_eq!(repeated(&[7, 9, 8, 9, 7, 7], 6, 10), Some((0, 9)));
    }
}
