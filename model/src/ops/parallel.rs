//! How work over rows is divided: in parts that depend on the shape alone, never on the threads.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::math;

/// Elements one task takes, about: enough to be worth a thread's while.
const TASK: usize = 1 << 14;
/// Rows whose share of a weight's gradient is summed before the shares are.
const MIN_ROWS: usize = 32;

/// Rows of width `d` that one task takes.
pub(crate) fn rows_of_task(d: usize) -> usize {
    (TASK / d.max(1)).max(MIN_ROWS)
}

/// Makes `len` elements, `chunk` at a time: `fill` gets a chunk's number and its zeros, and may
/// return something, which comes back in the order of the chunks.
///
/// A chunk is zeroed just before it is filled, while it is in the cache: zeroing all of it first
/// would cost a pass over memory.
pub(crate) fn in_chunks<R: Send>(
    len: usize,
    chunk: usize,
    fill: impl Fn(usize, &mut [f32]) -> R + Sync,
) -> (Vec<f32>, Vec<R>) {
    let mut values: Vec<f32> = Vec::with_capacity(len);
    let space = &mut values.spare_capacity_mut()[..len];
    let results = space
        .par_chunks_mut(chunk.max(1))
        .enumerate()
        .map(|(number, space)| fill(number, zeroed(space)))
        .collect();
    #[expect(unsafe_code, reason = "every element has been written")]
    // SAFETY: the chunks cover the first `len` elements, and `zeroed` wrote each of them.
    unsafe {
        values.set_len(len);
    }
    (values, results)
}

fn zeroed(space: &mut [MaybeUninit<f32>]) -> &mut [f32] {
    for element in space.iter_mut() {
        element.write(0.0);
    }
    #[expect(unsafe_code, reason = "every element has been written")]
    // SAFETY: all elements were just written, and MaybeUninit<f32> is laid out as f32.
    unsafe {
        &mut *(std::ptr::from_mut(space) as *mut [f32])
    }
}

/// The element-wise sum of vectors of one length, in their order.
pub(crate) fn sum_in_order(shares: Vec<Vec<f32>>) -> Vec<f32> {
    let mut shares = shares.into_iter();
    let mut total = shares.next().unwrap_or_default();
    for share in shares {
        math::add_assign(&mut total, &share);
    }
    total
}
