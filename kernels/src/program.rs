//! What a card is given to do at once: launches and matrix products, one after another, over buffers that have no
//! address yet.
//!
//! A program is written down for the shapes of one batch before any memory is taken. When each of its buffers is first
//! and last used is then known, and with it what memory the program takes ([`Places`]); the same program runs on
//! a card, in the emulation, and as a graph of a card that is launched at once.

mod places;

use std::ops::Range;

pub use places::Places;

use crate::{Activations, Argument, Call};

/// The type of a buffer's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Single precision.
    F32,
    /// Double precision.
    F64,
    /// Bfloat16.
    Bf16,
    /// Whole numbers.
    U32,
    /// Bytes of anything.
    Bytes,
}

impl Kind {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::Bytes => 1,
            Self::Bf16 => 2,
            Self::F32 | Self::U32 => 4,
            Self::F64 => 8,
        }
    }
}

impl From<Activations> for Kind {
    fn from(activations: Activations) -> Self {
        match activations {
            Activations::F32 => Self::F32,
            Activations::Bf16 => Self::Bf16,
        }
    }
}

/// Where a buffer lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// In memory that stays from program to program: what an executor's `keep` gave, by number.
    Kept(usize),
    /// In memory that this program alone uses, by number.
    Passing(usize),
    /// Among what is sent before it runs.
    Input,
    /// Among what is fetched when it has run.
    Output,
}

/// Elements of a buffer that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Where the buffer lies.
    pub home: Home,
    /// What its elements are taken for.
    pub kind: Kind,
    /// Bytes of the buffer before the first one.
    pub start: usize,
    /// How many there are.
    pub len: usize,
}

impl View {
    /// Bytes of its elements.
    pub fn bytes(&self) -> usize {
        self.len * self.kind.bytes()
    }

    /// Some of its elements.
    ///
    /// # Panics
    /// When it has not so many.
    pub fn part(self, elements: Range<usize>) -> Self {
        assert!(
            elements.start <= elements.end && elements.end <= self.len,
            "{elements:?} of {self:?}"
        );
        Self { start: self.start + elements.start * self.kind.bytes(), len: elements.len(), ..self }
    }

    /// The same bytes taken for elements of another kind.
    pub fn taken_for(self, kind: Kind) -> Self {
        Self { kind, len: self.bytes() / kind.bytes(), ..self }
    }
}

/// A matrix in a buffer, row after row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Matrix {
    /// Its elements.
    pub view: View,
    /// Rows as they lie.
    pub rows: usize,
    /// Columns as they lie.
    pub columns: usize,
    /// Elements from one row to the next.
    pub stride: usize,
    /// Whether it takes part as its transpose.
    pub transposed: bool,
}

impl Matrix {
    /// Rows that follow each other.
    pub fn of(view: View, [rows, columns]: [usize; 2]) -> Self {
        Self::strided(view, [rows, columns], columns)
    }

    /// Rows with `stride` elements from one to the next.
    ///
    /// # Panics
    /// When the view has not so many.
    pub fn strided(view: View, [rows, columns]: [usize; 2], stride: usize) -> Self {
        let needed = if rows == 0 { 0 } else { (rows - 1) * stride + columns };
        assert!(
            columns <= stride && needed <= view.len,
            "[{rows}, {columns}] by {stride} in {view:?}"
        );
        Self { view, rows, columns, stride, transposed: false }
    }

    /// Its transpose, in the same place.
    pub fn transpose(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }

    /// Rows and columns as it takes part.
    pub fn shape(&self) -> [usize; 2] {
        if self.transposed { [self.columns, self.rows] } else { [self.rows, self.columns] }
    }
}

/// `into = scale · a · b + plus`: `a` and `b` of one kind, bfloat16 or float32, sums in float32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    /// `[m, k]`
    pub a: Matrix,
    /// `[k, n]`
    pub b: Matrix,
    /// `[m, n]`, float32, or bfloat16 of bfloat16 (no library has bfloat16 of float32).
    pub into: Matrix,
    /// As `into` in kind and rows, and may be the same.
    pub plus: Option<View>,
    /// What the product is multiplied with.
    pub scale: f32,
}

/// One thing that a program does.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// A launch.
    Call(Call<View>),
    /// A matrix product.
    Product(Product),
    /// All bytes 0.
    Zero(View),
    /// The bytes of one view into another of as many.
    Copy {
        /// Read.
        from: View,
        /// Written.
        to: View,
    },
}

impl Step {
    /// The views it touches.
    pub fn views(&self) -> Vec<View> {
        match self {
            Self::Call(call) => {
                let view = |argument: &Argument<View>| match argument {
                    Argument::Buffer(view) => Some(*view),
                    Argument::U32(_) | Argument::F32(_) | Argument::F64(_) => None,
                };
                call.arguments.iter().filter_map(view).collect()
            }
            Self::Product(of) => {
                [of.a.view, of.b.view, of.into.view].into_iter().chain(of.plus).collect()
            }
            Self::Zero(view) => vec![*view],
            Self::Copy { from, to } => vec![*from, *to],
        }
    }

    /// What it is called in a timeline.
    pub fn name(&self) -> String {
        match self {
            Self::Call(call) => call.kernel.to_owned(),
            Self::Product(Product { a, b, .. }) => {
                let ([m, k], [_, n]) = (a.shape(), b.shape());
                format!("product {m} x {k} x {n}")
            }
            Self::Zero(_) => "zero".to_owned(),
            Self::Copy { .. } => "copy".to_owned(),
        }
    }
}

/// A buffer of one program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passing {
    /// What it holds.
    pub name: &'static str,
    /// How much.
    pub bytes: usize,
}

/// Where inputs begin: a multiple of it, in bytes.
const INPUT_ALIGNMENT: usize = 256;

/// Steps over buffers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Program {
    /// What is done, in this order.
    pub steps: Vec<Step>,
    /// Its own buffers.
    pub passing: Vec<Passing>,
    /// Parts of it by name: where each begins.
    pub parts: Vec<(usize, String)>,
    /// Bytes that are sent before it runs.
    pub input_bytes: usize,
    /// Bytes that are fetched when it has run.
    pub output_bytes: usize,
}

impl Program {
    /// A buffer of this program: what it holds is nothing until it is written.
    pub fn passing(&mut self, name: &'static str, kind: Kind, len: usize) -> View {
        self.passing.push(Passing { name, bytes: len * kind.bytes() });
        View { home: Home::Passing(self.passing.len() - 1), kind, start: 0, len }
    }

    /// A buffer that is sent before it runs.
    pub fn input(&mut self, kind: Kind, len: usize) -> View {
        let view = View { home: Home::Input, kind, start: self.input_bytes, len };
        self.input_bytes += view.bytes().next_multiple_of(INPUT_ALIGNMENT);
        view
    }

    /// A buffer that is fetched when it has run.
    pub fn output(&mut self, kind: Kind, len: usize) -> View {
        let view = View { home: Home::Output, kind, start: self.output_bytes, len };
        self.output_bytes += view.bytes().next_multiple_of(INPUT_ALIGNMENT);
        view
    }

    /// Begins a part of this name.
    pub fn part(&mut self, name: impl Into<String>) {
        self.parts.push((self.steps.len(), name.into()));
    }

    /// Adds a launch. One over nothing is left out: a card refuses it.
    pub fn call(&mut self, call: Call<View>) {
        if call.blocks.iter().all(|&blocks| blocks > 0) {
            self.steps.push(Step::Call(call));
        }
    }

    /// Adds launches.
    pub fn calls(&mut self, calls: impl IntoIterator<Item = Call<View>>) {
        calls.into_iter().for_each(|call| self.call(call));
    }

    /// Adds `into = scale · a · b + plus`.
    ///
    /// # Panics
    /// When the shapes do not fit.
    pub fn product(&mut self, product: Product) {
        let Product { a, b, into, plus, .. } = product;
        let ([m, k], [other, n]) = (a.shape(), b.shape());
        assert!(k == other && into.shape() == [m, n] && !into.transposed, "{product:?}");
        assert!(plus.is_none_or(|plus| plus.kind == into.view.kind && plus.len == into.view.len));
        if m > 0 && n > 0 {
            self.steps.push(Step::Product(product));
        }
    }

    /// Adds one that sets all bytes to 0.
    pub fn zero(&mut self, view: View) {
        if view.len > 0 {
            self.steps.push(Step::Zero(view));
        }
    }

    /// Adds one that copies.
    pub fn copy(&mut self, from: View, to: View) {
        assert_eq!(from.bytes(), to.bytes(), "{from:?} to {to:?}");
        if from.len > 0 {
            self.steps.push(Step::Copy { from, to });
        }
    }
}
