//! The product of matrices in slices, below the linear layers, attention and the output head.
//!
//! `gemm` does the arithmetic; this module sees to it that every element of a product is one chain
//! of fused multiply-adds in the order of the sum, broken at places that depend on its length
//! alone. So neither the number of threads nor the number of rows beside it changes the bits of a
//! row.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use gemm::Parallelism;
use rayon::prelude::*;

/// The longest sum `gemm` surely keeps in one piece, whatever the shape and the caches.
const MAX_DEPTH: usize = 512;
/// Elements of a product up to which `gemm` may sum along vectors instead of across them.
const SUMMED_ALONG_VECTORS: usize = 16 * 16;
/// Multiply-adds below which a product stays on the calling thread.
const PARALLEL_FROM: usize = 1 << 19;

/// A matrix in a slice: element (r, c) at `r·row_stride + c·col_stride`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MatRef<'a> {
    data: &'a [f32],
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
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// A row-major matrix whose rows begin `row_stride` elements apart.
    pub(crate) fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        check_extent(data.len(), rows, cols, row_stride);
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    fn row_range(self, rows: Range<usize>) -> Self {
        let start = (rows.start * self.row_stride).min(self.data.len());
        Self { data: &self.data[start..], rows: rows.len(), ..self }
    }

    fn columns(self, columns: Range<usize>) -> Self {
        self.transposed().row_range(columns).transposed()
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

/// `dst = alpha·a·b` or `dst += alpha·a·b`, with `a` [m, k], `b` [k, n] and `dst` [m, n].
///
/// [`Parallelism::Rayon`] spreads large products over the current thread pool;
/// [`Parallelism::None`] is for callers that are parallel themselves.
pub(crate) fn gemm_f32(
    dst: MatMut<'_>,
    store: Store,
    alpha: f32,
    a: MatRef<'_>,
    b: MatRef<'_>,
    threads: Parallelism,
) {
    assert_eq!((dst.rows, dst.cols, a.cols), (a.rows, b.cols, b.rows), "shapes of a product");
    let (m, n, k) = (dst.rows, dst.cols, a.cols);
    let parts = match threads {
        Parallelism::None => 1,
        Parallelism::Rayon(_) if m * n * k < PARALLEL_FROM => 1,
        Parallelism::Rayon(_) => rayon::current_num_threads(),
    };
    if parts <= 1 {
        return on_this_thread(dst, store, alpha, a, b);
    }
    // The wider side is cut: columns in units of the micro-kernel's long side, rows in its short.
    let by_columns = n >= 128 * parts || n >= m;
    let (len, unit) = if by_columns { (n, 64) } else { (m, 6) };
    let units = len.div_ceil(unit);
    (0..parts).into_par_iter().for_each(|part| {
        let edge = |part: usize| len.min(part * units / parts * unit);
        let range = edge(part)..edge(part + 1);
        let (rows, cols) = if by_columns { (0..m, range) } else { (range, 0..n) };
        #[expect(unsafe_code, reason = "disjoint blocks of one matrix")]
        // SAFETY: the ranges of different parts do not overlap.
        let dst = unsafe { dst.block(rows.clone(), cols.clone()) };
        on_this_thread(dst, store, alpha, a.row_range(rows), b.columns(cols));
    });
}

/// A product without other threads, its sum cut into pieces of at most [`MAX_DEPTH`].
pub(crate) fn on_this_thread(
    mut dst: MatMut<'_>,
    store: Store,
    alpha: f32,
    a: MatRef<'_>,
    b: MatRef<'_>,
) {
    if dst.rows == 0 || dst.cols == 0 {
        return;
    }
    let depth = a.cols;
    let pieces = depth.div_ceil(MAX_DEPTH).max(1);
    for piece in 0..pieces {
        let depths = piece * depth / pieces..(piece + 1) * depth / pieces;
        let store = if piece == 0 { store } else { Store::Add };
        let (a, b) = (a.columns(depths.clone()), b.row_range(depths));
        if dst.rows > 1 && dst.cols > 1 {
            product(dst.reborrow(), store, alpha, a, b);
        } else {
            doubled(dst.reborrow(), store, alpha, a, b);
        }
    }
}

/// The product when a side is 1, where `gemm` would turn to other summation orders: that side is
/// doubled (the second copy has stride 0 and its result is dropped), which keeps a lone row equal
/// to the same row among others.
fn doubled(mut dst: MatMut<'_>, store: Store, alpha: f32, mut a: MatRef<'_>, mut b: MatRef<'_>) {
    let (rows, cols) = (dst.rows, dst.cols);
    if rows == 1 {
        a = MatRef { rows: 2, row_stride: 0, ..a };
    }
    if cols == 1 {
        b = MatRef { cols: 2, col_stride: 0, ..b };
    }
    let width = b.cols;
    let mut scratch = vec![0.0_f32; a.rows * width];
    if store == Store::Add {
        for row in 0..rows {
            scratch[row * width..row * width + cols].copy_from_slice(dst.row(row));
        }
    }
    product(MatMut::new(&mut scratch, a.rows, width), store, alpha, a, b);
    dst.write_from(&scratch, width);
}

/// A product both of whose sides are at least 2.
fn product(dst: MatMut<'_>, store: Store, alpha: f32, a: MatRef<'_>, b: MatRef<'_>) {
    let along_the_sum = a.col_stride == 1 && b.row_stride == 1;
    if along_the_sum && dst.rows * dst.cols <= SUMMED_ALONG_VECTORS {
        turned(dst, store, alpha, a, b);
    } else {
        call_gemm(dst, store, alpha, a, b);
    }
}

/// The product of small matrices whose rows and columns are both contiguous along the sum, where
/// `gemm` would sum along vectors: `a` is laid out the other way first.
fn turned(dst: MatMut<'_>, store: Store, alpha: f32, a: MatRef<'_>, b: MatRef<'_>) {
    let mut scratch = vec![0.0_f32; a.rows * a.cols];
    for row in 0..a.rows {
        for depth in 0..a.cols {
            scratch[depth * a.rows + row] = a.data[row * a.row_stride + depth];
        }
    }
    let a = MatRef { data: &scratch, row_stride: 1, col_stride: a.rows, ..a };
    call_gemm(dst, store, alpha, a, b);
}

#[expect(unsafe_code, reason = "gemm takes pointers")]
fn call_gemm(dst: MatMut<'_>, store: Store, alpha: f32, a: MatRef<'_>, b: MatRef<'_>) {
    assert_eq!((dst.rows, dst.cols, a.cols), (a.rows, b.cols, b.rows), "shapes of a product");
    // SAFETY: the three matrices lie inside their slices, which was checked when they were made
    // and cut, and `dst` is borrowed uniquely.
    unsafe {
        gemm::gemm(
            dst.rows,
            dst.cols,
            a.cols,
            dst.start,
            1,
            dst.row_stride as isize,
            store == Store::Add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            alpha,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
