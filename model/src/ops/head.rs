//! The output matrix, the loss and their gradients together, a chunk of positions and a block of
//! classes at a time.
//!
//! A first sweep over the blocks sums each position's exponentials; a second one computes the same
//! logits again and turns them into their gradient in place, from which both gradients of the
//! output layer are made at once. So every part of the output matrix and of its gradient is read
//! twice a chunk whatever V is, and logits exist for one block only. The product that is done again
//! costs a quarter of the layer's arithmetic; keeping its result would cost V numbers a position.
//! Where all classes are one block nothing is done again.
//!
//! The k tokens of a signal are taken out of the row first, set to -inf, and treated in `f64`: what
//! is summed is then the mass of *all other* tokens, with a scale of its own.
//!
//! The formulas are those of [`distill::reference`], which the tests hold this against.

pub(crate) mod exps;
mod row;

use std::ops::Range;

use candle_core::{Result, Tensor, bail};
use distill::signal::TopK;
use rayon::prelude::*;

use super::product::{MatMut, MatRef, Store, Threads, product};
use super::{Precision, expect_len, read, tensor, write_f32};
pub use distill::reference::Tail;
use row::{Row, RowLoss, Softmax};

/// Classes whose logits exist at a time. Fixed: a row's sums are put together where blocks meet, and
/// must not depend on what else is in the batch.
pub(super) const BLOCK_CLASSES: usize = 4096;
/// Positions whose logits exist at a time: with [`BLOCK_CLASSES`] 32 MiB.
const CHUNK_POSITIONS: usize = 2048;

/// What the loss of a step is made of: `total = alpha T² KL + (1 - alpha) CE`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossSettings {
    /// Weight of the divergence from the teacher, 0 to 1.
    pub alpha: f64,
    /// Temperature of the divergence, the one the signal was made at; above 0.
    pub temperature: f64,
    /// What becomes of the mass outside the signal's k tokens.
    pub tail: Tail,
    /// Rounding of the operands of the three products.
    pub precision: Precision,
}

/// The losses of S positions, and the gradient of their scaled total.
#[derive(Clone, Debug)]
pub struct HeadLoss {
    /// `-log softmax(z)[target]` at T = 1, `[S]`. NaN where a logit is not a number.
    pub ce: Vec<f32>,
    /// Divergence from the teacher at T, *without* T², `[S]`; 0 without a signal.
    pub kl: Vec<f32>,
    /// The student's most probable class, `[S]`; the lower id among equals.
    pub argmax: Vec<u32>,
    /// `Σ p_i` over the signal's ids, `[S]`; 0 without a signal.
    pub teacher_mass: Vec<f32>,
    /// `Σ q_i` over the signal's ids, `[S]`; 0 without a signal.
    pub student_mass: Vec<f32>,
    /// Gradient with respect to `hidden`, `[S, D]`; only when a gradient was asked for.
    pub d_hidden: Option<Tensor>,
}

/// Losses of the positions `hidden` `[S, D]` under the output matrix `w` `[V, D]`, of which the
/// first `classes` rows take part, against the next tokens `targets` `[S]` and what a teacher
/// says of the same positions (`signal`, S rows; none: cross-entropy alone, which with a gradient
/// needs `alpha` = 0).
///
/// With `grad` `[V, D]` also the gradient of `scale · Σ total` (`scale` is 1/N, N the scored
/// positions of the whole step): added to the first `classes` rows of `grad`, and returned as
/// [`HeadLoss::d_hidden`].
///
/// # Errors
/// When shapes, types, the device or a setting do not fit, a target or a signal's id is not below
/// `classes`, or a signal of all classes speaks of mass outside them.
#[expect(clippy::too_many_arguments, reason = "one call an optimiser step, each of them is needed")]
pub fn head_loss(
    hidden: &Tensor,
    w: &Tensor,
    classes: usize,
    targets: &[u32],
    signal: Option<&TopK>,
    settings: &LossSettings,
    scale: f64,
    grad: Option<&Tensor>,
) -> Result<HeadLoss> {
    let (positions, width) = hidden.dims2()?;
    check_classes("output matrix", w, classes, width)?;
    check_targets(targets, positions, classes)?;
    check_settings(settings, signal.is_some(), grad.is_some())?;
    if let Some(signal) = signal {
        check_signal(signal, positions, classes)?;
    }

    let (hidden, w) = (read(hidden), read(w));
    let hidden = MatRef::new(hidden.floats()?, positions, width);
    let w = MatRef::new(w.floats()?, classes, width);
    let head = Head { hidden, w, width, classes, targets, signal, settings };
    match grad {
        None => head.losses(),
        Some(grad) => {
            check_classes("gradient of the output matrix", grad, classes, width)?;
            let scale = scale as f32;
            write_f32(&grad.narrow(0, 0, classes)?, |dw| head.losses_and_gradients(scale, dw))
        }
    }
}

/// The checked arguments of [`head_loss`].
struct Head<'a> {
    /// `[S, width]`
    hidden: MatRef<'a>,
    /// `[classes, width]`, as stored.
    w: MatRef<'a>,
    width: usize,
    classes: usize,
    targets: &'a [u32],
    signal: Option<&'a TopK>,
    settings: &'a LossSettings,
}

impl Head<'_> {
    fn losses(&self) -> Result<HeadLoss> {
        let mut losses = Vec::with_capacity(self.targets.len());
        let mut buffer = logits_buffer(self.targets.len(), self.classes);
        for chunk in chunks(self.targets.len()) {
            let rows = self.listen(&chunk, &mut buffer);
            losses.extend(rows.iter().map(|row| row.losses(&row.softmax())));
        }
        Ok(HeadLoss::new(&losses, None))
    }

    fn losses_and_gradients(&self, scale: f32, dw: &mut [f32]) -> Result<HeadLoss> {
        let mut d_hidden = vec![0.0; self.targets.len() * self.width];
        let mut losses = Vec::with_capacity(self.targets.len());
        let mut buffer = logits_buffer(self.targets.len(), self.classes);
        for chunk in chunks(self.targets.len()) {
            let rows = self.listen(&chunk, &mut buffer);
            let softmax: Vec<Softmax> = rows.iter().map(Row::softmax).collect();
            losses.extend(rows.iter().zip(&softmax).map(|(row, softmax)| row.losses(softmax)));
            let hidden = self.hidden.row_range(chunk.clone());
            let d_hidden = &mut d_hidden[chunk.start * self.width..chunk.end * self.width];
            let mut d_hidden = MatMut::new(d_hidden, chunk.len(), self.width);
            let mut store = Store::Replace;
            for block in blocks(self.classes) {
                // Where all classes are one block their logits are still there.
                let logits = match block.len() == self.classes {
                    true => &mut buffer[..chunk.len() * self.classes],
                    false => self.project(&mut buffer, &chunk, &block),
                };
                let columns = logits.par_chunks_mut(block.len()).zip(&rows).zip(&softmax);
                columns.for_each(|((logits, row), softmax)| {
                    row.gradient(softmax, logits, block.start);
                });
                let dlogits = MatRef::new(&*logits, chunk.len(), block.len());
                let w = self.w.row_range(block.clone());
                self.product(d_hidden.reborrow(), store, scale, dlogits, w);
                store = Store::Add;
                let dw = &mut dw[block.start * self.width..block.end * self.width];
                let dw = MatMut::new(dw, block.len(), self.width);
                self.product(dw, Store::Add, scale, dlogits.transposed(), hidden);
            }
        }
        let d_hidden = tensor(d_hidden, (self.targets.len(), self.width))?;
        Ok(HeadLoss::new(&losses, Some(d_hidden)))
    }

    /// The rows of a chunk, all their logits heard. Those of the last block stay in `buffer`.
    fn listen(&self, chunk: &Range<usize>, buffer: &mut [f32]) -> Vec<Row> {
        let mut rows: Vec<Row> = chunk.clone().map(|position| self.row(position)).collect();
        for block in blocks(self.classes) {
            let logits = self.project(buffer, chunk, &block);
            let columns = logits.par_chunks_mut(block.len()).zip(&mut rows);
            columns.for_each(|(logits, row)| row.listen(logits, block.start));
        }
        rows
    }

    /// The logits of a chunk for a block of classes, in the front part of `buffer`.
    fn project<'b>(
        &self,
        buffer: &'b mut [f32],
        chunk: &Range<usize>,
        block: &Range<usize>,
    ) -> &'b mut [f32] {
        let logits = &mut buffer[..chunk.len() * block.len()];
        let target = MatMut::new(logits, chunk.len(), block.len());
        let hidden = self.hidden.row_range(chunk.clone());
        let w = self.w.row_range(block.clone());
        self.product(target, Store::Replace, 1.0, hidden, w.transposed());
        logits
    }

    fn product(&self, dst: MatMut<'_>, store: Store, alpha: f32, a: MatRef<'_>, b: MatRef<'_>) {
        product(dst, store, alpha, a, b, self.settings.precision, Threads::Pool);
    }

    fn row(&self, position: usize) -> Row {
        let signal = self.signal.map(|signal| (signal, position));
        Row::new(self.targets[position] as usize, signal, self.settings)
    }
}

impl HeadLoss {
    fn new(rows: &[RowLoss], d_hidden: Option<Tensor>) -> Self {
        let column = |of: fn(&RowLoss) -> f64| rows.iter().map(|row| of(row) as f32).collect();
        Self {
            ce: column(|row| row.ce),
            kl: column(|row| row.kl),
            argmax: rows.iter().map(|row| row.argmax).collect(),
            teacher_mass: column(|row| row.teacher_mass),
            student_mass: column(|row| row.student_mass),
            d_hidden,
        }
    }
}

/// Positions in chunks of nearly equal size, at most [`CHUNK_POSITIONS`].
pub(super) fn chunks(positions: usize) -> impl Iterator<Item = Range<usize>> {
    let chunks = positions.div_ceil(CHUNK_POSITIONS);
    (0..chunks).map(move |n| n * positions / chunks..(n + 1) * positions / chunks)
}

/// Classes in blocks of [`BLOCK_CLASSES`].
pub(super) fn blocks(classes: usize) -> impl Iterator<Item = Range<usize>> {
    (0..classes).step_by(BLOCK_CLASSES).map(move |start| start..classes.min(start + BLOCK_CLASSES))
}

/// Room for the logits of a chunk for a block.
pub(super) fn logits_buffer(positions: usize, classes: usize) -> Vec<f32> {
    vec![0.0; logits_elements(positions, classes)]
}

/// How many logits exist at a time.
pub(crate) fn logits_elements(positions: usize, classes: usize) -> usize {
    CHUNK_POSITIONS.min(positions) * BLOCK_CLASSES.min(classes)
}

/// Refuses a matrix `[V, D]` whose width is not `width` or which has fewer rows than `classes`.
pub(super) fn check_classes(what: &str, w: &Tensor, classes: usize, width: usize) -> Result<()> {
    let (rows, columns) = w.dims2()?;
    if columns != width {
        bail!("{what}: width {columns} found, {width} wanted");
    }
    if classes == 0 || classes > rows {
        bail!("{what}: {classes} classes asked for, it has rows for 1 to {rows}");
    }
    Ok(())
}

/// Refuses settings no loss can be made of.
fn check_settings(settings: &LossSettings, signal: bool, gradient: bool) -> Result<()> {
    let LossSettings { alpha, temperature, .. } = *settings;
    if !(0.0..=1.0).contains(&alpha) {
        bail!("alpha is {alpha}, it must lie in 0 to 1");
    }
    check_temperature(temperature)?;
    if gradient && !signal && alpha != 0.0 {
        bail!("alpha is {alpha} but there is no signal of a teacher: without one it must be 0");
    }
    Ok(())
}

/// Refuses a temperature that is not a positive number.
pub(super) fn check_temperature(temperature: f64) -> Result<()> {
    if !(temperature.is_finite() && temperature > 0.0) {
        bail!("temperature is {temperature}, it must be finite and above 0");
    }
    Ok(())
}

fn check_targets(targets: &[u32], positions: usize, classes: usize) -> Result<()> {
    expect_len("targets", targets.len(), positions)?;
    if let Some(at) = targets.iter().position(|&id| id as usize >= classes) {
        bail!("position {at}: target {} is not one of the {classes} classes", targets[at]);
    }
    Ok(())
}

fn check_signal(signal: &TopK, positions: usize, classes: usize) -> Result<()> {
    let k = signal.k;
    if k == 0 || k > classes {
        bail!("signal: k is {k}, it must lie in 1 to {classes}, the classes");
    }
    expect_len("signal rows", signal.rows(), positions)?;
    expect_len("signal ids", signal.ids.len(), positions * k)?;
    expect_len("signal values", signal.scaled.len(), positions * k)?;
    expect_len("signal rests", signal.log_rest.len(), positions)?;
    if let Some(at) = signal.ids.iter().position(|&id| id as usize >= classes) {
        let (row, id) = (at / k, signal.ids[at]);
        bail!("signal row {row}: id {id} is not one of the {classes} classes");
    }
    let outside = |&log_rest: &f32| log_rest > f32::NEG_INFINITY;
    if let (true, Some(row)) = (k == classes, signal.log_rest.iter().position(outside)) {
        bail!("signal row {row}: mass outside its {k} ids, which are all the classes there are");
    }
    Ok(())
}

#[cfg(test)]
mod limits_tests;
#[cfg(test)]
#[path = "head_tests.rs"]
mod tests;
