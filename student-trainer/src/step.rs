//! One optimiser step: started, and told of when it is done.
//!
//! Letters: N scored positions of the step, T temperature, alpha the teacher's weight.

use std::sync::Arc;
use std::time::Instant;

use distill::batch::{Sequence, TokenBatch};
use model::ops::head::HeadLoss;
use model::qwen3::ModelError;
use model::started::Started;
use model::student::StudentError;

use crate::data::RowSet;
use crate::error::TrainError;
use crate::feed::Scored;
use crate::observer::{Observer, StepReport};
use crate::plan::PlannedStep;
use crate::reading::Said;
use crate::run::Run;
use crate::signals::Signals;

/// A step that was started.
pub(crate) struct UnderWay {
    pub(crate) planned: PlannedStep,
    /// Since when the time is its own: the step before it was done then.
    pub(crate) begin: Instant,
    computed: Computed,
    asked: Asked,
}

/// What was started: micro-batches, each with its first row, and the update.
struct Computed {
    parts: Vec<(usize, Started<HeadLoss>)>,
    norm: Started<f64>,
    learning_rate: f64,
}

/// What its rows are, and what it took to have them answered.
struct Asked {
    /// N
    positions: usize,
    tokens: u64,
    /// Whether a teacher says something of them.
    taught: bool,
    wire_bytes: u64,
    wire_tokens: u64,
}

impl UnderWay {
    /// Whether it is done.
    pub(crate) fn is_done(&self) -> bool {
        self.computed.norm.is_done()
    }
}

/// Starts a step whose rows were answered so, since `begin`. Where the device's memory does not suffice for what was to be
/// computed at once, the gradients are forgotten and the step is made again in smaller parts, and so are those that
/// follow.
pub(crate) fn start(
    run: &mut Run,
    planned: PlannedStep,
    (answers, begin): (&[Scored], Instant),
    observer: &mut dyn Observer,
) -> Result<UnderWay, TrainError> {
    let computed = loop {
        match start_once(run, &planned, answers, observer) {
            Err(TrainError::OutOfMemory { rows, tokens, source, .. }) if run.splits && rows > 1 => {
                let most = tokens / 2;
                run.at_once = run.at_once.at_most(most);
                observer.note(&format!(
                    "step {}: {rows} rows, {tokens} tokens in all, did not fit into the device's memory ({source}); \
                     the step is made again, and batches are computed in parts of at most {most} tokens from now on, \
                     with the same loss and gradient",
                    planned.step
                ));
            }
            computed => break computed?,
        }
    };
    let rows = || planned.rows.iter().map(|&row| &run.rows.sequences[row]);
    let on_wire = rows().zip(answers).filter(|(_, scored)| scored.wire_bytes > 0);
    let asked = Asked {
        positions: scored(rows()),
        tokens: rows().map(|row| row.len() as u64).sum(),
        taught: !answers.is_empty(),
        wire_bytes: answers.iter().map(|scored| scored.wire_bytes).sum(),
        wire_tokens: on_wire.map(|(row, _)| row.len() as u64).sum(),
    };
    Ok(UnderWay { planned, begin, computed, asked })
}

/// Scored positions of rows.
fn scored<'a>(rows: impl Iterator<Item = &'a Sequence>) -> usize {
    rows.map(|row| row.scored().count()).sum()
}

/// Starts it, tried once; of what cannot be started whole nothing stays.
fn start_once(
    run: &mut Run,
    planned: &PlannedStep,
    answers: &[Scored],
    observer: &mut dyn Observer,
) -> Result<Computed, TrainError> {
    run.notice_checkpoint(observer)?;
    let started = start_parts(run, planned, answers).and_then(|parts| {
        // The student's memory is being written to the disk until then.
        let since = Instant::now();
        run.wait_to_change(observer)?;
        run.timing.span("wait for the checkpoint", since);
        let since = Instant::now();
        let learning_rate = run.schedule.lr(planned.step - 1);
        let norm = run
            .student
            .start_step(learning_rate, run.max_grad_norm)
            .map_err(|error| not_finite(error, &run.rows, planned, 0))?;
        run.timing.span("optimiser", since);
        Ok(Computed { parts, norm, learning_rate })
    });
    if started.is_err() {
        // Where that fails too, what was first says more.
        let _ = run.student.give_up();
    }
    started
}

/// Starts its micro-batches. The mean is over the N scored positions of all of them, so it does not matter how rows are
/// grouped.
fn start_parts(
    run: &mut Run,
    planned: &PlannedStep,
    answers: &[Scored],
) -> Result<Vec<(usize, Started<HeadLoss>)>, TrainError> {
    let set = Arc::clone(&run.rows.sequences);
    let rows: Vec<&Sequence> = planned.rows.iter().map(|&row| &set[row]).collect();
    let scale = 1.0 / scored(rows.iter().copied()) as f64;
    let mut parts = Vec::new();
    for micro in run.at_once.groups(rows.iter().map(|row| row.len())) {
        let since = Instant::now();
        let batch = TokenBatch::pack(rows[micro.clone()].iter().copied());
        // Without a teacher there are none.
        let of_micro = answers.get(micro.clone()).unwrap_or_default();
        let said = run.signals.as_ref().map_or(Ok(None), |s| s.reading().said(of_micro))?;
        let teaching = said.as_ref().map(Said::teaching);
        let part = run
            .student
            .start_backward(&batch, run.classes, teaching, &run.loss, scale)
            .map_err(|error| explained(error, &run.rows, planned, (micro.start, &batch)))?;
        parts.push((micro.start, part));
        run.timing.span("forward and backward", since);
    }
    Ok(parts)
}

/// What a step came to, and the seconds that it took.
pub(crate) fn finish(run: &mut Run, started: UnderWay) -> Result<(StepReport, f64), TrainError> {
    let UnderWay { planned, begin, computed, asked } = started;
    let Asked { positions, tokens, taught, wire_bytes, wire_tokens } = asked;
    let mut sums = Sums::default();
    for (first, part) in computed.parts {
        let loss = run.student.finish_backward(part);
        sums.add(&loss.map_err(|error| not_finite(error, &run.rows, &planned, first))?);
    }
    let norm = run.student.finish_step(computed.norm);
    let grad_norm = norm.map_err(|error| not_finite(error, &run.rows, &planned, 0))?;
    let mean = |sum: f64| sum / positions as f64;
    let kl = mean(sums.kl) * run.loss.temperature * run.loss.temperature;
    let ce = mean(sums.ce);
    // NaN where the signal does not say.
    let known = |value: f64| Some(value).filter(|value| taught && value.is_finite());
    let seconds = begin.elapsed().as_secs_f64();
    // Within those seconds, for whatever step it was.
    let waited = run.signals.as_mut().map(Signals::take_waited).unwrap_or_default();
    let report = StepReport {
        step: planned.step,
        epoch: run.plan.epochs_after(planned.step),
        loss: run.loss.alpha * kl + (1.0 - run.loss.alpha) * ce,
        kl: taught.then_some(kl),
        ce,
        learning_rate: computed.learning_rate,
        grad_norm,
        tokens,
        tokens_per_second: tokens as f64 / seconds,
        teacher_wait_seconds: waited.as_secs_f64(),
        teacher_mass: (taught && run.signals.as_ref().is_some_and(Signals::knows_mass))
            .then(|| mean(sums.teacher_mass)),
        student_mass: taught.then(|| mean(sums.student_mass)),
        kl_rest: known(mean(sums.kl_rest) * run.loss.temperature * run.loss.temperature),
        teacher_entropy: known(mean(sums.teacher_entropy)),
        wire_bytes,
        wire_tokens,
    };
    Ok((report, seconds))
}

/// The error of a micro-batch that begins at row `first` of the step.
fn explained(
    error: StudentError,
    set: &RowSet,
    planned: &PlannedStep,
    (first, batch): (usize, &TokenBatch),
) -> TrainError {
    if !matches!(error, StudentError::Model(ModelError::OutOfMemory(_))) {
        return not_finite(error, set, planned, first);
    }
    let (rows, tokens) = (batch.scored_per_row().len(), batch.ids().len());
    let remedy = match rows {
        1 => {
            "it cannot be parted: take a smaller --max-length, --recompute blocks, or another device"
        }
        _ => {
            "take --on-memory split, a smaller --per-device-train-batch-size or --max-length, --recompute blocks, or \
             another device"
        }
    };
    TrainError::OutOfMemory { step: planned.step, rows, tokens, remedy, source: Box::new(error) }
}

/// Names the rows of the training set when a loss or gradient is no number; `first` is where the
/// micro-batch begins in the step.
fn not_finite(
    error: StudentError,
    set: &RowSet,
    planned: &PlannedStep,
    first: usize,
) -> TrainError {
    let rows: Vec<usize> = match &error {
        StudentError::LossNotFinite { rows } => {
            rows.iter().map(|row| planned.rows[first + row]).collect()
        }
        StudentError::GradientNotFinite { .. } => planned.rows.clone(),
        StudentError::Model(_)
        | StudentError::OneBatch
        | StudentError::BeingRead
        | StudentError::HalfUpdated { .. }
        | StudentError::LearningRate { .. }
        | StudentError::Weights(_)
        | StudentError::Save(_)
        | StudentError::State { .. } => return error.into(),
    };
    TrainError::NotFinite { step: planned.step, rows: set.list(&rows), source: Box::new(error) }
}

/// Sums over scored positions, in float64 and in row order.
#[derive(Debug, Default)]
struct Sums {
    ce: f64,
    kl: f64,
    teacher_mass: f64,
    student_mass: f64,
    kl_rest: f64,
    teacher_entropy: f64,
}

impl Sums {
    fn add(&mut self, loss: &HeadLoss) {
        let add = |into: &mut f64, values: &[f32]| {
            values.iter().for_each(|&value| *into += f64::from(value));
        };
        add(&mut self.ce, &loss.ce);
        add(&mut self.kl, &loss.kl);
        add(&mut self.teacher_mass, &loss.teacher_mass);
        add(&mut self.student_mass, &loss.student_mass);
        add(&mut self.kl_rest, &loss.kl_rest);
        add(&mut self.teacher_entropy, &loss.teacher_entropy);
    }
}
