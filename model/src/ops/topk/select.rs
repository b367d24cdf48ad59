//! Selection of the k largest of a row: exact, with ties to the lower id.
//!
//! A float and its index become one integer which is smaller for the better candidate, so no two
//! are equal and the result is unique. Of each block a first pass takes the largest value of each
//! of 4 k groups: the k-th largest of these is reached by k values at least, and by few more. A
//! second pass gathers what reaches it, and the worst of the best so far, in a buffer that is cut
//! back to k when full. The work is O(V + k log k) for k from 1 to V, and little more in blocks.

use multiversion::multiversion;

/// Values compared at a time before any is looked at: one register of AVX-512.
const BLOCK: usize = 16;
/// Groups at least, so that the first pass is vector code for small k.
const MIN_GROUPS: usize = 256;

/// The k largest of a row whose values come in blocks.
pub(in crate::ops) struct Selection {
    k: usize,
    /// The best so far, at most k, in no order.
    best: Vec<u64>,
    /// The key of the worst of them, once there are k.
    worst: Option<i32>,
}

impl Selection {
    /// Of nothing yet; `k` is at least 1.
    pub(in crate::ops) fn new(k: usize) -> Self {
        Self { k, best: Vec::new(), worst: None }
    }

    /// Takes note of the values of the indices from `first` on; blocks come in order. Gives those
    /// of earlier blocks that are among the best no more, each with its index; none when a value is NaN
    /// or infinite.
    pub(in crate::ops) fn offer(
        &mut self,
        values: &[f32],
        first: usize,
    ) -> Option<Vec<(usize, f32)>> {
        let k = self.k;
        let groups = (4 * k).max(MIN_GROUPS).min(values.len());
        let mut maxima = vec![i32::MIN; groups];
        if !group_maxima(values, &mut maxima) {
            return None;
        }
        // Of equal values the earlier ones stay.
        let mut floor = self.worst.map_or(i32::MIN, |worst| worst.saturating_add(1));
        if groups >= k {
            floor = floor.max(*maxima.select_nth_unstable_by(k - 1, |a, b| b.cmp(a)).1);
        }
        let mut fresh = Vec::with_capacity((2 * k + MIN_GROUPS).min(values.len()));
        gather(values, first, floor, k, &mut fresh);
        self.best.append(&mut fresh);
        let mut gone = Vec::new();
        if self.best.len() > k {
            self.best.select_nth_unstable(k - 1);
            gone = self.best.split_off(k);
        }
        if self.best.len() == k {
            self.worst = self.best.iter().max().map(|&worst| key_of(worst));
        }
        gone.retain(|&candidate| index_of(candidate) < first);
        let indexed = |candidate| (index_of(candidate), value_of(key_of(candidate)));
        Some(gone.into_iter().map(indexed).collect())
    }

    /// The indices of the best so far from `first` on.
    pub(in crate::ops) fn since(&self, first: usize) -> impl Iterator<Item = usize> {
        self.best.iter().map(|&candidate| index_of(candidate)).filter(move |&at| at >= first)
    }

    /// Indices and values in descending order, the lower index first among equal values (-0 is
    /// below +0).
    pub(in crate::ops) fn in_order(mut self) -> (Vec<u32>, Vec<f32>) {
        self.best.sort_unstable();
        let pair = |&c: &u64| (index_of(c) as u32, value_of(key_of(c)));
        self.best.iter().map(pair).unzip()
    }
}

/// The largest key of each group: the values at a distance of a multiple of their number. False
/// when a value is not finite.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
fn group_maxima(values: &[f32], maxima: &mut [i32]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    let mut worst = 0;
    for chunk in values.chunks(maxima.len()) {
        for (max, &value) in maxima.iter_mut().zip(chunk) {
            *max = order_key(value).max(*max);
            worst = (value.to_bits() & EXPONENT).max(worst);
        }
    }
    worst < EXPONENT
}

/// Whether no value is NaN or infinite.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
pub(in crate::ops) fn all_finite(values: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    values.iter().fold(0, |worst, value| (value.to_bits() & EXPONENT).max(worst)) < EXPONENT
}

/// Gathers all that may belong to the `k` largest: what reaches `floor`, which those that do not
/// reach it cannot belong to. The capacity of `candidates`, above k unless it holds all values, is
/// kept.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
fn gather(values: &[f32], first: usize, mut floor: i32, k: usize, candidates: &mut Vec<u64>) {
    for (number, block) in values.chunks(BLOCK).enumerate() {
        // Without an early exit this is vector code.
        if !block.iter().fold(false, |found, &value| found | (order_key(value) >= floor)) {
            continue;
        }
        for (i, &value) in block.iter().enumerate() {
            let key = order_key(value);
            if key < floor {
                continue;
            }
            if candidates.len() == candidates.capacity() {
                let worst_kept = cut_back(candidates, k);
                // Of equal values the later one has the higher id: it is not wanted any more.
                floor = worst_kept.map_or(floor, |key| key + 1);
            }
            candidates.push(candidate(key, first + number * BLOCK + i));
        }
    }
}

/// Keeps the best `k` where there are more, and gives the key of the worst of them.
fn cut_back(candidates: &mut Vec<u64>, k: usize) -> Option<i32> {
    if candidates.len() <= k {
        return None;
    }
    let worst_kept = *candidates.select_nth_unstable(k - 1).1;
    candidates.truncate(k);
    Some(key_of(worst_kept))
}

/// An integer in the order of the floats (the map of `f32::total_cmp`).
#[inline(always)]
fn order_key(value: f32) -> i32 {
    let bits = value.to_bits() as i32;
    bits ^ ((bits >> 31) as u32 >> 1) as i32
}

/// Smaller for a larger key, then for a lower index.
fn candidate(key: i32, index: usize) -> u64 {
    let descending = !(key as u32 ^ 0x8000_0000);
    u64::from(descending) << 32 | index as u64
}

fn index_of(candidate: u64) -> usize {
    candidate as u32 as usize
}

/// The value whose order key this is.
fn value_of(key: i32) -> f32 {
    // The map is its own inverse: it leaves the sign as it is.
    f32::from_bits((key ^ ((key >> 31) as u32 >> 1) as i32) as u32)
}

fn key_of(candidate: u64) -> i32 {
    (!((candidate >> 32) as u32) ^ 0x8000_0000) as i32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slow(values: &[f32], k: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..values.len() as u32).collect();
        order.sort_by(|&a, &b| values[b as usize].total_cmp(&values[a as usize]).then(a.cmp(&b)));
        order.truncate(k);
        order
    }

    /// The indices, after the values came in blocks of `block`; and a look at the others: those
    /// never taken and those driven out must be all that are left.
    fn largest_by(values: &[f32], k: usize, block: usize) -> Option<Vec<u32>> {
        let (mut selection, mut others) = (Selection::new(k), Vec::new());
        for (number, part) in values.chunks(block).enumerate() {
            let first = number * block;
            for (index, value) in selection.offer(part, first)? {
                assert!(index < first && values[index].to_bits() == value.to_bits());
                others.push(value);
            }
            let kept: Vec<usize> = selection.since(first).collect();
            let rest = part.iter().enumerate().filter(|(at, _)| !kept.contains(&(first + at)));
            others.extend(rest.map(|(_, &value)| value));
        }
        let (ids, found) = selection.in_order();
        assert!(
            ids.iter()
                .zip(&found)
                .all(|(&id, value)| values[id as usize].to_bits() == value.to_bits())
        );
        others.extend(found);
        let mut all = values.to_vec();
        all.sort_by(f32::total_cmp);
        others.sort_by(f32::total_cmp);
        assert!(all.iter().zip(&others).all(|(a, b)| a.to_bits() == b.to_bits()));
        assert_eq!(all.len(), others.len());
        Some(ids)
    }

    fn largest(values: &[f32], k: usize) -> Option<Vec<u32>> {
        let whole = largest_by(values, k, values.len());
        assert_eq!(whole, largest_by(values, k, values.len().div_ceil(3)));
        whole
    }

    #[test]
    fn rising_falling_and_equal_rows() {
        let n = 5000usize;
        let rising: Vec<f32> = (0..n).map(|i| i as f32 - 2500.0).collect();
        let falling: Vec<f32> = rising.iter().rev().copied().collect();
        let steps: Vec<f32> = (0..n).map(|i| (i / 100) as f32).collect();
        for values in [&rising, &falling, &steps, &vec![-7.5; n], &vec![0.0; n]] {
            for k in [1, 2, 64, 100, 2600, n - 1, n] {
                assert_eq!(largest(values, k), Some(slow(values, k)), "k = {k}");
            }
        }
    }

    #[test]
    fn one_step_above_the_worst_kept_is_still_wanted_after_the_buffer_was_cut_back() {
        // 64 large values in few groups: the zeros reach the floor too, and fill the buffer.
        let mut values = vec![0.0f32; 700];
        values[..32].fill(1.0);
        values[256..288].fill(1.0);
        values[512] = 1.0 + f32::EPSILON;
        let found = largest(&values, 64);
        assert_eq!(found.as_ref().map(|ids| (ids[0], ids[63])), Some((512, 286)));
        assert_eq!(found, Some(slow(&values, 64)));
    }

    #[test]
    fn what_is_not_finite_is_found_wherever_it_hides() {
        let mut values = vec![1.0f32; 300];
        for at in [0, 63, 64, 255, 256, 299] {
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                values[at] = bad;
                assert_eq!(largest(&values, 5), None, "{bad} at {at}");
            }
            values[at] = 1.0;
        }
        assert_eq!(largest(&values, 2), Some(vec![0, 1]));
    }

    proptest! {
        #[test]
        fn the_same_as_sorting(
            levels in 1i32..2000,
            seeds in proptest::collection::vec(any::<i32>(), 1..1500),
            share in 0.0..1.0f64,
            block in 1..1500usize,
        ) {
            // Few levels: many ties, -0 and +0 among them.
            let value = |&s: &i32| (s % levels) as f32 * if s & 1 == 0 { 0.25 } else { -1e4 };
            let values: Vec<f32> = seeds.iter().map(value).collect();
            let k = 1 + (share * (values.len() - 1) as f64) as usize;
            prop_assert_eq!(largest_by(&values, k, block), Some(slow(&values, k)));
        }
    }
}
