//! What training and answering take of a card, to the byte: the programs are made and counted, nothing runs.

use std::path::Path;

use candle_core::{DType, Device as Tensors, Tensor};
use distill::batch::{BatchError, Sequence, TokenBatch};
use distill::signal::{Entries, TopK};
use kernels::counting::{Counted, Counting, WORKSPACE_BYTES};
use kernels::executor::Executor;

use super::engine::{CardModel, TEACHERS_MATRIX};
use super::learner::CardLearner;
use crate::config::Qwen3Config;
use crate::language_model::{Asked, LanguageModel};
use crate::learner::Learner;
use crate::load::is_gguf;
use crate::needs::{Batch, Needs, Taught};
use crate::ops::Precision;
use crate::ops::head::{LossSettings, Teaching};
use crate::ops::topk::Wanted;
use crate::qwen3::ModelError;
use crate::student::{StudentError, Training};
use crate::weights::WeightsError;

/// Buffers of programs that are there for the loss or for what a teacher says.
const OF_LOSS: [&str; 4] = ["logits", "hidden states", "sums", "listed tokens"];

/// What training takes with batches like this one: the step, its update and the evaluation of as many rows.
pub(crate) fn training(
    config: &Qwen3Config,
    training: &Training,
    batch: Batch<'_>,
) -> Result<Needs, StudentError> {
    let mut learner = CardLearner::empty(Counting::default(), config.clone(), *training)?;
    make_step(&mut learner, config, batch)?;
    let counted = learner.card().engine().on.counted();
    Ok(needs(&counted))
}

/// A step of a batch like this one, and the evaluation of it.
pub(super) fn make_step<X: Executor + Send>(
    learner: &mut CardLearner<X>,
    config: &Qwen3Config,
    Batch { rows, taught }: Batch<'_>,
) -> Result<(), StudentError> {
    let batch = of_lengths(config, rows)?;
    let (positions, classes) = (batch.scored().len(), config.vocab_size);
    let settings = match taught {
        Taught::Nothing => LossSettings { alpha: 0.0, ..LossSettings::divergence_alone(1.0) },
        Taught::Listed { .. } | Taught::All { .. } => LossSettings::divergence_alone(1.0),
    };
    // Numbers of no memory: one, repeated.
    let matrix = |[rows, columns]: [usize; 2]| {
        Tensor::zeros((1, 1), DType::F32, &Tensors::Cpu)?.broadcast_as((rows, columns))
    };
    let (listed, states, w);
    let signal = match taught {
        Taught::Nothing => None,
        Taught::Listed { k, own } => {
            if own > 0 {
                ask(learner.card(), &batch, own.min(classes))?;
            }
            listed = nothing_listed(positions, k.min(classes), classes);
            Some(Teaching::TopK(&listed))
        }
        Taught::All { width, classes } => {
            (states, w) = (matrix([positions, width])?, matrix([classes, width])?);
            learner.card().engine().place_matrix(&w)?;
            Some(Teaching::Full { hidden: &states, w: &w })
        }
    };
    learner.backward(&batch, classes, signal, &settings, 1.0)?;
    learner.model().losses(&batch, classes, signal, &settings)?;
    learner.step(0.0, None)?;
    Ok(())
}

/// What answering takes: the weights as they lie in the file, and a batch of so many tokens of which all positions are asked
/// for the `k` likeliest classes.
pub(crate) fn answering(
    place: &Path,
    config: &Qwen3Config,
    precision: Precision,
    (rows, k): (&[usize], usize),
) -> Result<Needs, WeightsError> {
    let (on, of) = (Counting::default(), config.clone());
    let said = |error: ModelError| WeightsError::Card(error.to_string());
    let model = match is_gguf(place) {
        true => CardModel::empty_quantised(on, place, of, precision)?,
        false => CardModel::empty(on, of, precision).map_err(said)?,
    };
    let batch = of_lengths(config, rows).map_err(said)?;
    ask(&model, &batch, k.min(config.vocab_size)).map_err(said)?;
    let counted = model.engine().on.counted();
    Ok(needs(&counted))
}

fn ask<X: Executor + Send>(
    model: &CardModel<X>,
    batch: &TokenBatch,
    k: usize,
) -> Result<(), ModelError> {
    let next = vec![None; batch.scored().len()];
    let classes = model.config().vocab_size;
    let wanted = Wanted { classes, next: &next, temperature: 1.0, k, entries: &Entries::Top };
    // What is put out is nothing a model says.
    model.answer(batch, &[(batch.scored(), Asked::Listed(wanted))]).map(drop)
}

/// A batch of rows of so many tokens, as different as there are.
fn of_lengths(config: &Qwen3Config, rows: &[usize]) -> Result<TokenBatch, ModelError> {
    let classes = config.vocab_size.max(1) as u32;
    let row = |&length: &usize| {
        Sequence::all_scored((0..length as u32).map(|token| token % classes).collect())
    };
    let rows: Result<Vec<Sequence>, BatchError> = rows.iter().map(row).collect();
    Ok(TokenBatch::pack(&rows.map_err(candle_core::Error::wrap)?))
}

/// A signal of so many tokens of all classes a position.
fn nothing_listed(rows: usize, k: usize, classes: usize) -> TopK {
    let ids = (0..rows).flat_map(|_| 0..k as u32).collect();
    TopK {
        k,
        ids,
        scaled: vec![0.0; rows * k],
        log_z: vec![f32::MAX.ln(); rows],
        // Beside all there is nothing.
        log_rest: vec![if k < classes { 0.0 } else { f32::NEG_INFINITY }; rows],
    }
}

/// By what it is for.
fn needs(counted: &Counted) -> Needs {
    let mut needs = Needs {
        workspace: WORKSPACE_BYTES as u64,
        travelling: counted.travelling as u64,
        ..Needs::default()
    };
    for (name, bytes) in &counted.kept {
        let part = match name.as_str() {
            "master weights" | "first moments" | "second moments" => &mut needs.optimiser,
            "gradients" | "halted" => &mut needs.gradients,
            TEACHERS_MATRIX => &mut needs.teacher,
            _ => &mut needs.model,
        };
        *part += *bytes as u64;
    }
    for (name, &bytes) in &counted.at_peak {
        let of_loss = OF_LOSS.contains(name);
        *(if of_loss { &mut needs.loss } else { &mut needs.activations }) += bytes as u64;
    }
    needs.gaps = counted.passing as u64 - needs.loss - needs.activations;
    needs
}
