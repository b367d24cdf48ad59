//! What the services make a card do, as they do it: the next turn is started before the last one is read.

use std::time::Instant;

use distill::signal::Entries;
use kernels::executor::Executor;
use kernels::program::Places;

use super::{Figure, K, Sizes, TEMPERATURE, batch, failed, kept, median, settings, signal};
use crate::card::engine::CardModel;
use crate::card::learner::CardLearner;
use crate::card::needs::training;
use crate::card::network::weights;
use crate::config::Qwen3Config;
use crate::language_model::{Asked, LanguageModel as _};
use crate::learner::Learner as _;
use crate::needs::{Batch, Taught};
use crate::ops::Precision;
use crate::ops::head::Teaching;
use crate::ops::topk::Wanted;
use crate::parameters::ParameterIndex;
use crate::qwen3::ModelError;
use crate::student::{Student, StudentError, Training};

/// Turns before those that count.
const WARM_UP: usize = 3;

/// Seconds of a turn, the median of so many, and what the last one started. A turn is given what the one before it
/// started, where there is one.
fn turns<T, E: From<ModelError>>(
    times: usize,
    mut turn: impl FnMut(Option<T>) -> Result<T, E>,
) -> Result<(f64, T), E> {
    let mut started = turn(None)?;
    let mut seconds = Vec::new();
    for time in 0..WARM_UP + times {
        let begin = Instant::now();
        started = turn(Some(started))?;
        if time >= WARM_UP {
            seconds.push(begin.elapsed().as_secs_f64());
        }
    }
    Ok((median(seconds)?, started))
}

/// Operations of one forward pass over a batch, with the output layer at `scored` positions.
fn forward_operations(config: &Qwen3Config, sizes: Sizes, scored: usize) -> f64 {
    let [rows, length] = sizes.rows;
    let (d, layers) = (config.hidden_size, config.num_hidden_layers);
    let attended = config.num_attention_heads * config.head_dim;
    let matrices = d * config.qkv_width() + attended * d + 3 * d * config.intermediate_size;
    let blocks = 2.0 * (rows * length * layers) as f64 * matrices as f64;
    let attention = 2.0 * (rows * length * length * layers) as f64 * attended as f64;
    blocks + attention + 2.0 * (scored * d) as f64 * config.vocab_size as f64
}

/// A teacher's batch: hidden states, the k largest logits of every position and the mass of the rest, as a server
/// answers, from tokens on the host to answers on the host.
///
/// # Errors
/// As [`rate`](super::rate).
pub fn teacher<X: Executor + Send>(
    mut on: X,
    config: &Qwen3Config,
    sizes: Sizes,
) -> Result<Figure, ModelError> {
    let index = std::sync::Arc::new(ParameterIndex::new(config));
    let flat = kept(&mut on, index.total(), 0.02)?;
    let weights = weights(flat, &index, config.num_hidden_layers)?;
    let model = CardModel::over(on, config.clone(), (&index, weights), Precision::Bf16)?;
    let batch = batch(sizes, config.vocab_size);
    let positions: Vec<u32> = (0..batch.ids().len() as u32).collect();
    let next = vec![None; positions.len()];
    let k = K.min(config.vocab_size);
    let wanted = Wanted {
        classes: config.vocab_size,
        next: &next,
        temperature: TEMPERATURE,
        k,
        entries: &Entries::Top,
    };
    let asked = [(&positions[..], Asked::Listed(wanted))];
    let finish = |started| model.finish_answer(started, &asked).map(drop);
    let seconds = turns(sizes.times, |before| {
        let started = model.start_answer(&batch, &asked)?;
        before.map_or(Ok(()), finish)?;
        Ok::<_, ModelError>(started)
    });
    let (seconds, last) = seconds?;
    finish(last)?;
    let operations = forward_operations(config, sizes, positions.len());
    let (making, _) = model.engine().asking(&batch, &asked)?;
    let memory = (Places::of(&making.program).bytes + flat.bytes()) as u64;
    Ok(Figure { name: "teacher's batch", seconds, operations, bytes: 0.0, memory })
}

/// A student's step: forward, loss, backward, AdamW with clipping, as the trainer makes it; and what memory was planned for
/// it. What was taken is known of a card alone: of any other its memory is the plan.
///
/// # Errors
/// As [`rate`](super::rate).
pub fn student<X: Executor + Send>(
    on: X,
    config: &Qwen3Config,
    sizes: Sizes,
) -> Result<[Figure; 2], StudentError> {
    let how = Training { precision: Precision::Bf16, ..Training::default() };
    let cpu = candle_core::Device::Cpu;
    let host = Student::random(config.clone(), 1, how, &cpu)?;
    let before = on.taken().map_err(failed::<X>)?;
    let mut learner = CardLearner::new(on, &host)?;
    drop(host);
    let batch = batch(sizes, config.vocab_size);
    let scored = batch.scored().len();
    let (said, settings) = (signal(scored, config.vocab_size), settings());
    let (classes, signal) = (config.vocab_size, Some(Teaching::TopK(&said)));
    let scale = 1.0 / scored as f64;
    let seconds = turns(sizes.times, |before| {
        let loss = learner.start_backward(&batch, classes, signal, &settings, scale)?;
        let norm = learner.start_step(1e-5, Some(1.0))?;
        if let Some((loss, norm)) = before {
            learner.finish_backward(loss)?;
            learner.finish_step(norm)?;
        }
        Ok::<_, StudentError>((loss, norm))
    });
    let (seconds, (loss, norm)) = seconds?;
    learner.finish_backward(loss)?;
    learner.finish_step(norm)?;
    let operations = 3.0 * forward_operations(config, sizes, scored);
    let [rows, length] = sizes.rows;
    let taught = Taught::Listed { k: K, own: 0 };
    let planned = training(config, &how, Batch { rows: &vec![length; rows], taught })?.total();
    let after = learner.card().engine().on.taken().map_err(failed::<X>)?;
    let memory = after.zip(before).map_or(planned, |(after, before)| after - before);
    let step = Figure { name: "student's step", seconds, operations, bytes: 0.0, memory };
    let plan =
        Figure { name: "its memory by plan", memory: planned, operations: 0.0, ..step.clone() };
    Ok([step, plan])
}
