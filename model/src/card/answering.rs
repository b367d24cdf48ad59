//! Batches that a model on a card is asked about: started, and read when they have been computed.

use std::collections::BTreeMap;

use distill::batch::TokenBatch;
use kernels::executor::Executor;

use super::answers::{self, Answers};
use super::engine::Engine;
use super::failed;
use super::network::Making;
use crate::language_model::{Answer, Asking};
use crate::qwen3::ModelError;
use crate::recompute::Recompute;

/// Batches that are under way, by the numbers they were given.
pub(super) struct Answering<X: Executor> {
    batches: BTreeMap<u64, Batch<X>>,
    next: u64,
}

/// A batch that is under way, and where the answers will lie.
struct Batch<X: Executor> {
    running: X::Running,
    answers: Vec<Answers>,
}

impl<X: Executor> Default for Answering<X> {
    fn default() -> Self {
        Self { batches: BTreeMap::new(), next: 0 }
    }
}

impl<X: Executor> Engine<X> {
    /// Starts the program that answers; gives its number.
    pub(super) fn start_answer(
        &mut self,
        batch: &TokenBatch,
        asked: &[Asking<'_>],
    ) -> Result<u64, ModelError> {
        let (making, answers) = self.asking(batch, asked)?;
        let running = self.on.start(&making.program, &making.inputs).map_err(failed::<X>)?;
        let Answering { batches, next } = &mut self.answering;
        let number = *next;
        *next += 1;
        batches.insert(number, Batch { running, answers });
        Ok(number)
    }

    pub(super) fn has_ended(&mut self, number: u64) -> Result<bool, ModelError> {
        let Some(Batch { running, .. }) = self.answering.batches.get(&number) else {
            return Ok(true);
        };
        self.on.has_ended(running).map_err(failed::<X>)
    }

    pub(super) fn finish_answer(
        &mut self,
        number: u64,
        asked: &[Asking<'_>],
    ) -> Result<Vec<Answer>, ModelError> {
        let Some(Batch { running, answers }) = self.answering.batches.remove(&number) else {
            return Err(ModelError::Device("a batch was asked for twice".to_owned()));
        };
        let outputs = self.on.finish(running).map_err(failed::<X>)?;
        let each = answers.iter().zip(asked);
        Ok(each.map(|(answers, (_, asked))| answers.read(*asked, &outputs)).collect())
    }

    /// The program that answers.
    pub(super) fn asking(
        &self,
        batch: &TokenBatch,
        asked: &[Asking<'_>],
    ) -> Result<(Making, Vec<Answers>), ModelError> {
        let mut making = Making::default();
        let shape = self.network.shape(&mut making, batch);
        let tape = self.network.forward(&mut making, batch, &shape, Recompute::None);
        let mut all = Vec::new();
        for &(positions, asked) in asked {
            let hidden = self.network.hidden(&mut making, &tape, positions, &shape).hidden;
            all.push(answers::seek(&mut making, &self.network, hidden, asked)?);
        }
        Ok((making, all))
    }
}
