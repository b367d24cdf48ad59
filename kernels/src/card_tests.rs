//! Tests of a card, or of the driver without one that `cargo xtask emulated-card` builds; where there is neither, of
//! what is said then.

use std::io::Write as _;
use std::process::Command;

use half::bf16;

use super::*;
use crate::program::Matrix;
use crate::{Activations, round, swiglu};

/// The first card, or nothing but a word that the test is skipped.
fn card(test: &str) -> Option<Card> {
    match Card::open(0) {
        Ok(card) => Some(card),
        Err(error) => {
            test_support::skip(test, "cuda", &error.to_string());
            None
        }
    }
}

#[test]
fn a_card_that_is_not_there_is_named_with_the_remedy() {
    let Err(error) = Card::open(4711) else { panic!("there are not so many cards") };
    let said = error.to_string();
    assert!(said.starts_with("cuda:4711: ") && said.contains("--device cpu"), "{said}");
}

#[test]
fn a_program_comes_to_the_same_the_first_time_and_as_a_graph() {
    let Some(mut card) = card("a_program_comes_to_the_same_the_first_time_and_as_a_graph") else {
        return;
    };
    let weights = card.keep("weights", Kind::Bf16, 16 * 8).unwrap();
    let ones: Vec<bf16> = (0..16 * 8).map(|at| bf16::from_f32((at % 5) as f32 - 2.0)).collect();
    card.write(weights, &ones).unwrap();
    let mut program = Program::default();
    let x = program.input(Kind::F32, 4 * 8);
    let [gate_up, rounded] = [4 * 16, 4 * 8].map(|len| program.passing("some", Kind::Bf16, len));
    let a = program.output(Kind::Bf16, 4 * 8);
    // Often enough to be worth a graph.
    for _ in 0..6 {
        program.zero(gate_up);
        program.call(round::round([x, rounded], 4 * 8));
        program.product(Product {
            a: Matrix::of(rounded, [4, 8]),
            b: Matrix::of(weights, [16, 8]).transpose(),
            into: Matrix::of(gate_up, [4, 16]),
            plus: None,
            scale: 0.25,
        });
        program.call(swiglu::swiglu([gate_up, a], [4, 8], Activations::Bf16));
    }
    let values: Vec<f32> = (0..4 * 8).map(|at| at as f32 / 16.0).collect();
    let mut inputs = Inputs::default();
    inputs.set(x, &values);
    let first = card.run(&program, &inputs).unwrap().get::<bf16>(a);
    for _ in 0..6 {
        assert_eq!(card.run(&program, &inputs).unwrap().get::<bf16>(a), first);
    }
    let dot = |row: usize, column: usize| -> f32 {
        (0..8).map(|k| values[row * 8 + k] * ones[column * 8 + k].to_f32()).sum::<f32>() * 0.25
    };
    for (at, found) in first.into_iter().enumerate() {
        let (gate, up) = (dot(at / 8, at % 8), dot(at / 8, 8 + at % 8));
        let exact = gate / (1.0 + (-gate).exp()) * up;
        assert!((found.to_f32() - exact).abs() <= 0.02 * exact.abs() + 1e-3, "{found} {exact}");
    }
}

#[test]
fn memory_that_is_not_there_is_said() {
    let Some(mut card) = card("memory_that_is_not_there_is_said") else { return };
    let error = card.keep("everything", Kind::F64, 1 << 40).unwrap_err();
    assert!(error.is_out_of_memory() && error.to_string().contains("everything takes"), "{error}");
}

/// A program with one output: the input's first four, rounded and widened by a product with one.
fn small(scale: f32) -> (Program, View, View) {
    let mut program = Program::default();
    let x = program.input(Kind::F32, 16);
    let y = program.output(Kind::F32, 16);
    for _ in 0..20 {
        program.copy(x, y);
    }
    let matrix = |view| Matrix::of(view, [4, 4]);
    let ones = program.passing("ones", Kind::F32, 16);
    program.copy(x, ones);
    program.product(Product {
        a: matrix(x),
        b: matrix(ones).transpose(),
        into: matrix(y),
        plus: Some(y),
        scale,
    });
    (program, x, y)
}

#[test]
fn programs_may_be_started_before_those_before_them_are_read() {
    let Some(mut card) = card("programs_may_be_started_before_those_before_them_are_read") else {
        return;
    };
    let (program, x, y) = small(2.0);
    let inputs = |size: f32| {
        let mut inputs = Inputs::default();
        inputs.set(x, &[size; 16]);
        inputs
    };
    // Of 16 of them: x, and 2 x · xᵀ.
    let exact = |size: f32| vec![size + 2.0 * 4.0 * size * size; 16];
    // New, then recorded, then launched at once, in every place.
    for round in 0..4 {
        let sizes = [1.0, 2.0, 3.0, 4.0].map(|size| size + round as f32);
        let running = sizes.map(|size| card.start(&program, &inputs(size)).unwrap());
        let mut waits = 0;
        while !card.has_ended(&running[3]).unwrap() {
            waits += 1;
        }
        assert!(waits < 1_000_000_000);
        for (running, size) in running.into_iter().zip(sizes).rev() {
            assert_eq!(card.finish(running).unwrap().get::<f32>(y), exact(size));
        }
    }
    // A larger one moves the buffers that graphs know of.
    let mut large = Program::default();
    let view = large.passing("much", Kind::F32, 1 << 20);
    large.zero(view);
    card.run(&large, &Inputs::default()).unwrap();
    assert_eq!(card.run(&program, &inputs(5.0)).unwrap().get::<f32>(y), exact(5.0));
}

#[test]
fn times_of_steps_follow_each_other() {
    let Some(mut card) = card("times_of_steps_follow_each_other") else { return };
    let (program, x, _) = small(1.0);
    let mut inputs = Inputs::default();
    inputs.set(x, &[1.0_f32; 16]);
    card.note_times();
    let [first, second] = [0, 1].map(|_| card.start(&program, &inputs).unwrap());
    card.finish(first).unwrap();
    // The second one runs still.
    let times = card.take_times().unwrap();
    card.finish(second).unwrap();
    assert_eq!(times.steps.len(), 2 * program.steps.len());
    assert!(times.steps.windows(2).all(|two| two[0].ends[1] <= two[1].ends[0]));
    assert!(times.steps.iter().all(|step| step.ends[0] <= step.ends[1]));
    assert!(card.take_times().is_none());
}

/// What is said when a card is opened and a program run over and over.
fn what_the_card_says() -> String {
    let opened = || -> Result<u32, CardError> {
        let mut card = Card::open(0)?;
        let mut program = Program::default();
        let [x, y] = [Kind::F32, Kind::Bf16].map(|kind| program.passing("some", kind, 8));
        program.zero(x);
        program.call(round::round([x, y], 8));
        for _ in 0..5 {
            card.run(&program, &Inputs::default())?;
        }
        Ok(card.block_memory())
    };
    match opened() {
        Ok(bytes) => format!("well, {bytes} bytes a block"),
        Err(error) => {
            let [full, lost] = [error.is_out_of_memory(), error.is_lost()];
            format!("{error} (out of memory {full}, lost {lost})")
        }
    }
}

/// What a person is told of a driver, a card or memory that does not do, found and needed.
#[test]
fn a_card_that_does_not_do_is_named_with_what_is_found_and_needed() {
    const NAME: &str = "a_card_that_does_not_do_is_named_with_what_is_found_and_needed";
    if std::env::var_os("EMULATED_CARD").is_none() {
        test_support::skip(NAME, "emulated-card", "cargo xtask emulated-card");
        return;
    }
    // A card is found once a process: each case is one of its own, this test once more.
    const CASE: &str = "LIMBECK_CARD_CASE";
    if std::env::var_os(CASE).is_some() {
        writeln!(std::io::stderr(), "{}", what_the_card_says()).unwrap();
        return;
    }
    let cases = [
        ("count=1", "well, 232448 bytes a block"),
        ("block=101376", "well, 101376 bytes a block"),
        ("count=0", "there is no such card; the driver shows 0"),
        ("version=12080", "it speaks CUDA 12.8 and 13.0 is needed"),
        ("library=12060", "cuBLASLt is too old: it is CUDA 12.6's and 13.0's is needed"),
        ("capability=75", "has compute capability 7.5, needed is 8.0"),
        ("built=0", "has compute capability 9.0, which this program was not built for"),
        ("built=0,capability=121", "KERNELS_ARCH=121"),
        ("memory=9000000", "are free; other programs hold the rest"),
        ("memory=9000000", "(out of memory true, lost false)"),
        ("launches=3", "(out of memory false, lost true)"),
        ("launches=0", "start the program again"),
    ];
    for (set, wanted) in cases {
        let output = Command::new(std::env::current_exe().unwrap())
            .args([&format!("card::tests::{NAME}"), "--exact", "--nocapture"])
            .envs([("EMULATED_CARD", set), (CASE, "")])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(wanted), "{set}: no {wanted:?} in {said}");
    }
}

/// A card that has no room for graphs does their steps one by one.
#[test]
fn without_memory_for_a_graph_its_steps_are_done() {
    const GRAPHS: &str = "a_program_comes_to_the_same_the_first_time_and_as_a_graph";
    if std::env::var_os("EMULATED_CARD").is_none() {
        let name = "without_memory_for_a_graph_its_steps_are_done";
        test_support::skip(name, "emulated-card", "cargo xtask emulated-card");
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([&format!("card::tests::{GRAPHS}"), "--exact"])
        .env("EMULATED_CARD", "graphs=0")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

/// A teacher is asked for batches of ever other lengths.
#[test]
fn shapes_of_products_are_forgotten() {
    let Some(mut card) = card("shapes_of_products_are_forgotten") else { return };
    let most = products::MOST_SHAPES;
    let x = card.keep("x", Kind::F32, 2 * most).unwrap();
    card.write(x, &vec![1.0_f32; 2 * most]).unwrap();
    for of in 0..most + 10 {
        let (rows, columns) = (1 + of % 64, 1 + of / 64);
        let mut program = Program::default();
        let y = program.output(Kind::F32, rows * rows);
        let a = Matrix::of(x.part(0..rows * columns), [rows, columns]);
        let b = a.transpose();
        program.product(Product {
            a,
            b,
            into: Matrix::of(y, [rows, rows]),
            plus: None,
            scale: 1.0,
        });
        let said = card.run(&program, &Inputs::default()).unwrap().get::<f32>(y);
        assert_eq!(said, vec![columns as f32; rows * rows]);
        assert!(card.products.known() <= most);
    }
    assert_eq!(card.products.known(), 10);
}
