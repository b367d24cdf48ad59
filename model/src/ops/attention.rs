//! Causal attention within each packed row, grouped queries, by tiles of queries.
//!
//! For a tile of queries the scores are held transposed, `[keys, TILE]`: the products then read
//! keys and values where they lie, and softmax runs down columns, many queries at a time. At most
//! `TILE` times the length of one row is stored by a task, never a square.

use std::ops::Range;

use candle_core::{Result, Tensor};
use multiversion::multiversion;
use rayon::prelude::*;

use super::math::{self, exp_f32};
use super::product::{MatMut, MatRef, Store, Threads, product};
use super::qkv::QkvLayout;
use super::{Precision, expect_shape, read, rows, tensor};

/// Queries whose scores are held at a time: four registers of AVX-512.
const TILE: usize = 64;
/// Keys whose exponentials are summed before the sums are.
const KEYS: usize = 64;

/// `softmax(q·kᵀ/√E)·v` of every query head over its own row up to itself: `ready`
/// [N, (H+2G)E] gives `(out [N, H·E], lse [N, H])`, `lse` being the logarithm of the softmax's
/// denominator. The operands of both products (q, k; the probabilities, v) are rounded to
/// `precision`; the softmax is `f32`.
///
/// # Errors
/// When a shape, an element type or the device does not fit, or the row ends do not rise to N.
pub fn attention(
    ready: &Tensor,
    layout: &QkvLayout,
    row_ends: &[usize],
    precision: Precision,
) -> Result<(Tensor, Tensor)> {
    layout.check()?;
    let (n, h, e) = (ready.dim(0)?, layout.heads, layout.head_dim);
    expect_shape("queries, keys and values", ready, &[n, layout.width()])?;
    let rows = rows(row_ends, n)?;
    let ready = read(ready);
    let qkv = Qkv { values: ready.f32()?, layout, precision };
    let (mut out, mut lse) = (vec![0.0; n * h * e], vec![0.0; n * h]);
    {
        let out = MatMut::new(&mut out, n, h * e);
        let lse = MatMut::new(&mut lse, n, h);
        let mut tasks = Vec::new();
        for row in rows {
            for head in 0..h {
                tasks.extend(tiles(&row).map(|tile| (row.start, tile, head)));
            }
        }
        tasks.into_par_iter().for_each_init(Vec::new, |scores, (start, tile, head)| {
            #[expect(unsafe_code, reason = "disjoint blocks of one matrix")]
            // SAFETY: every task has another head or other queries.
            let (out, lse) = unsafe {
                (
                    out.block(tile.clone(), head * e..(head + 1) * e),
                    lse.block(tile.clone(), head..head + 1),
                )
            };
            qkv.attend(start, tile, head, scores, out, lse);
        });
    }
    Ok((tensor(out, (n, h * e))?, tensor(lse, (n, h))?))
}

/// The gradient of [`attention`] with respect to `ready`; `out` and `lse` are what it returned. The
/// operands of its five products are rounded to `precision`.
///
/// # Errors
/// When a shape, an element type or the device does not fit, or the row ends do not rise to N.
pub fn attention_backward(
    d_out: &Tensor,
    ready: &Tensor,
    out: &Tensor,
    lse: &Tensor,
    layout: &QkvLayout,
    row_ends: &[usize],
    precision: Precision,
) -> Result<Tensor> {
    layout.check()?;
    let (n, h, e) = (ready.dim(0)?, layout.heads, layout.head_dim);
    expect_shape("queries, keys and values", ready, &[n, layout.width()])?;
    expect_shape("output of attention", out, &[n, h * e])?;
    expect_shape("gradient of attention's output", d_out, &[n, h * e])?;
    expect_shape("log-sums of attention", lse, &[n, h])?;
    let rows = rows(row_ends, n)?;
    let (ready, out, d_out, lse) = (read(ready), read(out), read(d_out), read(lse));
    let qkv = Qkv { values: ready.f32()?, layout, precision };
    let saved = Saved { out: out.f32()?, d_out: d_out.f32()?, lse: lse.f32()? };
    let mut d_ready = vec![0.0; n * layout.width()];
    {
        let d_ready = MatMut::new(&mut d_ready, n, layout.width());
        let tasks: Vec<_> = rows
            .into_iter()
            .flat_map(|row| (0..layout.kv_heads).map(move |kv_head| (row.clone(), kv_head)))
            .collect();
        tasks.into_par_iter().for_each_init(Scratch::default, |scratch, (row, kv_head)| {
            let heads = kv_head * layout.group()..(kv_head + 1) * layout.group();
            let columns = |head: usize| head * e..(head + 1) * e;
            #[expect(unsafe_code, reason = "disjoint blocks of one matrix")]
            // SAFETY: every task has another row or another key/value head with its own queries.
            let (dq, dk, dv) = unsafe {
                (
                    d_ready.block(row.clone(), heads.start * e..heads.end * e),
                    d_ready.block(row.clone(), columns(h + kv_head)),
                    d_ready.block(row.clone(), columns(h + layout.kv_heads + kv_head)),
                )
            };
            qkv.attend_backward(&saved, &row, heads, scratch, [dq, dk, dv]);
        });
    }
    tensor(d_ready, (n, layout.width()))
}

fn tiles(row: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let end = row.end;
    row.clone().step_by(TILE).map(move |start| start..end.min(start + TILE))
}

/// Queries, keys and values of a batch.
struct Qkv<'a> {
    values: &'a [f32],
    layout: &'a QkvLayout,
    precision: Precision,
}

/// What the backward pass is given beside them, [N, H·E] twice and [N, H].
struct Saved<'a> {
    out: &'a [f32],
    d_out: &'a [f32],
    lse: &'a [f32],
}

/// Probabilities and the gradients of scores of one tile; kept from one task to the next.
#[derive(Default)]
struct Scratch {
    p: Vec<f32>,
    ds: Vec<f32>,
}

impl Qkv<'_> {
    fn matrix(&self, start: usize, tokens: usize) -> MatRef<'_> {
        let data = self.values.get(start..).unwrap_or_default();
        MatRef::strided(data, tokens, self.layout.head_dim, self.layout.width())
    }

    fn queries(&self, tokens: &Range<usize>, head: usize) -> MatRef<'_> {
        self.matrix(self.layout.query(tokens.start, head), tokens.len())
    }

    fn keys(&self, tokens: &Range<usize>, head: usize) -> MatRef<'_> {
        self.matrix(self.layout.key(tokens.start, head), tokens.len())
    }

    fn values(&self, tokens: &Range<usize>, head: usize) -> MatRef<'_> {
        self.matrix(self.layout.value(tokens.start, head), tokens.len())
    }

    /// A product of this task's own.
    fn product(&self, dst: MatMut<'_>, store: Store, alpha: f32, a: MatRef<'_>, b: MatRef<'_>) {
        product(dst, store, alpha, a, b, self.precision, Threads::Own);
    }

    fn scale(&self) -> f32 {
        1.0 / (self.layout.head_dim as f32).sqrt()
    }

    /// `scores [keys, TILE] = scale·k·qᵀ` for the queries of a tile and all keys up to its end.
    fn scores(&self, keys: &Range<usize>, tile: &Range<usize>, head: usize, scores: &mut [f32]) {
        let dst = MatMut::strided(scores, keys.len(), tile.len(), TILE);
        let (k, q) = (self.keys(keys, head), self.queries(tile, head).transposed());
        self.product(dst, Store::Replace, self.scale(), k, q);
    }

    /// One head's attention for one tile of queries of the row that begins at `start`.
    fn attend(
        &self,
        start: usize,
        tile: Range<usize>,
        head: usize,
        scores: &mut Vec<f32>,
        mut out: MatMut<'_>,
        mut lse: MatMut<'_>,
    ) {
        let keys = start..tile.end;
        // What a former task left beyond the tile's queries is worked on, but never read.
        scores.resize(keys.len() * TILE, 0.0);
        self.scores(&keys, &tile, head, scores);
        let (mut max, mut sum) = ([0.0; TILE], [0.0; TILE]);
        softmax_tile(scores, tile.start - start, &mut max, &mut sum);
        let p = MatRef::strided(scores.as_slice(), keys.len(), tile.len(), TILE).transposed();
        let v = self.values(&keys, head);
        self.product(out.reborrow(), Store::Replace, 1.0, p, v);
        for i in 0..tile.len() {
            math::scale_in_place(out.row(i), 1.0 / sum[i]);
            lse.row(i)[0] = (f64::from(max[i]) + f64::from(sum[i]).ln()) as f32;
        }
    }

    /// Gradients of one key/value head and its query heads within one row: `dq` [T, (H/G)E],
    /// `dk` and `dv` [T, E], zero before.
    fn attend_backward(
        &self,
        saved: &Saved<'_>,
        row: &Range<usize>,
        heads: Range<usize>,
        scratch: &mut Scratch,
        [dq, mut dk, mut dv]: [MatMut<'_>; 3],
    ) {
        let (h, e) = (self.layout.heads, self.layout.head_dim);
        let Scratch { p, ds } = scratch;
        p.resize(row.len() * TILE, 0.0);
        ds.resize(row.len() * TILE, 0.0);
        for head in heads.clone() {
            for tile in tiles(row) {
                let keys = row.start..tile.end;
                let size = keys.len() * TILE;
                let (p, ds) = (&mut p[..size], &mut ds[..size]);
                self.scores(&keys, &tile, head, p);
                let at = (tile.start * h + head) * e;
                let d_out = MatRef::strided(&saved.d_out[at..], tile.len(), e, h * e);
                let dst = MatMut::strided(ds, keys.len(), tile.len(), TILE);
                let v = self.values(&keys, head);
                self.product(dst, Store::Replace, 1.0, v, d_out.transposed());
                let (mut lse, mut mean) = ([0.0; TILE], [0.0; TILE]);
                for (i, token) in tile.clone().enumerate() {
                    let at = token * h + head;
                    let range = at * e..(at + 1) * e;
                    lse[i] = saved.lse[at];
                    mean[i] = math::dot(&saved.d_out[range.clone()], &saved.out[range]) as f32;
                }
                softmax_tile_backward(p, ds, tile.start - row.start, &lse, &mean, self.scale());

                let here = tile.start - row.start..tile.end - row.start;
                let column = (head - heads.start) * e;
                let p = MatRef::strided(&*p, keys.len(), tile.len(), TILE);
                let ds = MatRef::strided(&*ds, keys.len(), tile.len(), TILE);
                let q = self.queries(&tile, head);
                let k = self.keys(&keys, head);
                #[expect(unsafe_code, reason = "a block of a matrix of this task alone")]
                // SAFETY: the block is gone before the matrix is used again.
                let dq = unsafe { dq.block(here, column..column + e) };
                self.product(dq, Store::Replace, 1.0, ds.transposed(), k);
                self.product(dv.reborrow().first_rows(keys.len()), Store::Add, 1.0, p, d_out);
                self.product(dk.reborrow().first_rows(keys.len()), Store::Add, 1.0, ds, q);
            }
        }
    }
}

/// Turns scores [keys, TILE] into `e^(score - max)` of each column, its maximum and its sum.
///
/// Query i of the tile sees the keys up to `seen + i`; scores beyond become 0.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
fn softmax_tile(scores: &mut [f32], seen: usize, max: &mut [f32; TILE], sum: &mut [f32; TILE]) {
    let (scores, _) = scores.as_chunks_mut::<TILE>();
    for (key, scores) in scores.iter_mut().enumerate().skip(seen) {
        scores[..(key - seen).min(TILE)].fill(f32::NEG_INFINITY);
    }
    max.fill(f32::NEG_INFINITY);
    for scores in &*scores {
        for (max, score) in max.iter_mut().zip(scores) {
            *max = if *score > *max { *score } else { *max };
        }
    }
    sum.fill(0.0);
    for scores in scores.chunks_mut(KEYS) {
        let mut part = [0.0_f32; TILE];
        for scores in scores {
            for ((score, max), part) in scores.iter_mut().zip(&*max).zip(&mut part) {
                *score = exp_f32(*score - max);
                *part += *score;
            }
        }
        for (sum, part) in sum.iter_mut().zip(part) {
            *sum += part;
        }
    }
}

/// Turns scores into probabilities and `ds`, which holds the probabilities' gradients, into the
/// gradients of `q·k`: `p = e^(score - lse)`, `ds = p·(ds - mean)·scale`; both 0 for keys a query
/// does not see.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
fn softmax_tile_backward(
    p: &mut [f32],
    ds: &mut [f32],
    seen: usize,
    lse: &[f32; TILE],
    mean: &[f32; TILE],
    scale: f32,
) {
    let (p, ds) = (p.as_chunks_mut::<TILE>().0, ds.as_chunks_mut::<TILE>().0);
    for (key, (p, ds)) in p.iter_mut().zip(ds).enumerate() {
        for i in 0..TILE {
            p[i] = exp_f32(p[i] - lse[i]);
            ds[i] = p[i] * (ds[i] - mean[i]) * scale;
        }
        let hidden = key.saturating_sub(seen).min(TILE);
        p[..hidden].fill(0.0);
        ds[..hidden].fill(0.0);
    }
}

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;
