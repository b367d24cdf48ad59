//! The linear layer and its two gradients; weights of any floating-point type.

use std::borrow::Cow;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

pub(crate) use super::product::{MatMut, MatRef, Store, Threads, product};
use super::{Floats, Precision, expect_shape, math, read, tensor, write_f32};

/// Elements one task converts.
const CONVERT_CHUNK: usize = 1 << 16;

/// `y = x·wᵀ`: `x` [N, I], `w` [O, I] of any floating-point type, gives [N, O].
///
/// # Errors
/// When a shape, an element type or the device does not fit.
pub fn linear(x: &Tensor, w: &Tensor, precision: Precision) -> Result<Tensor> {
    new_product(x.dim(0)?, w.dim(0)?, |y| forward(y, Store::Replace, x, w, precision))
}

/// `out += x·wᵀ`, as [`linear`]: the residual stream takes the product as it is made.
///
/// # Errors
/// When a shape, an element type or the device does not fit.
pub fn linear_into(out: &Tensor, x: &Tensor, w: &Tensor, precision: Precision) -> Result<()> {
    let (n, o) = (x.dim(0)?, w.dim(0)?);
    expect_shape("output of a linear layer", out, &[n, o])?;
    write_f32(out, |y| forward(MatMut::new(y, n, o), Store::Add, x, w, precision))
}

/// The gradient of [`linear`] with respect to `x`: `dx = dy·w`, [N, I].
///
/// # Errors
/// When a shape, an element type or the device does not fit.
pub fn linear_grad_input(dy: &Tensor, w: &Tensor, precision: Precision) -> Result<Tensor> {
    let ((n, o), i) = (dy.dims2()?, w.dim(1)?);
    expect_shape("weight of a linear layer", w, &[o, i])?;
    let (dy, w) = (read(dy), read(w));
    let dy = MatRef::new(dy.floats()?, n, o);
    let w = MatRef::new(w.floats()?, o, i);
    new_product(n, i, |dx| {
        product(dx, Store::Replace, 1.0, dy, w, precision, Threads::Pool);
        Ok(())
    })
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
    let dy = MatRef::new(dy.floats()?, n, o).transposed();
    let x = MatRef::new(x.floats()?, n, i);
    write_f32(dw, |dw| {
        product(MatMut::new(dw, o, i), Store::Add, 1.0, dy, x, precision, Threads::Pool);
        Ok(())
    })
}

/// A tensor [rows, cols] that `write` fills with a product, by [`Store::Replace`]; its memory is
/// not zeroed first.
fn new_product(
    rows: usize,
    cols: usize,
    write: impl FnOnce(MatMut<'_>) -> Result<()>,
) -> Result<Tensor> {
    let mut values: Vec<f32> = Vec::with_capacity(rows * cols);
    write(MatMut::unwritten(values.spare_capacity_mut(), rows, cols))?;
    #[expect(unsafe_code, reason = "every element has been written")]
    // SAFETY: a product that replaces writes every element of its target, and on an error this is
    // not reached.
    unsafe {
        values.set_len(rows * cols);
    }
    tensor(values, (rows, cols))
}

fn forward(
    y: MatMut<'_>,
    store: Store,
    x: &Tensor,
    w: &Tensor,
    precision: Precision,
) -> Result<()> {
    let ((n, i), o) = (x.dims2()?, w.dim(0)?);
    expect_shape("weight of a linear layer", w, &[o, i])?;
    let (x, w) = (read(x), read(w));
    let x = MatRef::new(x.floats()?, n, i);
    let w = MatRef::new(w.floats()?, o, i).transposed();
    product(y, store, 1.0, x, w, precision, Threads::Pool);
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

#[cfg(test)]
#[path = "matmul_tests.rs"]
mod tests;
