//! Whole runs: a tiny student, a teacher over loopback, checkpoints, interruptions.

use super::*;
use crate::observer::{RunFacts, Silent};
use crate::outputs::Reuse;
use crate::setup::Material;
use crate::testing::{FakeTeacher, Served, config, material, row_set, rows, tiny_source};
use std::path::Path;

/// Keeps everything it is told; asks for a stop after a step.
#[derive(Default)]
struct Recorder {
    steps: Vec<StepReport>,
    evaluations: Vec<EvalReport>,
    notes: Vec<String>,
    facts: Option<RunFacts>,
    stop_after: Option<(u64, Stop)>,
}

impl Observer for Recorder {
    fn started(&mut self, facts: &RunFacts) {
        self.facts = Some(facts.clone());
    }
    fn step(&mut self, report: &StepReport) {
        if let Some((step, stop)) = &self.stop_after
            && *step == report.step
        {
            stop.request();
        }
        self.steps.push(report.clone());
    }
    fn evaluated(&mut self, report: &EvalReport) {
        self.evaluations.push(report.clone());
    }
    fn finished(&mut self, _: &Summary) {}
    fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }
}

fn serve(root: &Path) -> Served {
    FakeTeacher::of(&tiny_source(&root.join("model"))).serve()
}

/// Runs to the end (or a stop) in `root/out`.
fn run(
    root: &Path,
    out: &str,
    teacher: &str,
    options: &[(&'static str, &str)],
    observer: &mut dyn Observer,
    stop: &Stop,
) -> Result<Summary, TrainError> {
    let mut all = vec![("teacher", teacher)];
    all.extend_from_slice(options);
    let config = config(&root.join(out), &all);
    let claim = crate::outputs::claim(&config.output_dir, Reuse::Anything)?;
    let run = Run::assemble(&config, claim, material(&root.join("model")), observer, stop)?;
    carry_out(run, observer, stop)
}

fn weights(root: &Path, out: &str) -> Vec<u8> {
    std::fs::read(root.join(out).join("model.safetensors")).unwrap()
}

#[test]
fn a_student_comes_nearer_to_its_teacher_and_leaves_what_the_contract_lists() {
    let root = tempfile::tempdir().unwrap();
    let served = serve(root.path());
    let mut told = Recorder::default();
    let options = [
        ("teacher", served.url.as_str()),
        ("num-train-epochs", "16"),
        ("per-device-train-batch-size", "8"),
        ("alpha", "1"),
    ];
    let config = config(&root.path().join("out"), &options);
    let all = row_set("train.jsonl", rows(79, 1));
    let material = Material { rows: all, ..material(&root.path().join("model")) };
    let claim = crate::outputs::claim(&config.output_dir, Reuse::Nothing).unwrap();
    let run = Run::assemble(&config, claim, material, &mut told, &Stop::default()).unwrap();
    let summary = carry_out(run, &mut told, &Stop::default()).unwrap();
    let (before, after) = (summary.eval_kl_before.unwrap(), summary.eval_kl_after.unwrap());
    assert!(after < 0.3 * before, "held-out KL {before} -> {after}");
    assert!(summary.agreement_after.unwrap() > summary.agreement_before.unwrap());
    assert_eq!(summary.steps, 160);
    assert_eq!(summary.epoch_loss.len(), 16);
    assert!(summary.epoch_loss[15] < summary.epoch_loss[0]);
    // 79 rows in batches of 8: ten steps an epoch, the mean of their losses is the epoch's.
    let first: f64 = told.steps[..10].iter().map(|s| s.loss).sum::<f64>() / 10.0;
    assert!((summary.epoch_loss[0] - first).abs() < 1e-12);
    assert_eq!(told.evaluations.len(), 17);
    assert!(summary.wire_bytes_per_token > 0.0);
    let out = root.path().join("out");
    for name in ["config.json", "model.safetensors", "tokenizer.json", "summary.json"] {
        assert!(out.join(name).is_file(), "{name}");
    }
    let source = std::fs::read(root.path().join("model/tokenizer.json")).unwrap();
    assert_eq!(std::fs::read(out.join("tokenizer.json")).unwrap(), source);
}

#[test]
fn the_numbers_of_a_step_are_those_of_the_reference() {
    let root = tempfile::tempdir().unwrap();
    let served = serve(root.path());
    let mut told = Recorder::default();
    let options =
        [("max-steps", "1"), ("top-k", "24"), ("shuffle", "false"), ("learning-rate", "0")];
    let summary =
        run(root.path(), "out", &served.url, &options, &mut told, &Stop::default()).unwrap();
    let step = &told.steps[0];
    // All classes were sent, so all mass was.
    assert!((step.teacher_mass.unwrap() - 1.0).abs() < 1e-5);
    assert!((step.student_mass.unwrap() - 1.0).abs() < 1e-5);
    let (kl, ce) = (step.kl.unwrap(), step.ce);
    assert!((step.loss - (0.7 * kl + 0.3 * ce)).abs() < 1e-12);
    assert_eq!(step.tokens, rows(10, 1)[..3].iter().map(|r| r.len() as u64).sum::<u64>());
    // The teacher's perplexity, from its logits in float64.
    let mut nll = distill::perplexity::Nll::default();
    for row in rows(4, 2).iter() {
        nll.add_row(row.scored().map(|t| {
            let y = crate::testing::logits(row.ids[t], crate::testing::CLASSES);
            let log_z = distill::signal::log_sum_exp(y.iter().copied());
            (log_z - y[row.ids[t + 1] as usize]) as f32
        }));
    }
    let found = summary.teacher_perplexity.unwrap();
    assert!((found - nll.perplexity().unwrap()).abs() < 1e-4, "{found}");
    let found = summary.teacher_perplexity_row_mean.unwrap();
    assert!((found - nll.perplexity_row_mean().unwrap()).abs() < 1e-4, "{found}");
    // Nothing was learned at a rate of 0.
    assert_eq!(summary.student_perplexity_before, summary.student_perplexity_after);
}

#[test]
fn the_same_seed_gives_the_same_bits_and_another_seed_others() {
    let root = tempfile::tempdir().unwrap();
    let served = serve(root.path());
    let once = |out: &str, seed: &str| {
        let options = [("seed", seed), ("max-steps", "6")];
        run(root.path(), out, &served.url, &options, &mut Silent, &Stop::default()).unwrap();
        weights(root.path(), out)
    };
    assert_eq!(once("a", "1"), once("b", "1"));
    assert_ne!(once("a", "1"), once("c", "2"));
}

#[test]
fn a_run_in_two_parts_ends_with_the_same_bits() {
    let root = tempfile::tempdir().unwrap();
    let served = serve(root.path());
    let schedule = [("lr-scheduler-type", "constant_with_warmup"), ("warmup-steps", "4")];
    let go = |out: &str, more: &[(&'static str, &str)], stop: &Stop, told: &mut Recorder| {
        let options = [&schedule[..], more].concat();
        run(root.path(), out, &served.url, &options, told, stop).unwrap()
    };
    let mut whole = Recorder::default();
    let straight = go("whole", &[("max-steps", "10")], &Stop::default(), &mut whole);

    // Stopped by a signal in the middle of the second epoch.
    let stop = Stop::default();
    let mut first = Recorder { stop_after: Some((5, stop.clone())), ..Recorder::default() };
    let stopped = go("parts", &[("max-steps", "10")], &stop, &mut first);
    assert!(stopped.stopped_early && stopped.steps == 5);
    assert!(first.notes.iter().any(|n| n.contains("--resume-from-checkpoint auto")));
    let mut second = Recorder::default();
    let resume = [("max-steps", "10"), ("resume-from-checkpoint", "auto")];
    let resumed = go("parts", &resume, &Stop::default(), &mut second);

    assert_eq!(second.facts.unwrap().start_step, 5);
    assert_eq!(weights(root.path(), "whole"), weights(root.path(), "parts"));
    let losses = |told: &[StepReport]| told.iter().map(|s| s.loss).collect::<Vec<_>>();
    assert_eq!(losses(&whole.steps), [losses(&first.steps), losses(&second.steps)].concat());
    assert_eq!(straight.epoch_loss, resumed.epoch_loss);
    assert_eq!(straight.tokens, resumed.tokens);
    assert_eq!(straight.student_perplexity_before, resumed.student_perplexity_before);
    assert_eq!(straight.student_perplexity_after, resumed.student_perplexity_after);
}

#[test]
fn a_damaged_checkpoint_is_passed_over_with_a_note() {
    let root = tempfile::tempdir().unwrap();
    let served = serve(root.path());
    let go = |out: &str, options: &[(&'static str, &str)], told: &mut Recorder| {
        run(root.path(), out, &served.url, options, told, &Stop::default()).unwrap()
    };
    go("whole", &[("max-steps", "8")], &mut Recorder::default());
    go("parts", &[("max-steps", "6"), ("save-steps", "3")], &mut Recorder::default());
    let state = root.path().join("parts/checkpoints/step-000006/training_state.safetensors");
    let mut bytes = std::fs::read(&state).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&state, bytes).unwrap();
    let mut told = Recorder::default();
    go("parts", &[("max-steps", "8"), ("resume-from-checkpoint", "auto")], &mut told);
    assert!(told.notes.iter().any(|n| n.contains("BLAKE3") && n.contains("step-000006")));
    assert_eq!(told.steps[0].step, 4);
    assert_eq!(weights(root.path(), "whole"), weights(root.path(), "parts"));
}

#[test]
fn a_checkpoint_of_another_run_is_refused_with_the_option_that_differs() {
    let root = tempfile::tempdir().unwrap();
    let served = serve(root.path());
    let go = |options: &[(&'static str, &str)]| {
        run(root.path(), "out", &served.url, options, &mut Silent, &Stop::default())
    };
    go(&[("max-steps", "2")]).unwrap();
    let resume = [("max-steps", "4"), ("resume-from-checkpoint", "auto"), ("alpha", "0.5")];
    let error = go(&resume).unwrap_err().to_string();
    assert!(error.contains("alpha = 0.7") && error.contains("0.5"), "{error}");
    // More steps of a constant rate are the same run; of a rate that falls to the end, another.
    go(&[("max-steps", "3"), ("resume-from-checkpoint", "auto")]).unwrap();
    let linear = ("lr-scheduler-type", "linear");
    run(
        root.path(),
        "linear",
        &served.url,
        &[linear, ("max-steps", "2")],
        &mut Silent,
        &Stop::default(),
    )
    .unwrap();
    let longer = [linear, ("max-steps", "3"), ("resume-from-checkpoint", "auto")];
    let error = run(root.path(), "linear", &served.url, &longer, &mut Silent, &Stop::default())
        .unwrap_err();
    assert!(error.to_string().contains("steps of the schedule = 2"), "{error}");
}

/// Steps of a run in micro-batches: losses and gradient norms, and the first moments at the end.
fn steps_in(
    root: &Path,
    teacher: &str,
    (batch, accumulate): (&str, &str),
    rate: &str,
) -> (Vec<(f64, f64)>, Vec<f32>) {
    let out = format!("{batch}x{accumulate} at {rate}");
    let mut told = Recorder::default();
    let options = [
        ("per-device-train-batch-size", batch),
        ("gradient-accumulation-steps", accumulate),
        ("learning-rate", rate),
        ("max-steps", "6"),
    ];
    run(root, &out, teacher, &options, &mut told, &Stop::default()).unwrap();
    let state = root.join(out).join("checkpoints/step-000006/training_state.safetensors");
    let state = candle_core::safetensors::load(state, &candle_core::Device::Cpu).unwrap();
    let numbers = told.steps.iter().map(|s| (s.loss, s.grad_norm)).collect();
    (numbers, state["exp_avg"].to_vec1().unwrap())
}

/// At a rate of 0 the weights stay, so every step of every split computes the same sums in another
/// order: 1e-6, ten roundings of float32. The first moments are linear in the gradients of all six
/// steps and stand for the whole of them.
#[test]
fn loss_and_gradient_of_a_step_do_not_depend_on_micro_batches() {
    let root = tempfile::tempdir().unwrap();
    let served = serve(root.path());
    let steps = |split| steps_in(root.path(), &served.url, split, "0");
    let (whole, gradient) = steps(("4", "1"));
    let square = |v: f32| f64::from(v) * f64::from(v);
    let norm: f64 = gradient.iter().map(|g| square(*g)).sum();
    assert!(norm > 0.0);
    for split in [("2", "2"), ("1", "4")] {
        let (numbers, split_gradient) = steps(split);
        assert_eq!(numbers.len(), 6);
        for (split, whole) in numbers.iter().zip(&whole) {
            assert!((split.0 / whole.0 - 1.0).abs() < 1e-6, "loss {split:?} {whole:?}");
            assert!((split.1 / whole.1 - 1.0).abs() < 1e-6, "norm {split:?} {whole:?}");
        }
        let pairs = split_gradient.iter().zip(&gradient);
        let error = (pairs.map(|(a, b)| square(a - b)).sum::<f64>() / norm).sqrt();
        assert!(error < 1e-6, "gradients in {split:?}: {error:e}");
    }
}

/// With updates between the steps the same roundings come back enlarged: AdamW divides a gradient
/// by its own size, so one near 0 moves its weight as far as any other, in a direction that its
/// last bits decide. A hundredfold of the bound above remains after five updates at a rate of 0.01.
#[test]
fn a_run_in_micro_batches_stays_beside_the_whole_one() {
    let root = tempfile::tempdir().unwrap();
    let served = serve(root.path());
    let steps = |split| steps_in(root.path(), &served.url, split, "0.01").0;
    let whole = steps(("4", "1"));
    for split in [("2", "2"), ("1", "4")] {
        for (split, whole) in steps(split).iter().zip(&whole) {
            assert!((split.0 / whole.0 - 1.0).abs() < 1e-5, "loss {split:?} {whole:?}");
            assert!((split.1 / whole.1 - 1.0).abs() < 1e-4, "norm {split:?} {whole:?}");
        }
    }
}

#[test]
fn plain_training_needs_no_teacher() {
    let root = tempfile::tempdir().unwrap();
    let mut told = Recorder::default();
    let options = [("alpha", "0"), ("num-train-epochs", "5")];
    let summary = run(root.path(), "out", "", &options, &mut told, &Stop::default()).unwrap();
    assert!(summary.epoch_loss[4] < summary.epoch_loss[0]);
    assert_eq!(summary.teacher_perplexity, None);
    assert_eq!((told.steps[0].kl, told.steps[0].wire_bytes), (None, 0));
    assert!((told.steps[0].loss - told.steps[0].ce).abs() < 1e-12);
    assert!(summary.student_perplexity_after.is_some());
}

#[test]
fn a_loss_that_is_no_number_stops_before_the_update_and_names_the_rows() {
    let root = tempfile::tempdir().unwrap();
    let served = serve(root.path());
    let mut told = Recorder::default();
    // A rate at which the weights overflow.
    let options = [("learning-rate", "1e38"), ("max-steps", "20"), ("shuffle", "false")];
    let error = run(root.path(), "out", &served.url, &options, &mut told, &Stop::default());
    let error = error.unwrap_err();
    let TrainError::NotFinite { step, rows, .. } = &error else { panic!("{error}") };
    assert_eq!(*step, told.steps.len() as u64 + 1);
    // Ten rows in file order, three a step: the first row of step 2 is on line 4.
    let first = (*step as usize - 1) * 3 % 10 + 1;
    assert!(rows.starts_with(&format!("train.jsonl, line {first}")), "{error}");
    let last = told.steps.len();
    assert!(root.path().join(format!("out/checkpoints/step-{last:06}")).is_dir());
}

#[test]
fn a_teacher_lost_for_good_ends_the_run_with_its_address_and_a_checkpoint() {
    let root = tempfile::tempdir().unwrap();
    let served = serve(root.path());
    let url = served.url.clone();
    /// Ends the teacher after step 3.
    struct Killer(Option<Served>);
    impl Observer for Killer {
        fn started(&mut self, _: &RunFacts) {}
        fn step(&mut self, report: &StepReport) {
            if report.step == 3 {
                self.0.take();
            }
        }
        fn evaluated(&mut self, _: &EvalReport) {}
        fn finished(&mut self, _: &Summary) {}
        fn note(&mut self, _: &str) {}
    }
    let options = [("max-steps", "40"), ("teacher-timeout", "1.5")];
    let mut killer = Killer(Some(served));
    let error = run(root.path(), "out", &url, &options, &mut killer, &Stop::default());
    let error = error.unwrap_err().to_string();
    assert!(error.contains(&url) && error.contains("attempts to reach one in"), "{error}");
    let kept = root.path().join("out/checkpoints/step-");
    assert!(error.contains(kept.to_str().unwrap()), "{error}");
    assert!(error.contains("--resume-from-checkpoint auto"), "{error}");
    let checkpoints: Vec<_> =
        std::fs::read_dir(root.path().join("out/checkpoints")).unwrap().collect();
    assert_eq!(checkpoints.len(), 1);
}

#[test]
fn an_evaluation_that_is_no_number_ends_the_run_naming_step_and_rows_and_loses_no_step() {
    let root = tempfile::tempdir().unwrap();
    let mut told = Recorder::default();
    // A rate at which the first update makes the weights overflow.
    let options =
        [("alpha", "0"), ("learning-rate", "1e38"), ("eval-file", "-"), ("eval-steps", "1")];
    let error = run(root.path(), "out", "", &options, &mut told, &Stop::default()).unwrap_err();
    assert!(matches!(error, TrainError::EvaluationNotFinite { of: 4, .. }), "{error}");
    let error = error.to_string();
    assert!(error.contains("tiny after step 1"), "{error}");
    assert!(error.contains("eval.jsonl, line 1; eval.jsonl, line 2"), "{error}");
    assert!(root.path().join("out/checkpoints/step-000001").is_dir());
}

/// What goes on from an earlier step makes checkpoints of its own: those of the course that was left
/// neither stand in their way nor are taken for the newest afterwards.
#[test]
fn checkpoints_after_the_step_a_run_goes_on_from_are_set_aside() {
    let root = tempfile::tempdir().unwrap();
    let go = |options: &[(&'static str, &str)], told: &mut Recorder| {
        let all =
            [&[("alpha", "0"), ("save-steps", "2"), ("save-total-limit", "3")], options].concat();
        run(root.path(), "out", "", &all, told, &Stop::default())
    };
    go(&[("max-steps", "6")], &mut Recorder::default()).unwrap();
    let checkpoints = root.path().join("out/checkpoints");
    let names = || {
        let entries = std::fs::read_dir(&checkpoints).unwrap();
        let mut names: Vec<String> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(), ["step-000002", "step-000004", "step-000006"]);
    let from = checkpoints.join("step-000002").display().to_string();
    let mut told = Recorder::default();
    go(&[("max-steps", "6"), ("resume-from-checkpoint", &from)], &mut told).unwrap();
    assert_eq!(told.steps[0].step, 3);
    let aside = ["aside-step-000004", "aside-step-000006"];
    let new = ["step-000002", "step-000004", "step-000006"];
    assert_eq!(names(), [&aside[..], &new[..]].concat());
    assert_eq!(told.notes.iter().filter(|note| note.contains("set aside")).count(), 2);

    // Damaged ones do not count either; where no whole one is left the run does not begin anew.
    for step in ["step-000004", "step-000006"] {
        std::fs::write(checkpoints.join(step).join("training_state.safetensors"), "x").unwrap();
    }
    let auto = [("max-steps", "6"), ("resume-from-checkpoint", "auto")];
    let mut told = Recorder::default();
    go(&auto, &mut told).unwrap();
    assert_eq!(told.steps[0].step, 3);
    assert!(names().contains(&"aside-step-000004-2".to_owned()), "{:?}", names());
    for step in new {
        std::fs::write(checkpoints.join(step).join("training_state.safetensors"), "x").unwrap();
    }
    let error = go(&auto, &mut Recorder::default()).unwrap_err().to_string();
    assert!(error.contains("is whole") && error.contains("step-000002"), "{error}");
}

#[test]
fn a_run_keeps_its_output_directory_to_itself_until_it_is_over() {
    let root = tempfile::tempdir().unwrap();
    /// Tries to begin another run in the same directory while this one takes its steps.
    struct Rival(std::path::PathBuf, usize);
    impl Observer for Rival {
        fn started(&mut self, _: &RunFacts) {}
        fn step(&mut self, _: &StepReport) {
            let refused = crate::outputs::claim(&self.0, Reuse::Anything).unwrap_err();
            assert!(matches!(refused, crate::outputs::OutputError::InUse { .. }), "{refused}");
            self.1 += 1;
        }
        fn evaluated(&mut self, _: &EvalReport) {}
        fn finished(&mut self, _: &Summary) {}
        fn note(&mut self, _: &str) {}
    }
    let mut rival = Rival(root.path().join("out"), 0);
    let options = [("alpha", "0"), ("max-steps", "2")];
    run(root.path(), "out", "", &options, &mut rival, &Stop::default()).unwrap();
    assert_eq!(rival.1, 2);
    drop(crate::outputs::claim(&rival.0, Reuse::Anything).unwrap());
}

#[test]
fn a_teacher_that_fails_on_a_row_says_where_the_row_stands() {
    let root = tempfile::tempdir().unwrap();
    let served = serve(root.path());
    served.teacher.mischief.shift.store(1, std::sync::atomic::Ordering::Relaxed);
    let error = run(root.path(), "out", &served.url, &[], &mut Silent, &Stop::default());
    let error = error.unwrap_err().to_string();
    assert!(error.contains("shifted") && error.contains("is train.jsonl, line "), "{error}");
}
