//! What a teacher says of its positions: the k largest logits of each, or those of k tokens that
//! somebody named, and the mass of the rest.
//!
//! As in [`super::head`], logits exist for a chunk of positions and a block of classes only: one
//! pass over the output matrix serves a chunk. Of each block the tokens that are among the best so
//! far are taken out before the others are summed; one that a later block drives out is added then.

mod named;
pub(super) mod select;

use candle_core::{Result, Tensor, bail};
use distill::codec::repeated;
use distill::signal::{Entries, TopK};
use rayon::prelude::*;

use super::head::exps::{RestSums, log_sum};
use super::head::{blocks, check_classes, check_temperature, chunks, logits_buffer};
use super::product::{MatMut, Store, Threads, product};
use super::{Precision, expect_len, math, read};
use named::Named;
use select::Selection;

/// What is wanted of some positions.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Classes that take part: the first rows of the output matrix.
    pub classes: usize,
    /// The token that really follows each position, `[R]`; none where there is none.
    pub next: &'a [Option<u32>],
    /// The logits are divided by it.
    pub temperature: f64,
    /// Entries a position, 1 to `classes`.
    pub k: usize,
    /// Which they are.
    pub entries: &'a Entries,
}

/// What a model says of some positions.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadScores {
    /// The signal, `[R, k]`.
    pub signal: TopK,
    /// Log-probability at T = 1 of the token that follows, `[R]`; NaN where none does.
    pub next_logprob: Vec<f32>,
    /// The same at the temperature of the signal.
    pub next_logprob_t: Vec<f32>,
}

/// What is `wanted` of the positions `hidden` `[R, D]` under the output matrix `w` `[V, D]` (any
/// floating-point type).
///
/// The k largest are in descending order, ties to the lower id; named ones in the order they were
/// named. `log_z` and `log_rest` are sums over the classes, each with a scale of its own.
///
/// # Errors
/// When shapes, types, the device, k or the temperature do not fit, a next token is not below
/// `classes`, named ids are not k a row, not below `classes` or not all different in a row, or a
/// logit is NaN or infinite (the message names the row): a broken model must not teach.
pub fn score_head(
    hidden: &Tensor,
    w: &Tensor,
    wanted: Wanted<'_>,
    precision: Precision,
) -> Result<HeadScores> {
    let (rows, width) = hidden.dims2()?;
    let Wanted { classes, k, .. } = wanted;
    check_classes("output matrix", w, classes, width)?;
    check_wanted(&wanted, rows)?;

    let (hidden, w) = (read(hidden), read(w));
    let (hidden, w) = (hidden.rows(rows)?, w.rows(classes)?);
    let mut buffer = logits_buffer(rows, classes);
    let mut scores =
        HeadScores { signal: TopK::new(k), next_logprob: vec![], next_logprob_t: vec![] };
    for chunk in chunks(rows) {
        let mut rows: Vec<Row> = chunk.clone().map(|row| Row::new(row, &wanted)).collect();
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
        rows.into_iter().for_each(|row| row.finish(&mut scores));
    }
    Ok(scores)
}

/// A position, and what its blocks of logits have told so far.
struct Row {
    number: usize,
    next: Option<u32>,
    logit_of_next: f64,
    temperature: f64,
    kept: Kept,
    /// Over the tokens that are not among the kept so far.
    others: RestSums,
}

/// The tokens of a row whose logits are kept.
enum Kept {
    Best(Selection),
    Named(Named),
}

impl Row {
    fn new(number: usize, wanted: &Wanted<'_>) -> Self {
        let kept = match wanted.entries.named_at(number, wanted.k) {
            None => Kept::Best(Selection::new(wanted.k)),
            Some(ids) => Kept::Named(Named::new(ids)),
        };
        let (next, temperature) = (wanted.next[number], wanted.temperature);
        let (logit_of_next, others) = (f64::NAN, RestSums::NONE);
        Self { number, next, logit_of_next, temperature, kept, others }
    }

    /// Takes note of the logits of the classes from `first` on, which are consumed; blocks come in
    /// order.
    fn listen(&mut self, logits: &mut [f32], first: usize) -> Result<()> {
        let gone = match &mut self.kept {
            Kept::Best(selection) => selection.offer(logits, first),
            Kept::Named(named) => named.offer(logits, first).then(Vec::new),
        };
        let Some(gone) = gone else {
            return not_finite(self.number, logits, first);
        };
        let here = self.next.and_then(|id| (id as usize).checked_sub(first));
        if let Some(&logit) = here.and_then(|at| logits.get(at)) {
            self.logit_of_next = f64::from(logit);
        }
        match &self.kept {
            Kept::Best(best) => best.since(first).for_each(|id| leave_out(logits, id - first)),
            Kept::Named(named) => named.within(first, logits.len(), |at| leave_out(logits, at)),
        }
        let t = self.temperature;
        self.others = self.others.and(RestSums::of(logits, math::max(logits), t), t);
        for (_, logit) in gone {
            self.others = self.others.and(RestSums::of_one(logit), t);
        }
        Ok(())
    }

    /// Adds the row to the scores, once all classes were heard.
    fn finish(self, scores: &mut HeadScores) {
        let t = self.temperature;
        let (ids, kept) = match self.kept {
            Kept::Best(selection) => selection.in_order(),
            Kept::Named(named) => named.in_order(),
        };
        let kept = kept.into_iter().map(f64::from);
        let log_others = self.others.log_at_t(t);
        let log_z = log_sum(log_others, kept.clone().map(|z| z / t));
        let log_z_one = log_sum(self.others.log_at_one(), kept.clone());
        let signal = &mut scores.signal;
        signal.ids.extend(ids);
        signal.scaled.extend(kept.map(|z| (z / t) as f32));
        signal.log_z.push(log_z as f32);
        signal.log_rest.push((log_others - log_z) as f32);
        scores.next_logprob.push((self.logit_of_next - log_z_one) as f32);
        scores.next_logprob_t.push((self.logit_of_next / t - log_z) as f32);
    }
}

/// Refuses a row for its first logit that is NaN or infinite, among those of the classes from `first` on.
pub(super) fn not_finite<R>(row: usize, logits: &[f32], first: usize) -> Result<R> {
    let at = logits.iter().position(|z| !z.is_finite()).unwrap_or_default();
    Err(candle_core::Error::msg(not_finite_text(row, first + at, logits[at])))
}

/// How it is said.
pub(crate) fn not_finite_text(row: usize, id: usize, found: f32) -> String {
    format!("row {row}: the logit of class {id} is {found}, not a finite number")
}

/// What is set to -inf has no share in a sum of exponentials.
pub(super) fn leave_out(logits: &mut [f32], at: usize) {
    logits[at] = f32::NEG_INFINITY;
}

pub(crate) fn check_wanted(wanted: &Wanted<'_>, rows: usize) -> Result<()> {
    let &Wanted { classes, next, temperature, k, entries } = wanted;
    check_temperature(temperature)?;
    check_next(next, rows, classes)?;
    if k == 0 || k > classes {
        bail!("k is {k}, it must lie in 1 to {classes}, the classes");
    }
    let Entries::Named(ids) = entries else { return Ok(()) };
    if ids.len() != k && ids.len() != k * rows {
        bail!("{} ids are named, wanted {k} or {k} for each of {rows} rows", ids.len());
    }
    if let Some(id) = ids.iter().find(|&&id| id as usize >= classes) {
        bail!("token {id} is named, which is not one of the {classes} classes");
    }
    if let Some((row, id)) = repeated(ids, k, classes) {
        bail!("row {row}: token {id} is named twice");
    }
    Ok(())
}

pub(super) fn check_next(next: &[Option<u32>], rows: usize, classes: usize) -> Result<()> {
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
