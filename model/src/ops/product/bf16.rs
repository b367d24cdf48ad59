//! Products of operands rounded to bfloat16, summed in `f32`, at the rate of the processor's own
//! instruction for it (AVX512-BF16: twice the operations of an `f32` instruction).
//!
//! For a piece of the sum ([`DEPTH`] terms) and a block of rows, the rows of `a` are rounded once
//! into a buffer of the second cache; then every panel of 32 columns of `b` is rounded into a buffer
//! of the first, just before it meets those rows. So an operand is rounded as it is read, from
//! whatever type it is stored in, and no rounded copy of it exists in memory.
//!
//! Every element is one chain of sums in the order of the depth, two terms an instruction. Subnormal
//! numbers count as 0, as the instruction has it.

mod kernel;
mod pack;

use std::cell::RefCell;
use std::ops::Range;

use super::{MatMut, MatRef, Store, in_pieces};
use kernel::Tile;
use pack::Rows;

/// Rows and columns in which a product may be cut: the sides of the kernel's tile.
pub(super) const UNITS: [usize; 2] = [kernel::ROWS, kernel::COLUMNS];
/// Terms of a sum that stay in registers.
const DEPTH: usize = 512;
/// Terms the instruction takes at once.
const PAIR: usize = 2;
/// Rows of `a` that are held rounded: 768 kB at [`DEPTH`] terms.
const BLOCK_ROWS: usize = 768;
/// The same where panels are as deep as the sum: a third of it, since a panel is read by all of them.
const WHOLE_ROWS: usize = 256;

/// Whether this processor has the instruction.
pub(super) fn available() -> bool {
    // The standard library looks once and remembers.
    is_x86_feature_detected!("avx512bf16")
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
}

thread_local! {
    /// Rounded rows and a rounded panel, kept from one product to the next.
    static SCRATCH: RefCell<[Vec<u32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// `dst (+)= alpha·a·b` on the calling thread; there is at least one element.
///
/// # Panics
/// When the instruction is not [`available`].
pub(super) fn on_this_thread(
    dst: MatMut<'_>,
    store: Store,
    alpha: f32,
    a: MatRef<'_>,
    b: MatRef<'_>,
) {
    assert!(available(), "this processor multiplies no bfloat16");
    SCRATCH.with_borrow_mut(|scratch| {
        in_pieces(dst, store, a, b, [DEPTH, PAIR], |dst, store, a, b| {
            add_piece(&dst, store, alpha, a, b, scratch);
        });
    });
}

/// `b` `[depth, columns]`, at most [`UNITS`]\[1\] of them, as the kernel reads it.
///
/// # Panics
/// When the instruction is not [`available`].
pub(super) fn laid_out(b: MatRef<'_>) -> Vec<u32> {
    assert!(available(), "this processor multiplies no bfloat16");
    let mut space = Vec::new();
    pack::panel(b, &mut space);
    space.truncate(b.rows().div_ceil(PAIR) * kernel::COLUMNS);
    space
}

/// `dst = alpha·a·b` for panels of [`laid_out`] of all columns of `dst`, the whole depth in registers.
///
/// # Panics
/// When the instruction is not [`available`].
pub(super) fn with_panels<'p>(
    dst: &MatMut<'_>,
    alpha: f32,
    a: MatRef<'_>,
    panels: impl Iterator<Item = &'p [u32]> + Clone,
) {
    assert!(available(), "this processor multiplies no bfloat16");
    let most = WHOLE_ROWS * DEPTH / a.cols().max(DEPTH) / kernel::ROWS * kernel::ROWS;
    let block_rows = most.max(kernel::ROWS);
    SCRATCH.with_borrow_mut(|[row_space, _]| {
        for first in (0..a.rows()).step_by(block_rows) {
            let block = first..a.rows().min(first + block_rows);
            let rounded = Rows::round(a.row_range(block.clone()), row_space);
            for (column, panel) in (0..).step_by(kernel::COLUMNS).zip(panels.clone()) {
                let columns = column..dst.cols().min(column + kernel::COLUMNS);
                tiles(dst, Store::Replace, alpha, &rounded, block.clone(), columns, panel);
            }
        }
    });
}

/// One piece of the sum, for all rows and columns.
fn add_piece(
    dst: &MatMut<'_>,
    store: Store,
    alpha: f32,
    a: MatRef<'_>,
    b: MatRef<'_>,
    [row_space, panel]: &mut [Vec<u32>; 2],
) {
    let blocks = a.rows().div_ceil(BLOCK_ROWS);
    let block_rows = a.rows().div_ceil(blocks).next_multiple_of(kernel::ROWS);
    for first in (0..a.rows()).step_by(block_rows) {
        let block = first..a.rows().min(first + block_rows);
        let rounded = Rows::round(a.row_range(block.clone()), row_space);
        for column in (0..b.cols()).step_by(kernel::COLUMNS) {
            let columns = column..b.cols().min(column + kernel::COLUMNS);
            let panel = pack::panel(b.columns(columns.clone()), panel);
            tiles(dst, store, alpha, &rounded, block.clone(), columns, panel);
        }
    }
}

/// A block of rounded rows times a panel, a tile after the other.
fn tiles(
    dst: &MatMut<'_>,
    store: Store,
    alpha: f32,
    rounded: &Rows<'_>,
    block: Range<usize>,
    columns: Range<usize>,
    panel: &[u32],
) {
    for row in block.clone().step_by(kernel::ROWS) {
        let rows = row..block.end.min(row + kernel::ROWS);
        #[expect(unsafe_code, reason = "a block of a matrix of this call alone")]
        // SAFETY: the block is gone before the next one is cut.
        let target = unsafe { dst.block(rows, columns.clone()) };
        Tile { target, store, alpha }.multiply(rounded, row - block.start, panel);
    }
}
