//! The output matrix, the loss and their gradients together, a chunk of positions at a time.
//!
//! Logits exist for one chunk only and become their own gradient in place. A row takes one pass
//! of exponentials (two a class: at T = 1 and at T) and one pass that blends them into the
//! gradient. The k tokens of a signal are taken out of the row first, set to -inf, and treated in
//! `f64`: what the pass sums is then the mass of *all other* tokens, with a scale of its own.
//!
//! The formulas are those of [`distill::reference`], which the tests hold this against.

pub(crate) mod exps;
mod row;

use candle_core::{Result, Tensor, bail};
use distill::signal::TopK;
use gemm::Parallelism;
use rayon::prelude::*;

use super::matmul::{MatMut, MatRef, Store, converted, gemm_f32, project};
use super::{Floats, Precision, expect_len, expect_shape, read, tensor, write_f32};
pub use distill::reference::Tail;
use row::{RowLoss, RowTask};

/// Bytes of logits that exist at a time, unless one position alone needs more.
const LOGITS_BYTES: usize = 32 << 20;

/// What the loss of a step is made of: `total = alpha T² KL + (1 - alpha) CE`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossSettings {
    /// Weight of the divergence from the teacher, 0 to 1.
    pub alpha: f64,
    /// Temperature of the divergence, the one the signal was made at; above 0.
    pub temperature: f64,
    /// What becomes of the mass outside the signal's k tokens.
    pub tail: Tail,
    /// Rounding of the operands of the three products.
    pub precision: Precision,
}

/// The losses of S positions, and the gradient of their scaled total.
#[derive(Clone, Debug)]
pub struct HeadLoss {
    /// `-log softmax(z)[target]` at T = 1, `[S]`. NaN where a logit is not a number.
    pub ce: Vec<f32>,
    /// Divergence from the teacher at T, *without* T², `[S]`; 0 without a signal.
    pub kl: Vec<f32>,
    /// The student's most probable class, `[S]`; the lower id among equals.
    pub argmax: Vec<u32>,
    /// `Σ p_i` over the signal's ids, `[S]`; 0 without a signal.
    pub teacher_mass: Vec<f32>,
    /// `Σ q_i` over the signal's ids, `[S]`; 0 without a signal.
    pub student_mass: Vec<f32>,
    /// Gradient with respect to `hidden`, `[S, D]`; only when a gradient was asked for.
    pub d_hidden: Option<Tensor>,
}

/// Losses of the positions `hidden` `[S, D]` under the output matrix `w` `[V, D]`, of which the
/// first `classes` rows take part, against the next tokens `targets` `[S]` and what a teacher
/// says of the same positions (`signal`, S rows; none: cross-entropy alone, which with a gradient
/// needs `alpha` = 0).
///
/// With `grad` `[V, D]` also the gradient of `scale · Σ total` (`scale` is 1/N, N the scored
/// positions of the whole step): added to the first `classes` rows of `grad`, and returned as
/// [`HeadLoss::d_hidden`].
///
/// # Errors
/// When shapes, types, the device or a setting do not fit, a target or a signal's id is not below
/// `classes`, or a signal of all classes speaks of mass outside them.
#[expect(clippy::too_many_arguments, reason = "one call an optimiser step, each of them is needed")]
pub fn head_loss(
    hidden: &Tensor,
    w: &Tensor,
    classes: usize,
    targets: &[u32],
    signal: Option<&TopK>,
    settings: &LossSettings,
    scale: f64,
    grad: Option<&Tensor>,
) -> Result<HeadLoss> {
    let (positions, width) = hidden.dims2()?;
    check_classes(w, classes, width)?;
    check_targets(targets, positions, classes)?;
    check_settings(settings, signal.is_some(), grad.is_some())?;
    if let Some(signal) = signal {
        check_signal(signal, positions, classes)?;
    }

    let (hidden, w) = (read(hidden), read(w));
    let hidden = converted(hidden.floats()?, settings.precision);
    let w = w.floats()?.slice(0..classes * width);
    let head = Head { hidden: &hidden, w, width, classes, targets, signal, settings };
    match grad {
        None => head.losses(),
        Some(grad) => {
            expect_shape("gradient of the output matrix", grad, w_shape(grad, width)?)?;
            if grad.dim(0)? < classes {
                bail!("gradient of the output matrix: {} rows for {classes} classes", grad.dim(0)?);
            }
            write_f32(&grad.narrow(0, 0, classes)?, |dw| head.losses_and_gradients(scale, dw))
        }
    }
}
