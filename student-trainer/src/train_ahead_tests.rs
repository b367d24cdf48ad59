//! A device that computes by itself: each step is started before the one before it is done, and nothing that a run
//! leaves or tells depends on it.

use std::path::Path;
use std::sync::atomic::Ordering;

use candle_core::Device;
use model::card::CardLearner;
use model::card::emulation::{AVAILABLE, TestDevice};
use model::learner::Learner;
use model::student::{Student, Training};

use super::scarce::{Room, Scarce};
use super::*;
use crate::observer::{RunFacts, StepReport};
use crate::outputs::{self, Reuse};
use crate::testing::{FakeTeacher, Recorder, Served, config, material, tiny_source};

/// Where a run of these tests computes.
#[derive(Clone, Copy)]
enum On {
    Processor,
    Card(Room),
}

/// What a run came to, and how many of its steps were under way at a time.
struct Ran {
    done: Result<Summary, TrainError>,
    most_steps: usize,
}

/// A run in `root/out` with this teacher.
fn run(
    (root, out): (&Path, &str),
    on: On,
    teacher: &str,
    options: &[(&'static str, &str)],
    (told, stop): (&mut dyn Observer, &Stop),
) -> Ran {
    let usual = [("teacher", teacher), ("recompute", "none"), ("lr-scheduler-type", "constant")];
    let config = config(&root.join(out), &[&usual[..], options].concat());
    let claim = outputs::claim(&config.output_dir, Reuse::Anything).unwrap();
    let material = material(&root.join("model"));
    let of = material.source.config.clone();
    let mut run = Run::assemble(&config, claim, material, told, stop).unwrap();
    let (student, room) = match on {
        On::Processor => (run.student, Room::ALL),
        On::Card(room) => {
            let random = Student::random(of, config.seed, Training::default(), &Device::Cpu);
            let card = CardLearner::new(TestDevice::default(), &random.unwrap()).unwrap();
            (Box::new(card) as Box<dyn Learner>, room)
        }
    };
    let (student, seen) = Scarce::new(student, room);
    run.student = Box::new(student);
    let done = carry_out(run, told, stop);
    Ran { done, most_steps: seen.most_steps.load(Ordering::Relaxed) }
}

fn serve(root: &Path) -> Served {
    FakeTeacher::of(&tiny_source(&root.join("model"))).serve()
}

fn emulated(test: &str) -> bool {
    if !AVAILABLE {
        test_support::skip(test, "c++", "no compiler of C++20 was found (g++ 10 or newer, $CXX)");
    }
    AVAILABLE
}

/// The steps of which checkpoints lie there.
fn checkpoints(root: &Path, out: &str) -> Vec<String> {
    let found = std::fs::read_dir(root.join(out).join("checkpoints")).unwrap();
    let mut names: Vec<String> =
        found.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_run_tells_and_leaves_what_it_would_without_being_ahead() {
    if !emulated("a_run_tells_and_leaves_what_it_would_without_being_ahead") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let served = serve(root.path());
    let options =
        [("max-steps", "9"), ("eval-steps", "4"), ("save-steps", "6"), ("eval-file", "-")];
    let of = |out: &str, on: On| {
        let mut told = Recorder::default();
        let place = (root.path(), out);
        let ran = run(place, on, &served.url, &options, (&mut told, &Stop::default()));
        (ran, told)
    };
    let (wanted, wanted_told) = of("processor", On::Processor);
    let (found, told) = of("card", On::Card(Room::ALL));
    assert_eq!(found.most_steps, 2);
    let (found, wanted) = (found.done.unwrap(), wanted.done.unwrap());
    assert_eq!((found.steps, found.tokens), (wanted.steps, wanted.tokens));
    assert_eq!(told.steps.len(), 9);
    for (found, wanted) in told.steps.iter().zip(&wanted_told.steps) {
        let of = |step: &StepReport| (step.step, step.tokens, step.learning_rate, step.epoch);
        assert_eq!(of(found), of(wanted));
        assert!((found.loss / wanted.loss - 1.0).abs() < 1e-3, "{found:?} {wanted:?}");
        assert!((found.grad_norm / wanted.grad_norm - 1.0).abs() < 1e-2, "{found:?} {wanted:?}");
        assert!(found.tokens_per_second > 0.0);
    }
    let moments = |told: &Recorder| -> Vec<_> {
        told.evaluations.iter().map(|report| (report.step, report.moment)).collect()
    };
    assert_eq!(moments(&told), moments(&wanted_told));
    for (found, wanted) in told.evaluations.iter().zip(&wanted_told.evaluations) {
        assert!((found.student.token / wanted.student.token - 1.0).abs() < 1e-3);
    }
    assert_eq!(checkpoints(root.path(), "card"), checkpoints(root.path(), "processor"));
}

#[test]
fn what_does_not_fit_behind_a_step_under_way_is_computed_in_parts() {
    if !emulated("what_does_not_fit_behind_a_step_under_way_is_computed_in_parts") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let served = serve(root.path());
    let of = |out: &str, room: usize| {
        let mut told = Recorder::default();
        let (place, options) = ((root.path(), out), [("max-steps", "6"), ("shuffle", "false")]);
        let on = On::Card(Room { learning: room, ..Room::ALL });
        let ran = run(place, on, &served.url, &options, (&mut told, &Stop::default()));
        (ran.done.unwrap(), told)
    };
    let (whole, whole_told) = of("whole", usize::MAX);
    // Rows have 5 to 11 tokens, batches three rows: the second batch is the first that does not fit.
    let first = whole_told.steps[0].tokens as usize;
    let second = whole_told.steps[1].tokens as usize;
    assert!(first < second, "{first} {second}");
    let (parts, told) = of("parts", second - 1);
    assert_eq!((parts.steps, parts.tokens), (whole.steps, whole.tokens));
    for (found, wanted) in told.steps.iter().zip(&whole_told.steps) {
        assert!((found.loss / wanted.loss - 1.0).abs() < 1e-3, "{found:?} {wanted:?}");
        assert_eq!(found.tokens, wanted.tokens);
    }
    assert_eq!(told.steps.len(), 6);
    let said: Vec<_> = told.notes.iter().filter(|note| note.contains("did not fit")).collect();
    assert!(said[0].contains("step 2: 3 rows"), "{said:?}");
}

#[test]
fn of_a_step_that_is_no_number_and_those_behind_it_nothing_is_kept() {
    if !emulated("of_a_step_that_is_no_number_and_those_behind_it_nothing_is_kept") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let served = serve(root.path());
    let mut told = Recorder::default();
    // A rate at which the weights overflow.
    let options = [("learning-rate", "1e37"), ("max-steps", "20"), ("shuffle", "false")];
    let place = (root.path(), "out");
    let card = On::Card(Room::ALL);
    let ran = run(place, card, &served.url, &options, (&mut told, &Stop::default()));
    let error = ran.done.unwrap_err();
    let TrainError::NotFinite { step, rows, .. } = &error else { panic!("{error}") };
    let last = told.steps.len();
    assert!(*step == last as u64 + 1 && ran.most_steps == 2, "{step}, {last}");
    // Ten rows in file order, three a step.
    let first = last * 3 % 10 + 1;
    assert!(rows.starts_with(&format!("train.jsonl, line {first}")), "{error}");
    // What is kept is what a run of so many steps comes to.
    let kept = checkpoints(root.path(), "out");
    assert_eq!(kept, [format!("step-{last:06}")]);
    let steps = last.to_string();
    let options = [&options[..], &[("max-steps", &steps), ("save-steps", "1")]].concat();
    let place = (root.path(), "short");
    let short = run(place, card, &served.url, &options, (&mut told, &Stop::default()));
    assert!(matches!(short.done, Ok(_) | Err(TrainError::EvaluationNotFinite { .. })));
    let state = |out: &str| {
        let of = format!("checkpoints/{}/training_state.safetensors", kept[0]);
        std::fs::read(root.path().join(out).join(of)).unwrap()
    };
    assert!(state("out") == state("short"), "another state was kept");
}

#[test]
fn a_teacher_that_is_lost_and_a_wish_to_stop_lose_no_step_under_way() {
    if !emulated("a_teacher_that_is_lost_and_a_wish_to_stop_lose_no_step_under_way") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    /// Ends the teacher after step 3, and counts.
    struct Killer(Option<Served>, u64);
    impl Observer for Killer {
        fn started(&mut self, _: &RunFacts) {}
        fn step(&mut self, report: &StepReport) {
            assert_eq!(report.step, self.1 + 1);
            self.1 = report.step;
            if report.step == 3 {
                self.0.take();
            }
        }
        fn evaluated(&mut self, _: &EvalReport) {}
        fn finished(&mut self, _: &Summary) {}
        fn note(&mut self, _: &str) {}
    }
    let served = serve(root.path());
    let url = served.url.clone();
    let mut killer = Killer(Some(served), 0);
    let options = [("max-steps", "40"), ("teacher-timeout", "1.5"), ("teacher-memory", "0")];
    let place = (root.path(), "lost");
    let card = On::Card(Room::ALL);
    let ran = run(place, card, &url, &options, (&mut killer, &Stop::default()));
    assert!(ran.done.is_err() && killer.1 > 3);
    assert_eq!(checkpoints(root.path(), "lost"), [format!("step-{:06}", killer.1)]);

    let served = serve(root.path());
    let stop = Stop::default();
    let mut told = Recorder { stop_after: Some((5, stop.clone())), ..Recorder::default() };
    let place = (root.path(), "stopped");
    let ran = run(place, card, &served.url, &[("max-steps", "40")], (&mut told, &stop));
    let done = ran.done.unwrap().steps;
    // The one that was under way is done and kept.
    assert!(done == told.steps.len() as u64 && (5..=6).contains(&done), "{done}");
    assert_eq!(checkpoints(root.path(), "stopped"), [format!("step-{done:06}")]);
}

#[test]
fn of_a_device_that_fails_its_own_words_are_told() {
    if !emulated("of_a_device_that_fails_its_own_words_are_told") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let served = serve(root.path());
    let mut told = Recorder::default();
    let on = On::Card(Room { passes: 2, ..Room::ALL });
    let place = (root.path(), "out");
    let ran = run(place, on, &served.url, &[("max-steps", "9")], (&mut told, &Stop::default()));
    let error = ran.done.unwrap_err().to_string();
    assert!(error.contains("the device has failed"), "{error}");
    // The step before it was under way, and cannot be read any more.
    assert_eq!(told.steps.len(), 1);
}
