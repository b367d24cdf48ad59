//! What a card is asked for, held against the plan: by the emulated driver, which counts and refuses.

use std::io::Write as _;
use std::process::Command;

use candle_core::Device as Tensors;
use kernels::card::Card;
use serde_json::json;

use crate::card::CardLearner;
use crate::card::needs::make_step;
use crate::config::Qwen3Config;
use crate::device::Device;
use crate::needs::{Batch, Taught, training};
use crate::ops::Precision;
use crate::qwen3::ModelError;
use crate::student::{Student, StudentError, Training};
use crate::test_support::config;

const ROWS: [usize; 4] = [64; 4];
/// A row's share of the batch's memory is many times this.
const NEAR_BYTES: u64 = 64 << 10;

fn how() -> Training {
    Training { precision: Precision::Bf16, ..Training::default() }
}

fn model() -> Qwen3Config {
    config(
        json!({"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "head_dim": 16}),
    )
}

/// A step of these rows, its evaluation and update.
fn step(learner: &mut CardLearner<Card>, rows: &[usize]) -> Result<(), StudentError> {
    make_step(learner, &model(), Batch { rows, taught: Taught::Nothing })
}

/// What a card comes to that has so much memory as `EMULATED_CARD` says.
fn what_a_card_does() -> &'static str {
    let student = Student::random(model(), 7, how(), &Tensors::Cpu).unwrap();
    let mut learner = CardLearner::new(Card::open(0).unwrap(), &student).unwrap();
    match step(&mut learner, &ROWS) {
        Ok(()) => "all at once",
        Err(StudentError::Model(ModelError::OutOfMemory(_))) => {
            // The same learner goes on with less.
            step(&mut learner, &ROWS[..2]).unwrap();
            step(&mut learner, &ROWS[2..]).unwrap();
            "in halves"
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_card_is_asked_for_what_was_planned_and_for_less_where_that_is_too_much() {
    const NAME: &str = "a_card_is_asked_for_what_was_planned_and_for_less_where_that_is_too_much";
    const CASE: &str = "LIMBECK_CARD_CASE";
    if std::env::var_os("EMULATED_CARD").is_none() {
        test_support::skip(NAME, "emulated-card", "cargo xtask emulated-card");
        return;
    }
    // How much memory a card has is the process's.
    if std::env::var_os(CASE).is_some() {
        writeln!(std::io::stderr(), "computed {}", what_a_card_does()).unwrap();
        return;
    }
    let batch = Batch { rows: &ROWS, taught: Taught::Nothing };
    let planned = training(Device::Cuda(0), &model(), &how(), batch).unwrap().total();
    for (memory, wanted) in
        [(planned + NEAR_BYTES, "all at once"), (planned - NEAR_BYTES, "in halves")]
    {
        let output = Command::new(std::env::current_exe().unwrap())
            .args([&format!("card::tests::taken::{NAME}"), "--exact", "--nocapture"])
            .envs([("EMULATED_CARD", &format!("memory={memory}")[..]), (CASE, "")])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(&format!("computed {wanted}")), "{memory} of {planned}: {said}");
    }
}
