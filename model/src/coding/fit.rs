//! How a code is made of a teacher: from hidden states of some text and the output matrix.
//!
//! What an error e of a hidden state costs is, to second order, `½ eᵀ M_T e` with
//! `M_T = E[Wᵀ (diag p - p pᵀ) W] / T²`. One code serves every temperature:
//! `M = M_1 / tr M_1 + M_∞ / tr M_∞`, the limit of high T being the centred `WᵀW / V`. With
//! `M = AᵀA` the coordinates are `z = Eᵀ A (h - mean)`, E the principal axes of `A (h - mean)` over the
//! text.

use std::sync::Arc;

use candle_core::Tensor;
use distill::coded::{Code, CodedError, Parts, Rate, Rung};
use distill::fingerprint::Fingerprint;
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};

use super::symmetric::{outer_products, principal_axes, trace};
use super::{Decoder, Encoder};
use crate::ops::product::{MatMut, MatRef, Store, Threads, product};
use crate::ops::{Precision, read};
use crate::qwen3::ModelError;

/// Positions a code is measured on, of those it is not made from.
const MEASURED: usize = 512;
/// Of these, positions whose whole distributions are compared.
const COMPARED: usize = 96;
/// Most positions the expected curvature is taken from.
const CURVED: usize = 2048;
/// Positions whose distributions exist at a time.
const CHUNK: usize = 32;
/// Eigenvalues of the metric and of the coordinates count as at least this share of the largest.
const LEAST_SHARE: f64 = 1e-12;
/// Steps a code is measured at, from the coarsest at which anything is said: ten octaves.
const MOST_RATES: i16 = 160;

/// Hidden states to make a code from.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// Final hidden states `[positions, width]` float32 of a text, in its order.
    pub hidden: &'a Tensor,
    /// The output matrix `[V, width]`, any floating-point type.
    pub w: &'a Tensor,
    /// Rounding of the operands of the teacher's output product.
    pub precision: Precision,
    /// The teacher.
    pub model: Fingerprint,
}

/// Why no code can be made.
#[derive(Debug, thiserror::Error)]
pub enum CalibrationError {
    /// Too little text.
    #[error(
        "the calibration text has {found} tokens; a hidden state of {width} numbers needs at least \
         {wanted}: give more text"
    )]
    TooShort {
        /// Tokens there are.
        found: usize,
        /// Tokens needed.
        wanted: usize,
        /// Width of a hidden state.
        width: usize,
    },
    /// Text that says the same over and over.
    #[error(
        "the calibration text has {found} different tokens; at least {wanted} are needed: give text \
         like that which will be taught"
    )]
    Monotonous {
        /// Different tokens.
        found: usize,
        /// Different tokens needed.
        wanted: usize,
    },
    /// Hidden states without variance, or numbers that are not finite.
    #[error("no code can be made of these hidden states: {0}")]
    Degenerate(String),
    /// The code itself.
    #[error(transparent)]
    Code(#[from] CodedError),
    /// The forward pass failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// An operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// Positions a code for this width must be made from.
pub fn least_positions(width: usize) -> usize {
    1024.max(2 * width) + MEASURED
}

/// Positions a code for this width is made from where they can be had.
pub fn enough_positions(width: usize) -> usize {
    least_positions(width).max(8192)
}

/// Makes a code and measures what its steps take and cost on the last positions, from which it is not
/// made.
///
/// # Errors
/// [`CalibrationError`]
pub fn fit(sample: Sample<'_>) -> Result<Encoder, CalibrationError> {
    let (found, width) = sample.hidden.dims2()?;
    let wanted = least_positions(width);
    if found < wanted {
        return Err(CalibrationError::TooShort { found, wanted, width });
    }
    let states = read(sample.hidden);
    let states = states.f32()?;
    if states.iter().any(|x| !x.is_finite()) {
        return Err(CalibrationError::Degenerate("a number is not finite".to_owned()));
    }
    let (made_from, measured) = states.split_at((found - MEASURED) * width);
    let encoder = make(&sample, made_from, width)?;
    let rates = measure(&sample, &encoder, measured)?;
    let code = Code::clone(encoder.code()).with_rates(rates);
    Ok(Encoder::new(Arc::new(code), encoder.matrix)?)
}

fn make(sample: &Sample<'_>, states: &[f32], width: usize) -> Result<Encoder, CalibrationError> {
    let degenerate = |what: &str| CalibrationError::Degenerate(what.to_owned());
    let count = states.len() / width;
    let mut mean = vec![0.0_f64; width];
    for row in states.chunks_exact(width) {
        mean.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
    }
    let mean: Vec<f32> = mean.iter().map(|sum| (sum / count as f64) as f32).collect();
    let centred = states.chunks_exact(width).flat_map(|row| row.iter().zip(&mean));
    let centred: Vec<f32> = centred.map(|(x, mean)| x - mean).collect();

    let metric = metric(sample, states, width)?;
    let (curvatures, axes) =
        principal_axes(&metric).ok_or_else(|| degenerate("the metric has no axes"))?;
    let least = curvatures[0] * LEAST_SHARE;
    let root: Vec<f64> = curvatures.iter().map(|&c| c.max(least).sqrt()).collect();
    if !root.iter().all(|&r| r.is_finite() && r > 0.0) {
        return Err(degenerate("the metric is zero"));
    }
    // A = diag(root) axesᵀ, its inverse axes diag(1 / root).
    let whiten = Mat::from_fn(width, width, |row, column| root[row] * axes[(column, row)]);
    let unwhiten = Mat::from_fn(width, width, |row, column| axes[(row, column)] / root[column]);
    let covariance = outer_products(&centred, width, None) * faer::Scale(1.0 / count as f64);
    let covariance = times(&times(&whiten, &covariance), &whiten.transpose().to_owned());
    let (variances, directions) =
        principal_axes(&covariance).ok_or_else(|| degenerate("the states have no axes"))?;
    if !(variances[0].is_finite() && variances[0] > 0.0) {
        return Err(degenerate("they do not vary"));
    }
    let least = variances[0] * LEAST_SHARE;
    let spreads: Vec<f64> = variances.iter().map(|&v| v.max(least).sqrt()).collect();
    let encoding = times(&directions.transpose().to_owned(), &whiten);
    let decoding = times(&unwhiten, &directions);
    let matrix = row_major(&encoding, |x| x as f32);
    let standardised = standardised(&centred, &matrix, &spreads);
    let code = Code::new(Parts {
        model: sample.model,
        mean,
        spreads: &spreads,
        matrix: &row_major(&decoding, |x| x),
        standardised,
    })?;
    Ok(Encoder::new(Arc::new(code), matrix)?)
}

/// `M_1 / tr M_1 + M_∞ / tr M_∞`
fn metric(sample: &Sample<'_>, states: &[f32], width: usize) -> Result<Mat<f64>, CalibrationError> {
    let w = sample.w.to_dtype(candle_core::DType::F32)?;
    let w = read(&w);
    let w = w.f32()?;
    let classes = w.len() / width;
    let count = states.len() / width;
    // Evenly over the text.
    let chosen = count.min(CURVED);
    let chosen: Vec<f32> =
        (0..chosen).flat_map(|n| &states[n * count / chosen * width..][..width]).copied().collect();
    let mut mass = vec![0.0_f64; classes];
    let mut expected = Vec::with_capacity(chosen.len());
    let mut logits = vec![0.0_f32; CHUNK * classes];
    let matrix = MatRef::new(w, classes, width);
    for states in chosen.chunks(CHUNK * width) {
        let rows = states.len() / width;
        let p = &mut logits[..rows * classes];
        project(p, states, matrix, Precision::F32);
        for row in p.chunks_exact_mut(classes) {
            softmax(row);
            mass.iter_mut().zip(&*row).for_each(|(sum, &p)| *sum += f64::from(p));
        }
        let mut means = vec![0.0_f32; rows * width];
        let p = MatRef::new(&*p, rows, classes);
        let target = MatMut::new(&mut means, rows, width);
        product(target, Store::Replace, 1.0, p, matrix, Precision::F32, Threads::Pool);
        expected.extend(means);
    }
    let curvature = outer_products(w, width, Some(&mass)) - outer_products(&expected, width, None);
    let middle: Vec<f64> = (0..width)
        .map(|at| w.iter().skip(at).step_by(width).map(|&x| f64::from(x)).sum::<f64>())
        .collect();
    let flat = outer_products(w, width, None)
        - Mat::from_fn(width, width, |row, column| middle[row] * middle[column] / classes as f64);
    let (of_one, of_many) = (trace(&curvature), trace(&flat));
    if !(of_one > 0.0 && of_many > 0.0 && (of_one + of_many).is_finite()) {
        let what = "the teacher's distribution does not depend on its hidden states".to_owned();
        return Err(CalibrationError::Degenerate(what));
    }
    Ok(curvature * faer::Scale(1.0 / of_one) + flat * faer::Scale(1.0 / of_many))
}

/// Coordinates divided by their spread.
fn standardised(centred: &[f32], matrix: &[f32], spreads: &[f64]) -> Vec<f32> {
    let width = spreads.len();
    let rows = centred.len() / width;
    let mut z = vec![0.0_f32; rows * width];
    let (centred, matrix) = (MatRef::new(centred, rows, width), MatRef::new(matrix, width, width));
    let target = MatMut::new(&mut z, rows, width);
    let transposed = matrix.transposed();
    product(target, Store::Replace, 1.0, centred, transposed, Precision::F32, Threads::Pool);
    for row in z.chunks_exact_mut(width) {
        row.iter_mut().zip(spreads).for_each(|(z, spread)| *z /= *spread as f32);
    }
    z
}

/// What steps take and cost on these hidden states.
fn measure(
    sample: &Sample<'_>,
    encoder: &Encoder,
    states: &[f32],
) -> Result<Vec<Rate>, CalibrationError> {
    let code = encoder.code();
    let width = code.width();
    let rows = states.len() / width;
    let w = read(sample.w);
    let matrix = w.rows(sample.w.dim(0)?)?;
    let compared = &states[..COMPARED.min(rows) * width];
    let truth = log_probabilities(compared, width, matrix, sample.precision);
    let coarsest = coarsest(encoder, states)?;
    let mut rates = Vec::new();
    for rung in (0..MOST_RATES).map(|n| Rung(coarsest.0 - n)) {
        let numbers = encoder.numbers(states, rung)?;
        let coded = code.encode(rung, &numbers, states);
        let bytes = coded.len() as f32 / rows as f32;
        let read = code.decode(&coded, rows)?;
        if !read.verbatim.is_empty() {
            // Finer than 16 bits a number: nobody asks for that.
            break;
        }
        let decoded = Decoder::new(Arc::clone(code), rung).hidden_states(&read);
        let coded = &decoded.values[..compared.len()];
        let found = log_probabilities(coded, width, matrix, sample.precision);
        let terms = truth.iter().zip(&found).map(|(&p, &q)| f64::from(p).exp() * f64::from(p - q));
        let divergence = (terms.sum::<f64>() / (compared.len() / width) as f64).max(0.0) as f32;
        rates.push(Rate { rung, bytes, divergence });
        // Eight bits a number in groups are cheaper to have from here on.
        if bytes > width as f32 {
            break;
        }
    }
    rates.reverse();
    Ok(rates)
}

/// The coarsest step at which at least one number in a row is not 0.
fn coarsest(encoder: &Encoder, states: &[f32]) -> Result<Rung, CalibrationError> {
    let rows = states.len() / encoder.code().width();
    let mut rung = Rung::COARSEST;
    while rung > Rung::FINEST {
        let numbers = encoder.numbers(states, rung)?;
        if numbers.iter().filter(|&&n| n != 0).count() >= rows {
            return Ok(rung);
        }
        rung = Rung(rung.0 - 4);
    }
    Err(CalibrationError::Degenerate("no step is fine enough".to_owned()))
}

/// `log softmax` of hidden states under an output matrix, `[rows, V]`.
fn log_probabilities(
    states: &[f32],
    width: usize,
    w: MatRef<'_>,
    precision: Precision,
) -> Vec<f32> {
    let mut logits = vec![0.0_f32; states.len() / width * w.rows()];
    project(&mut logits, states, w, precision);
    for row in logits.chunks_exact_mut(w.rows()) {
        let largest = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let sum: f64 = row.iter().map(|&y| (f64::from(y) - largest).exp()).sum();
        let log_z = largest + sum.ln();
        row.iter_mut().for_each(|y| *y = (f64::from(*y) - log_z) as f32);
    }
    logits
}

fn project(logits: &mut [f32], states: &[f32], w: MatRef<'_>, precision: Precision) {
    let rows = logits.len() / w.rows();
    let target = MatMut::new(logits, rows, w.rows());
    let states = MatRef::new(states, rows, w.cols());
    product(target, Store::Replace, 1.0, states, w.transposed(), precision, Threads::Pool);
}

fn softmax(row: &mut [f32]) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut().for_each(|y| *y = (*y - largest).exp());
    let sum: f64 = row.iter().map(|&e| f64::from(e)).sum();
    row.iter_mut().for_each(|e| *e = (f64::from(*e) / sum) as f32);
}

fn times(a: &Mat<f64>, b: &Mat<f64>) -> Mat<f64> {
    let mut result = Mat::zeros(a.nrows(), b.ncols());
    matmul(&mut result, Accum::Replace, a, b, 1.0, Par::Seq);
    result
}

fn row_major<T>(matrix: &Mat<f64>, of: impl Fn(f64) -> T) -> Vec<T> {
    let places = (0..matrix.nrows()).flat_map(|row| (0..matrix.ncols()).map(move |c| (row, c)));
    places.map(|place| of(matrix[place])).collect()
}
