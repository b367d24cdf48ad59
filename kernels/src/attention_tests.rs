//! Tests of how attention's work is cut into tiles.

use super::*;

fn heads(queries: u32, keys: u32, head_dim: u32) -> Heads {
    Heads { queries, keys, head_dim }
}

#[test]
fn tiles_cover_every_row_once_and_the_most_work_comes_first() {
    // Two heads together: 64 tokens a tile of queries, 64 a tile of keys.
    let tiles = Tiles::of(&[1, 1, 66, 194], heads(16, 8, 128), Activations::Bf16);
    assert_eq!(
        tiles.queries.as_chunks::<3>().0,
        [[1, 65, 66], [66, 130, 194], [0, 0, 1], [1, 1, 66], [66, 66, 194]]
    );
    assert_eq!(
        tiles.keys.as_chunks::<3>().0,
        [[66, 66, 194], [1, 1, 66], [66, 130, 194], [0, 0, 1], [1, 65, 66]]
    );
    assert_eq!(tiles.counts(), [5, 5]);
    let none = Tiles::of(&[0, 0], heads(1, 1, 2), Activations::F32);
    assert_eq!((none.counts(), none.queries), ([0, 0], vec![]));
}

#[test]
fn heads_of_a_group_go_together_as_far_as_a_power_of_two_divides_it() {
    for (queries, keys, tokens) in
        [(1, 1, 128), (3, 1, 128), (16, 8, 64), (6, 1, 64), (32, 8, 32), (8, 1, 32)]
    {
        let tiles = Tiles::of(&[129], heads(queries, keys, 128), Activations::Bf16);
        assert_eq!(tiles.counts()[0], 129_u32.div_ceil(tokens), "{queries} of {keys}");
    }
}

/// What a block of an H100 may have is 227 KiB, of an A100 163; two blocks of one are to fit the former at the sizes
/// that matter, each with a KiB of the system's (CUDA C++ Programming Guide, table of compute capabilities).
#[test]
fn blocks_fit_the_memory_they_are_to_fit() {
    for (head_dim, most) in [(2, 113), (64, 113), (66, 113), (128, 113), (130, 163), (256, 163)] {
        for activations in [Activations::F32, Activations::Bf16] {
            let memory = Plan::of(heads(16, 8, head_dim), activations).memory;
            assert!(memory.iter().all(|bytes| *bytes <= most << 10), "{head_dim}: {memory:?}");
        }
    }
    // Cards of capability 8.6 and 8.9 have 99 KiB.
    for head_dim in [2, 64, 66, 128] {
        let lean = Plan::of(heads(16, 8, head_dim), Activations::Bf16).within(99 << 10);
        assert!(lean.memory.iter().all(|bytes| *bytes <= 99 << 10), "{head_dim}: {lean:?}");
    }
    let roomy = Plan::of(heads(16, 8, 128), Activations::Bf16).within(u32::MAX);
    assert_eq!(roomy.kernels, BF16_128);
}
