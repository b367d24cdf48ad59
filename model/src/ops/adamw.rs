//! AdamW and clipping by the global norm, as PyTorch does them, over flat tensors.
//!
//! With gradient g (already scaled by the clipping factor), learning rate lr and step t from 1:
//!
//! ```text
//! p <- p (1 - lr · weight_decay)
//! m <- m + (1 - beta1) (g - m)
//! v <- beta2 v + (1 - beta2) g²
//! p <- p - lr / (1 - beta1^t) · m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)
//! ```
//!
//! (`torch.optim.AdamW`, single-tensor form: decoupled decay, bias correction, epsilon outside
//! the root.) Scalars are formed in `f64` and rounded once; every element is `f32`.

use candle_core::{Result, Tensor, bail};
use kernels::adamw::Scalars;
use multiversion::multiversion;
use rayon::prelude::*;

use super::{expect_shape, math, read, write_f32};

/// Elements of one task: fixed, so that sums do not depend on the number of threads.
const CHUNK: usize = 1 << 16;

/// The settings of the optimiser that do not change from step to step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the running mean of gradients.
    pub beta1: f64,
    /// Decay of the running mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Share of a parameter taken away a step, times the learning rate. It meets every
    /// parameter, norms and biases included, as `torch.optim.AdamW` does by default.
    pub weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 }
    }
}

/// The sum of the squares of gradients `[n]`, in `f64`; its root is their Euclidean norm. Not finite
/// when a gradient is not.
pub fn squared_norm(grads: &Tensor) -> Result<f64> {
    let grads = read(grads);
    let grads = grads.f32()?;
    let squares: Vec<f64> = grads.par_chunks(CHUNK).map(sum_of_squares).collect();
    Ok(squares.iter().sum())
}

/// The factor that brings gradients of norm `norm` down to `max_norm`: 1 when they are below it
/// already, as `torch.nn.utils.clip_grad_norm_`.
pub fn clip_scale(norm: f64, max_norm: f64) -> f64 {
    (max_norm / (norm + 1e-6)).min(1.0)
}

/// One step, in place, of the parameters from number `first` on: `state` `[3, P]` holds all
/// parameters, the first and the second moments, `grads` `[n]` the gradients of these n, each first
/// multiplied by `grad_scale`. `step` counts from 1.
///
/// # Errors
/// When shapes or types do not fit, or `step` is 0.
pub fn adamw_step(
    state: &Tensor,
    first: usize,
    grads: &Tensor,
    hyper: &AdamW,
    lr: f64,
    step: u64,
    grad_scale: f64,
) -> Result<()> {
    if step == 0 {
        bail!("AdamW: steps count from 1, found step 0");
    }
    let (count, parameters) = (grads.elem_count(), state.dim(1)?);
    expect_shape("AdamW gradients", grads, &[count])?;
    expect_shape("AdamW state", state, &[3, parameters])?;
    let these = first..first.saturating_add(count);
    if these.end > parameters {
        bail!("AdamW: gradients of the parameters {these:?} of {parameters}");
    }
    let scalars = scalars(hyper, lr, step);
    let grad_scale = grad_scale as f32;
    let grads = read(grads);
    let grads = grads.f32()?;
    write_f32(state, |state| {
        let (p, moments) = state.split_at_mut(parameters);
        let (m, v) = moments.split_at_mut(parameters);
        p[these.clone()]
            .par_chunks_mut(CHUNK)
            .zip(m[these.clone()].par_chunks_mut(CHUNK))
            .zip(v[these].par_chunks_mut(CHUNK))
            .zip(grads.par_chunks(CHUNK))
            .for_each(|(((p, m), v), g)| update(p, m, v, g, grad_scale, &scalars));
        Ok(())
    })
}

/// What is the same for every element of a step, on the processor as on a card; `step` counts from 1.
pub(crate) fn scalars(of: &AdamW, lr: f64, step: u64) -> Scalars {
    // As a power of a float: an integer exponent would overflow its type first.
    let correction = |beta: f64| 1.0 - beta.powf(step as f64);
    Scalars {
        decay: (1.0 - lr * of.weight_decay) as f32,
        one_minus_beta1: (1.0 - of.beta1) as f32,
        beta2: of.beta2 as f32,
        one_minus_beta2: (1.0 - of.beta2) as f32,
        root_correction2: correction(of.beta2).sqrt() as f32,
        epsilon: of.epsilon as f32,
        step_size: (lr / correction(of.beta1)) as f32,
    }
}

/// The step on one chunk; all four slices have the same length.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
fn update(p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], grad_scale: f32, s: &Scalars) {
    for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
        let g = g * grad_scale;
        *m += s.one_minus_beta1 * (g - *m);
        *v = s.beta2 * *v + s.one_minus_beta2 * (g * g);
        let root = v.sqrt() / s.root_correction2 + s.epsilon;
        *p = *p * s.decay - s.step_size * (*m / root);
    }
}

/// `Σ x²`, blocks in `f32`, which a gradient above 1e19 would overflow: then once more in `f64`.
fn sum_of_squares(x: &[f32]) -> f64 {
    let fast = math::dot(x, x);
    if fast.is_finite() && fast > 1e-30 {
        return fast;
    }
    x.iter().map(|&v| f64::from(v) * f64::from(v)).sum()
}

#[cfg(test)]
#[path = "adamw_tests.rs"]
mod tests;
