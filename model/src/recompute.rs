//! What a training step computes again to save memory, and how much memory each choice takes.

use std::ops::Range;

use crate::config::Qwen3Config;
use crate::ops::head::logits_elements;
use crate::parameters::ParameterIndex;

/// What a training step keeps, and what it computes again: the same bits whichever is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recompute {
    /// Everything is kept: fastest.
    #[default]
    None,
    /// Of the forward pass only each block's input is kept: a third more arithmetic.
    Blocks,
    /// As `Blocks`, and no block's gradients are kept either: the backward pass is made twice, once
    /// for their norm and once to update each block as soon as its gradient is there.
    Gradients,
}

impl Recompute {
    /// All choices, from the fastest to the leanest.
    pub const ALL: [Self; 3] = [Self::None, Self::Blocks, Self::Gradients];
}

impl std::fmt::Display for Recompute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Blocks => "blocks",
            Self::Gradients => "gradients",
        })
    }
}

impl std::str::FromStr for Recompute {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|choice| choice.to_string() == text);
        found.ok_or_else(|| format!("{text} is none of none, blocks and gradients"))
    }
}

/// Memory a step takes beside the student's state (`3 P` float32), in bytes, about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepBytes {
    /// Gradients of the parameters.
    pub gradients: u64,
    /// What is kept of the forward pass, and what a block needs while it is computed.
    pub activations: u64,
    /// Logits.
    pub loss: u64,
}

impl Recompute {
    /// What a step of a batch of so many tokens takes.
    pub fn step(self, config: &Qwen3Config, tokens: usize) -> StepBytes {
        let index = ParameterIndex::new(config);
        let of_parts = index.parts();
        let outside = of_parts[0].len() + of_parts.last().map_or(0, Range::len);
        let one_block = of_parts.get(1).map_or(0, Range::len);
        let blocks = config.num_hidden_layers;
        let block = Widths::of(config);
        let (gradients, kept) = match self {
            Self::None => (index.total(), blocks * block.kept),
            Self::Blocks => (index.total(), blocks * block.input + block.kept),
            Self::Gradients => (outside + one_block, (blocks + 1) * block.input + block.kept),
        };
        let bytes = |elements: usize| (elements * size_of::<f32>()) as u64;
        StepBytes {
            gradients: bytes(gradients),
            activations: bytes(tokens * (kept + block.working)),
            loss: bytes(logits_elements(tokens, config.vocab_size)),
        }
    }

    /// All that a step of a batch of so many tokens takes.
    pub fn step_bytes(self, config: &Qwen3Config, tokens: usize) -> u64 {
        let StepBytes { gradients, activations, loss } = self.step(config, tokens);
        gradients + activations + loss
    }
}

/// Elements a token takes in a block.
struct Widths {
    /// Its input.
    input: usize,
    /// What the block keeps for its backward pass.
    kept: usize,
    /// What the backward pass makes on its way, the two largest of its moments together.
    working: usize,
}

impl Widths {
    fn of(config: &Qwen3Config) -> Self {
        let (d, i) = (config.hidden_size, config.intermediate_size);
        let queries = config.num_attention_heads * config.head_dim;
        let qkv = queries + 2 * config.num_key_value_heads * config.head_dim;
        // Input, middle and their norms' factors; projections; attention with its log-sums; gates.
        let kept = 2 * d + 2 + qkv + queries + config.num_attention_heads + 2 * i;
        // Of the gated layer: its product, that one's gradient, the gates' gradients. Of attention:
        // its gradient, and rotated and raw projections with theirs. Residual gradients beside both.
        let working = (4 * i).max(queries + 3 * qkv) + 4 * d;
        Self { input: d, kept, working }
    }
}

/// The lengths of the largest batch of `rows` rows that can be drawn from rows of these, the longest first.
pub fn longest(lengths: impl Iterator<Item = usize>, rows: usize) -> Vec<usize> {
    let mut lengths: Vec<usize> = lengths.collect();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    lengths.truncate(rows);
    lengths
}

#[cfg(test)]
#[path = "recompute_tests.rs"]
mod tests;
