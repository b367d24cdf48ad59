//! What is saved is what Python's library would have written, and loads again.

use std::fs;

use candle_core::Device;
use serde_json::json;

use super::*;
use crate::test_support::{bits, config, golden};

fn load(dir: &Path, config: &Qwen3Config, dtype: DType) -> Weights {
    Weights::load(dir, config, dtype, &Device::Cpu).unwrap()
}

#[test]
fn a_model_saved_by_transformers_is_saved_again_byte_for_byte() {
    let test = "a_model_saved_by_transformers_is_saved_again_byte_for_byte";
    for name in ["a/student", "b/teacher", "c/student"] {
        let Some(source) = golden(name, test) else { return };
        let config = Qwen3Config::from_dir(&source).unwrap();
        let copy = tempfile::tempdir().unwrap();
        save_model(copy.path(), &config, &load(&source, &config, DType::F32), DType::F32).unwrap();
        let bytes = |dir: &Path| fs::read(dir.join("model.safetensors")).unwrap();
        assert!(bytes(copy.path()) == bytes(&source), "{name} differs");
        let json = |dir: &Path| -> Value {
            serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap()
        };
        assert_eq!(json(copy.path()), json(&source));
    }
}

#[test]
fn the_safetensors_library_reads_what_is_written() {
    let config = config(json!({"tie_word_embeddings": false}));
    let weights = Weights::random(&config, 3, &Device::Cpu).unwrap();
    let dir = tempfile::tempdir().unwrap();
    save_model(dir.path(), &config, &weights, DType::BF16).unwrap();
    let bytes = fs::read(dir.path().join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut found = file.names();
    found.sort_unstable();
    let mut wanted: Vec<&str> = weights.names().collect();
    wanted.sort_unstable();
    assert_eq!(found, wanted);
    let head = file.tensor("lm_head.weight").unwrap();
    assert_eq!((head.dtype(), head.shape()), (safetensors::Dtype::BF16, &[61, 24][..]));
    assert_eq!(u64::from_le_bytes(bytes[..8].try_into().unwrap()) % 8, 0);
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    let text = fs::read_to_string(dir.path().join("config.json")).unwrap();
    assert!(text.contains("\"dtype\": \"bfloat16\""), "{text}");
    let again = load(dir.path(), &config, DType::BF16);
    assert_eq!(bits(&again.flat().to_dtype(DType::F32).unwrap()), {
        bits(&weights.flat().to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap())
    });
}

#[test]
fn a_tied_head_is_not_written() {
    let config = config(json!({}));
    let weights = Weights::random(&config, 3, &Device::Cpu).unwrap();
    let dir = tempfile::tempdir().unwrap();
    save_model(dir.path(), &config, &weights, DType::F32).unwrap();
    let file = crate::tensor_file::TensorFile::open(&dir.path().join("model.safetensors")).unwrap();
    assert!(!file.contains("lm_head.weight") && file.contains("model.embed_tokens.weight"));
    let files: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(files.len(), 2, "nothing temporary is left: {files:?}");
}

#[test]
fn large_models_are_cut_into_shards_that_load_the_same() {
    let config = config(json!({"attention_bias": true}));
    let weights = Weights::random(&config, 3, &Device::Cpu).unwrap();
    let dir = tempfile::tempdir().unwrap();
    save_weights(dir.path(), &weights, DType::F32, MAX_SHARD).unwrap();
    // No tensor is cut: the embedding alone is larger than a shard of this size.
    save_weights(dir.path(), &weights, DType::F32, 5000).unwrap();
    assert!(!dir.path().join("model.safetensors").exists(), "it would be loaded instead");
    let index = fs::read(dir.path().join("model.safetensors.index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    assert_eq!(index["metadata"]["total_size"], weights.index().total() * 4);
    let map = index["weight_map"].as_object().unwrap();
    assert_eq!(map.len(), weights.index().parameters().len());
    let shards: std::collections::BTreeSet<&str> = map.values().flat_map(Value::as_str).collect();
    assert!(shards.len() > 3);
    let name = format!("model-00001-of-{:05}.safetensors", shards.len());
    assert_eq!(map["model.embed_tokens.weight"], name.as_str());
    assert_eq!(bits(load(dir.path(), &config, DType::F32).flat()), bits(weights.flat()));
    save_weights(dir.path(), &weights, DType::F32, MAX_SHARD).unwrap();
    assert!(!dir.path().join("model.safetensors.index.json").exists());
}

#[test]
fn what_cannot_be_written_is_named() {
    let config = config(json!({}));
    let weights = Weights::random(&config, 3, &Device::Cpu).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = save_model(file.path(), &config, &weights, DType::F32).unwrap_err().to_string();
    assert!(error.contains(&file.path().display().to_string()), "{error}");
    let error = save_model(Path::new("/tmp"), &config, &weights, DType::U8).unwrap_err();
    assert!(error.to_string().contains("u8; accepted: f32, bf16, f16"), "{error}");
}
