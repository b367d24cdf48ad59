//! What the tests of the operations share: data, threads, distances.

use candle_core::{DType, Device, Result, Tensor};
use distill::signal::{Entries, TopK};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::ops::Precision;
use crate::ops::topk::{Wanted, score_head};

/// Where the operations' tensors lie.
pub(crate) fn device() -> Device {
    Device::Cpu
}

/// Values uniform in -1..1, the same for the same seed.
pub(crate) fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(-1.0..1.0_f32)).collect()
}

/// [`random`] as a matrix.
pub(crate) fn random_matrix(seed: u64, rows: usize, cols: usize) -> Tensor {
    matrix(&random(seed, rows * cols), rows, cols)
}

/// The first `rows·cols` values as a matrix.
pub(crate) fn matrix(values: &[f32], rows: usize, cols: usize) -> Tensor {
    Tensor::from_slice(&values[..rows * cols], (rows, cols), &device()).unwrap()
}

/// A vector as a tensor.
pub(crate) fn vector(values: &[f32]) -> Tensor {
    Tensor::from_slice(values, values.len(), &device()).unwrap()
}

/// Zeros to add gradients to.
pub(crate) fn zeros(shape: impl Into<candle_core::Shape>) -> Tensor {
    Tensor::zeros(shape, DType::F32, &device()).unwrap()
}

/// The values of a tensor, flat.
pub(crate) fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// The values as `f64`.
pub(crate) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().copied().map(f64::from).collect()
}

/// Runs `f` in a pool of so many threads.
pub(crate) fn on_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

/// Relative distance: the norm of the difference over the norm of the exact values.
pub(crate) fn error(found: &[f32], exact: &[f64]) -> f64 {
    error_beside(0.0, found, exact)
}

/// [`error`] where the exact values are sums whose addends have norm `size`, and may cancel.
pub(crate) fn error_beside(size: f64, found: &[f32], exact: &[f64]) -> f64 {
    assert_eq!(found.len(), exact.len());
    let difference: f64 = found.iter().zip(exact).map(|(f, e)| (f64::from(*f) - e).powi(2)).sum();
    let exact: f64 = exact.iter().map(|e| e * e).sum();
    difference.sqrt() / (exact.sqrt() + size).max(1e-30)
}

/// The k largest of each position, and the log-probabilities at T = 1 of the tokens that follow.
pub(crate) fn score_top(
    hidden: &Tensor,
    w: &Tensor,
    classes: usize,
    next: &[Option<u32>],
    temperature: f64,
    k: usize,
    precision: Precision,
) -> Result<(TopK, Vec<f32>)> {
    let wanted = Wanted { classes, next, temperature, k, entries: &Entries::Top };
    let scores = score_head(hidden, w, wanted, precision)?;
    Ok((scores.signal, scores.next_logprob))
}

/// Row ends of rows with the given lengths.
pub(crate) fn ends(lengths: &[usize]) -> Vec<usize> {
    lengths
        .iter()
        .scan(0, |end, length| {
            *end += length;
            Some(*end)
        })
        .collect()
}
