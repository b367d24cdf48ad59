//! Qwen3 over packed rows: every position's hidden state, and the gradient of every parameter.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Tensor};
use distill::batch::TokenBatch;

use crate::block::{self, BlockTape, Shared};
use crate::config::Qwen3Config;
use crate::gradients::Gradients;
use crate::ops::Precision;
use crate::ops::embed::{gather_rows, scatter_add_rows};
use crate::ops::norm::{rms_norm, rms_norm_backward};
use crate::ops::rope::{QkvLayout, RopeTables};
use crate::parameters::ModelViews;
use crate::recompute::Recompute;
use crate::weights::Weights;

/// Positions the rotary tables cover at first; they grow with the rows that come.
const FIRST_POSITIONS: usize = 1024;

/// Why a batch cannot be computed.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// No tokens at all.
    #[error("a batch must hold at least one token")]
    Empty,
    /// A token the vocabulary does not have.
    #[error("token id {found} at position {position} of row {row}; the vocabulary has {classes}")]
    TokenId {
        /// The id.
        found: u32,
        /// Row in the batch, from 0.
        row: usize,
        /// Position in the row, from 0.
        position: usize,
        /// Number of embeddings.
        classes: usize,
    },
    /// A row longer than the model's positions.
    #[error("row {row} has {found} tokens; this model takes at most {limit}: truncate it")]
    TooLong {
        /// Row in the batch, from 0.
        row: usize,
        /// Its length.
        found: usize,
        /// `max_position_embeddings`.
        limit: usize,
    },
    /// An operation failed.
    #[error(transparent)]
    Operation(#[from] candle_core::Error),
    /// The memory of a device does not suffice; nothing was changed, and less may be tried.
    #[error("{0}")]
    OutOfMemory(String),
    /// A device failed.
    #[error("{0}")]
    Device(String),
    /// A device failed for good: nothing is computed on it any more by this process.
    #[error("{0}")]
    DeviceLost(String),
}

/// What a training forward pass leaves for its backward.
pub struct Tape {
    pub(crate) blocks: BlocksTape,
    /// Residual stream after the last block, `[N, D]`, and its norm's factors.
    last: Tensor,
    last_rstd: Tensor,
}

/// The part of the blocks; a copy shares the tensors.
#[derive(Clone)]
pub(crate) struct BlocksTape {
    batch: TokenBatch,
    tables: Arc<RopeTables>,
    kept: Vec<Kept>,
}

#[derive(Clone)]
enum Kept {
    Everything(BlockTape),
    Input(Tensor),
}

impl BlocksTape {
    /// The tokens, `[N]`.
    pub(crate) fn ids(&self) -> &[u32] {
        self.batch.ids()
    }

    /// Elements of all that is kept.
    #[cfg(test)]
    pub(crate) fn elements(&self) -> usize {
        let of = |kept: &Kept| match kept {
            Kept::Everything(tape) => tape.elements(),
            Kept::Input(x) => x.elem_count(),
        };
        self.kept.iter().map(of).sum()
    }
}

/// The network over weights that may be trained in place.
pub struct Qwen3 {
    config: Qwen3Config,
    precision: Precision,
    weights: Weights,
    views: ModelViews,
    tables: Mutex<Arc<RopeTables>>,
}

impl Qwen3 {
    /// A network over these weights. It computes with what they hold at each call; 16-bit weights
    /// are widened inside the products and cannot be trained.
    ///
    /// # Errors
    /// When the weights do not have the layout of the configuration.
    pub fn new(
        config: Qwen3Config,
        weights: Weights,
        precision: Precision,
    ) -> candle_core::Result<Self> {
        let views = weights.views(config.num_hidden_layers)?;
        let positions = FIRST_POSITIONS.min(config.max_position_embeddings);
        let tables = Mutex::new(Arc::new(rope_tables(&config, positions)?));
        Ok(Self { config, precision, weights, views, tables })
    }

    /// The configuration.
    pub fn config(&self) -> &Qwen3Config {
        &self.config
    }

    /// The weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The type of the products' operands.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The matrix that turns hidden states into logits, `[V, D]`.
    pub fn head(&self) -> &Tensor {
        &self.views.head
    }

    /// Hidden states of every position after the last norm, `[N, D]`; nothing is kept.
    ///
    /// # Errors
    /// [`ModelError`], naming row and position.
    pub fn forward_hidden(&self, batch: &TokenBatch) -> Result<Tensor, ModelError> {
        let tables = self.check(batch)?;
        let shared = self.shared(&tables, batch);
        let x = gather_rows(&self.views.embedding, batch.ids())?;
        for weights in &self.views.blocks {
            block::forward(&x, weights, &shared)?;
        }
        Ok(rms_norm(&x, &self.views.norm, self.config.rms_norm_eps)?.0)
    }

    /// Hidden states as [`Self::forward_hidden`], and what [`Self::backward`] needs.
    ///
    /// # Errors
    /// [`ModelError`], naming row and position.
    pub fn forward_train(
        &self,
        batch: &TokenBatch,
        recompute: Recompute,
    ) -> Result<(Tensor, Tape), ModelError> {
        let tables = self.check(batch)?;
        let shared = self.shared(&tables, batch);
        let mut x = gather_rows(&self.views.embedding, batch.ids())?;
        let mut kept = Vec::with_capacity(self.views.blocks.len());
        for weights in &self.views.blocks {
            let (output, tape) = block::forward_train(&x, weights, &shared)?;
            kept.push(match recompute {
                Recompute::None => Kept::Everything(tape),
                Recompute::Blocks | Recompute::Gradients => Kept::Input(x),
            });
            x = output;
        }
        let (hidden, last_rstd) = rms_norm(&x, &self.views.norm, self.config.rms_norm_eps)?;
        let blocks = BlocksTape { batch: batch.clone(), tables, kept };
        Ok((hidden, Tape { blocks, last: x, last_rstd }))
    }

    /// Adds to `gradients` the gradient of a loss whose gradient with respect to the hidden states
    /// is `d_hidden` `[N, D]`. The head's own is the loss's to add ([`Gradients::head`]).
    ///
    /// # Errors
    /// When an operation fails.
    pub fn backward(
        &self,
        tape: Tape,
        d_hidden: &Tensor,
        gradients: &Gradients,
    ) -> Result<(), ModelError> {
        let ids = tape.blocks.ids().to_vec();
        let (blocks, d) = self.backward_norm(tape, d_hidden, gradients)?;
        self.backward_blocks(blocks, &d, gradients, |_| Ok(()))?;
        Ok(self.backward_embedding(&ids, &d, gradients)?)
    }

    /// The last norm's part of [`Self::backward`]: gives the gradient of the last block's output.
    pub(crate) fn backward_norm(
        &self,
        tape: Tape,
        d_hidden: &Tensor,
        gradients: &Gradients,
    ) -> candle_core::Result<(BlocksTape, Tensor)> {
        let Tape { blocks, last, last_rstd } = tape;
        let d = Tensor::zeros(last.shape(), DType::F32, last.device())?;
        let grad = &gradients.views().norm;
        rms_norm_backward(d_hidden, &last, &last_rstd, &self.views.norm, &d, grad)?;
        Ok((blocks, d))
    }

    /// The blocks' part, the last one first: `d` `[N, D]` becomes the gradient of the first block's
    /// input. `done` is told each block's number once its gradient is there.
    pub(crate) fn backward_blocks(
        &self,
        tape: BlocksTape,
        d: &Tensor,
        gradients: &Gradients,
        mut done: impl FnMut(usize) -> candle_core::Result<()>,
    ) -> candle_core::Result<()> {
        let BlocksTape { batch, tables, kept } = tape;
        let shared = self.shared(&tables, &batch);
        let layers = self.views.blocks.iter().zip(&gradients.views().blocks).zip(kept);
        for (number, ((weights, grads), kept)) in layers.enumerate().rev() {
            let tape = match kept {
                Kept::Everything(tape) => tape,
                Kept::Input(x) => block::forward_train(&x, weights, &shared)?.1,
            };
            block::backward(d, &tape, weights, grads, &shared)?;
            done(number)?;
        }
        Ok(())
    }

    /// The embedding's part. Look-ups of the padding token give its row no gradient, as in
    /// `torch.nn.Embedding`.
    pub(crate) fn backward_embedding(
        &self,
        ids: &[u32],
        d: &Tensor,
        gradients: &Gradients,
    ) -> candle_core::Result<()> {
        let grad = &gradients.views().embedding;
        let pad = self.config.pad_token_id;
        if !ids.iter().any(|id| Some(*id) == pad) {
            return scatter_add_rows(grad, ids, d);
        }
        let kept: Vec<u32> =
            (0..ids.len()).filter(|&at| Some(ids[at]) != pad).map(|at| at as u32).collect();
        if kept.is_empty() {
            return Ok(());
        }
        let kept_ids: Vec<u32> = kept.iter().map(|&at| ids[at as usize]).collect();
        scatter_add_rows(grad, &kept_ids, &gather_rows(d, &kept)?)
    }

    /// Refuses what the network has no embedding or position for; gives tables that are long
    /// enough.
    fn check(&self, batch: &TokenBatch) -> Result<Arc<RopeTables>, ModelError> {
        let longest = check_batch(&self.config, batch)?;
        let limit = self.config.max_position_embeddings;
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if tables.positions() < longest {
            let positions = longest.next_power_of_two().min(limit);
            *tables = Arc::new(rope_tables(&self.config, positions)?);
        }
        Ok(Arc::clone(&tables))
    }

    fn shared<'a>(&self, tables: &'a RopeTables, batch: &'a TokenBatch) -> Shared<'a> {
        Shared {
            eps: self.config.rms_norm_eps,
            precision: self.precision,
            layout: QkvLayout {
                heads: self.config.num_attention_heads,
                kv_heads: self.config.num_key_value_heads,
                head_dim: self.config.head_dim,
            },
            tables,
            row_ends: batch.row_ends(),
        }
    }
}

/// Refuses what a network has no embedding or position for; gives the length of the longest row.
pub(crate) fn check_batch(config: &Qwen3Config, batch: &TokenBatch) -> Result<usize, ModelError> {
    let (classes, limit) = (config.vocab_size, config.max_position_embeddings);
    let mut longest = 0;
    for (row, tokens) in batch.rows().enumerate() {
        if tokens.len() > limit {
            return Err(ModelError::TooLong { row, found: tokens.len(), limit });
        }
        longest = longest.max(tokens.len());
        let ids = &batch.ids()[tokens];
        if let Some(position) = ids.iter().position(|&id| id as usize >= classes) {
            let found = ids[position];
            return Err(ModelError::TokenId { found, row, position, classes });
        }
    }
    if longest == 0 { Err(ModelError::Empty) } else { Ok(longest) }
}

fn rope_tables(config: &Qwen3Config, positions: usize) -> candle_core::Result<RopeTables> {
    RopeTables::new(config.head_dim, config.rope_theta, &config.rope_scaling, positions)
}

#[cfg(test)]
#[path = "qwen3_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "qwen3_reference_tests.rs"]
mod reference_tests;
