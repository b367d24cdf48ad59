//! The network as steps of a program: from tokens to hidden states, and back to the gradient of every parameter.

use distill::batch::TokenBatch;
use kernels::embed::{Runs, gather, scatter_add};
use kernels::executor::{Element, Executor, Inputs};
use kernels::heads::Heads;
use kernels::program::{Kind, Program, View};
use kernels::{Activations, attention};

use super::block::{self, NormOf, normed, through_norm};
use super::failed;
use super::weight::Weight;
use crate::config::Qwen3Config;
use crate::ops::rope::RopeTables;
use crate::parameters::{ModelViews, ParameterIndex, Part};
use crate::qwen3::ModelError;
use crate::recompute::Recompute;

/// What a program is made of, and what it will be given.
#[derive(Default)]
pub(super) struct Making {
    pub(super) program: Program,
    pub(super) inputs: Inputs,
}

impl Making {
    /// Values that are sent with the program.
    pub(super) fn send<T: Element>(&mut self, values: &[T]) -> View {
        let view = self.program.input(T::KIND, values.len());
        self.inputs.set(view, values);
        view
    }
}

/// A model's weights on a card, and what of it does not change.
pub(super) struct Network {
    pub(super) config: Qwen3Config,
    pub(super) activations: Activations,
    /// Vectors in the activations' type, and matrices.
    pub(super) views: Views,
    /// Cosines and sines of all positions, `[positions, E/2]` float32.
    cos: View,
    sin: View,
    /// Bytes that a block of a launch may take.
    block_memory: u32,
}

/// A model's weights.
pub(super) type Views = ModelViews<View, Weight>;

/// What the blocks of one batch share.
pub(super) struct Shape {
    /// N
    pub(super) tokens: usize,
    /// D
    pub(super) width: usize,
    /// I
    pub(super) inner: usize,
    pub(super) heads: Heads,
    pub(super) eps: f32,
    pub(super) activations: Activations,
    pub(super) cos: View,
    pub(super) sin: View,
    /// Of each token in its row, `[N]` u32.
    pub(super) positions: View,
    /// Tiles of queries and of keys, and how many of each ([`attention::Tiles`]).
    query_tiles: View,
    pub(super) key_tiles: View,
    pub(super) tiles: [u32; 2],
    /// Bytes that a block of a launch may take.
    pub(super) block_memory: u32,
}

impl Shape {
    /// Values of a token's attention: `H E`.
    pub(super) fn attended(&self) -> usize {
        (self.heads.queries * self.heads.head_dim) as usize
    }

    /// What attention reads.
    pub(super) fn attention(&self, raw: View, ready: View) -> attention::Reads<View> {
        attention::Reads { ready, raw, query_tiles: self.query_tiles }
    }
}

/// What a forward pass leaves for its backward.
pub(super) struct Tape {
    blocks: Vec<Kept>,
    /// The residual stream after the last block, `[N, D]` float32.
    pub(super) last: View,
}

enum Kept {
    Everything(block::Tape),
    /// The block's input.
    Input(View),
}

/// Views of a flat buffer.
pub(super) fn views(
    flat: View,
    index: &ParameterIndex,
    blocks: usize,
) -> candle_core::Result<ModelViews<View>> {
    let view = |part: Part| Ok(flat.part(part.range()));
    ModelViews::with(index, blocks, view, view)
}

/// Weights in a flat buffer.
pub(super) fn weights(
    flat: View,
    index: &ParameterIndex,
    blocks: usize,
) -> candle_core::Result<Views> {
    let view = |part: Part| flat.part(part.range());
    let matrix = |part| Ok(Weight::View(view(part)));
    ModelViews::with(index, blocks, |part| Ok(view(part)), matrix)
}

impl Network {
    /// Over these weights; the tables are made and sent.
    pub(super) fn new<X: Executor>(
        on: &mut X,
        config: Qwen3Config,
        views: Views,
        activations: Activations,
    ) -> Result<Self, ModelError> {
        let positions = config.max_position_embeddings;
        let tables =
            RopeTables::new(config.head_dim, config.rope_theta, &config.rope_scaling, positions)?;
        let mut table = |name, values: &[f32]| {
            let view = on.keep(name, Kind::F32, values.len()).map_err(failed::<X>)?;
            on.write(view, values).map_err(failed::<X>)?;
            Ok::<_, ModelError>(view)
        };
        let (cos, sin) = (table("cosines", tables.cos())?, table("sines", tables.sin())?);
        let block_memory = on.block_memory();
        Ok(Self { config, activations, views, cos, sin, block_memory })
    }

    /// What the blocks of a batch share; its tables are sent with the program.
    pub(super) fn shape(&self, making: &mut Making, batch: &TokenBatch) -> Shape {
        let positions: Vec<u32> = batch.rows().flat_map(|row| 0..row.len() as u32).collect();
        let heads = Heads {
            queries: self.config.num_attention_heads as u32,
            keys: self.config.num_key_value_heads as u32,
            head_dim: self.config.head_dim as u32,
        };
        let ends: Vec<u32> = batch.row_ends().iter().map(|&end| end as u32).collect();
        let tiles = attention::Tiles::of(&ends, heads, self.activations);
        Shape {
            tokens: batch.ids().len(),
            width: self.config.hidden_size,
            inner: self.config.intermediate_size,
            heads,
            eps: self.config.rms_norm_eps as f32,
            activations: self.activations,
            cos: self.cos,
            sin: self.sin,
            positions: making.send(&positions),
            query_tiles: making.send(&tiles.queries),
            key_tiles: making.send(&tiles.keys),
            tiles: tiles.counts(),
            block_memory: self.block_memory,
        }
    }

    /// The residual stream after the last block, and what a backward pass needs.
    pub(super) fn forward(
        &self,
        making: &mut Making,
        batch: &TokenBatch,
        shape: &Shape,
        recompute: Recompute,
    ) -> Tape {
        let ids = making.send(batch.ids());
        let program = &mut making.program;
        let (n, d) = (shape.tokens, shape.width);
        program.part("embedding");
        let mut x = program.passing("residual", Kind::F32, n * d);
        let size = [n as u32, d as u32];
        self.views.embedding.gather(program, [ids, x], size);
        let mut blocks = Vec::new();
        for (number, weights) in self.views.blocks.iter().enumerate() {
            program.part(format!("block {number}"));
            let (output, tape) = block::forward(program, x, weights, shape);
            blocks.push(match recompute {
                Recompute::None => Kept::Everything(tape),
                Recompute::Blocks | Recompute::Gradients => Kept::Input(x),
            });
            x = output;
        }
        Tape { blocks, last: x }
    }

    /// Hidden states of some positions after the last norm, `[R, D]`, and what their backward needs.
    pub(super) fn hidden(
        &self,
        making: &mut Making,
        tape: &Tape,
        positions: &[u32],
        shape: &Shape,
    ) -> Hidden {
        let places = making.send(positions);
        let program = &mut making.program;
        let (rows, d) = (positions.len(), shape.width);
        program.part("last norm");
        let picked = program.passing("residual", Kind::F32, rows * d);
        let size = [rows as u32, d as u32];
        program.call(gather([tape.last, places, picked], size, Activations::F32));
        let (hidden, rstd) = normed(program, picked, self.views.norm, shape);
        Hidden { picked, rstd, hidden }
    }

    /// Adds to `grads` the gradient of a loss whose gradient with respect to hidden states is `d_hidden` `[R, D]`, in the
    /// activations' type.
    pub(super) fn backward(
        &self,
        making: &mut Making,
        (batch, positions): (&TokenBatch, &[u32]),
        (tape, of, d_hidden): (Tape, &Hidden, View),
        grads: &ModelViews<View>,
        shape: &Shape,
    ) {
        let d = self.backward_norm(making, positions, (of, d_hidden), grads, shape);
        let blocks = self.views.blocks.iter().zip(&grads.blocks).zip(tape.blocks);
        for (number, ((weights, grads), kept)) in blocks.enumerate().rev() {
            let program = &mut making.program;
            program.part(format!("block {number}, backward"));
            let tape = match kept {
                Kept::Everything(tape) => tape,
                Kept::Input(x) => block::forward_again(program, x, weights, shape),
            };
            block::backward(program, d, &tape, (weights, grads), shape);
        }
        self.backward_embedding(making, batch, d, grads);
    }

    /// The gradient of the residual stream after the last block, `[N, D]` float32.
    fn backward_norm(
        &self,
        making: &mut Making,
        positions: &[u32],
        (of, d_hidden): (&Hidden, View),
        grads: &ModelViews<View>,
        shape: &Shape,
    ) -> View {
        let runs = making.send_runs(&Runs::of(positions));
        let program = &mut making.program;
        program.part("last norm, backward");
        let d_picked = program.passing("gradient of the residual", Kind::F32, of.picked.len);
        program.zero(d_picked);
        let norm = NormOf { x: of.picked, w: self.views.norm, dw: grads.norm, rstd: of.rstd };
        through_norm(program, d_hidden, d_picked, norm, shape);
        let d = program.passing("gradient of the residual", Kind::F32, shape.tokens * shape.width);
        program.zero(d);
        add_rows(program, d_picked, &runs, d, shape.width);
        d
    }

    /// Look-ups of the padding token give its row no gradient, as in `torch.nn.Embedding`.
    fn backward_embedding(
        &self,
        making: &mut Making,
        batch: &TokenBatch,
        d: View,
        grads: &ModelViews<View>,
    ) {
        let runs = Runs::without(batch.ids(), self.config.pad_token_id);
        let runs = making.send_runs(&runs);
        making.program.part("embedding, backward");
        add_rows(&mut making.program, d, &runs, grads.embedding, self.config.hidden_size);
    }
}

/// Hidden states of some positions.
pub(super) struct Hidden {
    /// The residual stream there, `[R, D]` float32, and its norm's factors, `[R]`.
    picked: View,
    rstd: View,
    /// `[R, D]` in the activations' type.
    pub(super) hidden: View,
}

/// [`Runs`] that were sent.
struct SentRuns {
    places: View,
    ids: View,
    starts: View,
}

impl Making {
    fn send_runs(&mut self, runs: &Runs) -> SentRuns {
        SentRuns {
            places: self.send(&runs.places),
            ids: self.send(&runs.ids),
            starts: self.send(&runs.starts),
        }
    }
}

/// The rows of `d` `[n, width]` added to those of `to` that the runs name.
fn add_rows(program: &mut Program, d: View, runs: &SentRuns, to: View, width: usize) {
    let SentRuns { places, ids, starts } = *runs;
    let size = [ids.len as u32, width as u32];
    program.call(scatter_add([d, places, ids, starts, to], size));
}
