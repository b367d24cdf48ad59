//! A teacher's hidden states to numbers of steps.

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};
use distill::coded::{Code, Rung};

use crate::ops::product::{Laid, MatMut, MatRef, Store, Threads, product};
use crate::ops::{Precision, expect_len, read};

/// Rows whose coordinates exist at a time.
const CHUNK_ROWS: usize = 1024;
/// What rounding the operands to bfloat16 may do to a coordinate, in root mean square, as a share of the
/// step. A number's own error has `1 / √12` of it; both together are 0.15 % more.
const ROUNDING_SHARE: f64 = 1.0 / 64.0;
/// Largest relative error of a number rounded to bfloat16 (8 significant bits). The root mean square of what
/// rounding two operands does to a product is 0.6 of it, and 1.1 of it where one operand is as far off as can be.
const BF16_ROUNDING: f64 = 1.0 / 256.0;

/// What turns a teacher's hidden states into coded rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoder {
    pub(super) code: Arc<Code>,
    /// `[directions, width]`: from `h - mean` to coordinates.
    pub(super) matrix: Vec<f32>,
    /// The same rounded, transposed and laid out, where the processor has a kernel for it.
    laid: Option<Laid>,
    /// `[width]`: the mean square of a column of the matrix.
    squares: Vec<f32>,
}

impl Encoder {
    /// A code and the matrix `[directions, width]` that leads to its coordinates.
    ///
    /// # Errors
    /// When the matrix has another shape.
    pub fn new(code: Arc<Code>, matrix: Vec<f32>) -> Result<Self> {
        let (width, directions) = (code.width(), code.directions());
        expect_len("encoding matrix", matrix.len(), directions * width)?;
        let mut squares = vec![0.0_f64; width];
        for row in matrix.chunks_exact(width) {
            squares.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x).powi(2));
        }
        let squares = squares.iter().map(|sum| (sum / directions as f64) as f32).collect();
        let laid = Laid::out(transposed(&matrix, width));
        Ok(Self { code, matrix, laid, squares })
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
    /// A row is multiplied in bfloat16 where the processor does that faster and the step is coarse enough
    /// for this row, else in `f32`; which of the two does not depend on the rows beside it.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn numbers(&self, hidden: &[f32], rung: Rung) -> Result<Vec<i32>> {
        let (width, directions) = (self.code.width(), self.code.directions());
        if !hidden.len().is_multiple_of(width) {
            bail!("hidden states: {} numbers found, a multiple of {width} wanted", hidden.len());
        }
        let mut numbers = vec![0; hidden.len() / width * directions];
        let chunks = hidden.chunks(CHUNK_ROWS * width);
        let (mut centred, mut coordinates) = (Vec::new(), Vec::new());
        for (hidden, numbers) in chunks.zip(numbers.chunks_mut(CHUNK_ROWS * directions)) {
            centred.clear();
            for row in hidden.chunks_exact(width) {
                centred.extend(row.iter().zip(self.code.mean()).map(|(h, mean)| h - mean));
            }
            if !centred.iter().fold(true, |all, x| all & x.is_finite()) {
                bail!("a hidden state is not a finite number");
            }
            let rows = 0..centred.len() / width;
            let (rounded, exact): (Vec<usize>, Vec<usize>) =
                rows.partition(|row| self.bears_rounding(&centred[row * width..][..width], rung));
            for (rows, laid) in [(rounded, self.laid.as_ref()), (exact, None)] {
                self.coordinates(&rows, laid, &centred, rung, &mut coordinates);
                for (row, coordinates) in rows.iter().zip(coordinates.chunks_exact(directions)) {
                    let numbers = &mut numbers[row * directions..][..directions];
                    for (number, z) in numbers.iter_mut().zip(coordinates) {
                        // To the nearest, or beside it by rounding; what is out of range saturates, and its row travels as it is.
                        *number = (z + 0.5_f32.copysign(*z)) as i32;
                    }
                }
            }
        }
        Ok(numbers)
    }

    /// Whether what bfloat16 does to the coordinates of this row is lost beside the step.
    ///
    /// Taken as independent of each other, products of rounded operands are off by `√(Σ_j x_j² mean_i B_ij²)`
    /// times the relative error.
    fn bears_rounding(&self, centred: &[f32], rung: Rung) -> bool {
        let square = weighted_square(centred, &self.squares);
        let share = BF16_ROUNDING * f64::from(square).sqrt() / rung.step();
        self.laid.is_some() && share <= ROUNDING_SHARE
    }

    /// The coordinates of some rows, in steps.
    fn coordinates(
        &self,
        rows: &[usize],
        laid: Option<&Laid>,
        centred: &[f32],
        rung: Rung,
        coordinates: &mut Vec<f32>,
    ) {
        let (width, directions) = (self.code.width(), self.code.directions());
        let steps = (1.0 / rung.step()) as f32;
        let gathered: Vec<f32>;
        let these = if rows.len() * width == centred.len() {
            centred
        } else {
            let row = |&row: &usize| &centred[row * width..][..width];
            gathered = rows.iter().flat_map(row).copied().collect();
            &gathered
        };
        coordinates.resize(rows.len() * directions, 0.0);
        let target = MatMut::new(coordinates, rows.len(), directions);
        let these = MatRef::new(these, rows.len(), width);
        match laid {
            Some(laid) => laid.product(target, steps, these, Threads::Pool),
            None => {
                let (replace, matrix) = (Store::Replace, transposed(&self.matrix, width));
                product(target, replace, steps, these, matrix, Precision::F32, Threads::Pool);
            }
        }
    }
}

/// The matrix `[directions, width]` as the second operand of a product.
fn transposed(matrix: &[f32], width: usize) -> MatRef<'_> {
    MatRef::new(matrix, matrix.len() / width, width).transposed()
}

/// `Σ x² weight`, in sixteen sums.
fn weighted_square(x: &[f32], weights: &[f32]) -> f32 {
    let (x, weights) = (x.as_chunks::<16>(), weights.as_chunks::<16>());
    let mut sums = [0.0_f32; 16];
    for (x, weights) in x.0.iter().zip(weights.0) {
        for ((sum, x), weight) in sums.iter_mut().zip(x).zip(weights) {
            *sum += x * x * weight;
        }
    }
    let rest = x.1.iter().zip(weights.1).map(|(x, weight)| x * x * weight);
    sums.into_iter().chain(rest).sum()
}

#[cfg(test)]
#[path = "encoder_tests.rs"]
mod tests;
