//! Root-mean-square norm of every row.

use candle_core::{Result, Tensor};
use multiversion::multiversion;
use rayon::prelude::*;

use super::math::sum_of;
use super::matmul::converted;
use super::parallel::{in_chunks, rows_of_task, sum_in_order};
use super::{Precision, add_values, expect_len, expect_shape, read, tensor, write_f32};

/// `y = x·rstd·w` with `rstd = 1/√(mean(x²) + eps)` of each row: `x` `[N, D]` and `w` `[D]` (of any
/// floating-point type) give `(y [N, D], rstd [N])`.
///
/// # Errors
/// When a shape, an element type or the device does not fit.
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    let (n, d) = x.dims2()?;
    expect_shape("weight of a norm", w, &[d])?;
    let (x, w) = (read(x), read(w));
    let (x, w) = (x.f32()?, converted(w.floats()?, Precision::F32));
    let rows = rows_of_task(d);
    let (y, rstd) = in_chunks(n * d, rows * d, |number, y| {
        let mut rstd = vec![0.0; y.len() / d];
        norm_rows(&x[number * rows * d..][..y.len()], &w, eps, y, &mut rstd);
        rstd
    });
    let rstd = rstd.concat();
    Ok((tensor(y, (n, d))?, tensor(rstd, n)?))
}

/// The gradients of [`rms_norm`], added to `dx` `[N, D]` and `dw` `[D]`; `rstd` is what it returned.
///
/// # Errors
/// When a shape, an element type or the device does not fit.
pub fn rms_norm_backward(
    dy: &Tensor,
    x: &Tensor,
    rstd: &Tensor,
    w: &Tensor,
    dx: &Tensor,
    dw: &Tensor,
) -> Result<()> {
    let (n, d) = x.dims2()?;
    expect_shape("gradient of a norm's output", dy, &[n, d])?;
    expect_shape("gradient of a norm's input", dx, &[n, d])?;
    expect_shape("weight of a norm", w, &[d])?;
    expect_len("rstd of a norm", rstd.elem_count(), n)?;
    if n * d == 0 {
        return Ok(());
    }
    let (dy, x, rstd, w) = (read(dy), read(x), read(rstd), read(w));
    let (dy, x, rstd) = (dy.f32()?, x.f32()?, rstd.f32()?);
    let w = converted(w.floats()?, Precision::F32);
    let rows = rows_of_task(d);
    let shares: Vec<Vec<f32>> = write_f32(dx, |dx| {
        Ok(dx
            .par_chunks_mut(rows * d)
            .zip(dy.par_chunks(rows * d))
            .zip(x.par_chunks(rows * d))
            .zip(rstd.par_chunks(rows))
            .map(|(((dx, dy), x), rstd)| {
                let mut dw = vec![0.0; d];
                norm_rows_backward(dy, x, rstd, &w, dx, &mut dw);
                dw
            })
            .collect())
    })?;
    add_values(dw, &sum_in_order(shares))
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
fn norm_rows(x: &[f32], w: &[f32], eps: f64, y: &mut [f32], rstd: &mut [f32]) {
    let d = w.len();
    for ((x, y), rstd) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).zip(rstd) {
        *rstd = row_rstd(x, eps);
        let rstd = *rstd;
        for i in 0..d {
            y[i] = x[i] * rstd * w[i];
        }
    }
}

/// `1/√(mean(x²) + eps)`.
#[inline(always)]
pub(crate) fn row_rstd(x: &[f32], eps: f64) -> f32 {
    let squares = sum_of([x], |[x]| x * x);
    (1.0 / (squares / x.len() as f64 + eps).sqrt()) as f32
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
fn norm_rows_backward(
    dy: &[f32],
    x: &[f32],
    rstd: &[f32],
    w: &[f32],
    dx: &mut [f32],
    dw: &mut [f32],
) {
    let d = w.len();
    let rows = dy.chunks_exact(d).zip(x.chunks_exact(d)).zip(dx.chunks_exact_mut(d));
    for (((dy, x), dx), &rstd) in rows.zip(rstd) {
        let product = sum_of([dy, w, x], |[dy, w, x]| dy * w * x);
        // x̂ = x·rstd; dx = rstd·(dy·w - x̂·mean(dy·w·x̂)).
        let mean = (product * f64::from(rstd) / d as f64) as f32;
        for i in 0..d {
            let normed = x[i] * rstd;
            dx[i] += rstd * (dy[i] * w[i] - normed * mean);
            dw[i] += dy[i] * normed;
        }
    }
}

#[cfg(test)]
#[path = "norm_tests.rs"]
mod tests;
