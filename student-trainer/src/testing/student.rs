//! A student small enough to train in milliseconds: its model, its rows, its settings.

use std::path::Path;
use std::sync::Arc;

use distill::batch::Sequence;
use distill::codec::Codec;
use model::config::Qwen3Config;

use super::CLASSES;
use crate::cache::Manifest;
use crate::cache::manifest::top_k;
use crate::config::{Command, Config, Layers};
use crate::data::{Place, RowSet};
use crate::setup::{Material, Source};

/// Writes a tiny model's config and tokenizer into `dir` and opens it.
pub(crate) fn tiny_source(dir: &Path) -> Source {
    let config = serde_json::json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": CLASSES,
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": true, "attention_bias": false,
        "initializer_range": 0.2, "torch_dtype": "float32",
    });
    let words: serde_json::Map<_, _> =
        (0..CLASSES).map(|id| (format!("w{id}"), id.into())).collect();
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
    });
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    std::fs::write(dir.join("tokenizer_config.json"), "{}").unwrap();
    Source {
        dir: dir.to_owned(),
        weights: dir.to_owned(),
        id: "tiny".to_owned(),
        config: Qwen3Config::from_dir(dir).unwrap(),
        tokenizer: hub::tokenizer::Tokenizer::load(dir).unwrap(),
        template: None,
    }
}

/// `count` rows of different lengths, the first tokens of each masked out.
pub(crate) fn rows(count: usize, seed: usize) -> Arc<[Sequence]> {
    let row = |r: usize| {
        let length = 5 + (r * 3 + seed) % 7;
        let ids: Vec<u32> =
            (0..length).map(|t| ((r * 11 + t * t + seed) % CLASSES) as u32).collect();
        let mask = (0..length).map(|t| t >= 2).collect();
        Sequence::new(ids, mask).unwrap()
    };
    (0..count).map(row).collect()
}

/// Rows as if they stood in a file from its line 1 on.
pub(crate) fn row_set(file: &str, sequences: Arc<[Sequence]>) -> RowSet {
    let file: Arc<Path> = Path::new(file).into();
    let place = |number| Place { file: file.clone(), number, unit: "line" };
    let places = (1..=sequences.len() as u64).map(place).collect();
    RowSet::new(sequences, places)
}

/// A run's material: 10 training rows, 4 held-out ones, a tiny model.
pub(crate) fn material(dir: &Path) -> Material {
    Material {
        source: tiny_source(dir),
        rows: row_set("train.jsonl", rows(10, 1)),
        held_out: row_set("eval.jsonl", rows(4, 2)),
    }
}

/// The defaults with these options over them: a random tiny student, batches of 3.
pub(crate) fn config(output_dir: &Path, options: &[(&'static str, &str)]) -> Config {
    let mut flags: std::collections::BTreeMap<&'static str, String> = [
        ("student", "tiny"),
        ("student-init", "random"),
        ("train-file", "none"),
        ("top-k", "6"),
        ("temperature", "2"),
        ("learning-rate", "0.01"),
        ("per-device-train-batch-size", "3"),
        ("teacher-timeout", "5"),
        ("teacher-window", "4"),
        ("output-dir", output_dir.to_str().unwrap()),
        // Where there is a card, these are still tests of the processor.
        ("device", "cpu"),
    ]
    .into_iter()
    .chain(options.iter().copied())
    .map(|(name, value)| (name, value.to_owned()))
    .collect();
    flags.retain(|_, value| !value.is_empty());
    let layers = Layers::new(Command::Train, flags, |_| None, None).unwrap();
    Config::from_layers(&layers).unwrap()
}

/// The description of a cache of a teacher's top 6 of [`CLASSES`] classes at T = 2.
pub(crate) fn manifest() -> Manifest {
    Manifest {
        format: distill::cache::FORMAT_VERSION,
        model: "teacher".to_owned(),
        revision: String::new(),
        model_fingerprint: "07".repeat(32),
        tokenizer_fingerprint: "09".repeat(32),
        tokenizer_size: CLASSES,
        vocab_size: CLASSES,
        classes: CLASSES,
        signal: top_k(6, Codec::Packed),
        decoder: None,
        temperature: Some(2.0),
        knows_mass: true,
        parameters: 0,
        dtype: "f32".to_owned(),
    }
}
