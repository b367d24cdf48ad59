//! The estimate against what is really kept.

use serde_json::json;

use super::*;
use crate::qwen3::Qwen3;
use crate::test_support::{batch, config, student};

fn model() -> Qwen3Config {
    config(json!({"num_hidden_layers": 3}))
}

#[test]
fn a_tape_has_the_size_that_is_expected() {
    let config = model();
    let student = student(&config);
    let network: &Qwen3 = student.model();
    let batch = batch(&[9, 5, 20], 61, 3);
    let widths = Widths::of(&config);
    let of_token = [3 * widths.kept, 3 * widths.input, 3 * widths.input];
    for (recompute, of_token) in Recompute::ALL.into_iter().zip(of_token) {
        let (_, tape) = network.forward_train(&batch, recompute).unwrap();
        assert_eq!(tape.blocks.elements(), 34 * of_token, "{recompute}");
    }
}

#[test]
fn gradients_and_logits_are_counted() {
    let config = model();
    let index = ParameterIndex::new(&config);
    let bytes = |choice: Recompute| choice.step_bytes(&config, 0);
    assert_eq!(bytes(Recompute::None), 4 * index.total() as u64);
    assert_eq!(bytes(Recompute::Blocks), bytes(Recompute::None));
    let two_blocks = 2 * index.parts()[1].len() as u64;
    assert_eq!(bytes(Recompute::None) - bytes(Recompute::Gradients), 4 * two_blocks);
    // A token has a row of logits until a chunk is full.
    let of_token = |tokens| {
        Recompute::None.step_bytes(&config, tokens + 1)
            - Recompute::None.step_bytes(&config, tokens)
    };
    assert_eq!(of_token(10) - of_token(5000), 4 * 61);
}

#[test]
fn the_largest_batch_is_that_of_the_longest_rows() {
    assert_eq!(longest([3, 9, 1, 7].into_iter(), 2), [9, 7]);
    assert_eq!(longest([3].into_iter(), 4), [3]);
}

#[test]
fn a_choice_is_read_as_it_is_written() {
    for choice in Recompute::ALL {
        assert_eq!(choice.to_string().parse(), Ok(choice));
    }
    assert!("some".parse::<Recompute>().unwrap_err().contains("none, blocks and gradients"));
}
