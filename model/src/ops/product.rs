//! The product of matrices in slices, below the linear layers, attention and the output head.
//!
//! Operands are of any floating-point type and rounded to a [`Precision`] as they are read; sums
//! are `f32`. Two ways to do it: the processor's own bfloat16 instruction where it has one
//! ([`bf16`]), else `f32` arithmetic on operands rounded before ([`single`]). In both, every element
//! of a product is one chain of sums in the order of the depth, broken at places that depend on the
//! depth alone. So neither the number of threads nor the number of rows beside it changes the bits
//! of a row.

#[cfg(target_arch = "x86_64")]
mod bf16;
mod laid;
mod single;
#[cfg(test)]
#[path = "product_tests.rs"]
mod tests;

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::{Floats, Precision, math};
pub(crate) use laid::Laid;

/// Multiply-adds below which a product stays on the calling thread.
const PARALLEL_FROM: usize = 1 << 19;
/// Elements of an operand of another type that one task widens at a time.
pub(super) const WIDEN_BLOCK: usize = 1 << 18;

/// A matrix in a slice: element (r, c) at `r·row_stride + c·col_stride`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MatRef<'a> {
    data: Floats<'a>,
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

/// A row-major matrix in a slice that is written to.
#[derive(Debug)]
pub(crate) struct MatMut<'a> {
    start: *mut f32,
    rows: usize,
    cols: usize,
    row_stride: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

#[expect(unsafe_code, reason = "a matrix is its `&mut [f32]`, or part of one")]
// SAFETY: like the slice it borrows, the matrix may move to and be seen from another thread; writing
// needs `&mut`, or the promise given to `MatMut::block` that blocks are disjoint.
unsafe impl Send for MatMut<'_> {}
#[expect(unsafe_code, reason = "as above")]
// SAFETY: as above.
unsafe impl Sync for MatMut<'_> {}

impl<'a> MatRef<'a> {
    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// A row-major matrix without gaps.
    pub(crate) fn new(data: impl Into<Floats<'a>>, rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// A row-major matrix whose rows begin `row_stride` elements apart.
    pub(crate) fn strided(
        data: impl Into<Floats<'a>>,
        rows: usize,
        cols: usize,
        row_stride: usize,
    ) -> Self {
        let data = data.into();
        check_extent(data.len(), rows, cols, row_stride);
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// Some of its rows.
    pub(crate) fn row_range(self, rows: Range<usize>) -> Self {
        let start = (rows.start * self.row_stride).min(self.data.len());
        Self { data: self.data.slice(start..self.data.len()), rows: rows.len(), ..self }
    }

    fn columns(self, columns: Range<usize>) -> Self {
        self.transposed().row_range(columns).transposed()
    }

    /// The same values rounded to `precision`, as `f32`, in `space`, without gaps along the side
    /// that is contiguous here.
    fn widened<'b>(self, precision: Precision, space: &'b mut Vec<f32>) -> MatRef<'b> {
        if self.col_stride != 1 {
            return self.transposed().widened(precision, space).transposed();
        }
        space.resize(self.rows * self.cols, 0.0);
        for (row, to) in space.chunks_exact_mut(self.cols.max(1)).enumerate() {
            let start = row * self.row_stride;
            math::convert(self.data.slice(start..start + self.cols), precision, to);
        }
        MatRef::new(space.as_slice(), self.rows, self.cols)
    }

    /// Whether the values are `f32` that `precision` leaves as they are.
    fn is_ready(self, precision: Precision) -> bool {
        matches!((self.data, precision), (Floats::F32(_), Precision::F32))
    }

    /// The same elements with rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

impl<'a> MatMut<'a> {
    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// A row-major matrix without gaps.
    pub(crate) fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// A row-major matrix whose rows begin `row_stride` elements apart.
    pub(crate) fn strided(
        data: &'a mut [f32],
        rows: usize,
        cols: usize,
        row_stride: usize,
    ) -> Self {
        check_extent(data.len(), rows, cols, row_stride);
        Self { start: data.as_mut_ptr(), rows, cols, row_stride, borrowed: PhantomData }
    }

    /// A row-major matrix without gaps in memory not yet written: for products that replace.
    pub(crate) fn unwritten(space: &'a mut [MaybeUninit<f32>], rows: usize, cols: usize) -> Self {
        check_extent(space.len(), rows, cols, cols);
        let start = space.as_mut_ptr().cast();
        Self { start, rows, cols, row_stride: cols, borrowed: PhantomData }
    }

    /// The first `rows` rows.
    pub(crate) fn first_rows(self, rows: usize) -> Self {
        assert!(rows <= self.rows, "{rows} rows of {}", self.rows);
        Self { rows, ..self }
    }

    /// The block `rows` x `cols` as a matrix of its own.
    ///
    /// # Safety
    /// While the block lives, nothing else may read or write its elements: whoever cuts several
    /// must cut disjoint ones.
    #[expect(unsafe_code, reason = "tasks write disjoint blocks of one matrix")]
    pub(crate) unsafe fn block(&self, rows: Range<usize>, cols: Range<usize>) -> MatMut<'_> {
        assert!(rows.end <= self.rows && cols.end <= self.cols, "a block outside its matrix");
        let offset = if rows.is_empty() || cols.is_empty() {
            0
        } else {
            rows.start * self.row_stride + cols.start
        };
        // SAFETY: the block's first element lies in the matrix, as just checked.
        let start = unsafe { self.start.add(offset) };
        let (rows, cols) = (rows.len(), cols.len());
        MatMut { start, rows, cols, row_stride: self.row_stride, borrowed: PhantomData }
    }

    /// Where one row begins.
    #[cfg(target_arch = "x86_64")]
    #[expect(clippy::needless_pass_by_ref_mut, reason = "it is written through the result")]
    fn row_start(&mut self, row: usize) -> *mut f32 {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        self.start.wrapping_add(row * self.row_stride)
    }

    /// The elements of one row.
    #[expect(unsafe_code, reason = "the matrix is kept as a pointer")]
    pub(crate) fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the row lies in the matrix, which is borrowed uniquely.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.row_stride), self.cols) }
    }

    /// Copies the rows of a matrix whose rows begin `stride` elements apart.
    #[expect(unsafe_code, reason = "the rows may not have been written yet")]
    fn write_from(&mut self, from: &[f32], stride: usize) {
        for row in 0..self.rows {
            let from = &from[row * stride..][..self.cols];
            // SAFETY: the row lies in this matrix, borrowed uniquely, so not in `from`.
            unsafe {
                let to = self.start.add(row * self.row_stride);
                std::ptr::copy_nonoverlapping(from.as_ptr(), to, self.cols);
            }
        }
    }

    /// The same matrix, borrowed for a shorter time.
    #[expect(clippy::needless_pass_by_ref_mut, reason = "nobody may write beside the result")]
    pub(crate) fn reborrow(&mut self) -> MatMut<'_> {
        MatMut { borrowed: PhantomData, ..*self }
    }
}

fn check_extent(len: usize, rows: usize, cols: usize, row_stride: usize) {
    assert!(cols <= row_stride || rows <= 1, "rows of {cols} overlap at stride {row_stride}");
    let needed = if rows == 0 || cols == 0 { 0 } else { (rows - 1) * row_stride + cols };
    assert!(len >= needed, "{rows} x {cols} needs {needed} elements, the slice has {len}");
}

/// Whether a product replaces what was there or is added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// `dst = …`; what was there is never read.
    Replace,
    /// `dst += …`
    Add,
}

/// Where a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Threads {
    /// On all threads of the current pool, when it is worth their while.
    Pool,
    /// On the calling thread: for callers that are parallel themselves.
    Own,
}

impl Threads {
    /// Into how many parts this many multiply-adds are cut.
    fn parts(self, work: usize) -> usize {
        match self {
            Self::Pool if work >= PARALLEL_FROM => rayon::current_num_threads(),
            Self::Pool | Self::Own => 1,
        }
    }
}

/// `dst = alpha·a·b` or `dst += alpha·a·b`, with `a` [m, k], `b` [k, n] and `dst` [m, n], the
/// operands rounded to `precision`.
pub(crate) fn product(
    dst: MatMut<'_>,
    store: Store,
    alpha: f32,
    a: MatRef<'_>,
    b: MatRef<'_>,
    precision: Precision,
    threads: Threads,
) {
    assert_eq!((dst.rows, dst.cols, a.cols), (a.rows, b.cols, b.rows), "shapes of a product");
    if dst.rows == 0 || dst.cols == 0 {
        return;
    }
    let parts = threads.parts(dst.rows * dst.cols * a.cols);
    #[cfg(target_arch = "x86_64")]
    if precision == Precision::Bf16 && bf16::available() {
        let grid = reading_least(dst.rows, dst.cols, parts);
        return in_parts(dst, a, b, grid, bf16::UNITS, |dst, a, b| {
            bf16::on_this_thread(dst, store, alpha, a, b);
        });
    }
    let run = |dst: MatMut<'_>, a: MatRef<'_>, b: MatRef<'_>| match b.is_ready(precision) {
        true if a.is_ready(precision) => single::on_this_thread(dst, store, alpha, a, b),
        _ => widening(dst, store, alpha, a, b, precision),
    };
    let grid = single::grid(dst.rows, dst.cols, parts);
    in_parts(dst, a, b, grid, single::UNITS, run);
}

/// A product in `f32` whose operands must be rounded or widened first, `b` a block of its columns
/// at a time, so that no second copy of a large weight ever exists.
fn widening(
    dst: MatMut<'_>,
    store: Store,
    alpha: f32,
    a: MatRef<'_>,
    b: MatRef<'_>,
    precision: Precision,
) {
    let (mut a_space, mut b_space) = (Vec::new(), Vec::new());
    let a = a.widened(precision, &mut a_space);
    let unit = single::UNITS[1];
    let block = (WIDEN_BLOCK / b.rows.max(1) / unit).max(1) * unit;
    for start in (0..b.cols).step_by(block) {
        let cols = start..b.cols.min(start + block);
        let b = b.columns(cols.clone()).widened(precision, &mut b_space);
        #[expect(unsafe_code, reason = "a block of a matrix of this call alone")]
        // SAFETY: the block is gone before the next one is cut.
        let dst = unsafe { dst.block(0..a.rows, cols) };
        single::on_this_thread(dst, store, alpha, a, b);
    }
}

/// Cuts a product into a grid of blocks, in whole units of rows and columns, and runs them side by side.
fn in_parts(
    dst: MatMut<'_>,
    a: MatRef<'_>,
    b: MatRef<'_>,
    [by_rows, by_cols]: [usize; 2],
    units: [usize; 2],
    run: impl Fn(MatMut<'_>, MatRef<'_>, MatRef<'_>) + Sync,
) {
    let parts = by_rows * by_cols;
    if parts <= 1 {
        return run(dst, a, b);
    }
    (0..parts).into_par_iter().for_each(|part| {
        let rows = share(part / by_cols, by_rows, dst.rows, units[0]);
        let cols = share(part % by_cols, by_cols, dst.cols, units[1]);
        // More parts than units leave some with nothing to do.
        if rows.is_empty() || cols.is_empty() {
            return;
        }
        #[expect(unsafe_code, reason = "disjoint blocks of one matrix")]
        // SAFETY: different parts have other rows or other columns.
        let dst = unsafe { dst.block(rows.clone(), cols.clone()) };
        run(dst, a.row_range(rows), b.columns(cols));
    });
}

/// Cuts the sums of a product into pieces of about `most` terms at most, of whole units, and runs
/// them one after another: where a sum is broken depends on its length alone.
fn in_pieces(
    mut dst: MatMut<'_>,
    store: Store,
    a: MatRef<'_>,
    b: MatRef<'_>,
    [most, unit]: [usize; 2],
    mut run: impl FnMut(MatMut<'_>, Store, MatRef<'_>, MatRef<'_>),
) {
    let depth = a.cols;
    let pieces = depth.div_ceil(most).max(1);
    let edge = |piece: usize| depth.min((piece * depth / pieces).next_multiple_of(unit));
    for piece in 0..pieces {
        let depths = edge(piece)..edge(piece + 1);
        let store = if piece == 0 { store } else { Store::Add };
        run(dst.reborrow(), store, a.columns(depths.clone()), b.row_range(depths));
    }
}

/// Parts by rows and by columns, `parts` in all, that read the least: each block reads its rows of
/// one operand and its columns of the other.
fn reading_least(rows: usize, cols: usize, parts: usize) -> [usize; 2] {
    let divisors = (1..=parts).filter(|by_rows| parts.is_multiple_of(*by_rows));
    let reads = |by_rows: usize| rows / by_rows + cols / (parts / by_rows);
    let by_rows = divisors.min_by_key(|&by_rows| reads(by_rows)).unwrap_or(1);
    [by_rows, parts / by_rows]
}

/// Share `number` of `shares` of `len` elements, in whole units.
fn share(number: usize, shares: usize, len: usize, unit: usize) -> Range<usize> {
    let units = len.div_ceil(unit);
    let edge = |number: usize| len.min(number * units / shares * unit);
    edge(number)..edge(number + 1)
}
