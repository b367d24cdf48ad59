//! One transformer block: forward, what it keeps, and the backward written by hand.
//!
//! Letters: N packed tokens, D hidden, H query heads, G key/value heads, E head width, I width of
//! the gated layer.

use candle_core::{Result, Tensor};

use crate::ops::Precision;
use crate::ops::attention::{attention, attention_backward};
use crate::ops::matmul::{linear, linear_grad_input, linear_grad_weight_into, linear_into};
use crate::ops::norm::{rms_norm, rms_norm_backward};
use crate::ops::rope::{
    QkvLayout, RopeTables, add_bias, bias_backward_into, prepare_qkv, prepare_qkv_backward,
};
use crate::ops::swiglu::{swiglu, swiglu_backward};
use crate::parameters::BlockViews;

/// What every block of a forward pass shares.
pub(crate) struct Shared<'a> {
    pub(crate) eps: f64,
    pub(crate) precision: Precision,
    pub(crate) layout: QkvLayout,
    pub(crate) tables: &'a RopeTables,
    /// Cumulative ends of the packed rows.
    pub(crate) row_ends: &'a [usize],
}

/// What a block keeps for its backward. Normed inputs, rotated queries and keys, and the gated product
/// are computed again there: they cost a read and a write each, and would double what is kept.
#[derive(Clone)]
pub(crate) struct BlockTape {
    /// Residual stream before the block, `[N, D]`.
    input: Tensor,
    input_rstd: Tensor,
    /// q, k and v before norm and rotation, `[N, (H + 2 G) E]`.
    raw_qkv: Tensor,
    /// Attention before its output projection, `[N, H E]`.
    attended: Tensor,
    /// Log of each softmax's denominator, `[N, H]`.
    lse: Tensor,
    /// Residual stream between attention and the gated layer, `[N, D]`.
    middle: Tensor,
    middle_rstd: Tensor,
    /// Gate and up projections, `[N, 2 I]`.
    gate_up: Tensor,
}

#[cfg(test)]
impl BlockTape {
    /// Elements of all its tensors.
    pub(crate) fn elements(&self) -> usize {
        let Self { input, input_rstd, raw_qkv, attended, lse, middle, middle_rstd, gate_up } = self;
        let all = [input, input_rstd, raw_qkv, attended, lse, middle, middle_rstd, gate_up];
        all.into_iter().map(Tensor::elem_count).sum()
    }
}

/// The block's output and what its backward needs. `x` `[N, D]` is left as it is.
pub(crate) fn forward_train(
    x: &Tensor,
    weights: &BlockViews,
    shared: &Shared,
) -> Result<(Tensor, BlockTape)> {
    let precision = shared.precision;
    let (normed, input_rstd) = rms_norm(x, &weights.input_norm, shared.eps)?;
    let raw_qkv = project_qkv(&normed, weights, precision)?;
    let (qkv, _) = prepare(&raw_qkv, weights, shared)?;
    let (attended, lse) = attention(&qkv, &shared.layout, shared.row_ends, precision)?;
    drop(qkv);
    let middle = x.copy()?;
    add_attention(&middle, &attended, weights, precision)?;
    let (normed, middle_rstd) = rms_norm(&middle, &weights.mlp_norm, shared.eps)?;
    let gate_up = linear(&normed, &weights.gate_up, precision)?;
    let output = middle.copy()?;
    linear_into(&output, &swiglu(&gate_up)?, &weights.down, precision)?;
    let tape = BlockTape {
        input: x.clone(),
        input_rstd,
        raw_qkv,
        attended,
        lse,
        middle,
        middle_rstd,
        gate_up,
    };
    Ok((output, tape))
}

/// The same numbers with nothing kept: `x` `[N, D]` becomes the block's output.
pub(crate) fn forward(x: &Tensor, weights: &BlockViews, shared: &Shared) -> Result<()> {
    let precision = shared.precision;
    let (normed, _) = rms_norm(x, &weights.input_norm, shared.eps)?;
    let raw_qkv = project_qkv(&normed, weights, precision)?;
    let (qkv, _) = prepare(&raw_qkv, weights, shared)?;
    drop(raw_qkv);
    let (attended, _) = attention(&qkv, &shared.layout, shared.row_ends, precision)?;
    drop(qkv);
    add_attention(x, &attended, weights, precision)?;
    drop(attended);
    let (normed, _) = rms_norm(x, &weights.mlp_norm, shared.eps)?;
    let gate_up = linear(&normed, &weights.gate_up, precision)?;
    linear_into(x, &swiglu(&gate_up)?, &weights.down, precision)
}

/// Turns `d` `[N, D]`, the gradient of the block's output, into that of its input, and adds the
/// parameters' gradients to `grads`.
pub(crate) fn backward(
    d: &Tensor,
    tape: &BlockTape,
    weights: &BlockViews,
    grads: &BlockViews,
    shared: &Shared,
) -> Result<()> {
    backward_mlp(d, tape, weights, grads, shared)?;
    backward_attention(d, tape, weights, grads, shared)
}

fn backward_mlp(
    d: &Tensor,
    tape: &BlockTape,
    weights: &BlockViews,
    grads: &BlockViews,
    shared: &Shared,
) -> Result<()> {
    let precision = shared.precision;
    linear_grad_weight_into(&grads.down, d, &swiglu(&tape.gate_up)?, precision)?;
    let d_gated = linear_grad_input(d, &weights.down, precision)?;
    let d_gate_up = swiglu_backward(&d_gated, &tape.gate_up)?;
    drop(d_gated);
    let (normed, _) = rms_norm(&tape.middle, &weights.mlp_norm, shared.eps)?;
    linear_grad_weight_into(&grads.gate_up, &d_gate_up, &normed, precision)?;
    let d_normed = linear_grad_input(&d_gate_up, &weights.gate_up, precision)?;
    let (middle, rstd) = (&tape.middle, &tape.middle_rstd);
    rms_norm_backward(&d_normed, middle, rstd, &weights.mlp_norm, d, &grads.mlp_norm)
}

fn backward_attention(
    d: &Tensor,
    tape: &BlockTape,
    weights: &BlockViews,
    grads: &BlockViews,
    shared: &Shared,
) -> Result<()> {
    let precision = shared.precision;
    if let Some(d_bias) = &grads.o_bias {
        bias_backward_into(d_bias, d)?;
    }
    linear_grad_weight_into(&grads.o, d, &tape.attended, precision)?;
    let d_attended = linear_grad_input(d, &weights.o, precision)?;
    let (qkv, qk_rstd) = prepare(&tape.raw_qkv, weights, shared)?;
    let d_qkv = attention_backward(
        &d_attended,
        &qkv,
        &tape.attended,
        &tape.lse,
        &shared.layout,
        shared.row_ends,
        precision,
    )?;
    drop(qkv);
    let d_raw = prepare_qkv_backward(
        &d_qkv,
        &tape.raw_qkv,
        &qk_rstd,
        &weights.q_norm,
        &weights.k_norm,
        shared.tables,
        &shared.layout,
        shared.row_ends,
        &grads.q_norm,
        &grads.k_norm,
    )?;
    drop(d_qkv);
    if let Some(d_bias) = &grads.qkv_bias {
        bias_backward_into(d_bias, &d_raw)?;
    }
    let (normed, _) = rms_norm(&tape.input, &weights.input_norm, shared.eps)?;
    linear_grad_weight_into(&grads.qkv, &d_raw, &normed, precision)?;
    let d_normed = linear_grad_input(&d_raw, &weights.qkv, precision)?;
    let (input, rstd) = (&tape.input, &tape.input_rstd);
    rms_norm_backward(&d_normed, input, rstd, &weights.input_norm, d, &grads.input_norm)
}

fn project_qkv(normed: &Tensor, weights: &BlockViews, precision: Precision) -> Result<Tensor> {
    let raw = linear(normed, &weights.qkv, precision)?;
    if let Some(bias) = &weights.qkv_bias {
        add_bias(&raw, bias)?;
    }
    Ok(raw)
}

fn prepare(raw: &Tensor, weights: &BlockViews, shared: &Shared) -> Result<(Tensor, Tensor)> {
    prepare_qkv(
        raw,
        &weights.q_norm,
        &weights.k_norm,
        shared.eps,
        shared.tables,
        &shared.layout,
        shared.row_ends,
    )
}

fn add_attention(
    residual: &Tensor,
    attended: &Tensor,
    weights: &BlockViews,
    precision: Precision,
) -> Result<()> {
    linear_into(residual, attended, &weights.o, precision)?;
    match &weights.o_bias {
        Some(bias) => add_bias(residual, bias),
        None => Ok(()),
    }
}
