//! What a teacher says of its positions by examples: draws from its probabilities, beside the k
//! largest of them as they are.
//!
//! As in [`super::topk`], logits exist for a chunk of positions and a block of classes only. A first
//! sweep over the blocks selects the k largest of each position and sums, block by block, the exponentials
//! of the others; so it is known in which block each draw falls, and how far into it. A second one
//! computes the logits of those positions again that have draws in a block, and finds their classes. Where
//! all classes are one block nothing is done again.
//!
//! A draw is the first class, by id, at which the sum of the probabilities exceeds one of
//! [`DrawKey::uniforms`]; nothing else has a part in it. Sums over blocks and within one are `f64`.

mod row;

use std::ops::Range;

use candle_core::{Result, Tensor, bail};
use distill::signal::{DrawKey, Draws};
use rayon::prelude::*;

use super::head::{blocks, check_classes, check_temperature, chunks, logits_buffer};
use super::product::{MatMut, MatRef, Store, Threads, product};
use super::topk::check_next;
use super::{Floats, Precision, expect_len, math, read};
use row::{Drawing, Row};

/// What is wanted of some positions.
#[derive(Clone, Copy, Debug)]
pub struct WantedDraws<'a> {
    /// Classes that take part: the first rows of the output matrix.
    pub classes: usize,
    /// The token that really follows each position, `[R]`; none where there is none.
    pub next: &'a [Option<u32>],
    /// The logits are divided by it.
    pub temperature: f64,
    /// Draws a position, at least 1.
    pub draws: u32,
    /// Exact entries a position, 0 to `classes`.
    pub k: usize,
    /// What the draws depend on, `[R]`.
    pub keys: &'a [DrawKey],
}

/// What a model says of some positions.
#[derive(Clone, Debug, PartialEq)]
pub struct DrawnScores {
    /// The signal, `[R]`.
    pub signal: Draws,
    /// Log-probability at T = 1 of the token that follows, `[R]`; NaN where none does.
    pub next_logprob: Vec<f32>,
    /// The same at the temperature of the signal.
    pub next_logprob_t: Vec<f32>,
}

/// What is `wanted` of the positions `hidden` `[R, D]` under the output matrix `w` `[V, D]` (any
/// floating-point type).
///
/// # Errors
/// When shapes, types, the device, k, the draws or the temperature do not fit, a next token is not
/// below `classes`, or a logit is NaN or infinite (the message names the row): a broken model must not
/// teach.
pub fn draw_head(
    hidden: &Tensor,
    w: &Tensor,
    wanted: WantedDraws<'_>,
    precision: Precision,
) -> Result<DrawnScores> {
    let (rows, width) = hidden.dims2()?;
    let WantedDraws { classes, draws, k, .. } = wanted;
    check_classes("output matrix", w, classes, width)?;
    check_wanted(&wanted, rows)?;

    let (hidden, w) = (read(hidden), read(w));
    let (values, hidden, w) = (hidden.floats()?, hidden.rows(rows)?, w.rows(classes)?);
    let mut head =
        Head { values, hidden, w, width, precision, room: logits_buffer(rows, classes), wanted };
    let mut scores =
        DrawnScores { signal: Draws::new(draws, k), next_logprob: vec![], next_logprob_t: vec![] };
    for chunk in chunks(rows) {
        let heard = head.listen(&chunk)?;
        let mut rows: Vec<Drawing> =
            heard.into_par_iter().map(|row| row.heard(&head.wanted)).collect();
        head.draw(&chunk, &mut rows);
        rows.into_iter().for_each(|row| row.finish(&mut scores));
    }
    Ok(scores)
}

/// The checked arguments of [`draw_head`], and room for the logits of a chunk for a block.
struct Head<'a> {
    /// `[R, D]`, as stored.
    values: Floats<'a>,
    /// The same.
    hidden: MatRef<'a>,
    /// `[classes, D]`, as stored.
    w: MatRef<'a>,
    width: usize,
    precision: Precision,
    room: Vec<f32>,
    wanted: WantedDraws<'a>,
}

impl Head<'_> {
    /// The rows of a chunk, all their logits heard. What was made of those of the last block stays in
    /// the room.
    fn listen(&mut self, chunk: &Range<usize>) -> Result<Vec<Row>> {
        let mut rows: Vec<Row> = chunk.clone().map(|row| Row::new(row, &self.wanted)).collect();
        let (hidden, t) = (self.hidden.row_range(chunk.clone()), self.wanted.temperature);
        for block in blocks(self.wanted.classes) {
            let logits = project(hidden, self.w, &block, self.precision, &mut self.room);
            let columns = logits.par_chunks_mut(block.len()).zip(&mut rows);
            // The first row's complaint, however many threads there are.
            let heard: Vec<Result<()>> =
                columns.map(|(logits, row)| row.listen(logits, block.start, t)).collect();
            heard.into_iter().collect::<Result<()>>()?;
        }
        Ok(rows)
    }

    /// Finds the classes of the draws of a chunk that was just heard.
    fn draw(&mut self, chunk: &Range<usize>, rows: &mut [Drawing]) {
        let mut gathered = Vec::new();
        for (number, block) in blocks(self.wanted.classes).enumerate() {
            let t = self.wanted.temperature;
            if block.len() == self.wanted.classes {
                let logits = &mut self.room[..rows.len() * block.len()];
                let columns = logits.par_chunks_mut(block.len()).zip(rows.par_iter_mut());
                columns.for_each(|(logits, row)| row.draw(logits, block.start, number, t));
                return;
            }
            gathered.clear();
            let mut drawing = Vec::new();
            for (at, row) in chunk.clone().zip(rows.iter_mut()) {
                if row.has_draws_in(number) {
                    let hidden = self.values.slice(at * self.width..(at + 1) * self.width);
                    let start = gathered.len();
                    gathered.resize(start + self.width, 0.0);
                    math::convert(hidden, Precision::F32, &mut gathered[start..]);
                    drawing.push(row);
                }
            }
            let hidden = MatRef::new(gathered.as_slice(), drawing.len(), self.width);
            let logits = project(hidden, self.w, &block, self.precision, &mut self.room);
            let columns = logits.par_chunks_mut(block.len()).zip(drawing);
            columns.for_each(|(logits, row)| row.draw(logits, block.start, number, t));
        }
    }
}

/// The logits of some positions for a block of classes, in the front part of `room`.
fn project<'r>(
    hidden: MatRef<'_>,
    w: MatRef<'_>,
    block: &Range<usize>,
    precision: Precision,
    room: &'r mut [f32],
) -> &'r mut [f32] {
    let logits = &mut room[..hidden.rows() * block.len()];
    let target = MatMut::new(logits, hidden.rows(), block.len());
    let w = w.row_range(block.clone()).transposed();
    product(target, Store::Replace, 1.0, hidden, w, precision, Threads::Pool);
    logits
}

pub(crate) fn check_wanted(wanted: &WantedDraws<'_>, rows: usize) -> Result<()> {
    let &WantedDraws { classes, next, temperature, draws, k, keys } = wanted;
    check_temperature(temperature)?;
    check_next(next, rows, classes)?;
    expect_len("keys of draws", keys.len(), rows)?;
    if draws == 0 {
        bail!("0 draws a position are wanted, it must be at least 1");
    }
    if k > classes {
        bail!("k is {k}, it must lie in 0 to {classes}, the classes");
    }
    Ok(())
}

#[cfg(test)]
#[path = "draws_statistics_tests.rs"]
mod statistics_tests;
#[cfg(test)]
#[path = "draws_tests.rs"]
mod tests;
