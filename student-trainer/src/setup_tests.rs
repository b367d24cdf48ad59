//! What is chosen for a run from the machine it is on.

use super::*;
use model::student::Student;

use crate::observer::{EvalReport, RunFacts, StepReport};
use crate::summary::Summary;
use crate::testing::{config, row_set, rows, tiny_source};

/// Keeps the notes.
#[derive(Default)]
struct Notes(Vec<String>);

impl Observer for Notes {
    fn started(&mut self, _: &RunFacts) {}
    fn step(&mut self, _: &StepReport) {}
    fn evaluated(&mut self, _: &EvalReport) {}
    fn finished(&mut self, _: &Summary) {}
    fn note(&mut self, text: &str) {
        self.0.push(text.to_owned());
    }
}

#[test]
fn what_is_computed_again_depends_on_the_free_memory_and_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let shape = tiny_source(dir.path()).config;
    let set = row_set("train.jsonl", rows(10, 1));
    let chosen = |options: &[(&'static str, &str)], free: Option<u64>| {
        let config = config(dir.path(), &[&[("alpha", "0")], options].concat());
        let mut notes = Notes::default();
        let room = Room::found(Device::Cpu, free).unwrap();
        let subject = subject(&config, &shape, &set, (Device::Cpu, Taught::Nothing));
        let plan = subject.settle(room, &mut |text| notes.note(text)).unwrap();
        (plan.recompute, notes.0)
    };
    let plenty = Some(u64::MAX);
    assert_eq!(chosen(&[], plenty), (Recompute::None, vec![]));
    assert_eq!(chosen(&[], None), (Recompute::None, vec![]));
    assert_eq!(chosen(&[("recompute", "blocks")], plenty), (Recompute::Blocks, vec![]));
    let state = Student::state_bytes(&shape);
    // The longest three of rows of 5 to 11 tokens.
    let step = Recompute::None.step_bytes(&shape, 11 + 10 + 9);
    // A thirty-second part of what is free is left alone.
    let enough = (state + step) * 32 / 31 + 1;
    assert_eq!(chosen(&[], Some(enough)).0, Recompute::None);
    let (choice, notes) = chosen(&[], Some(enough - 32));
    assert_ne!(choice, Recompute::None);
    assert!(notes[0].contains(&format!("--recompute {choice}")), "{notes:?}");
    let (_, notes) = chosen(&[("gradient-accumulation-steps", "2")], Some(1));
    assert!(notes[1].contains("more than the 0 MiB that are free"), "{notes:?}");
}
