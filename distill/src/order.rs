//! In which order an epoch visits its rows.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// The rows of one epoch in the order they are visited: `0..rows` when `shuffle` is false, else a
/// permutation that depends on `seed`, `epoch` and `rows` alone.
///
/// The generator is ChaCha8 with the key `seed | epoch | 0 | 0` (u64 little-endian each), the
/// permutation Fisher and Yates', from the last row down. Both are spelled out here rather than
/// taken from a library's `shuffle`, so that an order outlives the version of that library.
pub fn epoch_order(seed: u64, epoch: u64, rows: usize, shuffle: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rows).collect();
    if shuffle {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&epoch.to_le_bytes());
        let mut generator = ChaCha8Rng::from_seed(key);
        for last in (1..rows).rev() {
            let other = below(&mut generator, last as u64 + 1);
            order.swap(last, other as usize);
        }
    }
    order
}

/// A number below `bound`, every one equally likely: draws from the incomplete last multiple of
/// `bound` are thrown away.
fn below(generator: &mut ChaCha8Rng, bound: u64) -> u64 {
    let rest = (u64::MAX % bound + 1) % bound;
    loop {
        let draw = generator.next_u64();
        if draw <= u64::MAX - rest {
            return draw % bound;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // Python, its generator written from the ChaCha paper (4 double rounds, 64-bit counter):
    //
    // def words(key):
    //     block = 0
    //     while True:
    //         s = [*unpack("<4I", b"expand 32-byte k"), *unpack("<8I", key), block, 0, 0, 0]
    //         w = s[:]
    //         for _ in range(4):
    //             for i in ((0,4,8,12), (1,5,9,13), (2,6,10,14), (3,7,11,15),
    //                       (0,5,10,15), (1,6,11,12), (2,7,8,13), (3,4,9,14)):
    //                 quarter_round(w, *i)
    //         yield from ((a + b) % 2**32 for a, b in zip(w, s))
    //         block += 1
    // def order(seed, epoch, rows):
    //     w, o = words(pack("<4Q", seed, epoch, 0, 0)), list(range(rows))
    //     for last in range(rows - 1, 0, -1):
    //         draw = 2**64
    //         while draw >= 2**64 - 2**64 % (last + 1):
    //             draw = next(w) | next(w) << 32
    //         other = draw % (last + 1)
    //         o[last], o[other] = o[other], o[last]
    //     return o
    #[test]
    fn orders_are_those_of_an_independent_generator() {
        assert_eq!(epoch_order(42, 0, 10, true), [2, 1, 4, 3, 7, 0, 5, 8, 6, 9]);
        assert_eq!(epoch_order(42, 1, 10, true), [2, 6, 1, 5, 4, 3, 0, 9, 8, 7]);
    }

    #[test]
    fn without_shuffling_rows_come_in_file_order() {
        assert_eq!(epoch_order(7, 3, 4, false), [0, 1, 2, 3]);
        assert_eq!(epoch_order(7, 3, 0, true), [0usize; 0]);
    }

    #[test]
    fn every_permutation_is_about_equally_likely() {
        let mut counts = std::collections::BTreeMap::new();
        for seed in 0..6_000 {
            *counts.entry(epoch_order(seed, 0, 3, true)).or_insert(0i32) += 1;
        }
        assert_eq!(counts.len(), 6);
        // Standard deviation of a count is 29.
        assert!(counts.values().all(|count| (count - 1_000).abs() < 150), "{counts:?}");
    }

    proptest! {
        #[test]
        fn every_row_comes_once(seed: u64, epoch: u64, rows in 0usize..300) {
            let mut order = epoch_order(seed, epoch, rows, true);
            prop_assert_eq!(&order, &epoch_order(seed, epoch, rows, true));
            order.sort_unstable();
            prop_assert_eq!(order, (0..rows).collect::<Vec<_>>());
        }
    }
}
