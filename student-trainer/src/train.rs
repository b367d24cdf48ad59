//! The training loop. Read this file first.
//!
//! The loop is a plain thread that owns the student and its device; what a step is stands in `step`. The network
//! lives in tasks of its own and hands over answers through the feed.

use std::time::Instant;

use crate::candidates::Own;
use crate::config::Config;
use crate::error::TrainError;
use crate::observer::{EvalReport, Moment, Observer};
use crate::plan::PlannedStep;
use crate::run::Run;
use crate::signals::{Signals, take};
use crate::step::{self, UnderWay};
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

/// Every step that is left, and the things done now and then. Where the device computes by itself a step is started
/// before the one before it is done, so that the device always has something to do.
fn steps(run: &mut Run, observer: &mut dyn Observer, stop: &Stop) -> Result<(), TrainError> {
    run.follow_teacher(observer);
    let mut under_way: Option<UnderWay> = None;
    for planned in run.plan.steps_after(run.progress.step) {
        let started = start_next(run, planned, observer, stop);
        // Whatever became of it, the one before it is done and counts.
        let before = under_way.take();
        let is_behind = before.is_some();
        let done = before.map_or(Ok(()), |before| complete(run, before, observer, stop));
        let started = match (done, started) {
            // What the device said first says more than what was lost with it.
            (Err(_), Err(first)) if first.is_of_the_device() => return Err(first),
            (done, started) => done.and(started)?,
        };
        let Some(mut started) = started else { return Ok(()) };
        if is_behind {
            started.begin = Instant::now();
        }
        if started.is_done() || run.something_is_due(&started.planned) {
            complete(run, started, observer, stop)?;
        } else {
            under_way = Some(started);
        }
    }
    under_way.map_or(Ok(()), |last| complete(run, last, observer, stop))
}

/// Starts a step once its answers are there; none where a stop was asked for.
fn start_next(
    run: &mut Run,
    planned: PlannedStep,
    observer: &mut dyn Observer,
    stop: &Stop,
) -> Result<Option<UnderWay>, TrainError> {
    let begin = Instant::now();
    let (model, classes) = (run.student.model(), run.classes);
    run.timing.begins(planned.step, model);
    let own = Own { model, classes, at_once: run.at_once };
    let answers = take(run.signals.as_mut(), &planned.rows, &run.rows, own, stop);
    if stop.requested() {
        return Ok(None);
    }
    run.timing.span("wait for the teacher", begin);
    let started = step::start(run, planned, (&answers?, begin), observer)?;
    if !started.is_done() {
        run.timing.span(format!("start of step {}", started.planned.step), begin);
    }
    Ok(Some(started))
}

/// Waits for a step, tells of it, and does what is due behind it.
fn complete(
    run: &mut Run,
    started: UnderWay,
    observer: &mut dyn Observer,
    stop: &Stop,
) -> Result<(), TrainError> {
    let (planned, begin, was_done) = (started.planned.clone(), started.begin, started.is_done());
    let since = Instant::now();
    let (report, seconds) = step::finish(run, started)?;
    run.progress.count(&report, seconds, planned.ends_epoch);
    observer.step(&report);
    if let Some(words) = run.signals.as_mut().and_then(Signals::surprise) {
        observer.note(&words);
    }
    if !was_done {
        run.timing.span(format!("end of step {}", planned.step), since);
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
    if was_done {
        run.timing.span(format!("step {}", planned.step), begin);
    }
    run.timing.ends(planned.step, run.student.model(), observer);
    Ok(())
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

#[cfg(test)]
#[path = "train_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "train_scarce.rs"]
mod scarce;

#[cfg(test)]
#[path = "train_memory_tests.rs"]
mod memory_tests;

#[cfg(test)]
#[path = "train_ahead_tests.rs"]
mod ahead_tests;
