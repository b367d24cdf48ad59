//! The output layer with the loss, as steps of a program: a chunk of positions at a time, over all classes, or where
//! memory does not allow that, over blocks of them.
//!
//! Of one block the student's logits are made once: heard, turned into their gradient where they lie, and multiplied
//! twice. Of several each is made twice, as on the processor ([`crate::ops::head`]): what a position's sums come to
//! must be known before its gradient is.

use std::ops::Range;

use kernels::Activations;
use kernels::executor::Outputs;
use kernels::head::{
    COEFFICIENTS, Classes, HEARD, LOSSES, Listed, Rows, Settings, full, gradient, heard, listen,
};
use kernels::program::{Kind, Matrix, Product, View};
use kernels::round::round;

use super::logits::{chunks, logits_width};
use super::network::{Making, Network};
use super::signals::{Teacher, listed, settings};
use super::weight::Weight;
use crate::ops::head::{HeadLoss, LossSettings, TeacherLoss};

/// Memory for the logits of a chunk and a block of classes, of both sides together where the teacher says all, in bytes.
pub(super) const LOGITS_BYTES: usize = 896 << 20;
/// Positions of a chunk, where memory allows for so many with all classes; else the classes come in blocks.
const LEAST_POSITIONS: usize = 256;

/// What is asked of the output layer.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) classes: usize,
    pub(super) targets: &'a [u32],
    pub(super) teacher: Option<Teacher<'a>>,
    pub(super) settings: &'a LossSettings,
    /// 1/N, N the scored positions of the whole step.
    pub(super) scale: f64,
    /// Memory for logits, in bytes.
    pub(super) bytes: usize,
}

/// Where the losses will lie, and the gradient of the hidden states.
pub(super) struct Losses {
    chunks: Vec<Chunk>,
    /// `[S, D]` in the activations' type, where a gradient was asked for.
    pub(super) d_hidden: Option<View>,
}

struct Chunk {
    positions: usize,
    /// `[LOSSES, positions]`
    losses: View,
    /// `[positions]`, and of the teacher as many more where it is measured.
    argmax: View,
    measured: bool,
}

/// The gradient, where it is wanted: of the output matrix `[V, D]` float32, added to.
pub(super) type Gradient = Option<View>;

/// Adds the losses of positions with these hidden states `[S, D]`, and their gradient.
pub(super) fn losses(
    making: &mut Making,
    network: &Network,
    hidden: View,
    asked: &Asked<'_>,
    gradient: Gradient,
) -> Losses {
    let d = network.config.hidden_size;
    let sides = if matches!(asked.teacher, Some(Teacher::Full { .. })) { 2 } else { 1 };
    let each = asked.bytes / sides;
    let block = block_of(asked.classes, each);
    let d_hidden =
        gradient.map(|_| making.program.passing("hidden states", hidden.kind, hidden.len));
    let mut all = Vec::new();
    for these in chunks(asked.targets.len(), logits_width(block), each) {
        making.program.part("output layer and loss");
        let states = these.start * d..these.end * d;
        let mut of = OfChunk::new(making, network, (hidden.part(states.clone()), these), asked);
        of.block = block;
        of.measured = sides == 2 && gradient.is_none();
        all.push(match gradient {
            None => of.losses(making),
            Some(dw) => {
                let chunk = of.losses(making);
                let to = d_hidden.expect("it is made with a gradient").part(states);
                of.gradients(making, to, dw);
                chunk
            }
        });
    }
    Losses { chunks: all, d_hidden }
}

/// Classes of a block: all, where so many logits of enough positions fit.
fn block_of(classes: usize, bytes: usize) -> usize {
    let fit = bytes / (LEAST_POSITIONS * size_of::<f32>());
    if logits_width(classes) <= fit { classes } else { (fit / 128 * 128).max(128).min(classes) }
}

/// One chunk's buffers.
struct OfChunk<'a> {
    network: &'a Network,
    positions: usize,
    classes: usize,
    block: usize,
    measured: bool,
    /// `[positions, D]`
    hidden: View,
    rows: Rows<View>,
    losses: View,
    listed: Option<Listed<View>>,
    /// Hidden states `[positions, E]`, output matrix, E.
    full: Option<(View, View, usize)>,
    settings: Settings,
    /// Of a block, and which block's they are.
    logits: View,
    teachers: Option<View>,
}

impl<'a> OfChunk<'a> {
    fn new(
        making: &mut Making,
        network: &'a Network,
        (hidden, these): (View, Range<usize>),
        asked: &Asked<'_>,
    ) -> Self {
        let positions = these.len();
        let targets = making.send(&asked.targets[these.clone()]);
        let listed = listed(making, asked.teacher, &these);
        let full = match asked.teacher {
            Some(Teacher::Full { hidden, w, width }) => {
                Some((hidden.part(these.start * width..these.end * width), w, width))
            }
            Some(Teacher::TopK(_) | Teacher::Draws(_)) | None => None,
        };
        let [kept, factors, sides] = if full.is_some() {
            [full::HEARD, full::COEFFICIENTS, 2]
        } else {
            [HEARD, COEFFICIENTS, 1]
        };
        let program = &mut making.program;
        let rows = Rows {
            targets,
            heard: program.passing("sums", Kind::F64, positions * kept),
            argmax: program.output(Kind::U32, sides * positions),
            coefficients: program.passing("sums", Kind::F32, positions * factors),
        };
        let losses = program.output(Kind::F32, LOSSES * positions);
        let block = asked.classes;
        let settings = settings(asked.settings, asked.scale);
        // They are made block by block.
        let logits = View { len: 0, ..losses };
        Self {
            network,
            positions,
            classes: asked.classes,
            block,
            measured: false,
            hidden,
            rows,
            losses,
            listed,
            full,
            settings,
            logits,
            teachers: None,
        }
    }

    fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (classes, block) = (self.classes, self.block);
        (0..classes).step_by(block).map(move |first| first..classes.min(first + block))
    }

    /// Whether the logits of all classes lie there at once.
    fn is_whole(&self) -> bool {
        self.block == self.classes
    }

    fn classes(&self, block: &Range<usize>) -> Classes {
        let [first, width, all] =
            [block.start, logits_width(block.len()), self.classes].map(|size| size as u32);
        Classes { first, width, all }
    }

    /// Both sides' logits of a block are made.
    fn project(&mut self, making: &mut Making, block: &Range<usize>) {
        let head = &self.network.views.head;
        let of_student = (self.hidden, self.network.config.hidden_size);
        self.logits = self.product(making, of_student, head, block);
        if let Some((hidden, w, width)) = self.full {
            let w = Weight::View(w);
            self.teachers = Some(self.product(making, (hidden, width), &w, block));
        }
    }

    fn product(
        &self,
        making: &mut Making,
        hidden: (View, usize),
        w: &Weight,
        block: &Range<usize>,
    ) -> View {
        let stride = logits_width(block.len());
        let logits = making.program.passing("logits", Kind::F32, self.positions * stride);
        w.logits(&mut making.program, hidden, block.clone(), (logits, stride));
        logits
    }

    fn sides(&self) -> Option<full::Logits<View>> {
        self.teachers.map(|teacher| full::Logits { student: self.logits, teacher })
    }

    fn full_rows(&self) -> full::Rows<View> {
        let Rows { targets, heard, argmax, coefficients } = self.rows;
        full::Rows { targets, heard, argmax, coefficients }
    }

    /// Everything is heard, and what it comes to put out. The logits of the last block stay.
    fn losses(&mut self, making: &mut Making) -> Chunk {
        let (positions, settings) = (self.positions as u32, self.settings);
        for block in self.blocks() {
            self.project(making, &block);
            let classes = self.classes(&block);
            making.program.call(match self.sides() {
                None => listen(self.logits, self.rows, self.listed, positions, classes, settings),
                Some(sides) => {
                    let rows = self.full_rows();
                    full::listen(sides, rows, positions, classes, settings, self.measured)
                }
            });
        }
        if self.full.is_some() && settings.asks_twice() {
            for block in self.blocks() {
                self.again(making, &block);
                let (classes, rows) = (self.classes(&block), self.full_rows());
                if let Some(sides) = self.sides() {
                    let call = full::listen_again(sides, rows, positions, classes, settings);
                    making.program.call(call);
                }
            }
        }
        making.program.call(match self.full {
            None => heard(self.rows, self.listed, self.losses, positions, settings),
            Some(_) => {
                full::heard(self.full_rows(), self.losses, positions, settings, self.measured)
            }
        });
        let Self { positions, losses, measured, rows: Rows { argmax, .. }, .. } = *self;
        Chunk { positions, losses, argmax, measured }
    }

    /// The logits of a block once more, where they are not there.
    fn again(&mut self, making: &mut Making, block: &Range<usize>) {
        if !self.is_whole() {
            self.project(making, block);
        }
    }

    /// The gradients of the hidden states, written, and of the output matrix, added to.
    fn gradients(&mut self, making: &mut Making, d_hidden: View, dw: View) {
        let d = self.network.config.hidden_size;
        // Sums over blocks are float32.
        let sum = if self.is_whole() || d_hidden.kind == Kind::F32 {
            d_hidden
        } else {
            making.program.passing("hidden states", Kind::F32, d_hidden.len)
        };
        for block in self.blocks() {
            self.again(making, &block);
            let dlogits = self.turned(making, &block);
            let (head, numbers) = (&self.network.views.head, block.start * d..block.end * d);
            let w = head.part(&mut making.program, numbers, d_hidden.kind);
            making.program.product(Product {
                a: dlogits,
                b: Matrix::of(w, [block.len(), d]),
                into: Matrix::of(sum, [self.positions, d]),
                plus: (block.start > 0).then_some(sum),
                scale: 1.0,
            });
            let dw = dw.part(block.start * d..block.end * d);
            making.program.product(Product {
                a: dlogits.transpose(),
                b: Matrix::of(self.hidden, [self.positions, d]),
                into: Matrix::of(dw, [block.len(), d]),
                plus: Some(dw),
                scale: 1.0,
            });
        }
        if sum != d_hidden {
            making.program.call(round([sum, d_hidden], sum.len as u32));
        }
    }

    /// The gradient of a block's logits, in their place.
    fn turned(&self, making: &mut Making, block: &Range<usize>) -> Matrix {
        let (positions, settings) = (self.positions as u32, self.settings);
        let (classes, activations) = (self.classes(block), self.network.activations);
        making.program.call(match self.sides() {
            None => {
                let (logits, listed) = (self.logits, self.listed);
                gradient(logits, self.rows, listed, positions, classes, settings, activations)
            }
            Some(sides) => {
                let rows = self.full_rows();
                full::gradient(sides, rows, positions, classes, settings, activations)
            }
        });
        let width = logits_width(block.len());
        let stride = match activations {
            Activations::F32 => width,
            // Each row begins where it began.
            Activations::Bf16 => 2 * width,
        };
        let view = self.logits.taken_for(activations.into());
        Matrix::strided(view, [self.positions, block.len()], stride)
    }
}

impl Losses {
    /// Where those will lie without which there is no step: cross-entropies and divergences.
    pub(super) fn that_must_be_finite(&self) -> impl Iterator<Item = View> {
        self.chunks.iter().map(|chunk| chunk.losses.part(0..2 * chunk.positions))
    }

    /// What was put out, as the processor says it.
    pub(super) fn read(&self, outputs: &Outputs) -> HeadLoss {
        let mut columns: [Vec<f32>; LOSSES] = Default::default();
        let (mut argmax, mut argmax_of_teacher) = (Vec::new(), Vec::new());
        let mut measured = false;
        for chunk in &self.chunks {
            let losses = outputs.get::<f32>(chunk.losses);
            for (column, of_chunk) in columns.iter_mut().zip(losses.chunks(chunk.positions)) {
                column.extend(of_chunk);
            }
            let ids = outputs.get::<u32>(chunk.argmax);
            argmax.extend(&ids[..chunk.positions]);
            argmax_of_teacher.extend(&ids[chunk.positions..]);
            measured |= chunk.measured;
        }
        let [ce, kl, teacher_mass, student_mass, kl_rest, teacher_entropy, of_teacher] = columns;
        let teacher = measured.then_some(TeacherLoss { ce: of_teacher, argmax: argmax_of_teacher });
        HeadLoss {
            ce,
            kl,
            argmax,
            teacher_mass,
            student_mass,
            kl_rest,
            teacher_entropy,
            teacher,
            d_hidden: None,
        }
    }
}
