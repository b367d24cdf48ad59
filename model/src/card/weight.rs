//! A matrix of weights as programs read it: as it lies, or quantised, and then widened into a buffer of the program right
//! before what reads it.

use std::ops::Range;

use kernels::Activations;
use kernels::embed;
use kernels::program::{Kind, Matrix, Product, Program, View};
use kernels::quantised::{self, Quantised};

/// Room for the part of an output matrix that is widened at a time, in bytes, about: a small share of what a batch
/// takes.
const WIDENED_BYTES: usize = 128 << 20;
/// Classes of such a part: a multiple of it, as products like it.
const CLASSES: usize = 128;

/// A matrix of weights.
#[derive(Clone, Debug)]
pub(super) enum Weight {
    /// In the activations' type.
    View(View),
    /// Rows below each other, some of them quantised. Nothing is trained of it.
    Pieces(Vec<Piece>),
}

/// Rows that are stored in one way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// Bytes of blocks, or numbers in the activations' type.
    pub(super) view: View,
    pub(super) quantised: Option<Quantised>,
    /// How many numbers.
    pub(super) len: usize,
}

impl Piece {
    /// Some of its numbers, whole blocks.
    fn part(self, numbers: Range<usize>) -> Self {
        let Some(of) = self.quantised else {
            return Self { view: self.view.part(numbers.clone()), len: numbers.len(), ..self };
        };
        let bytes = of.bytes_of(numbers.start)..of.bytes_of(numbers.end);
        Self { view: self.view.part(bytes), len: numbers.len(), ..self }
    }

    fn widen(self, program: &mut Program, to: View) {
        match self.quantised {
            None => program.copy(self.view, to),
            Some(of) => {
                program.call(quantised::widen([self.view, to], of, self.len, activations(to.kind)));
            }
        }
    }
}

fn activations(kind: Kind) -> Activations {
    if kind == Kind::Bf16 { Activations::Bf16 } else { Activations::F32 }
}

impl Weight {
    /// How many numbers.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::View(view) => view.len,
            Self::Pieces(pieces) => pieces.iter().map(|piece| piece.len).sum(),
        }
    }

    /// All of it in the activations' type, `kind`.
    pub(super) fn whole(&self, program: &mut Program, kind: Kind) -> View {
        self.part(program, 0..self.len(), kind)
    }

    /// Some of its numbers, whole rows.
    pub(super) fn part(&self, program: &mut Program, numbers: Range<usize>, kind: Kind) -> View {
        let pieces = match self {
            Self::View(view) => return view.part(numbers),
            Self::Pieces(pieces) => pieces,
        };
        let widened = program.passing("weights", kind, numbers.len());
        let mut first = 0;
        for piece in pieces {
            let (start, end) = (numbers.start.max(first), numbers.end.min(first + piece.len));
            if start < end {
                let to = widened.part(start - numbers.start..end - numbers.start);
                piece.part(start - first..end - first).widen(program, to);
            }
            first += piece.len;
        }
        widened
    }

    /// `y[j] = w[ids[j]]`: `ids` `[rows]` u32, `y` `[rows, width]` float32.
    pub(super) fn gather(&self, program: &mut Program, [ids, y]: [View; 2], size: [u32; 2]) {
        match self {
            Self::View(w) => {
                program.call(embed::gather([*w, ids, y], size, activations(w.kind)));
            }
            Self::Pieces(pieces) => {
                // An embedding is one parameter, and one that is not quantised is a view.
                for Piece { view, quantised, .. } in pieces {
                    let of = quantised.expect("an embedding in pieces is quantised");
                    program.call(quantised::gather([*view, ids, y], of, size));
                }
            }
        }
    }

    /// Logits of these classes, which the rows of the matrix stand for: `hidden` `[rows, width]`, `logits` `[rows,
    /// stride]` float32. A quantised matrix is widened in parts.
    pub(super) fn logits(
        &self,
        program: &mut Program,
        hidden: (View, usize),
        classes: Range<usize>,
        logits: (View, usize),
    ) {
        self.logits_within(WIDENED_BYTES, program, hidden, classes, logits);
    }

    /// The same with parts of so many bytes.
    pub(super) fn logits_within(
        &self,
        bytes: usize,
        program: &mut Program,
        (hidden, width): (View, usize),
        classes: Range<usize>,
        (logits, stride): (View, usize),
    ) {
        let rows = hidden.len / width;
        let fit = match self {
            Self::View(_) => classes.len(),
            Self::Pieces(_) => bytes / (width * hidden.kind.bytes()) / CLASSES * CLASSES,
        };
        let size = fit.max(CLASSES);
        for first in classes.clone().step_by(size) {
            let these = first..classes.end.min(first + size);
            let w = self.part(program, these.start * width..these.end * width, hidden.kind);
            let to = logits.part(first - classes.start..logits.len);
            program.product(Product {
                a: Matrix::of(hidden, [rows, width]),
                b: Matrix::of(w, [these.len(), width]).transpose(),
                into: Matrix::strided(to, [rows, these.len()], stride),
                plus: None,
                scale: 1.0,
            });
        }
    }
}
