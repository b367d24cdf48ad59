//! Launches of the root-mean-square norm (`cuda/norm.cu`).

use crate::Argument::{Buffer, F32, U32};
use crate::{Activations, Call, WARP};

/// Threads of a block: one row at a time.
const THREADS: u32 = 256;
/// Threads that add the shares of a warp's columns.
const ADDERS: u32 = 512;
/// Blocks that share the rows of a backward pass, whatever the card: where the gradient of the weights is
/// broken into partial sums is the same everywhere. Four for each of an H100's multiprocessors.
pub(crate) const SHARES: u32 = 528;

/// `y = x · rstd · w`: x `[rows, width]` float32, w `[width]` and y `[rows, width]` in `activations`, rstd
/// `[rows]` float32.
pub fn norm<B>(
    [x, w, y, rstd]: [B; 4],
    [rows, width]: [u32; 2],
    eps: f32,
    activations: Activations,
) -> Call<B> {
    Call {
        kernel: activations.of(["norm_f32", "norm_bf16"]),
        blocks: [rows, 1],
        threads: THREADS,
        memory: 4 * THREADS / WARP,
        arguments: vec![Buffer(x), Buffer(w), Buffer(y), Buffer(rstd), U32(width), F32(eps)],
    }
}

/// Rows of the partial sums [`norm_backward`] needs room for, `[shares, width]` float32.
pub fn shares(rows: u32) -> u32 {
    SHARES.min(rows)
}

/// What a backward pass reads and writes; `B` stands for a buffer.
#[derive(Clone, Copy, Debug)]
pub struct Backward<B> {
    /// Gradient of y `[rows, width]`, in the activations' type.
    pub dy: B,
    /// As in the forward pass.
    pub x: B,
    /// As in the forward pass.
    pub w: B,
    /// What the forward pass left.
    pub rstd: B,
    /// Gradient of x `[rows, width]` float32, added to.
    pub dx: B,
    /// Gradient of w `[width]` float32, added to.
    pub dw: B,
    /// Partial sums `[shares(rows), width]` float32.
    pub room: B,
}

/// The gradients of [`norm`], added to `dx` and `dw`: two launches.
pub fn norm_backward<B: Copy>(
    of: Backward<B>,
    [rows, width]: [u32; 2],
    activations: Activations,
) -> [Call<B>; 2] {
    let Backward { dy, x, w, rstd, dx, dw, room } = of;
    let shares = shares(rows);
    let first = Call {
        kernel: activations.of(["norm_backward_f32", "norm_backward_bf16"]),
        blocks: [shares, 1],
        threads: THREADS,
        memory: 4 * (THREADS / WARP + width),
        arguments: vec![
            Buffer(dy),
            Buffer(x),
            Buffer(w),
            Buffer(rstd),
            Buffer(dx),
            Buffer(room),
            U32(rows),
            U32(width),
        ],
    };
    let second = add_shares([room, dw], [shares, width, 0, width]);
    [first, second]
}

/// `sum` `[width]` += the columns `first..first + width` of `shares` `[count, stride]`, always in the same order.
pub(crate) fn add_shares<B>(
    [shares, sum]: [B; 2],
    [count, stride, first, width]: [u32; 4],
) -> Call<B> {
    Call {
        kernel: "add_shares",
        blocks: [width.div_ceil(WARP), 1],
        threads: ADDERS,
        memory: 4 * ADDERS,
        arguments: vec![
            Buffer(shares),
            Buffer(sum),
            U32(count),
            U32(stride),
            U32(first),
            U32(width),
        ],
    }
}
