//! Hidden states to coded rows and back: the matrix products of [`distill::coded`], and how a code is
//! made of a teacher ([`fn@fit`]).
//!
//! The teacher holds an [`Encoder`]: coordinates z = B (h - mean), numbers round(z / step). Which number
//! a coordinate rounds to is the encoder's affair: it computes in `f32`. The student's side holds a
//! [`Decoder`], whose sums are exact whole numbers in `f64` whatever their order (see
//! [`distill::coded`]), so that every machine finds the same hidden states.

mod file;
mod fit;
mod symmetric;

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};
use distill::coded::{Code, Numbers, Rung};
use distill::signal::HiddenStates;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::ops::product::{self, Store, Threads, product};
use crate::ops::{Precision, expect_len, read, tensor};
pub use file::CalibrationFileError;
pub use fit::{CalibrationError, Sample, enough_positions, fit, least_positions};

/// Rows whose coordinates exist at a time.
const CHUNK_ROWS: usize = 1024;
/// Rows one thread reconstructs at a time.
const DECODED_ROWS: usize = 256;

/// What turns a teacher's hidden states into coded rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoder {
    code: Arc<Code>,
    /// `[directions, width]`: from `h - mean` to coordinates.
    matrix: Vec<f32>,
}

impl Encoder {
    /// A code and the matrix `[directions, width]` that leads to its coordinates.
    ///
    /// # Errors
    /// When the matrix has another shape.
    pub fn new(code: Arc<Code>, matrix: Vec<f32>) -> Result<Self> {
        expect_len("encoding matrix", matrix.len(), code.directions() * code.width())?;
        Ok(Self { code, matrix })
    }

    /// The code: what a decoder needs.
    pub fn code(&self) -> &Arc<Code> {
        &self.code
    }

    /// Codes hidden states `[S, width]` float32.
    ///
    /// # Errors
    /// When the width is not the code's or a number is not finite.
    pub fn encode(&self, hidden: &Tensor, rung: Rung) -> Result<Vec<u8>> {
        let hidden = read(hidden);
        let values = hidden.f32()?;
        Ok(self.code.encode(rung, &self.numbers(values, rung)?, values))
    }

    /// The numbers `[S, directions]` of hidden states `[S, width]`.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn numbers(&self, hidden: &[f32], rung: Rung) -> Result<Vec<i32>> {
        let (width, directions) = (self.code.width(), self.code.directions());
        if !hidden.len().is_multiple_of(width) {
            bail!("hidden states: {} numbers found, a multiple of {width} wanted", hidden.len());
        }
        let steps = (1.0 / rung.step()) as f32;
        let matrix = product::MatRef::new(self.matrix.as_slice(), directions, width).transposed();
        let mut numbers = vec![0; hidden.len() / width * directions];
        let chunks = hidden.chunks(CHUNK_ROWS * width);
        for (hidden, numbers) in chunks.zip(numbers.chunks_mut(CHUNK_ROWS * directions)) {
            let rows = hidden.len() / width;
            let centred = hidden.chunks(width).flat_map(|h| h.iter().zip(self.code.mean()));
            let centred: Vec<f32> = centred.map(|(h, mean)| h - mean).collect();
            if centred.iter().any(|x| !x.is_finite()) {
                bail!("a hidden state is not a finite number");
            }
            let mut coordinates = vec![0.0_f32; rows * directions];
            let target = product::MatMut::new(&mut coordinates, rows, directions);
            let centred = product::MatRef::new(centred.as_slice(), rows, width);
            product(target, Store::Replace, steps, centred, matrix, Precision::F32, Threads::Pool);
            for (number, z) in numbers.iter_mut().zip(&coordinates) {
                // What is out of range saturates, and its row travels as it is.
                *number = z.round() as i32;
            }
        }
        Ok(numbers)
    }
}

/// What turns coded rows of one step back into hidden states.
#[derive(Clone, Debug)]
pub struct Decoder {
    code: Arc<Code>,
    rung: Rung,
    /// `[width, directions]`, whole numbers.
    matrix: Vec<f64>,
    unit: f64,
}

impl Decoder {
    /// Of this code at this step.
    pub fn new(code: Arc<Code>, rung: Rung) -> Self {
        let (matrix, unit) = code.decoding(rung);
        Self { code, rung, matrix, unit }
    }

    /// The code.
    pub fn code(&self) -> &Arc<Code> {
        &self.code
    }

    /// The step.
    pub fn rung(&self) -> Rung {
        self.rung
    }

    /// The hidden states of numbers `[S, directions]`, as [`Code::reconstruct`] has them to the bit.
    pub fn hidden_states(&self, numbers: &Numbers) -> HiddenStates {
        let (width, directions) = (self.code.width(), self.code.directions());
        let rows = numbers.numbers.len() / directions;
        let mut values = vec![0.0_f32; rows * width];
        values
            .par_chunks_mut(DECODED_ROWS * width)
            .zip(numbers.numbers.par_chunks(DECODED_ROWS * directions))
            .for_each(|(values, numbers)| self.reconstruct(numbers, values));
        for (row, hidden) in &numbers.verbatim {
            values[row * width..(row + 1) * width].copy_from_slice(hidden);
        }
        HiddenStates { width, values }
    }

    fn reconstruct(&self, numbers: &[i16], values: &mut [f32]) {
        let (width, directions) = (self.code.width(), self.code.directions());
        let rows = numbers.len() / directions;
        // The last directions are nearly always silent: what is 0 in all rows adds nothing.
        let last = |row: &[i16]| row.iter().rposition(|&n| n != 0).map_or(0, |at| at + 1);
        let used = numbers.chunks_exact(directions).map(last).max().unwrap_or(0);
        let spoken = numbers.chunks_exact(directions).flat_map(|row| &row[..used]);
        let spoken: Vec<f64> = spoken.map(|&n| f64::from(n)).collect();
        let mut sums = vec![0.0_f64; rows * width];
        let matrix = MatRef::from_row_major_slice(&self.matrix, width, directions);
        matmul(
            MatMut::from_row_major_slice_mut(&mut sums, rows, width),
            Accum::Replace,
            MatRef::from_row_major_slice(&spoken, rows, used),
            matrix.subcols(0, used).transpose(),
            1.0,
            Par::Seq,
        );
        for (values, sums) in values.chunks_exact_mut(width).zip(sums.chunks_exact(width)) {
            for ((value, sum), mean) in values.iter_mut().zip(sums).zip(self.code.mean()) {
                *value = (sum * self.unit + f64::from(*mean)) as f32;
            }
        }
    }
}

/// Hidden states as a tensor `[rows, width]`.
///
/// # Errors
/// When the values are no whole rows.
pub fn to_tensor(states: HiddenStates) -> Result<Tensor> {
    let rows = states.values.len() / states.width.max(1);
    tensor(states.values, (rows, states.width))
}

#[cfg(test)]
#[path = "coding/coding_tests.rs"]
mod tests;
