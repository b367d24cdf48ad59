//! A device with little memory, and where the time of a step goes.

use std::path::Path;
use std::sync::atomic::Ordering;

use super::scarce::{Room, Scarce};
use super::*;
use crate::outputs::{self, Reuse};
use crate::testing::{FakeTeacher, Recorder, config, material, tiny_source};

/// A run in `root/out` with a teacher, on a device that takes `most` tokens; what was told, and how often memory did not
/// suffice.
fn run(
    root: &Path,
    out: &str,
    most: usize,
    options: &[(&'static str, &str)],
) -> (Result<Summary, TrainError>, Recorder, usize) {
    run_in(root, out, Room { learning: most, ..Room::ALL }, options)
}

/// The same on one with so much room.
fn run_in(
    root: &Path,
    out: &str,
    room: Room,
    options: &[(&'static str, &str)],
) -> (Result<Summary, TrainError>, Recorder, usize) {
    let model = root.join("model");
    let served = FakeTeacher::of(&tiny_source(&model)).serve();
    let usual = [("teacher", served.url.as_str()), ("recompute", "none"), ("max-steps", "6")];
    let config = config(&root.join(out), &[&usual[..], options].concat());
    let (mut told, stop) = (Recorder::default(), Stop::default());
    let claim = outputs::claim(&config.output_dir, Reuse::Anything).unwrap();
    let mut run = Run::assemble(&config, claim, material(&model), &mut told, &stop).unwrap();
    let (student, seen) = Scarce::new(run.student, room);
    run.student = Box::new(student);
    let done = carry_out(run, &mut told, &stop);
    (done, told, seen.refused.load(Ordering::Relaxed))
}

/// At a rate of 0 the weights stay: what a step computes differs by the order of sums alone (as in `train_tests`).
#[test]
fn what_does_not_fit_is_computed_in_parts_and_nothing_is_lost() {
    let root = tempfile::tempdir().unwrap();
    let of = |out: &str, most: usize| {
        let (done, told, refused) = run(root.path(), out, most, &[("learning-rate", "0")]);
        (done.unwrap(), told, refused)
    };
    let (whole, whole_told, none) = of("whole", usize::MAX);
    // Rows have 5 to 11 tokens, batches three rows.
    let (parts, told, refused) = of("parts", 12);
    assert!(none == 0 && (1..=3).contains(&refused), "{refused}");
    assert_eq!((parts.steps, parts.tokens), (whole.steps, whole.tokens));
    for (found, wanted) in told.steps.iter().zip(&whole_told.steps) {
        assert!((found.loss / wanted.loss - 1.0).abs() < 1e-6, "{found:?} {wanted:?}");
        assert!((found.grad_norm / wanted.grad_norm - 1.0).abs() < 1e-6, "{found:?} {wanted:?}");
        assert_eq!(found.tokens, wanted.tokens);
    }
    let said: Vec<_> = told.notes.iter().filter(|note| note.contains("did not fit")).collect();
    assert_eq!(said.len(), refused, "{said:?}");
    assert!(said[0].contains("step 1: 3 rows") && said[0].contains("made again"), "{said:?}");
}

#[test]
fn what_is_asked_and_does_not_fit_is_asked_in_parts() {
    let root = tempfile::tempdir().unwrap();
    let candidates =
        [("signal", "candidates"), ("top-k", "5"), ("eval-file", "-"), ("eval-steps", "2")];
    let of = |out: &str, most: usize| {
        let room = Room { losses: most, answers: most, ..Room::ALL };
        let (done, told, refused) = run_in(root.path(), out, room, &candidates);
        (done.unwrap(), told, refused)
    };
    let (_, whole, none) = of("whole", usize::MAX);
    let (_, parts, refused) = of("parts", 12);
    // Before the first step, behind the second, fourth and last; and before each.
    assert!(none == 0 && refused >= 4 + 6, "{refused}");
    assert_eq!(whole.steps.len(), parts.steps.len());
    for (found, wanted) in parts.steps.iter().zip(&whole.steps) {
        assert_eq!((found.step, found.tokens), (wanted.step, wanted.tokens));
        assert!((found.loss / wanted.loss - 1.0).abs() < 1e-5, "{found:?} {wanted:?}");
        assert_eq!(found.teacher_mass.is_some(), wanted.teacher_mass.is_some());
    }
    assert_eq!(whole.evaluations.len(), parts.evaluations.len());
    for (found, wanted) in parts.evaluations.iter().zip(&whole.evaluations) {
        assert!((found.student.token / wanted.student.token - 1.0).abs() < 1e-5);
        assert_eq!((found.positions, found.step), (wanted.positions, wanted.step));
        assert!((found.kl.unwrap() / wanted.kl.unwrap() - 1.0).abs() < 1e-5);
    }
    // Who wants no parts is told, and no signal is taken for another one.
    let losses = Room { losses: 12, ..Room::ALL };
    let answers = Room { answers: 12, ..Room::ALL };
    for (out, room) in [("losses", losses), ("answers", answers)] {
        let options = [&candidates[..], &[("on-memory", "refuse")]].concat();
        let (done, _, _) = run_in(root.path(), out, room, &options);
        let error = done.unwrap_err().to_string();
        assert!(error.contains("no room for it"), "{error}");
    }
}

#[test]
fn a_row_that_does_not_fit_alone_ends_the_run_with_its_length() {
    let root = tempfile::tempdir().unwrap();
    let (done, told, _) = run(root.path(), "out", 10, &[]);
    let error = done.unwrap_err().to_string();
    for piece in ["a batch of 1 rows, 11 tokens", "--max-length", "no room for it"] {
        assert!(error.contains(piece), "no {piece:?} in {error}");
    }
    // The steps before it are kept.
    let done = told.steps.len();
    let kept = root.path().join(format!("out/checkpoints/step-{done:06}"));
    assert!(done == 0 || kept.is_dir(), "{done}");
}

#[test]
fn who_wants_no_parts_is_told_what_did_not_fit() {
    let root = tempfile::tempdir().unwrap();
    let (done, _, refused) = run(root.path(), "out", 12, &[("on-memory", "refuse")]);
    let error = done.unwrap_err().to_string();
    assert!(
        refused == 1 && error.contains("3 rows") && error.contains("--on-memory split"),
        "{error}"
    );
}

#[test]
fn the_profile_holds_every_span_of_the_steps_that_were_asked_for() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("trace.json");
    let options = [
        ("profile", path.to_str().unwrap()),
        ("profile-steps", "2..3"),
        ("eval-steps", "2"),
        ("save-steps", "3"),
        ("gradient-accumulation-steps", "2"),
        ("eval-file", "none"),
    ];
    let (done, told, _) = run(root.path(), "out", usize::MAX, &options);
    done.unwrap();
    assert!(told.notes.iter().any(|note| note.contains("trace.json")), "{:?}", told.notes);
    let trace: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let spans: Vec<(&str, f64, f64)> = events
        .iter()
        .filter(|event| event["ph"] == "X")
        .map(|event| {
            let [first, long] = ["ts", "dur"].map(|key| event[key].as_f64().unwrap());
            (event["name"].as_str().unwrap(), first, first + long)
        })
        .collect();
    let steps: Vec<_> = spans.iter().filter(|(name, ..)| name.starts_with("step ")).collect();
    assert_eq!(steps.iter().map(|step| step.0).collect::<Vec<_>>(), ["step 2", "step 3"]);
    for (at, (_, begin, end)) in steps.into_iter().enumerate() {
        // To the nanosecond, as they are written.
        let within = |span: &&(&str, f64, f64)| span.1 >= begin - 2e-3 && span.2 <= end + 2e-3;
        let inside: Vec<&str> = spans
            .iter()
            .filter(within)
            .map(|span| span.0)
            .filter(|n| !n.starts_with("step"))
            .collect();
        let count = |name: &str| inside.iter().filter(|&&other| other == name).count();
        assert_eq!(count("wait for the teacher"), 1, "{inside:?}");
        assert!((1..=2).contains(&count("forward and backward")), "{inside:?}");
        assert_eq!(count("optimiser"), 1, "{inside:?}");
        assert_eq!(count("wait for the checkpoint"), 1, "{inside:?}");
        assert_eq!([count("evaluation"), count("checkpoint")], [[1, 0], [0, 1]][at], "{inside:?}");
    }
    // All spans are within a step.
    assert!(spans[0].0 == "step 2" && spans.iter().all(|span| span.1 >= spans[0].1 - 2e-3));
}

#[test]
fn a_profile_of_steps_that_never_come_is_said_to_be_none() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("trace.json");
    let options = [("profile", path.to_str().unwrap()), ("profile-steps", "100..200")];
    let (done, told, _) = run(root.path(), "out", usize::MAX, &options);
    done.unwrap();
    let said: Vec<_> = told.notes.iter().filter(|note| note.contains("trace.json")).collect();
    assert!(said.len() == 1 && said[0].contains("none of --profile-steps 100..200"), "{said:?}");
    assert!(!path.exists());
}
