//! Small models and batches for the tests of this crate.

use std::path::PathBuf;

use candle_core::{Device, Tensor};
use distill::batch::{Sequence, TokenBatch};
use distill::signal::TopK;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::config::Qwen3Config;
use crate::ops::Precision;
use crate::ops::head::{Divergence, LossSettings, Tail};
use crate::student::{Student, Training};

/// A small configuration with some fields replaced.
pub(crate) fn config(changes: Value) -> Qwen3Config {
    Qwen3Config::from_json(&config_json(changes)).unwrap()
}

pub(crate) fn config_json(changes: Value) -> String {
    let mut fields = json!({
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": false,
        "dtype": "float32",
        "head_dim": 8,
        "hidden_act": "silu",
        "hidden_size": 24,
        "initializer_range": 0.25,
        "intermediate_size": 40,
        "max_position_embeddings": 64,
        "model_type": "qwen3",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": true,
        "vocab_size": 61
    });
    for (name, value) in changes.as_object().unwrap() {
        fields[name] = value.clone();
    }
    fields.to_string()
}

pub(crate) fn student(config: &Qwen3Config) -> Student {
    student_with(config, Training::default())
}

/// A student from the same seed, trained in this way.
pub(crate) fn student_with(config: &Qwen3Config, training: Training) -> Student {
    Student::random(config.clone(), 7, training, &Device::Cpu).unwrap()
}

/// Rows of random tokens in which about two thirds are scored.
pub(crate) fn sequences(lengths: &[usize], classes: usize, seed: u64) -> Vec<Sequence> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut row = |&length: &usize| {
        let ids = (0..length).map(|_| random.random_range(0..classes as u32)).collect();
        let mask = (0..length).map(|t| t == 1 || random.random_range(0..3) > 0).collect();
        Sequence::new(ids, mask).unwrap()
    };
    lengths.iter().map(&mut row).collect()
}

pub(crate) fn batch(lengths: &[usize], classes: usize, seed: u64) -> TokenBatch {
    TokenBatch::pack(&sequences(lengths, classes, seed))
}

/// What a teacher with random logits says of `rows` positions.
pub(crate) fn signal(rows: usize, classes: usize, settings: &LossSettings, seed: u64) -> TopK {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut signal = TopK::new(5);
    for _ in 0..rows {
        let logits: Vec<f64> = (0..classes).map(|_| random.random_range(-6.0..6.0)).collect();
        signal.push_exact(&logits, settings.temperature);
    }
    signal
}

pub(crate) fn settings() -> LossSettings {
    LossSettings {
        alpha: 0.7,
        temperature: 2.0,
        divergence: Divergence::ForwardKl,
        tail: Tail::Bucket,
        precision: Precision::F32,
    }
}

pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

pub(crate) fn bits(tensor: &Tensor) -> Vec<u32> {
    values(tensor).into_iter().map(f32::to_bits).collect()
}

/// Norm of the difference over the norm of `b`.
pub(crate) fn relative(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |v: f64| v * v;
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    (difference / b.iter().map(|b| square(f64::from(*b))).sum::<f64>()).sqrt()
}

/// A golden folder; `None`, with a word, where the shared files are not at hand.
pub(crate) fn golden(name: &str, test: &str) -> Option<PathBuf> {
    test_support::shared(&format!("oracle/{name}"), test)
}
