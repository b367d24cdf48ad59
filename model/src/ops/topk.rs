//! What a teacher says of its positions: the k largest logits of each, and the mass of the rest.
//!
//! As in [`super::head`], logits exist for a chunk of positions only, and the k tokens are taken
//! out of their row before the others are summed.

mod select;

use std::ops::Range;

use candle_core::{Result, Tensor, bail};
use distill::signal::TopK;
use rayon::prelude::*;

use super::head::exps::{RestSums, log_sum};
use super::head::{check_classes, check_temperature, chunks, logits_buffer};
use super::product::{MatMut, MatRef, Store, Threads, product};
use super::{Precision, expect_len, math, read};
use select::largest;

/// The top-k signal at `temperature` of the positions `hidden` `[R, D]` under the output matrix
/// `w` `[V, D]` (any floating-point type), of which the first `classes` rows take part; and the
/// log-probability at T = 1 of the token `next` `[R]` that really follows, NaN where there is
/// none.
///
/// The k are in descending order, ties to the lower id; `log_z` and `log_rest` are sums over
/// `classes`, each with a scale of its own. Any k from 1 to `classes` will do.
///
/// # Errors
/// When shapes, types, the device, k or the temperature do not fit, a next token is not below
/// `classes`, or a logit is NaN or infinite (the message names the row): a broken model must not
/// teach.
pub fn score_head(
    hidden: &Tensor,
    w: &Tensor,
    classes: usize,
    next: &[Option<u32>],
    temperature: f64,
    k: usize,
    precision: Precision,
) -> Result<(TopK, Vec<f32>)> {
    let (rows, width) = hidden.dims2()?;
    check_classes("output matrix", w, classes, width)?;
    check_temperature(temperature)?;
    check_next(next, rows, classes)?;
    if k == 0 || k > classes {
        bail!("k is {k}, it must lie in 1 to {classes}, the classes");
    }

    let (hidden, w) = (read(hidden), read(w));
    let hidden = MatRef::new(hidden.floats()?, rows, width);
    let w = MatRef::new(w.floats()?, classes, width).transposed();
    let mut buffer = logits_buffer(rows, classes);
    let mut scores = Scores::with_capacity(rows, k);
    for chunk in chunks(rows, classes) {
        let x = hidden.row_range(chunk.clone());
        let logits = &mut buffer[..chunk.len() * classes];
        let target = MatMut::new(logits, chunk.len(), classes);
        product(target, Store::Replace, 1.0, x, w, precision, Threads::Pool);
        scores.extend(logits, chunk, next, temperature)?;
    }
    Ok((scores.signal, scores.next_logprob))
}

/// The result of the chunks so far.
struct Scores {
    signal: TopK,
    next_logprob: Vec<f32>,
}

impl Scores {
    fn with_capacity(rows: usize, k: usize) -> Self {
        let signal = TopK {
            k,
            ids: Vec::with_capacity(rows * k),
            scaled: Vec::with_capacity(rows * k),
            log_z: Vec::with_capacity(rows),
            log_rest: Vec::with_capacity(rows),
        };
        Self { signal, next_logprob: Vec::with_capacity(rows) }
    }

    /// Adds the rows `chunk`, whose logits are consumed.
    fn extend(
        &mut self,
        logits: &mut [f32],
        chunk: Range<usize>,
        next: &[Option<u32>],
        temperature: f64,
    ) -> Result<()> {
        let k = self.signal.k;
        let classes = logits.len() / chunk.len();
        let scored: Vec<Result<Row>> = logits
            .par_chunks_mut(classes)
            .zip(chunk)
            .map(|(logits, row)| Row::score(logits, row, next[row], temperature, k))
            .collect();
        for row in scored {
            let row = row?;
            self.signal.ids.extend(row.ids);
            self.signal.scaled.extend(row.scaled);
            self.signal.log_z.push(row.log_z);
            self.signal.log_rest.push(row.log_rest);
            self.next_logprob.push(row.next_logprob);
        }
        Ok(())
    }
}

struct Row {
    ids: Vec<u32>,
    scaled: Vec<f32>,
    log_z: f32,
    log_rest: f32,
    next_logprob: f32,
}

impl Row {
    fn score(
        logits: &mut [f32],
        row: usize,
        next: Option<u32>,
        temperature: f64,
        k: usize,
    ) -> Result<Self> {
        let Some(ids) = largest(logits, k) else {
            let id = logits.iter().position(|z| !z.is_finite()).unwrap_or_default();
            bail!("row {row}: the logit of class {id} is {}, not a finite number", logits[id]);
        };
        let next = next.map(|id| f64::from(logits[id as usize]));
        let take =
            |&id: &u32| f64::from(std::mem::replace(&mut logits[id as usize], f32::NEG_INFINITY));
        let top: Vec<f64> = ids.iter().map(take).collect();

        let sums = RestSums::of(logits, math::max(logits), temperature);
        let log_others = sums.log_at_t(temperature);
        let log_z = log_sum(log_others, top.iter().map(|z| z / temperature));
        let log_z_one = log_sum(sums.log_at_one(), top.iter().copied());
        Ok(Self {
            scaled: top.iter().map(|z| (z / temperature) as f32).collect(),
            ids,
            log_z: log_z as f32,
            log_rest: (log_others - log_z) as f32,
            next_logprob: next.map_or(f32::NAN, |z| (z - log_z_one) as f32),
        })
    }
}

fn check_next(next: &[Option<u32>], rows: usize, classes: usize) -> Result<()> {
    expect_len("next tokens", next.len(), rows)?;
    for (row, id) in next.iter().enumerate() {
        match id {
            Some(id) if *id as usize >= classes => {
                bail!("row {row}: next token {id} is not one of the {classes} classes")
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "topk_tests.rs"]
mod tests;
