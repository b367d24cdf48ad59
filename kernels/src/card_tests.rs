//! Tests of a card; where there is none, of what is said then.

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
    program.call(round::round([x, rounded], 4 * 8));
    program.product(Product {
        a: Matrix::of(rounded, [4, 8]),
        b: Matrix::of(weights, [16, 8]).transpose(),
        into: Matrix::of(gate_up, [4, 16]),
        plus: None,
        scale: 0.25,
    });
    program.call(swiglu::swiglu([gate_up, a], [4, 8], Activations::Bf16));
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
    let error = card.keep("everything", Kind::F64, 1 << 50).unwrap_err();
    assert!(error.is_out_of_memory() && error.to_string().contains("everything takes"), "{error}");
}
