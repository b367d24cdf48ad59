//! One transformer block as steps of a program: forward, and the backward written by hand; the same order of
//! things as in [`crate::block`].
//!
//! The residual stream and its gradient are float32, everything between products is in the activations' type. What a
//! backward pass needs is named in [`Tape`]; where there is none, nothing of it outlives the next step, and where the
//! block is to be computed again, [`forward`] is written down again.

use kernels::Activations;
use kernels::attention::{self, attention, attention_backward};
use kernels::bias::{self, add_bias, add_bias_to_f32, bias_backward};
use kernels::heads::{self, Back, Reads, turn, turn_back};
use kernels::norm::{self, Backward, norm, norm_backward};
use kernels::program::{Kind, Matrix, Product, Program, View};
use kernels::round::round;
use kernels::swiglu::{swiglu, swiglu_backward};

use super::network::Shape;
use super::weight::Weight;
use crate::parameters::BlockViews;

/// The weights of a block.
pub(super) type Weights = BlockViews<View, Weight>;

/// What a block's backward needs.
pub(super) struct Tape {
    /// Residual stream before the block, `[N, D]` float32.
    input: View,
    /// q, k and v before norm and rotation, `[N, (H + 2 G) E]`.
    raw: View,
    /// Attention before its output projection, `[N, H E]`, and the logarithms of its denominators, `[N, H]`.
    attended: View,
    lse: View,
    /// Residual stream between attention and the gated layer, `[N, D]` float32.
    middle: View,
    /// Gate and up projections, `[N, 2 I]`; its gradient takes its place.
    gate_up: View,
}

/// The block's output, and what its backward needs. `x` `[N, D]` is left as it is.
pub(super) fn forward(
    program: &mut Program,
    x: View,
    weights: &Weights,
    shape: &Shape,
) -> (View, Tape) {
    let &Shape { tokens: n, width: d, inner, .. } = shape;
    let tape = forward_again(program, x, weights, shape);
    let gated = gated(program, tape.gate_up, shape);
    let output = program.passing("residual", Kind::F32, n * d);
    linear(program, [gated, output], &weights.down, [n, inner, d], Some(tape.middle));
    (output, tape)
}

/// What the backward needs, without the block's output.
pub(super) fn forward_again(
    program: &mut Program,
    x: View,
    weights: &Weights,
    shape: &Shape,
) -> Tape {
    let &Shape { tokens: n, width: d, inner, heads, activations, .. } = shape;
    let kind = Kind::from(activations);
    let (raw_width, out_width) = (heads.width() as usize, shape.attended());
    let (normed, _) = normed(program, x, weights.input_norm, shape);
    let raw = program.passing("q, k, v", kind, n * raw_width);
    linear(program, [normed, raw], &weights.qkv, [n, d, raw_width], None);
    if let Some(bias) = weights.qkv_bias {
        program.call(add_bias([raw, bias], [n as u32, raw_width as u32], activations));
    }
    let (ready, _) = turned(program, raw, weights, shape);
    let attended = program.passing("attention", kind, n * out_width);
    let lse = program.passing("attention's sums", Kind::F32, n * heads.queries as usize);
    let of = shape.attention(raw, ready);
    program.call(attention(of, [attended, lse], heads, shape.tiles, activations));
    let middle = program.passing("residual", Kind::F32, n * d);
    linear(program, [attended, middle], &weights.o, [n, out_width, d], Some(x));
    if let Some(bias) = weights.o_bias {
        program.call(add_bias_to_f32([middle, bias], [n as u32, d as u32], activations));
    }
    let (normed, _) = self::normed(program, middle, weights.mlp_norm, shape);
    let gate_up = program.passing("gate, up", kind, n * 2 * inner);
    linear(program, [normed, gate_up], &weights.gate_up, [n, d, 2 * inner], None);
    Tape { input: x, raw, attended, lse, middle, gate_up }
}

/// Turns `d` `[N, D]` float32, the gradient of the block's output, into that of its input, and adds the parameters'
/// gradients to `grads`.
pub(super) fn backward(
    program: &mut Program,
    d: View,
    tape: &Tape,
    (weights, grads): (&Weights, &BlockViews<View>),
    shape: &Shape,
) {
    backward_mlp(program, d, tape, (weights, grads), shape);
    backward_attention(program, d, tape, (weights, grads), shape);
}

fn backward_mlp(
    program: &mut Program,
    d: View,
    tape: &Tape,
    (weights, grads): (&Weights, &BlockViews<View>),
    shape: &Shape,
) {
    let &Shape { tokens: n, width, inner, activations, .. } = shape;
    let rounded = rounded(program, d, activations);
    // Its gradient, and then it itself again.
    let gated = program.passing("gated", activations.into(), n * inner);
    linear_input(program, [rounded, gated], &weights.down, [n, width, inner]);
    let d_gate_up = tape.gate_up;
    program.call(swiglu_backward([gated, d_gate_up], [n as u32, inner as u32], activations));
    linear_weight(program, [rounded, gated, grads.down], [n, width, inner]);
    let (normed, rstd) = normed(program, tape.middle, weights.mlp_norm, shape);
    linear_weight(program, [d_gate_up, normed, grads.gate_up], [n, 2 * inner, width]);
    let d_normed = program.passing("normed", activations.into(), n * width);
    linear_input(program, [d_gate_up, d_normed], &weights.gate_up, [n, 2 * inner, width]);
    let of = NormOf { x: tape.middle, w: weights.mlp_norm, rstd, dw: grads.mlp_norm };
    through_norm(program, d_normed, d, of, shape);
}

fn backward_attention(
    program: &mut Program,
    d: View,
    tape: &Tape,
    (weights, grads): (&Weights, &BlockViews<View>),
    shape: &Shape,
) {
    let &Shape { tokens: n, width, heads, activations, .. } = shape;
    let kind = Kind::from(activations);
    let (raw_width, out_width) = (heads.width() as usize, shape.attended());
    if let Some(d_bias) = grads.o_bias {
        sum_bias(program, [d, d_bias], [n, width], Activations::F32);
    }
    let rounded = rounded(program, d, activations);
    linear_weight(program, [rounded, tape.attended, grads.o], [n, width, out_width]);
    let d_attended = program.passing("attention", kind, n * out_width);
    linear_input(program, [rounded, d_attended], &weights.o, [n, width, out_width]);
    let (ready, rstd) = turned(program, tape.raw, weights, shape);
    let d_ready = program.passing("q, k turned", kind, ready.len);
    let d_raw = program.passing("q, k, v", kind, n * raw_width);
    let delta = program.passing("attention's sums", Kind::F32, n * heads.queries as usize);
    let back = attention::Back {
        d_out: d_attended,
        out: tape.attended,
        lse: tape.lse,
        delta,
        d_ready,
        d_raw,
        key_tiles: shape.key_tiles,
    };
    let of = shape.attention(tape.raw, ready);
    let (tiles, room) = (shape.tiles, shape.block_memory);
    program.calls(attention_backward(of, back, heads, n as u32, tiles, activations, room));
    let shares = heads::shares(n as u32) as usize;
    let room = program.passing("shares", Kind::F32, shares * 2 * heads.head_dim as usize);
    let back = Back { d_ready, rstd, d_raw, room, dq_norm: grads.q_norm, dk_norm: grads.k_norm };
    program.calls(turn_back(reads(tape.raw, weights, shape), back, heads, n as u32, activations));
    if let Some(d_bias) = grads.qkv_bias {
        sum_bias(program, [d_raw, d_bias], [n, raw_width], activations);
    }
    let (normed, rstd) = normed(program, tape.input, weights.input_norm, shape);
    linear_weight(program, [d_raw, normed, grads.qkv], [n, raw_width, width]);
    let d_normed = program.passing("normed", kind, n * width);
    linear_input(program, [d_raw, d_normed], &weights.qkv, [n, raw_width, width]);
    let of = NormOf { x: tape.input, w: weights.input_norm, rstd, dw: grads.input_norm };
    through_norm(program, d_normed, d, of, shape);
}

/// A norm, as its backward needs it.
pub(super) struct NormOf {
    /// What was normed, `[rows, D]` float32.
    pub(super) x: View,
    /// Its weights and their gradient, `[D]`.
    pub(super) w: View,
    pub(super) dw: View,
    /// Its factors, `[rows]`.
    pub(super) rstd: View,
}

/// The norm of rows of the residual stream `[rows, D]`, and its factors.
pub(super) fn normed(program: &mut Program, x: View, w: View, shape: &Shape) -> (View, View) {
    let rows = x.len / shape.width;
    let y = program.passing("normed", shape.activations.into(), x.len);
    let rstd = program.passing("norms' factors", Kind::F32, rows);
    let size = [rows as u32, shape.width as u32];
    program.call(norm([x, w, y, rstd], size, shape.eps, shape.activations));
    (y, rstd)
}

/// Adds to `d` `[rows, D]` float32 what `dy` says of what was normed, and to the weights' gradient.
pub(super) fn through_norm(program: &mut Program, dy: View, d: View, of: NormOf, shape: &Shape) {
    let (rows, width) = ((d.len / shape.width) as u32, shape.width as u32);
    let shares = norm::shares(rows) as usize * shape.width;
    let room = program.passing("shares", Kind::F32, shares);
    let NormOf { x, w, dw, rstd } = of;
    let of = Backward { dy, x, w, rstd, dx: d, dw, room };
    program.calls(norm_backward(of, [rows, width], shape.activations));
}

fn reads(raw: View, weights: &Weights, shape: &Shape) -> Reads<View> {
    let &Shape { cos, sin, positions, .. } = shape;
    Reads { raw, q_norm: weights.q_norm, k_norm: weights.k_norm, cos, sin, positions }
}

/// Queries and keys normed and turned, `[N, H + G, E]`, and their norms' factors.
fn turned(program: &mut Program, raw: View, weights: &Weights, shape: &Shape) -> (View, View) {
    let &Shape { tokens: n, heads, activations, eps, .. } = shape;
    let of_heads = n * heads.normed() as usize;
    let ready =
        program.passing("q, k turned", activations.into(), of_heads * heads.head_dim as usize);
    let rstd = program.passing("heads' factors", Kind::F32, of_heads);
    let reads = reads(raw, weights, shape);
    program.call(turn(reads, [ready, rstd], heads, n as u32, eps, activations));
    (ready, rstd)
}

fn gated(program: &mut Program, gate_up: View, shape: &Shape) -> View {
    let &Shape { tokens: n, inner, activations, .. } = shape;
    let gated = program.passing("gated", activations.into(), n * inner);
    program.call(swiglu([gate_up, gated], [n as u32, inner as u32], activations));
    gated
}

fn sum_bias(program: &mut Program, [dy, db]: [View; 2], [n, width]: [usize; 2], kind: Activations) {
    let room = program.passing("shares", Kind::F32, bias::shares(n as u32) as usize * width);
    program.calls(bias_backward([dy, room, db], [n as u32, width as u32], kind));
}

/// `d` as products read it.
pub(super) fn rounded(program: &mut Program, d: View, activations: Activations) -> View {
    match activations {
        Activations::F32 => d,
        Activations::Bf16 => {
            let rounded = program.passing("gradient of the residual", Kind::Bf16, d.len);
            program.call(round([d, rounded], d.len as u32));
            rounded
        }
    }
}

/// `y = x·wᵀ + plus`: x `[n, inputs]`, w `[outputs, inputs]`.
pub(super) fn linear(
    program: &mut Program,
    [x, y]: [View; 2],
    w: &Weight,
    [n, inputs, outputs]: [usize; 3],
    plus: Option<View>,
) {
    let w = w.whole(program, x.kind);
    program.product(Product {
        a: Matrix::of(x, [n, inputs]),
        b: Matrix::of(w, [outputs, inputs]).transpose(),
        into: Matrix::of(y, [n, outputs]),
        plus,
        scale: 1.0,
    });
}

/// `dx = dy·w`: dy `[n, outputs]`, w `[outputs, inputs]`.
pub(super) fn linear_input(
    program: &mut Program,
    [dy, dx]: [View; 2],
    w: &Weight,
    [n, outputs, inputs]: [usize; 3],
) {
    let w = w.whole(program, dy.kind);
    program.product(Product {
        a: Matrix::of(dy, [n, outputs]),
        b: Matrix::of(w, [outputs, inputs]),
        into: Matrix::of(dx, [n, inputs]),
        plus: None,
        scale: 1.0,
    });
}

/// `dw += dyᵀ·x`: dy `[n, outputs]`, x `[n, inputs]`, dw `[outputs, inputs]` float32.
pub(super) fn linear_weight(
    program: &mut Program,
    [dy, x, dw]: [View; 3],
    [n, outputs, inputs]: [usize; 3],
) {
    program.product(Product {
        a: Matrix::of(dy, [n, outputs]).transpose(),
        b: Matrix::of(x, [n, inputs]),
        into: Matrix::of(dw, [outputs, inputs]),
        plus: Some(dw),
        scale: 1.0,
    });
}
