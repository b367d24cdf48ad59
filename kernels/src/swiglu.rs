//! Launches of the gated activation (`cuda/swiglu.cu`).

use crate::Argument::{Buffer, U32};
use crate::{Activations, Call};

/// `a = silu(gate) · up`: rows `[gate, up]` of `gate_up` `[rows, 2 width]` give `a` `[rows, width]`, both in
/// `activations`.
pub fn swiglu<B>([gate_up, a]: [B; 2], size: [u32; 2], activations: Activations) -> Call<B> {
    let [_, width] = size;
    Call::over_fours(
        activations.of(["swiglu_f32", "swiglu_bf16"]),
        size,
        vec![Buffer(gate_up), Buffer(a), U32(width)],
    )
}

/// The gradient of [`swiglu`]: `da` `[rows, width]` gives that of `gate_up`, written over it; over `da` is written what
/// [`swiglu`] gives.
pub fn swiglu_backward<B>(
    [da, gate_up]: [B; 2],
    size: [u32; 2],
    activations: Activations,
) -> Call<B> {
    let [_, width] = size;
    Call::over_fours(
        activations.of(["swiglu_backward_f32", "swiglu_backward_bf16"]),
        size,
        vec![Buffer(da), Buffer(gate_up), U32(width)],
    )
}
