//! What we save, loaded by transformers: the logits it computes, committed for machines without
//! Python and computed anew where Python is.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use candle_core::Device;
use distill::batch::{Sequence, TokenBatch};
use serde_json::Value;
use test_support::{python, root};

use super::*;
use crate::ops::Precision;
use crate::ops::matmul::linear;
use crate::qwen3::Qwen3;
use crate::test_support::{config, sequences, values};

/// As `tests/python/saved_logits.py` writes it; made by transformers from these very saves.
const GOLDEN: &str = "tests/golden/saved_models.json";
/// Of the largest logit: what float32 may lose on the way through two blocks. transformers
/// computes in float32 too.
const TOLERANCE: f64 = 1e-5;

/// Saves each kind of model under its name, with the tokens to be scored in `ids.json`; gives the
/// models as they were in memory.
fn save_all(root: &Path) -> BTreeMap<String, Qwen3> {
    let kinds = [
        ("tied", json!({}), DType::F32, MAX_SHARD),
        ("untied", json!({"tie_word_embeddings": false}), DType::F32, MAX_SHARD),
        ("biased", json!({"attention_bias": true}), DType::F32, MAX_SHARD),
        // Several shards and their index, in 16 bits.
        ("sharded", json!({"tie_word_embeddings": false, "head_dim": 10}), DType::BF16, 5000),
    ];
    let mut models = BTreeMap::new();
    for (seed, (name, changes, dtype, max_shard)) in kinds.into_iter().enumerate() {
        let config = config(changes);
        let weights = Weights::random(&config, 11 + seed as u64, &Device::Cpu).unwrap();
        // Norms of 1 and biases of 0, as a random model has them, would not show a mix-up.
        for parameter in weights.index().parameters().iter().filter(|p| p.shape.len() == 1) {
            let at = |i: usize| ((i * 7 + parameter.offset) % 11) as f32 * 0.1 - 0.4;
            let values = (0..parameter.len()).map(|i| 1.0 + at(i)).collect::<Vec<_>>();
            let values = Tensor::from_vec(values, parameter.len(), &Device::Cpu).unwrap();
            weights.flat().slice_set(&values, 0, parameter.offset).unwrap();
        }
        let dir = root.join(name);
        save_model(&dir, &config, &weights, dtype).unwrap();
        save_weights(&dir, &weights, dtype, max_shard).unwrap();
        assert_eq!(dir.join("model.safetensors").exists(), name != "sharded");
        let ids = &sequences(&[8], 61, seed as u64)[0].ids;
        fs::write(dir.join("ids.json"), json!(ids).to_string()).unwrap();
        let kept = weights.flat().to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap();
        let kept = Weights::from_flat(kept, Arc::clone(weights.index())).unwrap();
        models.insert(name.to_owned(), Qwen3::new(config, kept, Precision::F32).unwrap());
    }
    models
}

/// The model of a directory, as we load it.
fn loaded(dir: &Path) -> Qwen3 {
    let config = Qwen3Config::from_dir(dir).unwrap();
    let weights = Weights::load(dir, &config, DType::F32, &Device::Cpu).unwrap();
    Qwen3::new(config, weights, Precision::F32).unwrap()
}

/// The logits of a model after each of these tokens, `[T, V]`.
fn logits(model: &Qwen3, ids: &[u32]) -> Vec<f32> {
    let row = Sequence::new(ids.to_vec(), vec![true; ids.len()]).unwrap();
    let hidden = model.forward_hidden(&TokenBatch::pack(&[row])).unwrap();
    values(&linear(&hidden, model.head(), Precision::F32).unwrap())
}

/// Every model, as it was before it was saved and as we load it, against what transformers found
/// in its files.
fn compare(saves: &Path, models: &BTreeMap<String, Qwen3>, theirs: &Value) {
    let theirs = theirs.as_object().unwrap();
    assert!(theirs.keys().eq(models.keys()), "{:?}", theirs.keys());
    for (name, of_model) in theirs {
        let ids: Vec<u32> = serde_json::from_value(of_model["ids"].clone()).unwrap();
        let wanted: Vec<Vec<f64>> = serde_json::from_value(of_model["logits"].clone()).unwrap();
        assert_eq!((wanted.len(), wanted[0].len()), (8, 61), "{name}");
        let wanted = wanted.concat();
        let largest = wanted.iter().fold(0f64, |m, v| m.max(v.abs()));
        for (model, which) in [(&models[name], "saved"), (&loaded(&saves.join(name)), "loaded")] {
            for (at, (ours, wanted)) in logits(model, &ids).iter().zip(&wanted).enumerate() {
                let error = (f64::from(*ours) - wanted).abs() / largest;
                assert!(error < TOLERANCE, "{name}, {which}, logit {at}: {ours} for {wanted}");
            }
        }
    }
}

#[test]
fn saved_models_have_the_logits_transformers_found_in_them() {
    let saves = tempfile::tempdir().unwrap();
    let models = save_all(saves.path());
    let golden = fs::read(root().join(GOLDEN)).unwrap();
    compare(saves.path(), &models, &serde_json::from_slice(&golden).unwrap());
}

#[test]
fn transformers_loads_every_kind_of_save_and_finds_the_same_logits() {
    let test = "transformers_loads_every_kind_of_save_and_finds_the_same_logits";
    let Some(python) = python(&["torch", "transformers"], test) else { return };
    let saves = tempfile::tempdir().unwrap();
    let models = save_all(saves.path());
    let found = saves.path().join("found.json");
    let mut command = python.script("saved_logits.py");
    // To make the golden anew, after a deliberate change: this file's path here.
    let kept = std::env::var_os("LIMBECK_WRITE_SAVED_LOGITS").map(PathBuf::from);
    let written = kept.unwrap_or(found);
    let output = command.arg(saves.path()).arg(&written).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found = fs::read(written).unwrap();
    compare(saves.path(), &models, &serde_json::from_slice(&found).unwrap());
}
