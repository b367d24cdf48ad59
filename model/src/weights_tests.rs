//! Random weights: what they depend on and how they are distributed.

use serde_json::json;

use super::*;
use crate::test_support::{bits, config, values};

fn random(changes: serde_json::Value, seed: u64) -> Weights {
    Weights::random(&config(changes), seed, &Device::Cpu).unwrap()
}

#[test]
fn a_parameter_depends_on_seed_and_name_alone() {
    let name = "model.layers.1.mlp.up_proj.weight";
    let of = |changes, seed| bits(&random(changes, seed).get(name).unwrap());
    let plain = of(json!({}), 1);
    assert_eq!(of(json!({}), 1), plain);
    let others = json!({"num_hidden_layers": 4, "attention_bias": true, "vocab_size": 99});
    assert_eq!(of(others, 1), plain);
    assert_ne!(of(json!({}), 2), plain);
    let sibling = random(json!({}), 1).get("model.layers.0.mlp.up_proj.weight").unwrap();
    assert_ne!(bits(&sibling), plain);
}

#[test]
fn matrices_are_normal_norms_are_one_and_biases_zero() {
    // More than one piece of the embedding, so that the pieces' streams differ.
    let changes = json!({"vocab_size": 100_000, "attention_bias": true, "initializer_range": 0.02});
    let weights = random(changes, 5);
    let embedding = values(&weights.get("model.embed_tokens.weight").unwrap());
    assert!(embedding.len() > 2 * PIECE);
    let n = embedding.len() as f64;
    let moment = |k: i32| embedding.iter().map(|v| (f64::from(*v) / 0.02).powi(k)).sum::<f64>() / n;
    // Five standard errors of the moments of a normal distribution.
    let error = 5.0 / n.sqrt();
    assert!(moment(1).abs() < error, "mean {}", moment(1));
    assert!((moment(2) - 1.0).abs() < error * 2f64.sqrt(), "variance {}", moment(2));
    assert!(moment(3).abs() < error * 15f64.sqrt(), "skew {}", moment(3));
    assert!((moment(4) - 3.0).abs() < error * 96f64.sqrt(), "kurtosis {}", moment(4));
    assert_ne!(embedding[..100], embedding[PIECE..PIECE + 100]);
    let all = |name: &str, value: f32| values(&weights.get(name).unwrap()) == vec![value; 24];
    assert!(all("model.norm.weight", 1.0));
    assert!(all("model.layers.0.self_attn.o_proj.bias", 0.0));
}

#[test]
fn weights_load_in_every_type_rounded_to_nearest_even() {
    let config = config(json!({}));
    let wide = Weights::random(&config, 3, &Device::Cpu).unwrap();
    let dir = tempfile::tempdir().unwrap();
    crate::save::save_model(dir.path(), &config, &wide, DType::F32).unwrap();
    let narrow = Weights::load(dir.path(), &config, DType::BF16, &Device::Cpu).unwrap();
    assert_eq!(narrow.dtype(), DType::BF16);
    let expected: Vec<bf16> = values(wide.flat()).into_iter().map(bf16::from_f32).collect();
    assert_eq!(narrow.flat().to_vec1::<bf16>().unwrap(), expected);
    let half = Weights::load(dir.path(), &config, DType::F16, &Device::Cpu).unwrap();
    let expected: Vec<f16> = values(wide.flat()).into_iter().map(f16::from_f32).collect();
    assert_eq!(half.flat().to_vec1::<f16>().unwrap(), expected);
}

#[test]
fn weights_of_another_length_are_refused() {
    let index = Arc::new(ParameterIndex::new(&config(json!({}))));
    let short = Tensor::zeros(5, DType::F32, &Device::Cpu).unwrap();
    assert!(Weights::from_flat(short, index).is_err());
}
