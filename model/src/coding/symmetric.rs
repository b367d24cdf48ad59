//! Symmetric matrices in `f64`: sums of outer products, and their principal axes.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par, Side};
use rayon::prelude::*;

/// Rows one thread takes at a time.
const ROWS: usize = 512;

/// `Σ_r weight_r x_r x_rᵀ` over rows `[R, width]`; without weights each counts 1.
pub(super) fn outer_products(rows: &[f32], width: usize, weights: Option<&[f64]>) -> Mat<f64> {
    let parts = rows.par_chunks(ROWS * width).enumerate().map(|(number, rows)| {
        let weight = |row: usize| weights.map_or(1.0, |w| w[number * ROWS + row]);
        let wide: Vec<f64> = rows.iter().map(|&x| f64::from(x)).collect();
        let weighed = rows.iter().enumerate().map(|(at, &x)| f64::from(x) * weight(at / width));
        let weighed: Vec<f64> = weighed.collect();
        let count = rows.len() / width;
        let mut sum = Mat::zeros(width, width);
        let (wide, weighed) = (
            MatRef::from_row_major_slice(&wide, count, width),
            MatRef::from_row_major_slice(&weighed, count, width),
        );
        matmul(&mut sum, Accum::Replace, weighed.transpose(), wide, 1.0, Par::Seq);
        sum
    });
    // A few parts at a time, put together in their order: the sum does not depend on the threads.
    let mut total = Mat::zeros(width, width);
    let parts: Vec<Mat<f64>> = parts.collect();
    parts.iter().for_each(|part| total += part);
    total
}

/// Axes by falling eigenvalue, and these; negative ones, which are rounding, as 0.
pub(super) fn principal_axes(matrix: &Mat<f64>) -> Option<(Vec<f64>, Mat<f64>)> {
    let found = matrix.self_adjoint_eigen(Side::Lower).ok()?;
    let (values, vectors) = (found.S().column_vector(), found.U());
    let size = values.nrows();
    let falling: Vec<f64> = (0..size).rev().map(|n| values[n].max(0.0)).collect();
    let axes = Mat::from_fn(size, size, |row, column| vectors[(row, size - 1 - column)]);
    Some((falling, axes))
}

/// The sum of the diagonal.
pub(super) fn trace(matrix: &Mat<f64>) -> f64 {
    (0..matrix.nrows()).map(|n| matrix[(n, n)]).sum()
}
