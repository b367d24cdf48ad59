//! From raw projections to queries and keys: bias, the norm of every head, rotation.

use candle_core::{Result, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::math::lane_sum;
use super::matmul::converted;
use super::norm::row_rstd;
use super::parallel::{in_chunks, rows_of_task, sum_in_order};
use super::rope::RopeTables;
use super::{Precision, add_values, expect_len, expect_shape, math, read, rows, tensor, write_f32};

/// Where the heads of one token lie in a row of `(H+2G)E` values: queries, keys, values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QkvLayout {
    /// Query heads, H.
    pub heads: usize,
    /// Key and value heads, G; divides H. Query head h reads key/value head `h / (H/G)`.
    pub kv_heads: usize,
    /// Values of one head, E; even.
    pub head_dim: usize,
}

impl QkvLayout {
    /// Values of one token: `(H+2G)E`.
    pub fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Query heads that share one key/value head: `H/G`.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Index of the first value of a token's query head.
    pub fn query(&self, token: usize, head: usize) -> usize {
        token * self.width() + head * self.head_dim
    }

    /// Index of the first value of the key that a query head reads.
    pub fn key(&self, token: usize, head: usize) -> usize {
        token * self.width() + (self.heads + head / self.group()) * self.head_dim
    }

    /// Index of the first value of the value head that a query head reads.
    pub fn value(&self, token: usize, head: usize) -> usize {
        self.key(token, head) + self.kv_heads * self.head_dim
    }

    /// Refuses heads that cannot be grouped and dimensions that cannot be rotated.
    pub(crate) fn check(&self) -> Result<()> {
        let Self { heads, kv_heads, head_dim } = *self;
        if heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            bail!("{heads} query heads cannot share {kv_heads} key/value heads evenly");
        }
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            bail!("a head dimension of {head_dim} cannot be rotated: it must be even");
        }
        Ok(())
    }
}

/// `x[n, c] += b[c]` in place: `x` `[N, C]`, `b` `[C]` of any floating-point type.
///
/// # Errors
/// When a shape, an element type or the device does not fit.
pub fn add_bias(x: &Tensor, b: &Tensor) -> Result<()> {
    let (_, c) = x.dims2()?;
    expect_shape("bias", b, &[c])?;
    let b = read(b);
    let b = converted(b.floats()?, Precision::F32);
    write_f32(x, |x| {
        if c > 0 {
            x.par_chunks_mut(rows_of_task(c) * c).for_each(|x| {
                x.chunks_exact_mut(c).for_each(|x| math::add_assign(x, &b));
            });
        }
        Ok(())
    })
}

/// The gradient of [`add_bias`] with respect to `b`: `db[c] += Σ dy[n, c]`.
///
/// # Errors
/// When a shape, an element type or the device does not fit.
pub fn bias_backward_into(db: &Tensor, dy: &Tensor) -> Result<()> {
    let (n, c) = dy.dims2()?;
    expect_shape("gradient of a bias", db, &[c])?;
    if n * c == 0 {
        return Ok(());
    }
    let dy = read(dy);
    let shares: Vec<Vec<f32>> = dy
        .f32()?
        .par_chunks(rows_of_task(c) * c)
        .map(|dy| {
            let mut share = vec![0.0; c];
            dy.chunks_exact(c).for_each(|dy| math::add_assign(&mut share, dy));
            share
        })
        .collect();
    add_values(db, &sum_in_order(shares))
}

/// Query and key heads normed (RMS, own weights) and turned to their positions, value heads as
/// they are: `raw` [N, (H+2G)E] gives `(ready [N, (H+2G)E], rstd [N, H+G])`.
///
/// Positions begin at 0 in every row. The rotation is `rotate_half` of transformers: value i is
/// paired with value i + E/2.
///
/// # Errors
/// When a shape, an element type or the device does not fit, or a row is longer than the tables.
pub fn prepare_qkv(
    raw: &Tensor,
    q_norm: &Tensor,
    k_norm: &Tensor,
    eps: f64,
    tables: &RopeTables,
    layout: &QkvLayout,
    row_ends: &[usize],
) -> Result<(Tensor, Tensor)> {
    let n = check_qkv("raw projections", raw, q_norm, k_norm, tables, layout)?;
    let positions = positions(row_ends, n, tables)?;
    let (raw, q_norm, k_norm) = (read(raw), read(q_norm), read(k_norm));
    let q_norm = converted(q_norm.floats()?, Precision::F32);
    let k_norm = converted(k_norm.floats()?, Precision::F32);
    let heads =
        Heads { layout, q_norm: &q_norm, k_norm: &k_norm, cos: tables.cos(), sin: tables.sin() };
    let (width, normed) = (layout.width(), layout.heads + layout.kv_heads);
    let raw = raw.f32()?;
    let rows = rows_of_task(width);
    let (ready, rstd) = in_chunks(n * width, rows * width, |number, ready| {
        let tokens = ready.len() / width;
        let raw = &raw[number * rows * width..][..ready.len()];
        let mut rstd = vec![0.0; tokens * normed];
        let at = &positions[number * rows..][..tokens];
        prepare_rows(raw, &heads, eps, at, ready, &mut rstd);
        rstd
    });
    let rstd = rstd.concat();
    Ok((tensor(ready, (n, width))?, tensor(rstd, (n, normed))?))
}

/// The gradients of [`prepare_qkv`]: `d_raw` [N, (H+2G)E] is returned, those of the norms' weights
/// are added to `dq_norm` and `dk_norm` `[E]`; `rstd` is what it returned.
///
/// # Errors
/// When a shape, an element type or the device does not fit, or a row is longer than the tables.
#[expect(clippy::too_many_arguments, reason = "all that the forward pass had, and gradients")]
pub fn prepare_qkv_backward(
    d_ready: &Tensor,
    raw: &Tensor,
    rstd: &Tensor,
    q_norm: &Tensor,
    k_norm: &Tensor,
    tables: &RopeTables,
    layout: &QkvLayout,
    row_ends: &[usize],
    dq_norm: &Tensor,
    dk_norm: &Tensor,
) -> Result<Tensor> {
    let n = check_qkv("raw projections", raw, q_norm, k_norm, tables, layout)?;
    check_qkv("gradient of queries, keys and values", d_ready, dq_norm, dk_norm, tables, layout)?;
    let (width, e) = (layout.width(), layout.head_dim);
    let normed = layout.heads + layout.kv_heads;
    expect_len("gradient of queries, keys and values", d_ready.elem_count(), n * width)?;
    expect_shape("rstd of queries and keys", rstd, &[n, normed])?;
    let positions = positions(row_ends, n, tables)?;
    let (d_ready, raw, rstd) = (read(d_ready), read(raw), read(rstd));
    let (q_norm, k_norm) = (read(q_norm), read(k_norm));
    let q_norm = converted(q_norm.floats()?, Precision::F32);
    let k_norm = converted(k_norm.floats()?, Precision::F32);
    let heads =
        Heads { layout, q_norm: &q_norm, k_norm: &k_norm, cos: tables.cos(), sin: tables.sin() };
    let (d_ready, raw, rstd) = (d_ready.f32()?, raw.f32()?, rstd.f32()?);
    let rows = rows_of_task(width);
    let (d_raw, shares) = in_chunks(n * width, rows * width, |number, d_raw| {
        let tokens = d_raw.len() / width;
        let values = number * rows * width..number * rows * width + d_raw.len();
        let rstd = &rstd[number * rows * normed..][..tokens * normed];
        let at = &positions[number * rows..][..tokens];
        let mut share = vec![0.0; 2 * e];
        let (d_ready, raw) = (&d_ready[values.clone()], &raw[values]);
        prepare_rows_backward(d_ready, raw, rstd, &heads, at, d_raw, &mut share);
        share
    });
    let total = sum_in_order(shares);
    if !total.is_empty() {
        add_values(dq_norm, &total[..e])?;
        add_values(dk_norm, &total[e..])?;
    }
    tensor(d_raw, (n, width))
}

fn check_qkv(
    what: &str,
    qkv: &Tensor,
    q_norm: &Tensor,
    k_norm: &Tensor,
    tables: &RopeTables,
    layout: &QkvLayout,
) -> Result<usize> {
    layout.check()?;
    let (n, e) = (qkv.dim(0)?, layout.head_dim);
    expect_shape(what, qkv, &[n, layout.width()])?;
    expect_shape("norm weight of the queries", q_norm, &[e])?;
    expect_shape("norm weight of the keys", k_norm, &[e])?;
    expect_len("angles of a position", tables.half(), e / 2)?;
    Ok(n)
}

fn positions(row_ends: &[usize], tokens: usize, tables: &RopeTables) -> Result<Vec<usize>> {
    let mut positions = Vec::with_capacity(tokens);
    for row in rows(row_ends, tokens)? {
        if row.len() > tables.positions() {
            let (found, most) = (row.len(), tables.positions());
            bail!("a row of {found} tokens, but the rotation tables have {most} positions");
        }
        positions.extend(0..row.len());
    }
    Ok(positions)
}

/// What every head of a batch is treated with.
struct Heads<'a> {
    layout: &'a QkvLayout,
    q_norm: &'a [f32],
    k_norm: &'a [f32],
    cos: &'a [f32],
    sin: &'a [f32],
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
fn prepare_rows(
    raw: &[f32],
    heads: &Heads,
    eps: f64,
    positions: &[usize],
    ready: &mut [f32],
    rstd: &mut [f32],
) {
    let e = heads.layout.head_dim;
    let (width, queries) = (heads.layout.width(), heads.layout.heads);
    let normed = queries + heads.layout.kv_heads;
    let half = e / 2;
    for (token, &position) in positions.iter().enumerate() {
        let raw = &raw[token * width..(token + 1) * width];
        let ready = &mut ready[token * width..(token + 1) * width];
        let cos = &heads.cos[position * half..][..half];
        let sin = &heads.sin[position * half..][..half];
        for head in 0..normed {
            let x = &raw[head * e..][..e];
            let y = &mut ready[head * e..][..e];
            let w = if head < queries { heads.q_norm } else { heads.k_norm };
            let r = row_rstd(x, eps);
            rstd[token * normed + head] = r;
            // Cut to lengths the compiler can see: it then drops the checks of the loop below.
            let (x1, x2) = (&x[..half], &x[half..][..half]);
            let (w1, w2) = (&w[..half], &w[half..][..half]);
            let (y1, y2) = y.split_at_mut(half);
            let (y1, y2) = (&mut y1[..half], &mut y2[..half]);
            for i in 0..half {
                let (a, b) = (x1[i] * r * w1[i], x2[i] * r * w2[i]);
                y1[i] = a * cos[i] - b * sin[i];
                y2[i] = b * cos[i] + a * sin[i];
            }
        }
        ready[normed * e..].copy_from_slice(&raw[normed * e..]);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
fn prepare_rows_backward(
    d_ready: &[f32],
    raw: &[f32],
    rstd: &[f32],
    heads: &Heads,
    positions: &[usize],
    d_raw: &mut [f32],
    d_weights: &mut [f32],
) {
    let e = heads.layout.head_dim;
    let (width, queries) = (heads.layout.width(), heads.layout.heads);
    let normed = queries + heads.layout.kv_heads;
    let half = e / 2;
    let (dq_norm, dk_norm) = d_weights.split_at_mut(e);
    for (token, &position) in positions.iter().enumerate() {
        let raw = &raw[token * width..(token + 1) * width];
        let d_ready = &d_ready[token * width..(token + 1) * width];
        let d_raw = &mut d_raw[token * width..(token + 1) * width];
        let cos = &heads.cos[position * half..][..half];
        let sin = &heads.sin[position * half..][..half];
        for head in 0..normed {
            let x = &raw[head * e..][..e];
            let dy = &d_ready[head * e..][..e];
            let dx = &mut d_raw[head * e..][..e];
            let query = head < queries;
            let w = if query { heads.q_norm } else { heads.k_norm };
            let dw = if query { &mut *dq_norm } else { &mut *dk_norm };
            let (w, dw) = (&w[..e], &mut dw[..e]);
            // Turned back into `dx` first, then through the norm.
            let (dy1, dy2) = (&dy[..half], &dy[half..][..half]);
            let (dx1, dx2) = dx.split_at_mut(half);
            let (dx1, dx2) = (&mut dx1[..half], &mut dx2[..half]);
            for i in 0..half {
                dx1[i] = dy1[i] * cos[i] + dy2[i] * sin[i];
                dx2[i] = dy2[i] * cos[i] - dy1[i] * sin[i];
            }
            let r = rstd[token * normed + head];
            let product = lane_sum([dx, w, x], |[dx, w, x]| dx * w * x);
            let mean = product * r / e as f32;
            for i in 0..e {
                let unit = x[i] * r;
                dw[i] += dx[i] * unit;
                dx[i] = r * (dx[i] * w[i] - unit * mean);
            }
        }
        d_raw[normed * e..].copy_from_slice(&d_ready[normed * e..]);
    }
}

#[cfg(test)]
#[path = "qkv_tests.rs"]
mod tests;
