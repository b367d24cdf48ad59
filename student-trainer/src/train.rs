//! The training loop. Read this file first.
//!
//! Letters: N scored positions of a step, T temperature, alpha the teacher's weight. The loop is a
//! plain thread that owns the student and its device; the network lives in tasks of its own and
//! hands over answers through the feed.

use std::sync::Arc;
use std::time::Instant;

use distill::batch::{Sequence, TokenBatch};
use model::ops::head::HeadLoss;
use model::qwen3::ModelError;
use model::student::StudentError;

use crate::candidates::Own;
use crate::config::Config;
use crate::data::RowSet;
use crate::error::TrainError;
use crate::feed::Scored;
use crate::observer::{EvalReport, Moment, Observer, StepReport};
use crate::plan::PlannedStep;
use crate::reading::Said;
use crate::run::Run;
use crate::signals::{Signals, take};
use crate::stop::Stop;
use crate::summary::Summary;

/// Trains a student as `config` says, tells `observer` of it, and leaves the outputs in the output
/// directory. A wish to stop ends it after the step in hand with a checkpoint and a summary marked
/// as stopped early; then the root of the output directory holds no model yet.
///
/// # Errors
/// [`TrainError`]; steps done by then are in a checkpoint.
pub fn train(
    config: &Config,
    observer: &mut dyn Observer,
    stop: &Stop,
) -> Result<Summary, TrainError> {
    let run = Run::prepare(config, observer, stop)?;
    carry_out(run, observer, stop)
}

/// Carries out a prepared run: evaluate, step until the end, evaluate, write what remains.
pub(crate) fn carry_out(
    mut run: Run,
    observer: &mut dyn Observer,
    stop: &Stop,
) -> Result<Summary, TrainError> {
    observer.started(&run.facts());
    let outcome = steps_and_evaluations(&mut run, observer, stop);
    run.timing.close(run.student.model(), observer);
    let written = run.finish_checkpoint(observer);
    // Whatever ended the steps, those done are kept; what cannot be written once is not tried twice.
    let of_disk = [&outcome, &written]
        .into_iter()
        .any(|end| end.as_ref().is_err_and(TrainError::is_of_the_disk));
    let ended = (outcome.is_err() || stop.requested()) && !run.student.is_half_updated();
    let saved = match run.progress.step > run.saved_step && ended && !of_disk {
        true => run.save_checkpoint(observer),
        false => Ok(()),
    };
    let saved = written.and(saved);
    if let (Err(unsaved), Err(_)) = (&saved, &outcome) {
        observer.note(&format!("the steps done could not be saved: {unsaved}"));
    }
    outcome.and(saved).map_err(|error| run.explain(error))?;
    if run.progress.step < run.plan.total_steps {
        observer.note(&run.how_to_resume());
        return Ok(run.summary(true));
    }
    finish(run, observer)
}

/// All that computes: an evaluation before the first step, the steps, one after the last.
fn steps_and_evaluations(
    run: &mut Run,
    observer: &mut dyn Observer,
    stop: &Stop,
) -> Result<(), TrainError> {
    if run.progress.step == 0 {
        evaluate(run, Moment::Before, observer, stop)?;
    }
    steps(run, observer, stop)?;
    let measured = run.progress.evaluations.last();
    let done = run.progress.step == run.plan.total_steps;
    if done && measured.is_none_or(|last| last.moment != Moment::After) {
        evaluate(run, Moment::After, observer, stop)?;
    }
    Ok(())
}

/// Every step that is left, and the things done now and then.
fn steps(run: &mut Run, observer: &mut dyn Observer, stop: &Stop) -> Result<(), TrainError> {
    run.follow_teacher(observer);
    for planned in run.plan.steps_after(run.progress.step) {
        let begin = Instant::now();
        let (model, classes) = (run.student.model(), run.classes);
        run.timing.begins(planned.step, model);
        let own = Own { model, classes, at_once: run.at_once };
        let answers = take(run.signals.as_mut(), &planned.rows, &run.rows, own, stop);
        if stop.requested() {
            return Ok(());
        }
        run.timing.span("wait for the teacher", begin);
        let mut report = train_step(run, &planned, &answers?, observer)?;
        let waited = run.signals.as_mut().map(Signals::take_waited).unwrap_or_default();
        let seconds = begin.elapsed().as_secs_f64();
        report.teacher_wait_seconds = waited.as_secs_f64();
        report.tokens_per_second = report.tokens as f64 / seconds;
        run.progress.count(&report, seconds, planned.ends_epoch);
        observer.step(&report);
        if let Some(words) = run.signals.as_mut().and_then(Signals::surprise) {
            observer.note(&words);
        }
        if run.evaluation_is_due(&planned) {
            let since = Instant::now();
            evaluate(run, Moment::During, observer, stop)?;
            run.timing.span("evaluation", since);
        }
        if run.checkpoint_is_due(planned.step) {
            let since = Instant::now();
            run.begin_checkpoint(observer)?;
            run.timing.span("checkpoint", since);
        }
        run.timing.span(format!("step {}", planned.step), begin);
        run.timing.ends(planned.step, run.student.model(), observer);
    }
    Ok(())
}

/// One optimiser step. Where the device's memory does not suffice for what was to be computed at once, the gradients are
/// forgotten and the step is made again in smaller parts, and so are those that follow.
fn train_step(
    run: &mut Run,
    planned: &PlannedStep,
    answers: &[Scored],
    observer: &mut dyn Observer,
) -> Result<StepReport, TrainError> {
    loop {
        match step_once(run, planned, answers, observer) {
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
            done => return done,
        }
    }
}

/// One optimiser step, tried: rows and answers in, report out. The mean is over the N scored positions of
/// all its micro-batches, so it does not matter how rows are grouped.
fn step_once(
    run: &mut Run,
    planned: &PlannedStep,
    answers: &[Scored],
    observer: &mut dyn Observer,
) -> Result<StepReport, TrainError> {
    let set = Arc::clone(&run.rows.sequences);
    let rows: Vec<&Sequence> = planned.rows.iter().map(|&row| &set[row]).collect();
    let positions: usize = rows.iter().map(|row| row.scored().count()).sum();
    let mut sums = Sums::default();
    for micro in run.at_once.groups(rows.iter().map(|row| row.len())) {
        let since = Instant::now();
        let batch = TokenBatch::pack(rows[micro.clone()].iter().copied());
        // Without a teacher there are none.
        let of_micro = answers.get(micro.clone()).unwrap_or_default();
        let said = run.signals.as_ref().map_or(Ok(None), |s| s.reading().said(of_micro))?;
        let teaching = said.as_ref().map(Said::teaching);
        let loss = run
            .student
            .backward(&batch, run.classes, teaching, &run.loss, 1.0 / positions as f64)
            .map_err(|error| explained(error, &run.rows, planned, (micro.start, &batch)))?;
        sums.add(&loss);
        run.timing.span("forward and backward", since);
    }
    // The student's memory is being written to the disk until then.
    let since = Instant::now();
    run.finish_checkpoint(observer)?;
    run.timing.span("wait for the checkpoint", since);
    let since = Instant::now();
    let learning_rate = run.schedule.lr(planned.step - 1);
    let grad_norm = run
        .student
        .step(learning_rate, run.max_grad_norm)
        .map_err(|error| not_finite(error, &run.rows, planned, 0))?;
    run.timing.span("optimiser", since);
    let taught = !answers.is_empty();
    let asked = rows.iter().zip(answers).filter(|(_, scored)| scored.wire_bytes > 0);
    let mean = |sum: f64| sum / positions as f64;
    let kl = mean(sums.kl) * run.loss.temperature * run.loss.temperature;
    let ce = mean(sums.ce);
    // NaN where the signal does not say.
    let known = |value: f64| Some(value).filter(|value| taught && value.is_finite());
    Ok(StepReport {
        step: planned.step,
        epoch: run.plan.epochs_after(planned.step),
        loss: run.loss.alpha * kl + (1.0 - run.loss.alpha) * ce,
        kl: taught.then_some(kl),
        ce,
        learning_rate,
        grad_norm,
        tokens: rows.iter().map(|row| row.len() as u64).sum(),
        tokens_per_second: 0.0,
        teacher_wait_seconds: 0.0,
        teacher_mass: (taught && run.signals.as_ref().is_some_and(Signals::knows_mass))
            .then(|| mean(sums.teacher_mass)),
        student_mass: taught.then(|| mean(sums.student_mass)),
        kl_rest: known(mean(sums.kl_rest) * run.loss.temperature * run.loss.temperature),
        teacher_entropy: known(mean(sums.teacher_entropy)),
        wire_bytes: answers.iter().map(|scored| scored.wire_bytes).sum(),
        wire_tokens: asked.map(|(row, _)| row.len() as u64).sum(),
    })
}

/// Measures the student on the held-out rows, where there are any.
fn evaluate(
    run: &mut Run,
    moment: Moment,
    observer: &mut dyn Observer,
    stop: &Stop,
) -> Result<(), TrainError> {
    let Some(found) = run.measure(stop)? else { return Ok(()) };
    let step = run.progress.step;
    let epoch = run.plan.epochs_after(step);
    let report = EvalReport {
        moment,
        step,
        epoch,
        student: found.student,
        teacher: found.teacher,
        kl: found.kl,
        agreement: found.agreement,
        positions: found.positions,
        seconds: found.seconds,
    };
    observer.evaluated(&report);
    run.progress.evaluations.push(report);
    Ok(())
}

/// The model at the root of the output directory, the summary.
fn finish(mut run: Run, observer: &mut dyn Observer) -> Result<Summary, TrainError> {
    if run.saves() && run.progress.step > run.saved_step {
        run.save_checkpoint(observer)?;
    }
    run.save_model()?;
    let summary = run.summary(false);
    run.write_summary(&summary)?;
    observer.finished(&summary);
    Ok(summary)
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

#[cfg(test)]
#[path = "train_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "train_memory_tests.rs"]
mod memory_tests;
