//! Directories whose weights are not the ones the configuration describes.

use std::fs;

use candle_core::{DType, Device};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::*;
use crate::save::{Entry, save_model, write_tensors};
use crate::test_support::{bits, config};
use crate::weights::Weights;

fn weights(config: &Qwen3Config) -> Weights {
    Weights::random(config, 3, &Device::Cpu).unwrap()
}

/// A directory with a small model in it.
fn saved(config: &Qwen3Config) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    save_model(dir.path(), config, &weights(config), DType::F32).unwrap();
    dir
}

fn load(dir: &TempDir, config: &Qwen3Config) -> Result<Weights, WeightsError> {
    Weights::load(dir.path(), config, DType::F32, &Device::Cpu)
}

fn refusal(dir: &TempDir, config: &Qwen3Config) -> WeightsError {
    load(dir, config).expect_err("the weights must be refused")
}

/// The parameters of a model as entries of a file.
fn entries(config: &Qwen3Config) -> Vec<Entry> {
    let weights = weights(config);
    let entry = |p: &crate::parameters::Parameter| Entry {
        name: p.name.clone(),
        shape: p.shape.clone(),
        flat: weights.get(&p.name).unwrap().flatten_all().unwrap(),
    };
    weights.index().parameters().iter().map(entry).collect()
}

fn write(dir: &TempDir, name: &str, entries: &[Entry]) {
    write_tensors(&dir.path().join(name), Map::new(), entries, DType::F32).unwrap();
}

fn extra(name: &str, value: f32) -> Entry {
    let flat = candle_core::Tensor::full(value, 3, &Device::Cpu).unwrap();
    Entry { name: name.to_owned(), shape: vec![3], flat }
}

/// Two shards and their index.
fn sharded(config: &Qwen3Config) -> (TempDir, Value) {
    let dir = tempfile::tempdir().unwrap();
    let mut first = entries(config);
    let second = first.split_off(5);
    let mut map = Map::new();
    for (file, part) in [("one.safetensors", &first), ("two.safetensors", &second)] {
        write(&dir, file, part);
        map.extend(part.iter().map(|entry| (entry.name.clone(), json!(file))));
    }
    (dir, json!({"metadata": {}, "weight_map": map}))
}

fn write_index(dir: &TempDir, index: &Value) {
    fs::write(dir.path().join(INDEX), index.to_string()).unwrap();
}

#[test]
fn shards_and_a_single_file_load_the_same() {
    let config = config(json!({"tie_word_embeddings": false}));
    let (dir, index) = sharded(&config);
    write_index(&dir, &index);
    let wanted = bits(weights(&config).flat());
    assert_eq!(bits(load(&dir, &config).unwrap().flat()), wanted);
    assert_eq!(bits(load(&saved(&config), &config).unwrap().flat()), wanted);
}

#[test]
fn a_directory_without_weights_or_with_pickles_is_refused_by_name() {
    let config = config(json!({}));
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(refusal(&dir, &config), WeightsError::NoWeights { .. }));
    fs::write(dir.path().join("training_args.bin"), b"x").unwrap();
    fs::write(dir.path().join("pytorch_model.bin"), b"x").unwrap();
    let error = refusal(&dir, &config);
    assert!(matches!(error, WeightsError::Pickle { .. }));
    let message = error.to_string();
    assert!(message.contains("pytorch_model.bin") && message.contains("save_pretrained"));
    // Safetensors beside a pickle are what counts.
    save_model(dir.path(), &config, &weights(&config), DType::F32).unwrap();
    load(&dir, &config).unwrap();
}

#[test]
fn missing_tensors_are_counted_and_named() {
    let config = config(json!({}));
    let dir = saved(&config);
    let mut kept = entries(&config);
    kept.retain(|entry| !entry.name.contains("layers.1.mlp"));
    write(&dir, SINGLE, &kept);
    let error = refusal(&dir, &config);
    assert!(matches!(error, WeightsError::Missing { count: 3, .. }), "{error}");
    assert!(error.to_string().contains("model.layers.1.mlp.gate_proj.weight"), "{error}");
}

#[test]
fn extra_tensors_are_refused_and_old_rotary_tables_are_not() {
    let config = config(json!({}));
    let dir = saved(&config);
    let mut all = entries(&config);
    all.push(extra("model.layers.0.self_attn.rotary_emb.inv_freq", 1.0));
    write(&dir, SINGLE, &all);
    load(&dir, &config).unwrap();
    all.push(extra("model.layers.0.self_attn.q_proj.bias", 1.0));
    write(&dir, SINGLE, &all);
    let error = refusal(&dir, &config);
    assert!(matches!(error, WeightsError::Extra { count: 1, .. }), "{error}");
    assert!(error.to_string().contains("q_proj.bias"), "{error}");
}

#[test]
fn a_wrong_shape_says_file_tensor_found_and_wanted() {
    let wide = config(json!({"intermediate_size": 48}));
    let error = refusal(&saved(&wide), &config(json!({}))).to_string();
    for part in ["model.safetensors", "gate_proj.weight", "[48, 24]", "[40, 24]"] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
}

#[test]
fn a_tied_head_may_be_stored_when_it_is_the_embedding() {
    let config = config(json!({}));
    let dir = saved(&config);
    let mut all = entries(&config);
    let mut head = entries(&config).swap_remove(0);
    assert_eq!(head.name, "model.embed_tokens.weight");
    head.name = "lm_head.weight".to_owned();
    all.push(head);
    write(&dir, SINGLE, &all);
    load(&dir, &config).unwrap();
    let head = all.last_mut().unwrap();
    head.flat = (&head.flat * 1.001).unwrap();
    write(&dir, SINGLE, &all);
    assert!(matches!(refusal(&dir, &config), WeightsError::TiedHeadDiffers { .. }));
}

#[test]
fn damaged_and_mistyped_files_are_refused() {
    let config = config(json!({}));
    let dir = saved(&config);
    let path = dir.path().join(SINGLE);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 4]).unwrap();
    let error = refusal(&dir, &config);
    assert!(matches!(error, WeightsError::File(TensorFileError::Length { .. })), "{error}");
    // The same bytes declared as integers.
    let text = String::from_utf8_lossy(&whole[..8192]).into_owned();
    let at = text.find("\"F32\"").unwrap();
    let mut typed = whole.clone();
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for start in (8..8 + header - 5).filter(|s| &whole[*s..*s + 5] == b"\"F32\"") {
        typed[start..start + 5].copy_from_slice(b"\"I32\"");
    }
    assert!(at > 0);
    fs::write(&path, typed).unwrap();
    let error = refusal(&dir, &config);
    assert!(matches!(error, WeightsError::File(TensorFileError::Dtype { .. })), "{error}");
    assert!(error.to_string().contains("stored as I32"), "{error}");
}

#[test]
fn an_index_cannot_lead_out_of_its_directory() {
    let config = config(json!({}));
    for name in ["../one.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "one/"] {
        let (dir, mut index) = sharded(&config);
        index["weight_map"]["model.norm.weight"] = json!(name);
        write_index(&dir, &index);
        let error = refusal(&dir, &config);
        assert!(matches!(error, WeightsError::ShardName { .. }), "{name:?}: {error}");
    }
}

#[test]
fn an_index_that_disagrees_with_its_shards_is_refused() {
    let config = config(json!({}));
    let (dir, sound) = sharded(&config);
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut index = sound.clone();
        change(&mut index);
        write_index(&dir, &index);
        refusal(&dir, &config)
    };
    let moved = refused(&|i| i["weight_map"]["model.norm.weight"] = json!("one.safetensors"));
    assert!(matches!(moved, WeightsError::NotInShard { .. }), "{moved}");
    let absent = refused(&|i| i["weight_map"]["model.norm.weight"] = json!("three.safetensors"));
    assert!(matches!(absent, WeightsError::File(TensorFileError::Read { .. })), "{absent}");
    // A tensor in a shard that the index does not list.
    let unlisted = refused(&|i| {
        i["weight_map"].as_object_mut().unwrap().remove("model.norm.weight");
    });
    assert!(matches!(unlisted, WeightsError::Missing { count: 1, .. }), "{unlisted}");
    let mistyped = refused(&|i| i["weight_map"] = json!([1]));
    assert!(matches!(mistyped, WeightsError::Index { .. }), "{mistyped}");
    fs::write(dir.path().join(INDEX), b"\xff").unwrap();
    assert!(matches!(refusal(&dir, &config), WeightsError::Index { .. }));
}

#[test]
fn a_type_weights_are_not_held_in_is_refused() {
    let config = config(json!({}));
    let dir = saved(&config);
    let error = Weights::load(dir.path(), &config, DType::F64, &Device::Cpu).unwrap_err();
    assert!(error.to_string().contains("f64; accepted: f32, bf16, f16"), "{error}");
}
