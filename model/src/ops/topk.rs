//! What a teacher says of its positions: the k largest logits of each, and the mass of the rest.
//!
//! As in [`super::head`], logits exist for a chunk of positions and a block of classes only: one
//! pass over the output matrix serves a chunk. Of each block the tokens that are among the best so
//! far are taken out before the others are summed; one that a later block drives out is added then.

mod select;

use candle_core::{Result, Tensor, bail};
use distill::signal::TopK;
use rayon::prelude::*;

use super::head::exps::{RestSums, log_sum};
use super::head::{blocks, check_classes, check_temperature, chunks, logits_buffer};
use super::product::{MatMut, Store, Threads, product};
use super::{Precision, expect_len, math, read};
use select::Selection;

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
    let (hidden, w) = (hidden.rows(rows)?, w.rows(classes)?);
    let mut buffer = logits_buffer(rows, classes);
    let mut signal = TopK::new(k);
    let mut next_logprob = Vec::with_capacity(rows);
    for chunk in chunks(rows) {
        let row = |row: usize| Row::new(row, next[row], temperature, k);
        let mut rows: Vec<Row> = chunk.clone().map(row).collect();
        let x = hidden.row_range(chunk.clone());
        for block in blocks(classes) {
            let logits = &mut buffer[..chunk.len() * block.len()];
            let target = MatMut::new(logits, chunk.len(), block.len());
            let w = w.row_range(block.clone()).transposed();
            product(target, Store::Replace, 1.0, x, w, precision, Threads::Pool);
            let columns = logits.par_chunks_mut(block.len()).zip(&mut rows);
            // The first row's complaint, however many threads there are.
            let heard: Vec<Result<()>> =
                columns.map(|(logits, row)| row.listen(logits, block.start)).collect();
            heard.into_iter().collect::<Result<()>>()?;
        }
        next_logprob.extend(rows.into_iter().map(|row| row.finish(&mut signal)));
    }
    Ok((signal, next_logprob))
}

/// A position, and what its blocks of logits have told so far.
struct Row {
    number: usize,
    next: Option<u32>,
    logit_of_next: f64,
    temperature: f64,
    selection: Selection,
    /// Over the tokens that are not among the best so far.
    others: RestSums,
}

impl Row {
    fn new(number: usize, next: Option<u32>, temperature: f64, k: usize) -> Self {
        let selection = Selection::new(k);
        let (logit_of_next, others) = (f64::NAN, RestSums::NONE);
        Self { number, next, logit_of_next, temperature, selection, others }
    }

    /// Takes note of the logits of the classes from `first` on, which are consumed; blocks come in
    /// order.
    fn listen(&mut self, logits: &mut [f32], first: usize) -> Result<()> {
        let Some(gone) = self.selection.offer(logits, first) else {
            let at = logits.iter().position(|z| !z.is_finite()).unwrap_or_default();
            let (row, id, found) = (self.number, first + at, logits[at]);
            bail!("row {row}: the logit of class {id} is {found}, not a finite number");
        };
        let here = self.next.and_then(|id| (id as usize).checked_sub(first));
        if let Some(&logit) = here.and_then(|at| logits.get(at)) {
            self.logit_of_next = f64::from(logit);
        }
        self.selection.since(first).for_each(|id| logits[id - first] = f32::NEG_INFINITY);
        let t = self.temperature;
        self.others = self.others.and(RestSums::of(logits, math::max(logits), t), t);
        for logit in gone {
            self.others = self.others.and(RestSums::of_one(logit), t);
        }
        Ok(())
    }

    /// Adds the row to the signal, once all classes were heard; gives the log-probability of the
    /// token that follows.
    fn finish(self, signal: &mut TopK) -> f32 {
        let t = self.temperature;
        let (ids, top) = self.selection.in_order();
        let top = top.into_iter().map(f64::from);
        let log_others = self.others.log_at_t(t);
        let log_z = log_sum(log_others, top.clone().map(|z| z / t));
        let log_z_one = log_sum(self.others.log_at_one(), top.clone());
        signal.ids.extend(ids);
        signal.scaled.extend(top.map(|z| (z / t) as f32));
        signal.log_z.push(log_z as f32);
        signal.log_rest.push((log_others - log_z) as f32);
        (self.logit_of_next - log_z_one) as f32
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
