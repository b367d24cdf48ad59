//! What a card is asked for, held against the plan: by the emulated driver, which counts and refuses.

use std::io::Write as _;
use std::process::Command;

use kernels::card::Card;
use kernels::counting::WORKSPACE_BYTES;
use serde_json::json;

use crate::card::CardLearner;
use crate::card::bench::{
    QWEN3_0_6B, QWEN3_4B, REAL, attention_both, copy, optimiser, output_layer, rate, shape,
    student, teacher,
};
use crate::card::needs::make_step;
use crate::config::Qwen3Config;
use crate::device::Device;
use crate::needs::{Batch, Taught, training};
use crate::ops::Precision;
use crate::qwen3::ModelError;
use crate::student::{StudentError, Training};
use crate::test_support::config;

/// What the two may differ by: a row's share of a batch's memory is many times as much. Of Qwen3 it is what four programs
/// at once send and fetch, one at a time here.
const NEAR_BYTES: u64 = 64 << 10;
const NEAR_BYTES_OF_QWEN3: u64 = 48 << 20;
/// Set in a process of its own: how much memory a card has is the process's.
const CASE: &str = "LIMBECK_CARD_CASE";

fn how() -> Training {
    Training { precision: Precision::Bf16, ..Training::default() }
}

/// What a card comes to that has so much memory as `EMULATED_CARD` says.
fn what_a_card_does(model: &Qwen3Config, batch: Batch<'_>) -> &'static str {
    let card = Card::open(0).unwrap();
    let mut learner = CardLearner::empty(card, model.clone(), how()).unwrap();
    match make_step(&mut learner, model, batch) {
        Ok(()) => "all at once",
        Err(StudentError::Model(ModelError::OutOfMemory(_))) => {
            // The same learner goes on with less.
            let (half, other) = batch.rows.split_at(batch.rows.len() / 2);
            for rows in [half, other] {
                make_step(&mut learner, model, Batch { rows, ..batch }).unwrap();
            }
            "in halves"
        }
        Err(error) => panic!("{error}"),
    }
}

/// What this test says in a process of its own, of a card that is set so.
fn said_of(test: &str, card: &str) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([&format!("card::tests::taken::{test}"), "--exact", "--nocapture"])
        .envs([("EMULATED_CARD", card), (CASE, "")])
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// With as much memory as is planned for a step, its evaluation and its update there is room for them, and with less there
/// is not.
fn holds_to_its_plan(test: &str, model: &Qwen3Config, batch: Batch<'_>, (near, card): (u64, &str)) {
    if std::env::var_os("EMULATED_CARD").is_none() {
        test_support::skip(test, "emulated-card", "cargo xtask emulated-card");
        return;
    }
    if std::env::var_os(CASE).is_some() {
        writeln!(std::io::stderr(), "computed {}", what_a_card_does(model, batch)).unwrap();
        return;
    }
    let planned = training(Device::Cuda(0), model, &how(), batch).unwrap().total();
    for (memory, wanted) in [(planned + near, "all at once"), (planned - near, "in halves")] {
        let said = said_of(test, &format!("memory={memory}{card}"));
        assert!(said.contains(&format!("computed {wanted}")), "{memory} of {planned}: {said}");
    }
}

#[test]
fn a_card_is_asked_for_what_was_planned_and_for_less_where_that_is_too_much() {
    const NAME: &str = "a_card_is_asked_for_what_was_planned_and_for_less_where_that_is_too_much";
    let model = config(
        json!({"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "head_dim": 16}),
    );
    let batch = Batch { rows: &[64; 4], taught: Taught::Nothing };
    holds_to_its_plan(NAME, &model, batch, (NEAR_BYTES, ""));
}

#[test]
fn a_step_of_qwen3_takes_what_was_planned() {
    const NAME: &str = "a_step_of_qwen3_takes_what_was_planned";
    let [rows, length] = REAL.rows;
    let rows = vec![length; rows];
    let batch = Batch { rows: &rows, taught: Taught::Listed { k: 64, own: 0 } };
    holds_to_its_plan(NAME, &shape(QWEN3_0_6B), batch, (NEAR_BYTES_OF_QWEN3, ",few=1"));
}

/// Of every launch the first and the last blocks, all of it within the card's memory and what a launch may ask for.
#[test]
fn everything_that_is_measured_on_a_card_fits_at_its_sizes() {
    const NAME: &str = "everything_that_is_measured_on_a_card_fits_at_its_sizes";
    if std::env::var_os("EMULATED_CARD").is_none() {
        test_support::skip(NAME, "emulated-card", "cargo xtask emulated-card");
        return;
    }
    if std::env::var_os(CASE).is_none() {
        let said = said_of(NAME, &format!("few=1,memory={}", 139_u64 << 30));
        assert!(said.contains("measured 9"), "{said}");
        return;
    }
    let open = || Card::open(0).unwrap();
    let (teachers, students) = (shape(QWEN3_4B), shape(QWEN3_0_6B));
    let mut figures = output_layer(&mut open(), &students, REAL).unwrap().to_vec();
    figures
        .extend([rate, copy, optimiser, attention_both].map(|of| of(&mut open(), REAL).unwrap()));
    let [step, plan] = student(open(), &students, REAL).unwrap();
    // The workspace was there before.
    let least = plan.memory - NEAR_BYTES_OF_QWEN3 - WORKSPACE_BYTES as u64;
    assert!((least..=plan.memory).contains(&step.memory), "{step:?}, {plan:?}");
    figures.extend([step, plan]);
    figures.push(teacher(open(), &teachers, REAL).unwrap());
    writeln!(std::io::stderr(), "measured {}", figures.len()).unwrap();
}
