//! The output matrix, the loss and their gradients together, a chunk of positions and a block of
//! classes at a time.
//!
//! A first sweep over the blocks sums each position's exponentials; a second one computes the same
//! logits again and turns them into their gradient in place, from which both gradients of the
//! output layer are made at once. So every part of the output matrix and of its gradient is read
//! twice a chunk whatever V is, and the student's logits exist for one block only. The product that is done
//! again costs a quarter of the layer's arithmetic; keeping its result would cost V numbers a position.
//! Where all classes are one block nothing is done again. A divergence that needs the sums over all
//! classes before its value can be summed (Jensen-Shannon's, under a teacher that says all) has one more
//! sweep between the two.
//!
//! A teacher that says all gives its hidden states: its logits are made beside the student's, block by
//! block, and go the same way; those of the first blocks stay for the second sweep, as far as a fixed
//! room goes.
//!
//! The k tokens of a signal are taken out of the row first, set to -inf, and treated in `f64`: what
//! is summed is then the mass of *all other* tokens, with a scale of its own.
//!
//! The formulas are those of [`distill::reference`], which the tests hold this against.

mod apart;
mod check;
pub(crate) mod exps;
mod full;
mod listed;
mod loss;
mod middle;
mod position;
mod row;
mod settings;

use std::ops::Range;

use candle_core::{Result, Tensor};
use distill::signal::{Draws, TopK};
use rayon::prelude::*;

use super::product::{MatMut, MatRef, Store, Threads, product};
use super::{expect_len, read, tensor, write_f32};
pub(crate) use check::check_asked;
pub(super) use check::{check_classes, check_temperature};
pub use distill::reference::{Divergence, Tail};
use full::FullRow;
use listed::Listed;
pub use loss::{HeadLoss, TeacherLoss};
use position::{Listening, Position};
use row::Row;
pub use settings::LossSettings;

/// Classes whose logits exist at a time. Fixed: a row's sums must not depend on the rest of the batch.
pub(super) const BLOCK_CLASSES: usize = 4096;
/// Positions whose logits exist at a time: with [`BLOCK_CLASSES`] 32 MiB.
const CHUNK_POSITIONS: usize = 2048;
/// Logits of a teacher that says all which are kept from the first sweep for the next, as far as whole
/// blocks go: 128 MiB. Its hidden states are wider than the student's, and their product costs most.
const KEPT_LOGITS: usize = 32 << 20;
/// Memory for the logits of a teacher that says all, at most, in bytes: what is kept, and a block.
pub const TEACHER_LOGITS_BYTES: u64 = 4 * (KEPT_LOGITS + CHUNK_POSITIONS * BLOCK_CLASSES) as u64;

/// What a teacher says of S positions.
#[derive(Clone, Copy, Debug)]
pub enum Teaching<'a> {
    /// The most probable tokens of each and the mass of the rest.
    TopK(&'a TopK),
    /// Draws from its probabilities, beside exact ones or alone, and so an estimate of all of them that is
    /// on average right; its gradient is too, its divergence is not ([`distill::reference::kl_draws`]).
    /// [`LossSettings::tail`] means nothing to it: there is no mass outside.
    Draws(&'a Draws),
    /// All of its logits: those of its hidden states `[S, E]` under its output matrix `[V', E]`, both of
    /// any floating-point type, of which the first classes take part. They exist for a block of classes
    /// at a time, as the student's do.
    Full {
        /// `[S, E]`
        hidden: &'a Tensor,
        /// `[V', E]`
        w: &'a Tensor,
    },
}

impl<'a> Teaching<'a> {
    fn listed(self) -> Option<Listed<'a>> {
        match self {
            Self::TopK(signal) => Some(Listed::TopK(signal)),
            Self::Draws(signal) => Some(Listed::Draws(signal)),
            Self::Full { .. } => None,
        }
    }

    /// Hidden states and output matrix.
    fn full(self) -> Option<[&'a Tensor; 2]> {
        match self {
            Self::TopK(_) | Self::Draws(_) => None,
            Self::Full { hidden, w } => Some([hidden, w]),
        }
    }
}

/// Losses of the positions `hidden` `[S, D]` under the output matrix `w` `[V, D]`, of which the
/// first `classes` rows take part, against the next tokens `targets` `[S]` and what a teacher
/// says of the same positions (`signal`; none: cross-entropy alone, which with a gradient
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
    signal: Option<Teaching<'_>>,
    settings: &LossSettings,
    scale: f64,
    grad: Option<&Tensor>,
) -> Result<HeadLoss> {
    let (positions, width) = hidden.dims2()?;
    check_classes("output matrix", w, classes, width)?;
    expect_len("targets", targets.len(), positions)?;
    check_asked(w.dim(0)?, classes, targets, signal, settings, grad.is_some())?;

    let (hidden, w) = (read(hidden), read(w));
    let teacher = signal.and_then(Teaching::full).map(|tensors| tensors.map(read));
    let full = match &teacher {
        Some([hidden, w]) => Some([hidden.rows(positions)?, w.rows(classes)?]),
        None => None,
    };
    let (hidden, w) = (hidden.rows(positions)?, w.rows(classes)?);
    let listed = signal.and_then(Teaching::listed);
    let head = Head { hidden, w, full, width, classes, targets, listed, settings };
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
    /// The teacher's `[S, E]` and `[classes, E]`, where it says all.
    full: Option<[MatRef<'a>; 2]>,
    width: usize,
    classes: usize,
    targets: &'a [u32],
    listed: Option<Listed<'a>>,
    settings: &'a LossSettings,
}

/// Logits of a chunk of positions for a block of classes, the student's and the teacher's where it says
/// all: room for them.
struct Logits {
    student: Vec<f32>,
    /// Of the first blocks, one beside the other, and behind them of any other.
    teacher: Vec<f32>,
    /// How many of its blocks stay.
    kept: usize,
}

impl Head<'_> {
    fn losses(&self) -> Result<HeadLoss> {
        let mut losses = Vec::with_capacity(self.targets.len());
        let mut room = self.room();
        for chunk in chunks(self.targets.len()) {
            let rows = self.hear(&chunk, &mut room, true);
            losses.par_extend(rows.par_iter().map(Position::losses));
        }
        Ok(HeadLoss::new(&losses, None))
    }

    fn losses_and_gradients(&self, scale: f32, dw: &mut [f32]) -> Result<HeadLoss> {
        let mut d_hidden = vec![0.0; self.targets.len() * self.width];
        let mut losses = Vec::with_capacity(self.targets.len());
        let mut room = self.room();
        for chunk in chunks(self.targets.len()) {
            let rows = self.hear(&chunk, &mut room, false);
            losses.par_extend(rows.par_iter().map(Position::losses));
            let hidden = self.hidden.row_range(chunk.clone());
            let d_hidden = &mut d_hidden[chunk.start * self.width..chunk.end * self.width];
            let mut d_hidden = MatMut::new(d_hidden, chunk.len(), self.width);
            let mut store = Store::Replace;
            for block in blocks(self.classes) {
                let (logits, teacher) = self.again(&mut room, &chunk, &block);
                in_rows(logits, teacher, &block, rows.par_iter(), |row, logits, teacher| {
                    row.gradient(logits, teacher, block.start);
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

    /// The rows of a chunk, all their logits heard, with the losses of a teacher that says all where
    /// these are measured. Those of the last block stay in `room`.
    fn hear(&self, chunk: &Range<usize>, room: &mut Logits, measures: bool) -> Vec<Position> {
        let rows = chunk.clone().into_par_iter().map(|position| self.row(position, measures));
        let mut rows: Vec<Listening> = rows.collect();
        for block in blocks(self.classes) {
            let (logits, teacher) = self.project(room, chunk, &block);
            in_rows(logits, teacher, &block, rows.par_iter_mut(), |row, logits, teacher| {
                row.listen(logits, teacher, block.start);
            });
        }
        let mut rows: Vec<Position> = rows.into_par_iter().map(Listening::heard).collect();
        if self.listens_twice() {
            for block in blocks(self.classes) {
                let (logits, teacher) = self.again(room, chunk, &block);
                in_rows(logits, teacher, &block, rows.par_iter_mut(), |row, logits, teacher| {
                    row.listen_again(logits, teacher);
                });
            }
        }
        rows
    }

    fn listens_twice(&self) -> bool {
        self.full.is_some() && matches!(self.settings.divergence.simplest(), Divergence::Jsd { .. })
    }

    /// The logits of a block once more: where all classes are one block they are still there.
    fn again<'b>(
        &self,
        room: &'b mut Logits,
        chunk: &Range<usize>,
        block: &Range<usize>,
    ) -> (&'b mut [f32], &'b mut [f32]) {
        match block.len() == self.classes {
            true => room.of(chunk.len(), block),
            false => self.products(room, chunk, block, !room.keeps(block)),
        }
    }

    /// The logits of a chunk for a block of classes, in the front part of `room`; the teacher's are
    /// empty where it does not say all.
    fn project<'b>(
        &self,
        room: &'b mut Logits,
        chunk: &Range<usize>,
        block: &Range<usize>,
    ) -> (&'b mut [f32], &'b mut [f32]) {
        self.products(room, chunk, block, true)
    }

    /// The same; the teacher's only where they are `wanted`.
    fn products<'b>(
        &self,
        room: &'b mut Logits,
        chunk: &Range<usize>,
        block: &Range<usize>,
        wanted: bool,
    ) -> (&'b mut [f32], &'b mut [f32]) {
        let (logits, teacher) = room.of(chunk.len(), block);
        let project = |into: &mut [f32], hidden: MatRef<'_>, w: MatRef<'_>| {
            let target = MatMut::new(into, chunk.len(), block.len());
            let (hidden, w) = (hidden.row_range(chunk.clone()), w.row_range(block.clone()));
            self.product(target, Store::Replace, 1.0, hidden, w.transposed());
        };
        project(logits, self.hidden, self.w);
        if let (Some([hidden, w]), true) = (self.full, wanted) {
            project(teacher, hidden, w);
        }
        (logits, teacher)
    }

    fn product(&self, dst: MatMut<'_>, store: Store, alpha: f32, a: MatRef<'_>, b: MatRef<'_>) {
        product(dst, store, alpha, a, b, self.settings.precision, Threads::Pool);
    }

    fn row(&self, position: usize, measures: bool) -> Listening {
        let target = self.targets[position] as usize;
        match self.full {
            Some(_) => Listening::Full(FullRow::new(target, self.settings, measures)),
            None => {
                let signal = self.listed.map(|signal| (signal, position));
                Listening::Listed(Row::new(target, signal, self.settings))
            }
        }
    }

    fn room(&self) -> Logits {
        let student = logits_buffer(self.targets.len(), self.classes);
        if self.full.is_none() {
            return Logits { student, teacher: Vec::new(), kept: 0 };
        }
        let blocks = self.classes.div_ceil(BLOCK_CLASSES);
        let kept = (KEPT_LOGITS / student.len().max(1)).min(blocks - 1);
        let teacher = vec![0.0; (kept + 1) * student.len()];
        Logits { student, teacher, kept }
    }
}

impl Logits {
    /// Both sides' for so many positions and a block.
    fn of(&mut self, positions: usize, block: &Range<usize>) -> (&mut [f32], &mut [f32]) {
        let (each, count) = (self.student.len(), positions * block.len());
        let teacher = match self.teacher.is_empty() {
            true => &mut [],
            false => &mut self.teacher[number(block).min(self.kept) * each..][..count],
        };
        (&mut self.student[..count], teacher)
    }

    /// Whether the teacher's of a block stay until they are asked for again.
    fn keeps(&self, block: &Range<usize>) -> bool {
        number(block) < self.kept
    }
}

/// Calls `f` for each position of a chunk with its logits of a block, and the teacher's where there
/// are any.
fn in_rows<R: Send>(
    logits: &mut [f32],
    teacher: &[f32],
    block: &Range<usize>,
    rows: impl IndexedParallelIterator<Item = R>,
    f: impl Fn(R, &mut [f32], &[f32]) + Sync + Send,
) {
    let columns = logits.par_chunks_mut(block.len()).zip(rows).enumerate();
    columns.for_each(|(number, (logits, row))| {
        let teacher = teacher.get(number * block.len()..(number + 1) * block.len());
        f(row, logits, teacher.unwrap_or_default());
    });
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

/// Of the blocks in turn.
fn number(block: &Range<usize>) -> usize {
    block.start / BLOCK_CLASSES
}

/// Room for the logits of a chunk for a block.
pub(super) fn logits_buffer(positions: usize, classes: usize) -> Vec<f32> {
    vec![0.0; logits_elements(positions, classes)]
}

/// How many logits exist at a time.
pub(crate) fn logits_elements(positions: usize, classes: usize) -> usize {
    CHUNK_POSITIONS.min(positions) * BLOCK_CLASSES.min(classes)
}

#[cfg(test)]
pub(super) mod cases;
#[cfg(test)]
mod divergence_tests;
#[cfg(test)]
mod full_tests;
#[cfg(test)]
mod limits_tests;
#[cfg(test)]
mod listed_tests;
#[cfg(test)]
#[path = "head_tests.rs"]
mod tests;
