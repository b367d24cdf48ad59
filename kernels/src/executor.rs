//! What carries programs out: a card, or its emulation.

use std::time::Instant;

use bytemuck::Pod;

use crate::program::{Kind, Program, View};

/// A number as it lies in a buffer.
pub trait Element: Pod {
    /// Its kind.
    const KIND: Kind;
}

impl Element for f32 {
    const KIND: Kind = Kind::F32;
}

impl Element for f64 {
    const KIND: Kind = Kind::F64;
}

impl Element for half::bf16 {
    const KIND: Kind = Kind::Bf16;
}

impl Element for u8 {
    const KIND: Kind = Kind::Bytes;
}

impl Element for u32 {
    const KIND: Kind = Kind::U32;
}

/// A device that belongs to the thread that holds this.
pub trait Executor {
    /// Why it cannot do what it is asked for.
    type Error: std::error::Error + Send + Sync + 'static;
    /// A program that runs.
    type Running: Send;

    /// The device in the words of `--device`, and what it calls itself.
    fn name(&self) -> String;

    /// Bytes of memory that a block of a launch may take.
    fn block_memory(&self) -> u32;

    /// Whether memory did not suffice: then nothing was changed, and less may be tried.
    fn is_out_of_memory(error: &Self::Error) -> bool;

    /// Whether the device has failed for good: nothing runs on it in this process any more.
    fn is_lost(error: &Self::Error) -> bool;

    /// Memory that stays until the executor goes, all 0.
    ///
    /// # Errors
    /// When there is no room for it.
    fn keep(&mut self, name: &str, kind: Kind, len: usize) -> Result<View, Self::Error>;

    /// Writes kept memory, once all that runs has ended.
    ///
    /// # Errors
    /// When the device fails.
    fn write<T: Element>(&mut self, view: View, values: &[T]) -> Result<(), Self::Error>;

    /// Reads kept memory, once all that runs has ended.
    ///
    /// # Errors
    /// When the device fails.
    fn read<T: Element>(&mut self, view: View) -> Result<Vec<T>, Self::Error>;

    /// Starts a program behind those that run, of which there may be [`SLOTS`](crate::counting::SLOTS) with it.
    ///
    /// # Errors
    /// When there is no room for its buffers, or the device fails.
    fn start(&mut self, program: &Program, inputs: &Inputs) -> Result<Self::Running, Self::Error>;

    /// Whether a program has ended, without waiting for it.
    ///
    /// # Errors
    /// When the device fails.
    fn has_ended(&mut self, running: &Self::Running) -> Result<bool, Self::Error>;

    /// What a program has put out, once it has ended.
    ///
    /// # Errors
    /// When the device fails.
    fn finish(&mut self, running: Self::Running) -> Result<Outputs, Self::Error>;

    /// Starts a program and waits for what it puts out.
    ///
    /// # Errors
    /// As [`Self::start`] and [`Self::finish`].
    fn run(&mut self, program: &Program, inputs: &Inputs) -> Result<Outputs, Self::Error> {
        let running = self.start(program, inputs)?;
        self.finish(running)
    }

    /// Bytes of the device's memory that are taken, by whomever, where it can tell.
    ///
    /// # Errors
    /// When the device fails.
    fn taken(&self) -> Result<Option<u64>, Self::Error> {
        Ok(None)
    }

    /// From now on the time of every step of a program is noted, where the device can tell it; that makes it slower.
    fn note_times(&mut self) {}

    /// What was noted; no more is from now on. None where nothing was.
    fn take_times(&mut self) -> Option<Times> {
        None
    }
}

/// When steps of programs ran.
#[derive(Clone, Debug, PartialEq)]
pub struct Times {
    /// What the times count from.
    pub since: Instant,
    /// In the order in which they ran.
    pub steps: Vec<Timed>,
}

/// When a step of a program ran.
#[derive(Clone, Debug, PartialEq)]
pub struct Timed {
    /// The step.
    pub name: String,
    /// The part of the program that it belongs to.
    pub part: String,
    /// Its beginning and end in microseconds.
    pub ends: [f64; 2],
}

/// What is sent before a program runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inputs {
    bytes: Vec<u8>,
}

impl Inputs {
    /// Sets one of a program's inputs.
    ///
    /// # Panics
    /// When it is of another kind or length.
    pub fn set<T: Element>(&mut self, view: View, values: &[T]) {
        assert_eq!((view.kind, view.len), (T::KIND, values.len()), "an input");
        let end = view.start + view.bytes();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[view.start..end].copy_from_slice(bytemuck::cast_slice(values));
    }

    /// All of them, as they lie.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// What a program has put out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outputs {
    bytes: Vec<u8>,
}

impl Outputs {
    /// Of all their bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    /// One of them.
    ///
    /// # Panics
    /// When it is of another kind.
    pub fn get<T: Element>(&self, view: View) -> Vec<T> {
        assert_eq!(view.kind, T::KIND, "an output");
        bytemuck::pod_collect_to_vec(&self.bytes[view.start..view.start + view.bytes()])
    }
}
