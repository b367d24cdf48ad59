//! Rows of a matrix by number: token embeddings, scored positions, and their gradients.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::parallel::in_chunks;
use super::{Precision, expect_shape, math, read, tensor, write_f32};

/// Parts of the matrix among which [`scatter_add_rows`] divides the work.
const PARTS: usize = 16;
/// Elements added below which they are added on the calling thread.
const PARALLEL_FROM: usize = 1 << 17;
/// Rows one task gathers.
const GATHER_ROWS: usize = 64;

/// `y[j] = w[ids[j]]`: `w` [R, D] of any floating-point type gives `f32` [n, D].
///
/// # Errors
/// When an id is R or more, or an element type or the device does not fit.
pub fn gather_rows(w: &Tensor, ids: &[u32]) -> Result<Tensor> {
    let (r, d) = w.dims2()?;
    check_ids(ids, r)?;
    let w = read(w);
    let w = w.floats()?;
    let (y, _) = in_chunks(ids.len() * d, GATHER_ROWS * d, |number, y| {
        let ids = &ids[number * GATHER_ROWS..];
        for (y, &id) in y.chunks_exact_mut(d).zip(ids) {
            let start = id as usize * d;
            math::convert(w.slice(start..start + d), Precision::F32, y);
        }
    });
    tensor(y, (ids.len(), d))
}

/// `dw[ids[j]] += d[j]`: the gradient of [`gather_rows`], `d` [n, D] added to `dw` [R, D].
///
/// A row that occurs several times receives its addends in the order of `ids`.
///
/// # Errors
/// When an id is R or more, or a shape, an element type or the device does not fit.
pub fn scatter_add_rows(dw: &Tensor, ids: &[u32], d: &Tensor) -> Result<()> {
    let (r, width) = dw.dims2()?;
    expect_shape("gradient of gathered rows", d, &[ids.len(), width])?;
    check_ids(ids, r)?;
    if ids.is_empty() || width == 0 {
        return Ok(());
    }
    let d = read(d);
    let d = d.f32()?;
    // Each task looks at every id and takes those that fall into its part of the matrix.
    let parts = if d.len() < PARALLEL_FROM { 1 } else { PARTS };
    let rows = r.div_ceil(parts);
    write_f32(dw, |dw| {
        dw.par_chunks_mut(rows * width).enumerate().for_each(|(part, dw)| {
            let first = part * rows;
            for (&id, d) in ids.iter().zip(d.chunks_exact(width)) {
                let start = (id as usize).wrapping_sub(first).saturating_mul(width);
                if let Some(dw) = dw.get_mut(start..start.saturating_add(width)) {
                    math::add_assign(dw, d);
                }
            }
        });
        Ok(())
    })
}

fn check_ids(ids: &[u32], rows: usize) -> Result<()> {
    match ids.iter().position(|&id| id as usize >= rows) {
        Some(at) => bail!("id {} at place {at}, but the matrix has {rows} rows", ids[at]),
        None => Ok(()),
    }
}

#[cfg(test)]
#[path = "embed_tests.rs"]
mod tests;
