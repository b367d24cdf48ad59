//! Whole programs on the host: their launches one after another in the emulation, their products summed in `f64`, their
//! buffers where a card would have them.

use super::{Memory, run_in};
use crate::counting::SLOTS;
use crate::executor::{Element, Executor, Inputs, Outputs};
use crate::program::{Home, Kind, Matrix, Places, Product, Program, Step, View};
use crate::{Argument, Call};

/// What was found, or what cannot be.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Found(String);

impl Found {
    /// What another device says.
    #[cfg(feature = "cuda")]
    pub(super) fn new(error: &dyn std::error::Error) -> Self {
        Self(error.to_string())
    }
}

/// Memory of a card that is none.
#[derive(Debug)]
pub struct Emulation {
    /// Orders of threads in which every launch is run.
    orders: Vec<u64>,
    kept: Vec<Vec<u8>>,
    /// Programs that were started and not finished.
    running: usize,
}

/// What memory that was never written holds: no numbers.
const NEVER_WRITTEN: u8 = 0xff;

impl Emulation {
    /// One whose launches run in so many orders.
    pub fn new(orders: u64) -> Self {
        Self { orders: (0..orders).collect(), kept: Vec::new(), running: 0 }
    }
}

impl Executor for Emulation {
    type Error = Found;
    type Running = Outputs;

    fn name(&self) -> String {
        "emulated".to_owned()
    }

    fn block_memory(&self) -> u32 {
        u32::MAX
    }

    fn is_out_of_memory(_: &Found) -> bool {
        false
    }

    fn is_lost(_: &Found) -> bool {
        false
    }

    fn keep(&mut self, _: &str, kind: Kind, len: usize) -> Result<View, Found> {
        self.kept.push(vec![0; len * kind.bytes()]);
        Ok(View { home: Home::Kept(self.kept.len() - 1), kind, start: 0, len })
    }

    fn write<T: Element>(&mut self, view: View, values: &[T]) -> Result<(), Found> {
        let Home::Kept(at) = view.home else { return Err(Found("no kept memory".to_owned())) };
        assert_eq!((view.kind, view.len), (T::KIND, values.len()), "what is written");
        let range = view.start..view.start + view.bytes();
        self.kept[at][range].copy_from_slice(bytemuck::cast_slice(values));
        Ok(())
    }

    fn read<T: Element>(&mut self, view: View) -> Result<Vec<T>, Found> {
        let Home::Kept(at) = view.home else { return Err(Found("no kept memory".to_owned())) };
        assert_eq!(view.kind, T::KIND, "what is read");
        Ok(bytemuck::pod_collect_to_vec(&self.kept[at][view.start..view.start + view.bytes()]))
    }

    fn start(&mut self, program: &Program, inputs: &Inputs) -> Result<Outputs, Found> {
        assert!(self.running < SLOTS, "{SLOTS} programs run already");
        let places = Places::of(program);
        let mut input = inputs.bytes().to_vec();
        input.resize(program.input_bytes, NEVER_WRITTEN);
        let mut run = Run {
            orders: &self.orders,
            kept: &mut self.kept,
            passing: vec![NEVER_WRITTEN; places.bytes],
            input,
            output: vec![NEVER_WRITTEN; program.output_bytes],
            places: &places,
        };
        for (number, step) in program.steps.iter().enumerate() {
            run.begin_lives(program, number);
            let part = program.parts.iter().rev().find(|(first, _)| *first <= number);
            let part = part.map_or("", |(_, name)| name);
            run.step(step).map_err(|what| Found(format!("step {number} ({part}): {what}")))?;
        }
        let outputs = Outputs::new(run.output);
        self.running += 1;
        Ok(outputs)
    }

    fn has_ended(&mut self, _: &Outputs) -> Result<bool, Found> {
        Ok(true)
    }

    fn finish(&mut self, running: Outputs) -> Result<Outputs, Found> {
        self.running -= 1;
        Ok(running)
    }
}

struct Run<'a> {
    orders: &'a [u64],
    kept: &'a mut [Vec<u8>],
    passing: Vec<u8>,
    input: Vec<u8>,
    output: Vec<u8>,
    places: &'a Places,
}

impl Run<'_> {
    /// Buffers that this step touches first hold nothing yet, whatever lay there before.
    fn begin_lives(&mut self, program: &Program, number: usize) {
        for (at, life) in self.places.lives.iter().enumerate() {
            if life.is_some_and(|[first, _]| first == number) {
                let start = self.places.starts[at];
                self.passing[start..start + program.passing[at].bytes].fill(NEVER_WRITTEN);
            }
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Call(call) => self.call(call),
            Step::Product(product) => self.product(product),
            Step::Zero(view) => {
                self.bytes_mut(view).fill(0);
                Ok(())
            }
            Step::Copy { from, to } => {
                let bytes = self.bytes(from).to_vec();
                self.bytes_mut(to).copy_from_slice(&bytes);
                Ok(())
            }
        }
    }

    /// A launch over copies of its views, each with pages beside it that nobody may touch.
    fn call(&mut self, call: &Call<View>) -> Result<(), String> {
        let mut views: Vec<View> = Vec::new();
        for view in Step::Call(call.clone()).views() {
            let overlaps = |other: &&View| {
                other.home == view.home
                    && other.start < view.start + view.bytes()
                    && view.start < other.start + other.bytes()
            };
            match views.iter().find(overlaps) {
                Some(same) if *same == view => {}
                Some(other) => {
                    return Err(format!("{}: {view:?} and {other:?} overlap", call.kernel));
                }
                None => views.push(view),
            }
        }
        let mut memory = Memory::default();
        let ids: Vec<_> =
            views.iter().map(|view| memory.of_bytes(view.kind, self.bytes(view))).collect();
        let arguments = call.arguments.iter().map(|argument| match argument {
            Argument::Buffer(view) => {
                let at = views.iter().position(|other| other == view);
                Argument::Buffer(ids[at.expect("every view was noted")])
            }
            Argument::U32(value) => Argument::U32(*value),
            Argument::F32(value) => Argument::F32(*value),
            Argument::F64(value) => Argument::F64(*value),
        });
        let over_copies = Call {
            kernel: call.kernel,
            blocks: call.blocks,
            threads: call.threads,
            memory: call.memory,
            arguments: arguments.collect(),
        };
        run_in(&over_copies, &memory, self.orders)?;
        for (view, id) in views.iter().zip(ids) {
            if !matches!(view.home, Home::Input) {
                self.bytes_mut(view).copy_from_slice(&memory.bytes_of(id));
            }
        }
        Ok(())
    }

    fn product(&mut self, of: &Product) -> Result<(), String> {
        let Product { a, b, into, plus, scale } = of;
        let ([m, k], [_, n]) = (a.shape(), b.shape());
        if a.view.kind == Kind::F32 && into.view.kind == Kind::Bf16 {
            return Err("a product of float32 into bfloat16".to_owned());
        }
        let (left, right) = (self.matrix(a)?, self.matrix(b)?);
        let before = match plus {
            Some(view) => self.matrix(&Matrix { view: *view, ..*into })?,
            None => vec![0.0; m * n],
        };
        let mut result = before;
        for (row, result) in result.chunks_exact_mut(n).enumerate() {
            for (column, result) in result.iter_mut().enumerate() {
                let sum: f64 = (0..k)
                    .map(|at| f64::from(left[row * k + at]) * f64::from(right[at * n + column]))
                    .sum();
                *result = (f64::from(*scale) * sum + f64::from(*result)) as f32;
            }
        }
        let (kind, stride) = (into.view.kind, into.stride);
        let bytes = self.bytes_mut(&into.view);
        for (at, &value) in result.iter().enumerate() {
            let place = (at / n * stride + at % n) * kind.bytes();
            match kind {
                Kind::Bf16 => {
                    let rounded = half::bf16::from_f32(value).to_le_bytes();
                    bytes[place..place + 2].copy_from_slice(&rounded);
                }
                Kind::F32 => bytes[place..place + 4].copy_from_slice(&value.to_le_bytes()),
                Kind::F64 | Kind::U32 | Kind::Bytes => {
                    return Err(format!("a product into {kind:?}"));
                }
            }
        }
        Ok(())
    }

    /// The elements as they take part, row after row.
    fn matrix(&self, of: &Matrix) -> Result<Vec<f32>, String> {
        let bytes = self.bytes(&of.view);
        let element = |at: usize| match of.view.kind {
            Kind::Bf16 => {
                Ok(half::bf16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]).to_f32())
            }
            Kind::F32 => {
                let four = bytes[4 * at..4 * at + 4].try_into();
                Ok(f32::from_le_bytes(four.expect("four bytes")))
            }
            kind @ (Kind::F64 | Kind::U32 | Kind::Bytes) => Err(format!("a product of {kind:?}")),
        };
        let [rows, columns] = of.shape();
        let place = |row: usize, column: usize| match of.transposed {
            true => column * of.stride + row,
            false => row * of.stride + column,
        };
        let all = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
        all.map(|(row, column)| element(place(row, column))).collect()
    }

    fn bytes(&self, view: &View) -> &[u8] {
        let (memory, start) = match view.home {
            Home::Kept(at) => (&self.kept[at], view.start),
            Home::Passing(at) => (&self.passing, self.places.starts[at] + view.start),
            Home::Input => (&self.input, view.start),
            Home::Output => (&self.output, view.start),
        };
        &memory[start..start + view.bytes()]
    }

    fn bytes_mut(&mut self, view: &View) -> &mut [u8] {
        let (memory, start) = match view.home {
            Home::Kept(at) => (&mut self.kept[at], view.start),
            Home::Passing(at) => (&mut self.passing, self.places.starts[at] + view.start),
            Home::Input => (&mut self.input, view.start),
            Home::Output => (&mut self.output, view.start),
        };
        &mut memory[start..start + view.bytes()]
    }
}

#[cfg(test)]
#[path = "executor_tests.rs"]
mod tests;
