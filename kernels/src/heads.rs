//! Launches of what queries and keys go through: their heads' norm and rotation (`cuda/heads.cu`).

use crate::Argument::{Buffer, F32, U32};
use crate::norm::{SHARES, add_shares};
use crate::{Activations, Call, WARP};

/// Threads of a block: a warp a head.
const THREADS: u32 = 256;
/// Largest head: a lane holds four pairs.
pub const MOST_HEAD_DIM: u32 = 256;

/// Heads of a token.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Query heads, H.
    pub queries: u32,
    /// Key heads, and as many value heads, G.
    pub keys: u32,
    /// Values of one head, E; even, at most [`MOST_HEAD_DIM`].
    pub head_dim: u32,
}

impl Heads {
    /// Heads that are normed and turned: H + G.
    pub fn normed(self) -> u32 {
        self.queries + self.keys
    }

    /// Values of one token's raw projections: `(H + 2G)E`.
    pub fn width(self) -> u32 {
        (self.normed() + self.keys) * self.head_dim
    }

    fn arguments<B>(self) -> [crate::Argument<B>; 4] {
        [self.queries, self.normed(), self.head_dim, self.width()].map(U32)
    }
}

/// What both passes read; `B` stands for a buffer.
#[derive(Clone, Copy, Debug)]
pub struct Reads<B> {
    /// Raw projections `[tokens, (H + 2G)E]`, in the activations' type.
    pub raw: B,
    /// Weights of the queries' norm `[E]`, in the activations' type.
    pub q_norm: B,
    /// Weights of the keys' norm `[E]`, in the activations' type.
    pub k_norm: B,
    /// Cosines `[positions, E/2]` float32.
    pub cos: B,
    /// Sines `[positions, E/2]` float32.
    pub sin: B,
    /// Position of each token in its row `[tokens]` u32.
    pub positions: B,
}

impl<B> Reads<B> {
    fn arguments(self) -> Vec<crate::Argument<B>> {
        let Self { raw, q_norm, k_norm, cos, sin, positions } = self;
        [raw, q_norm, k_norm, cos, sin, positions].map(Buffer).into()
    }
}

/// Query and key heads normed and turned to their positions: `ready` `[tokens, H + G, E]` in the activations' type,
/// `rstd` `[tokens, H + G]` float32.
pub fn turn<B>(
    reads: Reads<B>,
    [ready, rstd]: [B; 2],
    heads: Heads,
    tokens: u32,
    eps: f32,
    activations: Activations,
) -> Call<B> {
    let mut arguments = reads.arguments();
    arguments.extend([ready, rstd].map(Buffer));
    arguments.extend(heads.arguments());
    arguments.push(F32(eps));
    Call {
        kernel: activations.of(["turn_f32", "turn_bf16"]),
        blocks: [tokens, heads.normed().div_ceil(THREADS / WARP)],
        threads: THREADS,
        memory: 0,
        arguments,
    }
}

/// Rows of the partial sums [`turn_back`] needs room for, `[shares, 2E]` float32.
pub fn shares(tokens: u32) -> u32 {
    SHARES.min(tokens)
}

/// What a backward pass reads and writes beside [`Reads`].
#[derive(Clone, Copy, Debug)]
pub struct Back<B> {
    /// Gradient of what [`turn`] made `[tokens, H + G, E]`, in the activations' type.
    pub d_ready: B,
    /// As [`turn`] left it.
    pub rstd: B,
    /// Gradient of the raw projections `[tokens, (H + 2G)E]`: the query and key heads of it are written.
    pub d_raw: B,
    /// Partial sums `[shares(tokens), 2E]` float32.
    pub room: B,
    /// Gradient of the queries' norm `[E]` float32, added to.
    pub dq_norm: B,
    /// Gradient of the keys' norm `[E]` float32, added to.
    pub dk_norm: B,
}

/// The gradients of [`turn`]: three launches.
pub fn turn_back<B: Copy>(
    reads: Reads<B>,
    back: Back<B>,
    heads: Heads,
    tokens: u32,
    activations: Activations,
) -> [Call<B>; 3] {
    let Back { d_ready, rstd, d_raw, room, dq_norm, dk_norm } = back;
    let (shares, e) = (shares(tokens), heads.head_dim);
    let mut arguments = vec![Buffer(d_ready)];
    arguments.extend(reads.arguments());
    arguments.extend([rstd, d_raw, room].map(Buffer));
    arguments.extend(heads.arguments());
    arguments.push(U32(tokens));
    let first = Call {
        kernel: activations.of(["turn_back_f32", "turn_back_bf16"]),
        blocks: [shares, 1],
        threads: THREADS,
        memory: 4 * THREADS / WARP * 2 * e,
        arguments,
    };
    [
        first,
        add_shares([room, dq_norm], [shares, 2 * e, 0, e]),
        add_shares([room, dk_norm], [shares, 2 * e, e, e]),
    ]
}
