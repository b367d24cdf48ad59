//! Launches of AdamW and of clipping by the global norm (`cuda/adamw.cu`).

use crate::Argument::{Buffer, F32, U32};
use crate::{Call, WARP};

const THREADS: u32 = 256;
/// Of the one block that looks at losses.
const HALT_THREADS: u32 = 512;
/// Blocks of a sum of squares, whatever the card: where it is broken is the same everywhere.
const SHARES: u32 = 1056;
/// Most blocks of a step: enough for any card, each with many elements.
const MOST_BLOCKS: u32 = 4224;

/// Shares of so many gradients that [`clip`] needs room for.
pub fn shares(count: u32) -> u32 {
    SHARES.min(count.div_ceil(THREADS)).max(1)
}

/// What clipping reads and writes; `B` stands for a buffer.
#[derive(Clone, Copy, Debug)]
pub struct Clipping<B> {
    /// `[count]` float32.
    pub gradients: B,
    /// `[shares(count)]` float64, room.
    pub shares: B,
    /// `[shares(count)]` u32, room.
    pub places: B,
    /// `[1]` u32: not 0 where no step is to be made any more.
    pub halted: B,
    /// `[1]` float64, written: their Euclidean norm.
    pub norm: B,
    /// `[2]` u32, written: 0 where the step is made, else 1; the first gradient that is not finite, or [`NOWHERE`].
    pub outcome: B,
    /// `[1]` float32, written: what they are to be multiplied with.
    pub scale: B,
}

/// In place of a gradient where all are finite.
pub const NOWHERE: u32 = u32::MAX;

/// The norm of gradients, and the factor that makes it at most `max_norm`. Nothing of it goes through the host: where the
/// norm is not finite, and from then on, [`adamw`] with this factor changes nothing.
pub fn clip<B: Copy>(of: Clipping<B>, count: u32, max_norm: f32) -> [Call<B>; 2] {
    let Clipping { gradients, shares: sums, places, halted, norm, outcome, scale } = of;
    let shares = shares(count);
    let first = Call {
        kernel: "squares",
        blocks: [shares, 1],
        threads: THREADS,
        memory: 8 * THREADS / WARP,
        arguments: vec![Buffer(gradients), Buffer(sums), Buffer(places), U32(count)],
    };
    let mut arguments = Vec::from([sums, places, halted, norm, outcome, scale].map(Buffer));
    arguments.extend([U32(shares), F32(max_norm)]);
    let second = Call { kernel: "clip", blocks: [1, 1], threads: WARP, memory: 0, arguments };
    [first, second]
}

/// Sets `halted` `[1]` u32 where one of `values` `[count]` float32 is not finite.
pub fn halt<B>([values, halted]: [B; 2], count: u32) -> Call<B> {
    Call {
        kernel: "halt",
        blocks: [1, 1],
        threads: HALT_THREADS,
        memory: 4 * HALT_THREADS / WARP,
        arguments: vec![Buffer(values), Buffer(halted), U32(count)],
    }
}

/// What is the same for every element of a step: `p (1 - lr · weight_decay)` and the like, formed in `f64` and
/// rounded once.
#[derive(Clone, Copy, Debug)]
pub struct Scalars {
    /// `1 - lr · weight_decay`.
    pub decay: f32,
    /// `1 - beta1`.
    pub one_minus_beta1: f32,
    /// beta2.
    pub beta2: f32,
    /// `1 - beta2`.
    pub one_minus_beta2: f32,
    /// `√(1 - beta2^t)`.
    pub root_correction2: f32,
    /// epsilon.
    pub epsilon: f32,
    /// `lr / (1 - beta1^t)`.
    pub step_size: f32,
}

/// A step over all parameters in one launch: `p`, `m`, `v` and `gradients` `[count]` float32, `scale` `[1]` as
/// [`clip`] leaves it. Where there is a `rounded` `[count]` bfloat16, the new parameters are written there too,
/// as products read them.
pub fn adamw<B>(
    [p, m, v, gradients, scale]: [B; 5],
    rounded: Option<B>,
    count: u32,
    scalars: &Scalars,
) -> Call<B> {
    let s = scalars;
    let kernel = if rounded.is_some() { "adamw_bf16" } else { "adamw_f32" };
    let buffers = [p, m, v, gradients, scale].map(Buffer);
    let numbers = [
        s.decay,
        s.one_minus_beta1,
        s.beta2,
        s.one_minus_beta2,
        s.root_correction2,
        s.epsilon,
        s.step_size,
    ];
    let mut arguments: Vec<_> = buffers.into_iter().collect();
    arguments.push(U32(count));
    arguments.extend(numbers.map(F32));
    arguments.extend(rounded.map(Buffer));
    let blocks = count.div_ceil(4 * THREADS).clamp(1, MOST_BLOCKS);
    Call { kernel, blocks: [blocks, 1], threads: THREADS, memory: 0, arguments }
}
