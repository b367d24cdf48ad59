//! Products in `f32`: `gemm` does the arithmetic, and this file sees to it that the order of every
//! sum depends on its length alone.

use gemm::Parallelism;

use super::{MatMut, MatRef, Store, in_pieces, reading_least};
use crate::ops::Floats;

/// Rows and columns in which a product may be cut: the sides of `gemm`'s micro-kernel.
pub(super) const UNITS: [usize; 2] = [6, 64];
/// The longest sum `gemm` surely keeps in one piece, whatever the shape and the caches.
const MAX_DEPTH: usize = 512;
/// Elements of a product up to which `gemm` may sum along vectors instead of across them.
const SUMMED_ALONG_VECTORS: usize = 16 * 16;

/// Columns up to which `gemm` lays a whole operand out before it multiplies: twice 8 of its tiles.
const LAID_OUT_FIRST: usize = 2 * 8 * 64;
/// Rows a part must have for a cut by rows to pay.
const ENOUGH_ROWS: usize = 512;
/// Parts up to which it pays that each reads all of one side.
const FEW: usize = 4;

/// Parts by rows and by columns: few are cut by columns, each of which is then laid out once; or by rows
/// where there are many and such parts would be so narrow that `gemm` lays them out beforehand, which is a
/// tenth slower on the whole (measured: docs/benchmarks.md, products).
pub(super) fn grid(rows: usize, cols: usize, parts: usize) -> [usize; 2] {
    if parts > FEW {
        return reading_least(rows, cols, parts);
    }
    let narrow = cols > LAID_OUT_FIRST && cols / parts <= LAID_OUT_FIRST;
    if narrow && rows / parts >= ENOUGH_ROWS { [parts, 1] } else { [1, parts] }
}

/// `dst (+)= alpha·a·b` on the calling thread.
pub(super) fn on_this_thread(
    dst: MatMut<'_>,
    store: Store,
    alpha: f32,
    a: MatRef<'_>,
    b: MatRef<'_>,
) {
    if dst.rows == 0 || dst.cols == 0 {
        return;
    }
    in_pieces(dst, store, a, b, [MAX_DEPTH, 1], |dst, store, a, b| {
        if dst.rows > 1 && dst.cols > 1 {
            product(dst, store, alpha, a, b);
        } else {
            doubled(dst, store, alpha, a, b);
        }
    });
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
    let values = f32s(a);
    let mut scratch = vec![0.0_f32; a.rows * a.cols];
    for row in 0..a.rows {
        for depth in 0..a.cols {
            scratch[depth * a.rows + row] = values[row * a.row_stride + depth];
        }
    }
    let a = MatRef { data: Floats::F32(&scratch), row_stride: 1, col_stride: a.rows, ..a };
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
            f32s(a).as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            f32s(b).as_ptr(),
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

/// The values of an operand, which the caller has made `f32`.
fn f32s(a: MatRef<'_>) -> &[f32] {
    match a.data {
        Floats::F32(values) => values,
        Floats::Bf16(_) | Floats::F16(_) => unreachable!("operands are widened before"),
    }
}
