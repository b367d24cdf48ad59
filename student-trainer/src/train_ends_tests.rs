//! How runs end, go on, and keep out of each other's way: nothing done is lost, nothing wrong is
//! taken up.

use super::*;
use crate::observer::{RunFacts, StepReport};

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

/// Such a student holds no token likely: what it is to be asked about is not known, and the rows are
/// named all the same.
#[test]
fn candidates_of_a_student_that_is_no_number_are_no_other_error() {
    let root = tempfile::tempdir().unwrap();
    let served = serve(root.path());
    let mut told = Recorder::default();
    let common = [("signal", "candidates"), ("top-k", "5"), ("learning-rate", "1e38")];
    let options = [&common[..], &[("max-steps", "20"), ("shuffle", "false")]].concat();
    let error = run(root.path(), "out", &served.url, &options, &mut told, &Stop::default());
    let error = error.unwrap_err();
    assert!(matches!(error, TrainError::NotFinite { .. }), "{error}");
    assert!(!told.steps.is_empty() && told.steps[0].teacher_mass.is_some());
    let options = [&common[..], &[("eval-file", "-"), ("eval-steps", "1")]].concat();
    let error = run(root.path(), "eval", &served.url, &options, &mut told, &Stop::default());
    let error = error.unwrap_err();
    assert!(matches!(error, TrainError::EvaluationNotFinite { of: 4, .. }), "{error}");
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
    let options = [("max-steps", "40"), ("teacher-timeout", "1.5"), ("teacher-memory", "0")];
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

#[test]
fn a_checkpoint_is_whole_before_the_next_update_and_not_waited_for_before() {
    /// What was told, in order.
    #[derive(Default)]
    struct Log(Vec<String>);
    impl Observer for Log {
        fn started(&mut self, _: &RunFacts) {}
        fn step(&mut self, report: &StepReport) {
            self.0.push(format!("step {}", report.step));
        }
        fn evaluated(&mut self, report: &EvalReport) {
            self.0.push(format!("evaluation after {}", report.step));
        }
        fn finished(&mut self, _: &Summary) {}
        fn note(&mut self, text: &str) {
            if let Some((_, name)) = text.rsplit_once("step-00000") {
                self.0.push(format!("checkpoint of {name}"));
            }
        }
    }
    let root = tempfile::tempdir().unwrap();
    let served = serve(root.path());
    // Four steps an epoch.
    let options = [("max-steps", "5"), ("save-steps", "1")];
    let mut log = Log::default();
    run(root.path(), "out", &served.url, &options, &mut log, &Stop::default()).unwrap();
    let wanted = [
        "evaluation after 0",
        "step 1",
        "checkpoint of 1",
        "step 2",
        "checkpoint of 2",
        "step 3",
        "checkpoint of 3",
        "step 4",
        "evaluation after 4",
        "checkpoint of 4",
        "step 5",
        "evaluation after 5",
        "checkpoint of 5",
    ];
    // Each is waited for at the next update, in the order "checkpoint, step"; the last one's writing
    // goes on beside the last evaluation.
    assert_eq!(log.0, wanted);
}

#[test]
fn a_checkpoint_that_was_taken_away_is_not_promised_and_beginning_anew_is_told() {
    /// Takes the output directory away after step 3.
    struct Thief(std::path::PathBuf, Vec<String>);
    impl Observer for Thief {
        fn started(&mut self, _: &RunFacts) {}
        fn step(&mut self, report: &StepReport) {
            if report.step == 3 {
                std::fs::remove_dir_all(&self.0).unwrap();
                // A file where the directory was: nothing can be written there.
                std::fs::write(&self.0, "").unwrap();
            }
        }
        fn evaluated(&mut self, _: &EvalReport) {}
        fn finished(&mut self, _: &Summary) {}
        fn note(&mut self, text: &str) {
            self.1.push(text.to_owned());
        }
    }
    let root = tempfile::tempdir().unwrap();
    let served = serve(root.path());
    let options = [("max-steps", "9"), ("save-steps", "2"), ("resume-from-checkpoint", "auto")];
    let mut thief = Thief(root.path().join("out"), Vec::new());
    let ended = run(root.path(), "out", &served.url, &options, &mut thief, &Stop::default());
    let error = ended.unwrap_err().to_string();
    assert!(!error.contains("newest whole checkpoint"), "{error}");
    assert!(thief.1.iter().any(|note| note.contains("begins at step 0")), "{:?}", thief.1);
}
