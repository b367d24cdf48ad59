//! Rows by number.

use kernels::embed::{Runs, gather, scatter_add};
use kernels::emulation::Memory;

use super::elements::{BOTH, all, buffer, emulated, held};
use crate::ops::testing::random;

const ROWS: usize = 11;

/// Ids with repetitions, and rows that never occur.
fn ids(n: usize) -> Vec<u32> {
    (0..n).map(|at| (at * at % 7 + at % 3) as u32).collect()
}

#[test]
fn rows_are_read_by_number() {
    if !emulated("rows_are_read_by_number") {
        return;
    }
    for (n, d) in [(1, 1), (9, 255), (4, 257)] {
        for (activations, _) in BOTH {
            let memory = &mut Memory::default();
            let (w, ids) = (held(activations, 1, ROWS * d, 1.0), ids(n));
            let at_w = buffer(memory, "w", activations, &w);
            let (at_ids, y) = (memory.of("ids", &ids), memory.unwritten::<f32>("y", n * d));
            all(&[gather([at_w, at_ids, y], [n as u32, d as u32], activations)], memory);
            let rows = ids.iter().flat_map(|&id| &w[id as usize * d..][..d]);
            assert_eq!(memory.floats(y), rows.copied().collect::<Vec<f32>>());
        }
    }
}

/// To the bit: addends come in the order of their places.
#[test]
fn gradients_are_added_in_the_order_of_their_places() {
    if !emulated("gradients_are_added_in_the_order_of_their_places") {
        return;
    }
    for (n, d) in [(1, 1), (40, 3), (13, 300)] {
        let memory = &mut Memory::default();
        let (of_rows, start, ids) = (random(2, n * d), random(3, ROWS * d), ids(n));
        let mut exact = start.clone();
        for (row, &id) in of_rows.chunks(d).zip(&ids) {
            exact[id as usize * d..][..d].iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
        let runs = Runs::of(&ids);
        let at = [
            memory.of("d", &of_rows),
            memory.of("places", &runs.places),
            memory.of("ids", &runs.ids),
            memory.of("starts", &runs.starts),
            memory.of("dw", &start),
        ];
        all(&[scatter_add(at, [runs.ids.len() as u32, d as u32])], memory);
        assert_eq!(memory.floats(at[4]), exact);
    }
}
