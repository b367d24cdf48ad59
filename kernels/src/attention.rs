//! Launches of causal attention within packed rows, and of its gradients: in bfloat16 on tensor cores
//! (`cuda/attention.cu`, `cuda/attention_backward.cu`), in float32 by plain sums (`cuda/attention_f32.cu`).
//!
//! All buffers begin at a multiple of 16 bytes. What a row gives does not depend on the rows beside it: tiles begin
//! where rows begin.

use crate::Argument::{Buffer, F32, U32};
use crate::heads::Heads;
use crate::{Activations, Argument, Call, WARP};

/// Warps of a block in bfloat16.
const WARPS: u32 = 4;
/// Warps of a block in float32, each with a query or a key.
const OWN: u32 = 8;
/// Keys of a step of the forward pass, and of the queries' gradients, in bfloat16.
const FORWARD_KEYS: u32 = 64;
const DQ_KEYS: u32 = 32;
/// The pass of the keys' gradients.
const KEYS_PASS: usize = 2;
/// Queries of a step over a block's keys where memory is scarce.
const LEAN_STEP: u32 = 32;
/// Heads of a block of the deltas, a warp each.
const DELTAS: u32 = 8;

/// How a block's work is cut: the constants of the sources again.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Rows of a block of queries: tokens times heads that it takes together.
    query_rows: u32,
    /// Heads of a group that a block of queries takes together.
    together: u32,
    /// Keys of a block of keys.
    keys: u32,
    /// Threads of a block.
    threads: u32,
    /// Bytes of memory of a block: forward, queries' gradients, keys' gradients.
    memory: [u32; 3],
    /// Kernels: forward, queries' gradients, keys' gradients, deltas.
    kernels: [&'static str; 4],
}

impl Plan {
    /// The same for a card that gives a block so many bytes.
    fn within(self, room: u32) -> Self {
        let mut plan = self;
        if self.memory[KEYS_PASS] > room && self.kernels == BF16_128 {
            plan.kernels[KEYS_PASS] = "attention_keys_bf16_128_lean";
            plan.memory[KEYS_PASS] = keys_memory(128, self.keys, LEAN_STEP);
        }
        plan
    }

    fn of(heads: Heads, activations: Activations) -> Self {
        match activations {
            Activations::F32 => Self::float(heads.head_dim),
            Activations::Bf16 => Self::tensor_cores(heads),
        }
    }

    /// A warp a query or a key.
    fn float(head_dim: u32) -> Self {
        // Two rows of each warp, two tiles across, two weights of each warp and row across.
        let memory = 4 * (2 * OWN * head_dim + 2 * WARP * (head_dim + 1) + 2 * OWN * WARP);
        Self {
            query_rows: OWN,
            together: 1,
            keys: OWN,
            threads: OWN * WARP,
            memory: [memory; 3],
            kernels: FLOAT,
        }
    }

    /// Tiles of 16 rows.
    fn tensor_cores(heads: Heads) -> Self {
        // The size of a head rounded up, the tiles of a warp, the queries of a step over a block's keys.
        let (e, tiles, step, kernels) = match heads.head_dim {
            ..=64 => (64, 2, 64, BF16_64),
            65..=128 => (128, 2, 64, BF16_128),
            _ => (256, 1, 32, BF16_256),
        };
        // In the keys' gradients two warps share a tile.
        let (query_rows, keys) = (WARPS * 16 * tiles, WARPS / 2 * 16 * tiles);
        let group = heads.queries / heads.keys;
        Self {
            query_rows,
            // A power of two that divides the group.
            together: WARPS.min(1 << group.trailing_zeros()),
            keys,
            threads: WARPS * WARP,
            memory: [
                2 * e * (query_rows + 2 * FORWARD_KEYS),
                2 * e * (2 * query_rows + 4 * DQ_KEYS),
                keys_memory(e, keys, step),
            ],
            kernels,
        }
    }

    fn call<B>(self, pass: usize, blocks: u32, buffers: Vec<B>, heads: Heads) -> Call<B> {
        let Heads { queries, keys, head_dim } = heads;
        let mut arguments: Vec<Argument<B>> = buffers.into_iter().map(Buffer).collect();
        arguments.extend([queries, keys, head_dim, self.together].map(U32));
        arguments.push(F32((1.0 / f64::from(head_dim).sqrt()) as f32));
        Call {
            kernel: self.kernels[pass],
            blocks: [blocks, 1],
            threads: self.threads,
            memory: self.memory[pass],
            arguments,
        }
    }
}

/// Bytes of a block of keys that goes over the queries so many at a time: keys and values; two stages of queries,
/// gradients, lse and delta; weights.
fn keys_memory(e: u32, keys: u32, step: u32) -> u32 {
    2 * e * (2 * keys + 4 * step) + 4 * (4 * step + keys * step)
}

/// The names of a type's and size's kernels, as [`Plan::kernels`] has them.
const FLOAT: [&str; 4] =
    ["attention_f32", "attention_queries_f32", "attention_keys_f32", "attention_delta_f32"];
const BF16_64: [&str; 4] = [
    "attention_bf16_64",
    "attention_queries_bf16_64",
    "attention_keys_bf16_64",
    "attention_delta_bf16",
];
const BF16_128: [&str; 4] = [
    "attention_bf16_128",
    "attention_queries_bf16_128",
    "attention_keys_bf16_128",
    "attention_delta_bf16",
];
const BF16_256: [&str; 4] = [
    "attention_bf16_256",
    "attention_queries_bf16_256",
    "attention_keys_bf16_256",
    "attention_delta_bf16",
];

/// Parts of packed rows, one to a block of each head: `[tiles, 3]`, of each the row's first token, the tile's
/// first, the row's end. Those with the most work come first, so that none begins late and ends last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tiles {
    /// Of queries, for the forward pass and the queries' gradients.
    pub queries: Vec<u32>,
    /// Of keys, for the keys' and values' gradients.
    pub keys: Vec<u32>,
}

impl Tiles {
    /// Of rows that end at these tokens, rising; empty rows have none.
    pub fn of(row_ends: &[u32], heads: Heads, activations: Activations) -> Self {
        let plan = Plan::of(heads, activations);
        let starts = std::iter::once(0).chain(row_ends.iter().copied());
        let rows: Vec<(u32, u32)> = starts.zip(row_ends.iter().copied()).collect();
        // A query's work is the keys before it, a key's the queries behind it.
        Self {
            queries: tiles(&rows, plan.query_rows / plan.together, |[start, first, _]| {
                first - start
            }),
            keys: tiles(&rows, plan.keys, |[_, first, end]| end - first),
        }
    }

    /// How many of queries and of keys.
    pub fn counts(&self) -> [u32; 2] {
        [&self.queries, &self.keys].map(|tiles| (tiles.len() / 3) as u32)
    }
}

fn tiles(rows: &[(u32, u32)], size: u32, work: impl Fn([u32; 3]) -> u32) -> Vec<u32> {
    let of_row = |&(start, end): &(u32, u32)| {
        (start..end).step_by(size as usize).map(move |first| [start, first, end])
    };
    let mut tiles: Vec<[u32; 3]> = rows.iter().flat_map(of_row).collect();
    tiles.sort_by_key(|&tile| std::cmp::Reverse(work(tile)));
    tiles.concat()
}

/// What all passes read; `B` stands for a buffer.
#[derive(Clone, Copy, Debug)]
pub struct Reads<B> {
    /// Queries and keys as [`crate::heads::turn`] made them `[N, H + G, E]`, in the activations' type.
    pub ready: B,
    /// Raw projections `[N, (H + 2G)E]` in the activations' type; the values are read where they lie.
    pub raw: B,
    /// [`Tiles::queries`], u32.
    pub query_tiles: B,
}

/// `softmax(q · kᵀ / √E) · v` of every query head over its own row up to itself: `out` `[N, H E]` in the activations'
/// type, and the logarithm of the softmax's denominator, `lse` `[N, H]` float32. `counts` as [`Tiles::counts`].
pub fn attention<B>(
    reads: Reads<B>,
    [out, lse]: [B; 2],
    heads: Heads,
    counts: [u32; 2],
    activations: Activations,
) -> Call<B> {
    let plan = Plan::of(heads, activations);
    let buffers = vec![reads.ready, reads.raw, reads.query_tiles, out, lse];
    plan.call(0, counts[0] * heads.queries / plan.together, buffers, heads)
}

/// What a backward pass reads and writes beside [`Reads`].
#[derive(Clone, Copy, Debug)]
pub struct Back<B> {
    /// [`Tiles::keys`], u32.
    pub key_tiles: B,
    /// Gradient of `out` `[N, H E]`, in the activations' type.
    pub d_out: B,
    /// As [`attention`] left it.
    pub out: B,
    /// As [`attention`] left it.
    pub lse: B,
    /// Room for `Σ d_out · out` of each head `[N, H]` float32.
    pub delta: B,
    /// Gradient of `ready` `[N, H + G, E]` in the activations' type, all of it written.
    pub d_ready: B,
    /// Gradient of the raw projections `[N, (H + 2G)E]`: the value heads of it are written.
    pub d_raw: B,
}

/// The gradients of [`attention`] over `tokens` tokens: three launches, on a card that gives a block at most `room`
/// bytes of memory ([`crate::executor::Executor::block_memory`]).
pub fn attention_backward<B: Copy>(
    reads: Reads<B>,
    back: Back<B>,
    heads: Heads,
    tokens: u32,
    counts: [u32; 2],
    activations: Activations,
    room: u32,
) -> [Call<B>; 3] {
    let plan = Plan::of(heads, activations).within(room);
    let Back { key_tiles, d_out, out, lse, delta, d_ready, d_raw } = back;
    let of_heads = tokens * heads.queries;
    let deltas = Call {
        kernel: plan.kernels[3],
        blocks: [of_heads.div_ceil(DELTAS), 1],
        threads: DELTAS * WARP,
        memory: 0,
        arguments: vec![
            Buffer(d_out),
            Buffer(out),
            Buffer(delta),
            U32(of_heads),
            U32(heads.head_dim),
        ],
    };
    let given = |tiles| vec![reads.ready, reads.raw, d_out, lse, delta, tiles, d_ready];
    let mut of_keys = given(key_tiles);
    of_keys.push(d_raw);
    [
        deltas,
        plan.call(1, counts[0] * heads.queries / plan.together, given(reads.query_tiles), heads),
        plan.call(KEYS_PASS, counts[1] * heads.keys, of_keys, heads),
    ]
}

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;
