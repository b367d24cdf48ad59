//! Numbers of steps back to hidden states, the same on every machine.

use std::sync::Arc;

use distill::coded::{Code, Numbers, Rung};
use distill::signal::HiddenStates;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::in_bytes::Digits;

/// Rows one thread reconstructs at a time.
const ROWS: usize = 256;

/// What turns coded rows of one step back into hidden states.
#[derive(Clone, Debug)]
pub struct Decoder {
    code: Arc<Code>,
    rung: Rung,
    sums: Sums,
}

/// How sums of whole numbers are made. Both are exact, so that both come to the same.
#[derive(Clone, Debug)]
enum Sums {
    /// By the processor's own products of bytes.
    #[cfg(target_arch = "x86_64")]
    Bytes(Digits),
    /// In `f64`, everywhere: the matrix `[width, directions]`.
    Doubles(Vec<f64>),
}

impl Decoder {
    /// Of this code at this step.
    pub fn new(code: Arc<Code>, rung: Rung) -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(digits) = Digits::of(&code, rung) {
            return Self { code, rung, sums: Sums::Bytes(digits) };
        }
        Self::in_doubles(code, rung)
    }

    fn in_doubles(code: Arc<Code>, rung: Rung) -> Self {
        let matrix = code.matrix().iter().map(|&entry| f64::from(entry)).collect();
        Self { code, rung, sums: Sums::Doubles(matrix) }
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
            .par_chunks_mut(ROWS * width)
            .zip(numbers.numbers.par_chunks(ROWS * directions))
            .for_each(|(values, numbers)| match &self.sums {
                #[cfg(target_arch = "x86_64")]
                Sums::Bytes(digits) => digits.reconstruct(numbers, values),
                Sums::Doubles(matrix) => self.reconstruct(matrix, numbers, values),
            });
        for (row, hidden) in &numbers.verbatim {
            values[row * width..(row + 1) * width].copy_from_slice(hidden);
        }
        HiddenStates { width, values }
    }

    fn reconstruct(&self, matrix: &[f64], numbers: &[i16], values: &mut [f32]) {
        let (width, directions) = (self.code.width(), self.code.directions());
        let rows = numbers.len() / directions;
        // The last directions are nearly always silent: what is 0 in all rows adds nothing.
        let last = |row: &[i16]| row.iter().rposition(|&n| n != 0).map_or(0, |at| at + 1);
        let used = numbers.chunks_exact(directions).map(last).max().unwrap_or(0);
        let spoken = numbers.chunks_exact(directions).flat_map(|row| &row[..used]);
        let spoken: Vec<f64> = spoken.map(|&n| f64::from(n)).collect();
        let mut sums = vec![0.0_f64; rows * width];
        let matrix = MatRef::from_row_major_slice(matrix, width, directions);
        matmul(
            MatMut::from_row_major_slice_mut(&mut sums, rows, width),
            Accum::Replace,
            MatRef::from_row_major_slice(&spoken, rows, used),
            matrix.subcols(0, used).transpose(),
            1.0,
            Par::Seq,
        );
        let unit = self.code.unit(self.rung);
        for (values, sums) in values.chunks_exact_mut(width).zip(sums.chunks_exact(width)) {
            for ((value, sum), mean) in values.iter_mut().zip(sums).zip(self.code.mean()) {
                *value = (sum * unit + f64::from(*mean)) as f32;
            }
        }
    }
}

#[cfg(test)]
#[path = "decoder_tests.rs"]
mod tests;
