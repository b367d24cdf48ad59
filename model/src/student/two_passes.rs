//! A step without room for the gradients of the blocks ([`Recompute::Gradients`]).
//!
//! Clipping needs the norm of all gradients before the first parameter may change. So the backward
//! pass is made twice: the first time each block's gradient is reduced to its norm and forgotten; the
//! second time the block is updated as soon as its gradient is there, as LOMO does for plain gradient
//! descent (Lv et al. 2023, arXiv:2306.09782). A block's update cannot disturb those still to
//! come: they need its weights no more. The parameters outside the blocks, of which those of a tied
//! embedding gather gradient at both ends of the pass, are kept and updated last.

use candle_core::{Result, Tensor};

use super::Student;
use crate::gradients::Gradients;
use crate::ops::adamw::squared_norm;
use crate::qwen3::{BlocksTape, Qwen3, Tape};
#[cfg(doc)]
use crate::recompute::Recompute;

/// What the first pass leaves for the second.
pub(super) struct FirstPass {
    tape: BlocksTape,
    /// Gradient of the last block's output, `[N, D]`.
    d: Tensor,
    /// Of each block's gradient.
    pub(super) squared_norms: Vec<f64>,
    /// A block's parameter whose gradient is not finite.
    pub(super) not_finite: Option<String>,
}

/// The backward pass for the norms: adds the gradients of the parameters outside the blocks to
/// `gradients` and leaves those of the block at 0.
pub(super) fn first(
    model: &Qwen3,
    tape: Tape,
    d_hidden: &Tensor,
    gradients: &Gradients,
) -> Result<FirstPass> {
    let (tape, d) = model.backward_norm(tape, d_hidden, gradients)?;
    let below = d.copy()?;
    let mut squared_norms = vec![0.0; model.config().num_hidden_layers];
    let mut not_finite = None;
    let block = &gradients.parts()?[1];
    model.backward_blocks(tape.clone(), &below, gradients, |number| {
        let square = squared_norm(block)?;
        if !square.is_finite() {
            let name = gradients.first_not_finite()?.unwrap_or_default();
            not_finite = Some(name.replace(".layers.0.", &format!(".layers.{number}.")));
        }
        squared_norms[number] = square;
        block.zero_set()
    })?;
    model.backward_embedding(tape.ids(), &below, gradients)?;
    Ok(FirstPass { tape, d, squared_norms, not_finite })
}

impl Student {
    /// The second pass: every block's update, the last block's first, then all others'.
    pub(super) fn update_in_second_pass(&mut self, lr: f64, scale: f64) -> Result<()> {
        let places = self.model.weights().index().parts();
        let kept = self.gradients.parts()?;
        let (before, block, after) = (&kept[0], &kept[1], &kept[2]);
        let update = |number: usize| {
            self.update(places[number + 1].start, block, lr, scale)?;
            block.zero_set()
        };
        match &self.first_pass {
            Some(FirstPass { tape, d, .. }) => {
                self.model.backward_blocks(tape.clone(), d, &self.gradients, update)?;
            }
            // Nothing was learned: the weights decay all the same.
            None => (0..self.model.config().num_hidden_layers).try_for_each(update)?,
        }
        self.update(0, before, lr, scale)?;
        self.update(places[places.len() - 1].start, after, lr, scale)?;
        self.first_pass = None;
        Ok(())
    }
}

#[cfg(test)]
#[path = "two_passes_tests.rs"]
mod tests;
