//! Matrix products: the linear layer, its two gradients, and the product of slices below them.
//!
//! Every element of a product is one chain of fused multiply-adds in the order of `k`, broken at
//! places that depend on `k` alone. So neither the number of threads nor the number of rows beside
//! it changes the bits of a row.

use std::borrow::Cow;
use std::marker::PhantomData;
use std::ops::Range;

use candle_core::{Result, Tensor};
use gemm::Parallelism;
use rayon::prelude::*;

use super::{Floats, Precision, expect_shape, math, read, tensor, write_f32};

/// The longest sum `gemm` surely keeps in one piece, whatever the shape and the caches.
const MAX_DEPTH: usize = 512;
/// Multiply-adds below which a product stays on the calling thread.
const PARALLEL_FROM: usize = 1 << 19;
/// Elements of a stored weight that are widened at a time by one task.
const WIDEN_BLOCK: usize = 1 << 18;
/// Elements one task converts.
const CONVERT_CHUNK: usize = 1 << 16;

/// `y = x·wᵀ`: `x` [N, I], `w` [O, I] of any floating-point type, gives [N, O].
///
/// # Errors
/// When a shape, an element type or the device does not fit.
pub fn linear(x: &Tensor, w: &Tensor, precision: Precision) -> Result<Tensor> {
    let (n, o) = (x.dim(0)?, w.dim(0)?);
    let mut y = vec![0.0; n * o];
    forward(&mut y, Store::Replace, x, w, precision)?;
    tensor(y, (n, o))
}

/// `out += x·wᵀ`, as [`linear`]: the residual stream takes the product as it is made.
///
/// # Errors
/// When a shape, an element type or the device does not fit.
pub fn linear_into(out: &Tensor, x: &Tensor, w: &Tensor, precision: Precision) -> Result<()> {
    expect_shape("output of a linear layer", out, &[x.dim(0)?, w.dim(0)?])?;
    write_f32(out, |y| forward(y, Store::Add, x, w, precision))
}

/// The gradient of [`linear`] with respect to `x`: `dx = dy·w`, [N, I].
///
/// # Errors
/// When a shape, an element type or the device does not fit.
pub fn linear_grad_input(dy: &Tensor, w: &Tensor, precision: Precision) -> Result<Tensor> {
    let (n, i) = (dy.dim(0)?, w.dim(1)?);
    let mut dx = vec![0.0; n * i];
    grad_input(&mut dx, Store::Replace, dy, w, precision)?;
    tensor(dx, (n, i))
}

/// `dx += dy·w`, as [`linear_grad_input`].
///
/// # Errors
/// When a shape, an element type or the device does not fit.
pub fn linear_grad_input_into(
    dx: &Tensor,
    dy: &Tensor,
    w: &Tensor,
    precision: Precision,
) -> Result<()> {
    expect_shape("gradient of a linear layer's input", dx, &[dy.dim(0)?, w.dim(1)?])?;
    write_f32(dx, |dx| grad_input(dx, Store::Add, dy, w, precision))
}

/// The gradient of [`linear`] with respect to `w`: `dw += dyᵀ·x`, [O, I].
///
/// # Errors
/// When a shape, an element type or the device does not fit.
pub fn linear_grad_weight_into(
    dw: &Tensor,
    dy: &Tensor,
    x: &Tensor,
    precision: Precision,
) -> Result<()> {
    let ((n, o), i) = (dy.dims2()?, x.dim(1)?);
    expect_shape("input of a linear layer", x, &[n, i])?;
    expect_shape("gradient of a linear layer's weight", dw, &[o, i])?;
    let (dy, x) = (read(dy), read(x));
    let dy = converted(dy.floats()?, precision);
    let x = converted(x.floats()?, precision);
    write_f32(dw, |dw| {
        let (dy, x) = (MatRef::new(&dy, n, o).transposed(), MatRef::new(&x, n, i));
        gemm_f32(MatMut::new(dw, o, i), Store::Add, 1.0, dy, x, Parallelism::Rayon(0));
        Ok(())
    })
}

fn forward(
    y: &mut [f32],
    store: Store,
    x: &Tensor,
    w: &Tensor,
    precision: Precision,
) -> Result<()> {
    let ((n, i), o) = (x.dims2()?, w.dim(0)?);
    expect_shape("weight of a linear layer", w, &[o, i])?;
    let (x, w) = (read(x), read(w));
    let x = converted(x.floats()?, precision);
    project(MatMut::new(y, n, o), store, MatRef::new(&x, n, i), w.floats()?, precision);
    Ok(())
}

/// `dst (+)= x·wᵀ` with `w` [O, I] as it is stored: a weight that must be widened or rounded is
/// converted a block of rows at a time, so that no second copy of it ever exists.
pub(crate) fn project(
    dst: MatMut<'_>,
    store: Store,
    x: MatRef<'_>,
    w: Floats<'_>,
    precision: Precision,
) {
    let (o, i) = (dst.cols, x.cols);
    assert_eq!((dst.rows, w.len()), (x.rows, o * i), "shapes of a projection");
    if let (Floats::F32(w), Precision::F32) = (w, precision) {
        let w = MatRef::new(w, o, i).transposed();
        return gemm_f32(dst, store, 1.0, x, w, Parallelism::Rayon(0));
    }
    let target = Target::new(dst, store, 1.0);
    let block = (WIDEN_BLOCK / i.max(1)).clamp(48, 1 << 16) / 48 * 48;
    (0..o.div_ceil(block)).into_par_iter().for_each(|number| {
        let cols = number * block..o.min((number + 1) * block);
        let mut wide = vec![0.0; cols.len() * i];
        math::convert(w.slice(cols.start * i..cols.end * i), precision, &mut wide);
        let w = MatRef::new(&wide, cols.len(), i).transposed();
        target.block(x, w, 0..x.rows, cols);
    });
}

fn grad_input(
    dx: &mut [f32],
    store: Store,
    dy: &Tensor,
    w: &Tensor,
    precision: Precision,
) -> Result<()> {
    let ((n, o), i) = (dy.dims2()?, w.dim(1)?);
    expect_shape("weight of a linear layer", w, &[o, i])?;
    let (dy, w) = (read(dy), read(w));
    let dy = converted(dy.floats()?, precision);
    let w = converted(w.floats()?, precision);
    let (dy, w) = (MatRef::new(&dy, n, o), MatRef::new(&w, o, i));
    gemm_f32(MatMut::new(dx, n, i), store, 1.0, dy, w, Parallelism::Rayon(0));
    Ok(())
}

/// The values rounded to `precision`, as `f32`; borrowed when nothing changes.
pub(crate) fn converted(values: Floats<'_>, precision: Precision) -> Cow<'_, [f32]> {
    if let (Floats::F32(values), Precision::F32) = (values, precision) {
        return Cow::Borrowed(values);
    }
    let mut wide = vec![0.0; values.len()];
    wide.par_chunks_mut(CONVERT_CHUNK).enumerate().for_each(|(number, to)| {
        let start = number * CONVERT_CHUNK;
        math::convert(values.slice(start..start + to.len()), precision, to);
    });
    Cow::Owned(wide)
}

/// A matrix in a slice: element (r, c) at `r·row_stride + c·col_stride`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MatRef<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

/// A matrix in a slice that is written to.
#[derive(Debug)]
pub(crate) struct MatMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a> MatRef<'a> {
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
        Self { data, rows, cols, row_stride }
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
    let target = Target::new(dst, store, alpha);
    let parts = match threads {
        Parallelism::None => 1,
        Parallelism::Rayon(_) if m * n * k < PARALLEL_FROM => 1,
        Parallelism::Rayon(_) => rayon::current_num_threads(),
    };
    if parts <= 1 {
        return target.block(a, b, 0..m, 0..n);
    }
    // The wider side is cut: columns in units of the micro-kernel's long side, rows in its short.
    let by_columns = n >= 96 * parts || n >= m;
    let (len, unit) = if by_columns { (n, 48) } else { (m, 8) };
    let units = len.div_ceil(unit);
    (0..parts).into_par_iter().for_each(|part| {
        let edge = |part: usize| len.min(part * units / parts * unit);
        let range = edge(part)..edge(part + 1);
        if by_columns {
            target.block(a, b.columns(range.clone()), 0..m, range);
        } else {
            target.block(a.row_range(range.clone()), b, range, 0..n);
        }
    });
}

/// Where a product goes; every element belongs to exactly one task.
struct Target<'a> {
    dst: *mut f32,
    row_stride: usize,
    rows: usize,
    cols: usize,
    store: Store,
    alpha: f32,
    borrowed: PhantomData<&'a mut [f32]>,
}

#[expect(unsafe_code, reason = "tasks write disjoint blocks of one matrix")]
// SAFETY: `block` writes only to the rows and columns it is given, and its callers give every task
// others; the pointer comes from a `&mut` slice that stays borrowed for `'a`.
unsafe impl Sync for Target<'_> {}

impl<'a> Target<'a> {
    fn new(dst: MatMut<'a>, store: Store, alpha: f32) -> Self {
        let MatMut { data, rows, cols, row_stride } = dst;
        let dst = data.as_mut_ptr();
        Self { dst, row_stride, rows, cols, store, alpha, borrowed: PhantomData }
    }

    /// Computes the block `rows` x `cols` of the target, which is `alpha·a·b`, on this thread.
    fn block(&self, a: MatRef<'_>, b: MatRef<'_>, rows: Range<usize>, cols: Range<usize>) {
        assert!(rows.end <= self.rows && cols.end <= self.cols, "a block outside its matrix");
        assert_eq!((rows.len(), cols.len(), a.cols), (a.rows, b.cols, b.rows), "block shapes");
        if rows.is_empty() || cols.is_empty() {
            return;
        }
        let depth = a.cols;
        let pieces = depth.div_ceil(MAX_DEPTH).max(1);
        #[expect(unsafe_code, reason = "the first element of the block")]
        // SAFETY: the block is inside the matrix, whose extent was checked when it was made.
        let dst = unsafe { self.dst.add(rows.start * self.row_stride + cols.start) };
        for piece in 0..pieces {
            let depths = piece * depth / pieces..(piece + 1) * depth / pieces;
            let store = if piece == 0 { self.store } else { Store::Add };
            self.piece(dst, store, a.columns(depths.clone()), b.row_range(depths));
        }
    }

    /// One piece of the sum of a block that begins at `dst`.
    ///
    /// `gemm` turns to other summation orders when a side is 1; such a side is doubled here (the
    /// second copy has stride 0 and its result goes to scratch), which keeps a lone row equal to
    /// the same row among others.
    #[expect(unsafe_code, reason = "gemm takes pointers")]
    fn piece(&self, dst: *mut f32, store: Store, a: MatRef<'_>, b: MatRef<'_>) {
        let (m, n, k) = (a.rows, b.cols, a.cols);
        let a_row_stride = if m == 1 { 0 } else { a.row_stride };
        let b_col_stride = if n == 1 { 0 } else { b.col_stride };
        let (m2, n2) = (m.max(2), n.max(2));
        let alone = m == 1 || n == 1;
        let mut scratch = vec![0.0_f32; if alone { m2 * n2 } else { 0 }];
        let (target, stride) =
            if alone { (scratch.as_mut_ptr(), n2) } else { (dst, self.row_stride) };
        // SAFETY: `a` and `b` lie inside their slices (checked when they were made and cut), a
        // doubled side has stride 0; the caller gave a block of the target that is this task's
        // alone, and the scratch has m2 x n2 elements.
        unsafe {
            if alone && store == Store::Add {
                copy_block(dst, self.row_stride, target, stride, m, n);
            }
            gemm::gemm(
                m2,
                n2,
                k,
                target,
                1,
                stride as isize,
                store == Store::Add,
                a.data.as_ptr(),
                a.col_stride as isize,
                a_row_stride as isize,
                b.data.as_ptr(),
                b_col_stride as isize,
                b.row_stride as isize,
                1.0,
                self.alpha,
                false,
                false,
                false,
                Parallelism::None,
            );
            if alone {
                copy_block(target, stride, dst, self.row_stride, m, n);
            }
        }
    }
}

/// Copies `rows` x `cols` elements between two matrices that do not overlap.
///
/// # Safety
/// Both pointers must be valid for the block at their stride.
#[expect(unsafe_code, reason = "blocks of matrices that other tasks write to elsewhere")]
unsafe fn copy_block(
    from: *const f32,
    from_stride: usize,
    to: *mut f32,
    to_stride: usize,
    rows: usize,
    cols: usize,
) {
    for row in 0..rows {
        // SAFETY: the caller vouches for both blocks.
        unsafe {
            std::ptr::copy_nonoverlapping(from.add(row * from_stride), to.add(row * to_stride), cols);
        }
    }
}
