//! `student-trainer plan`: what a run would take, without its teacher, its weights or its device.

use distill::batch::Sequence;
use model::device;
use model::load::{WeightsError, is_gguf};
use model::ops::adamw::AdamW;
use model::recompute::{Recompute, longest};
use model::student::{StudentError, Training};

use super::{Plan, Room, Subject, taught};
use crate::config::PlanConfig;
use crate::data::TokenizeOptions;
use crate::error::TrainError;
use crate::memory;
use crate::setup::{self, Source};
use model::needs::Taught;

/// Tokens of the largest batch that is planned, and entries that a teacher may list of it: each is written down.
const MOST_TOKENS: usize = 1 << 22;
const MOST_ENTRIES: usize = 1 << 28;

/// Plans as `config` says; `note` is told what became of the rows.
///
/// # Errors
/// [`TrainError`]: the student's folder, the rows, or the device.
pub fn plan(config: &PlanConfig, note: &mut dyn FnMut(&str)) -> Result<Plan, TrainError> {
    let source = Source::open(&config.student, config.student_revision.as_deref())?;
    let shape = &source.config;
    let rows = lengths(config, &source, note)?;
    let device = match config.device {
        Some(device) => device,
        None => device::choose("auto", |text| note(text))?,
    };
    let width = config.teacher_width.unwrap_or(shape.hidden_size);
    let taught = match config.alpha > 0.0 {
        true => taught(&config.signal, width, shape.vocab_size),
        false => Taught::Nothing,
    };
    if matches!(taught, Taught::All { .. }) && config.teacher_width.is_none() {
        note(&format!(
            "the teacher's hidden states are taken to be as wide as the student's ({width}): say otherwise with \
             --teacher-width"
        ));
    }
    check_size(&rows, taught)?;
    if is_gguf(&source.weights) {
        return Err(StudentError::from(WeightsError::Quantised { file: source.weights }).into());
    }
    let subject = Subject {
        device,
        config: shape,
        training: Training {
            precision: setup::precision(config.dtype, device),
            optimiser: AdamW::default(),
            recompute: Recompute::None,
        },
        rows,
        taught,
        alone: config.gradient_accumulation_steps == 1,
        recompute: config.recompute,
        on_memory: config.on_memory,
    };
    let room = match config.device_memory {
        Some(all) => Some(Room::said(device, all)),
        None => Room::found(device, memory::available())?,
    };
    subject.plan(room)
}

/// Of the rows of the largest batch, the longest first.
fn lengths(
    config: &PlanConfig,
    source: &Source,
    note: &mut dyn FnMut(&str),
) -> Result<Vec<usize>, TrainError> {
    let at_once = config.per_device_train_batch_size;
    let Some(file) = &config.train_file else {
        let length = config.max_length.min(source.config.max_position_embeddings);
        // More than are planned is more, however many there are.
        return Ok(vec![length; at_once.min(MOST_TOKENS + 1)]);
    };
    let options = TokenizeOptions {
        loss_on: config.loss_on,
        chat_template: config.chat_template,
        max_length: config.max_length,
    };
    let rows = source.rows("training", file, config.max_train_samples, options, note)?;
    Ok(longest(rows.sequences.iter().map(Sequence::len), at_once))
}

/// Refuses what takes too much to be written down.
pub(super) fn check_size(rows: &[usize], taught: Taught) -> Result<(), TrainError> {
    let tokens: usize = rows.iter().sum();
    let entries = match taught {
        Taught::Listed { k, .. } => tokens.saturating_mul(k),
        Taught::Nothing | Taught::All { .. } => 0,
    };
    let (what, most, smaller) = if tokens > MOST_TOKENS {
        let what = format!("a batch of {} rows of up to {} tokens", rows.len(), rows[0]);
        (what, format!("{MOST_TOKENS} tokens"), "--per-device-train-batch-size or --max-length")
    } else if entries > MOST_ENTRIES {
        let what = format!("a signal of {entries} entries");
        (what, MOST_ENTRIES.to_string(), "--top-k, --draws or --per-device-train-batch-size")
    } else {
        return Ok(());
    };
    Err(TrainError::Unplanned { what, most, smaller })
}
