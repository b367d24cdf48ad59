//! Launches of biases (`cuda/bias.cu`).

use crate::Argument::{Buffer, U32};
use crate::norm::{SHARES, add_shares};
use crate::{Activations, Call};

/// `x` `[rows, width]` += `b` `[width]`, both in `activations`.
pub fn add_bias<B>([x, b]: [B; 2], size: [u32; 2], activations: Activations) -> Call<B> {
    let [_, width] = size;
    Call::over_rows(
        activations.of(["add_bias_f32", "add_bias_bf16"]),
        size,
        vec![Buffer(x), Buffer(b), U32(width)],
    )
}

/// The same to float32, as the residual stream is, of biases in `weights`.
pub fn add_bias_to_f32<B>([x, b]: [B; 2], size: [u32; 2], weights: Activations) -> Call<B> {
    let [_, width] = size;
    Call::over_rows(
        weights.of(["add_bias_f32", "add_bias_bf16_to_f32"]),
        size,
        vec![Buffer(x), Buffer(b), U32(width)],
    )
}

/// Rows of the partial sums [`bias_backward`] needs room for, `[shares, width]` float32.
pub fn shares(rows: u32) -> u32 {
    SHARES.min(rows)
}

/// `db` `[width]` float32 += the sum of the rows of `dy` `[rows, width]` in `activations`; `room` as [`shares`]
/// says. Two launches.
pub fn bias_backward<B: Copy>(
    [dy, room, db]: [B; 3],
    [rows, width]: [u32; 2],
    activations: Activations,
) -> [Call<B>; 2] {
    let shares = shares(rows);
    let first = Call::over_rows(
        activations.of(["bias_shares_f32", "bias_shares_bf16"]),
        [shares, width],
        vec![Buffer(dy), Buffer(room), U32(rows), U32(width)],
    );
    [first, add_shares([room, db], [shares, width, 0, width])]
}
