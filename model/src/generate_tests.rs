//! Continuations: the most probable tokens, where they stop, and draws that repeat with the seed.

use candle_core::Device;
use serde_json::json;

use super::*;
use crate::ops::Precision;
use crate::test_support::config;
use crate::weights::Weights;

fn model() -> Qwen3 {
    let config = config(json!({"max_position_embeddings": 20}));
    let weights = Weights::random(&config, 11, &Device::Cpu).unwrap();
    Qwen3::new(config, weights, Precision::F32).unwrap()
}

fn settings(temperature: f64, seed: u64) -> GenerateSettings {
    GenerateSettings { max_tokens: 8, temperature, seed, stop: Vec::new(), classes: 61 }
}

#[test]
fn greedy_takes_the_largest_logit_of_the_last_position_each_time() {
    let model = model();
    let text = greedy(&model, &[5, 9], 4, &[]).unwrap();
    let mut ids = vec![5, 9];
    for _ in 0..4 {
        let sequence = Sequence::all_scored(ids.clone()).unwrap();
        let hidden = model.forward_hidden(&TokenBatch::pack([&sequence])).unwrap();
        let logits = hidden.matmul(&model.head().t().unwrap()).unwrap().to_vec2::<f32>().unwrap();
        let last = logits.last().unwrap();
        let best = (0..61).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
        ids.push(best as u32);
    }
    assert_eq!(text, ids[2..]);
}

#[test]
fn it_ends_at_a_stop_token_at_the_limit_and_where_positions_end() {
    let model = model();
    let free = greedy(&model, &[5, 9], 6, &[]).unwrap();
    assert_eq!(free.len(), 6);
    let stopped = greedy(&model, &[5, 9], 6, &free[3..4]).unwrap();
    let first = free.iter().position(|id| *id == free[3]).unwrap();
    assert_eq!(stopped, free[..first]);
    assert_eq!(greedy(&model, &[1; 18], 6, &[]).unwrap().len(), 2);
    assert!(matches!(greedy(&model, &[], 6, &[]), Err(ModelError::Empty)));
    assert!(matches!(greedy(&model, &[99], 6, &[]), Err(ModelError::TokenId { .. })));
}

#[test]
fn draws_repeat_with_their_seed_and_stay_within_the_classes() {
    let model = model();
    let text = generate(&model, &[5], &settings(3.0, 1)).unwrap();
    assert_eq!(generate(&model, &[5], &settings(3.0, 1)).unwrap(), text);
    assert_ne!(generate(&model, &[5], &settings(3.0, 2)).unwrap(), text);
    let few = GenerateSettings { classes: 4, ..settings(50.0, 1) };
    assert!(generate(&model, &[3], &few).unwrap().iter().all(|id| *id < 4));
}

#[test]
fn draws_follow_the_tempered_softmax() {
    let logits = [0.0, 2f32.ln() * 2.0, f32::NEG_INFINITY, 0.0];
    // At temperature 2 the weights are 1, 2, 0 and 1.
    let at = |point| draw(&logits, 2.0, point);
    assert_eq!([at(0.0), at(0.24), at(0.26), at(0.74), at(0.76)], [0, 0, 1, 1, 3]);
    assert_eq!(largest(&[1.0, 3.0, 3.0]), 1);
}
