//! GGUF files: the same numbers as candle reads, and a refusal for what is damaged, named otherwise or of another model.

use std::fs;

use candle_core::quantized::gguf_file::{self, Value as Said};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;
use serde_json::json;
use tempfile::TempDir;

use super::write::{Mixture, write};
use super::*;
use crate::fingerprint::of_place;
use crate::load::WeightsError;
use crate::save::save_model;
use crate::student::{Student, Training};
use crate::test_support::{bits, config, values};
use crate::weights::Weights;

/// Of rows that are whole blocks of every type.
fn whole_blocks(changes: serde_json::Value) -> Qwen3Config {
    let mut fields = json!({"hidden_size": 256, "intermediate_size": 512, "head_dim": 64});
    fields.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    config(fields)
}

fn weights(config: &Qwen3Config) -> Weights {
    Weights::random(config, 3, &Device::Cpu).unwrap()
}

/// A model as a file; the directory goes with the first.
fn written(config: &Qwen3Config, mixture: Mixture) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    write(&path, config, &weights(config), mixture).unwrap();
    (dir, path)
}

fn load(path: &Path, config: &Qwen3Config, dtype: DType) -> Result<Weights, WeightsError> {
    Weights::load(path, config, dtype, &Device::Cpu)
}

fn refusal(path: &Path, config: &Qwen3Config) -> String {
    load(path, config, DType::F32).expect_err("the file must be refused").to_string()
}

type Tensors = Vec<(String, QTensor)>;

/// A file as candle reads it, to be written otherwise.
struct Parts {
    metadata: Vec<(String, Said)>,
    tensors: Tensors,
}

impl Parts {
    fn of(path: &Path) -> Self {
        let mut file = fs::File::open(path).unwrap();
        let content = gguf_file::Content::read(&mut file).unwrap();
        let names: Vec<String> = content.tensor_infos.keys().cloned().collect();
        let tensors = names.into_iter().map(|name| {
            let tensor = content.tensor(&mut file, &name, &Device::Cpu).unwrap();
            (name, tensor)
        });
        Self { tensors: tensors.collect(), metadata: content.metadata.into_iter().collect() }
    }

    fn write(&self, path: &Path) {
        let metadata: Vec<_> = self.metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
        let tensors: Vec<_> = self.tensors.iter().map(|(k, v)| (k.as_str(), v)).collect();
        gguf_file::write(&mut fs::File::create(path).unwrap(), &metadata, &tensors).unwrap();
    }

    /// The value of a key is another, or gone.
    fn say(&mut self, key: &str, value: Option<Said>) {
        self.metadata.retain(|(other, _)| other != key);
        self.metadata.extend(value.map(|value| (key.to_owned(), value)));
    }
}

#[test]
fn every_type_is_read_as_candle_reads_it() {
    use GgmlDType::{BF16, F16, F32, Q4K, Q6K, Q8_0};
    let config = whole_blocks(json!({"tie_word_embeddings": false, "attention_bias": true}));
    for dtype in [F32, F16, BF16, Q8_0, Q4K, Q6K] {
        let (_dir, path) = written(&config, Mixture::Pure(dtype));
        let loaded = load(&path, &config, DType::F32).unwrap();
        let parts = Parts::of(&path);
        assert_eq!(parts.tensors.len(), loaded.index().parameters().len());
        for (name, tensor) in &parts.tensors {
            let found = loaded.get(&to_hugging_face(name)).unwrap();
            let wanted = tensor.dequantize(&Device::Cpu).unwrap();
            assert_eq!(found.dims(), wanted.dims(), "{name}");
            assert_eq!(bits(&found), bits(&wanted), "{dtype:?}, {name}");
        }
        let rounded = load(&path, &config, DType::BF16).unwrap();
        let wanted = loaded.flat().to_dtype(DType::BF16).unwrap();
        let wide = |tensor: &Tensor| bits(&tensor.to_dtype(DType::F32).unwrap());
        assert_eq!(wide(rounded.flat()), wide(&wanted), "{dtype:?}");
    }
}

#[test]
fn parameters_are_where_they_were() {
    let config = whole_blocks(json!({}));
    let (_dir, path) = written(&config, Mixture::Pure(GgmlDType::Q8_0));
    let (found, wanted) = (load(&path, &config, DType::F32).unwrap(), weights(&config));
    let error = crate::test_support::relative(&values(found.flat()), &values(wanted.flat()));
    // A 254th of the largest of 32 at most, about 2.2 deviations: uniform, so 2.2 / 127 / √12 of one.
    assert!(error > 1e-3 && error < 0.007, "{error}");
}

/// The names of candle's `quantized_qwen3.rs` and of `transformers`' Qwen3, once more and by themselves.
#[test]
fn names_are_those_of_hugging_face() {
    for (theirs, ours) in [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("output.weight", "lm_head.weight"),
        ("blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight"),
        ("blk.11.attn_q.weight", "model.layers.11.self_attn.q_proj.weight"),
        ("blk.0.attn_k.weight", "model.layers.0.self_attn.k_proj.weight"),
        ("blk.0.attn_v.weight", "model.layers.0.self_attn.v_proj.weight"),
        ("blk.0.attn_v.bias", "model.layers.0.self_attn.v_proj.bias"),
        ("blk.0.attn_q_norm.weight", "model.layers.0.self_attn.q_norm.weight"),
        ("blk.0.attn_k_norm.weight", "model.layers.0.self_attn.k_norm.weight"),
        ("blk.0.attn_output.weight", "model.layers.0.self_attn.o_proj.weight"),
        ("blk.0.ffn_norm.weight", "model.layers.0.post_attention_layernorm.weight"),
        ("blk.0.ffn_gate.weight", "model.layers.0.mlp.gate_proj.weight"),
        ("blk.0.ffn_up.weight", "model.layers.0.mlp.up_proj.weight"),
        ("blk.3.ffn_down.weight", "model.layers.3.mlp.down_proj.weight"),
    ] {
        assert_eq!(to_hugging_face(theirs), ours);
        assert_eq!(from_hugging_face(ours).as_deref(), Some(theirs));
    }
    for other in ["rope_freqs.weight", "blk.0.attn_qkv.weight", "blk.0", "blk..weight"] {
        assert_eq!(to_hugging_face(other), other);
    }
}

#[test]
fn rows_that_are_no_whole_blocks_are_left_as_they_are_and_named() {
    // Rows of 24 and 40 for every matrix but the output projection's 32.
    let config = config(json!({"head_dim": 8}));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let mixture = Mixture::Pure(GgmlDType::Q8_0);
    let left = write(&path, &config, &weights(&config), mixture).unwrap();
    assert_eq!(left.len(), 1 + 2 * 6);
    assert!(left.contains(&"token_embd.weight".to_owned()));
    assert!(!left.contains(&"blk.1.attn_output.weight".to_owned()));
    load(&path, &config, DType::F32).unwrap();
}

#[test]
fn a_fingerprint_is_of_what_the_file_holds() {
    let config = whole_blocks(json!({}));
    let safetensors = tempfile::tempdir().unwrap();
    save_model(safetensors.path(), &config, &weights(&config), DType::F32).unwrap();
    let of = |mixture| {
        let (_dir, path) = written(&config, mixture);
        of_place(&path, &config).unwrap()
    };
    let whole = of_place(safetensors.path(), &config).unwrap();
    // The same numbers in the same type are the same model, however they are kept.
    assert_eq!(of(Mixture::Pure(GgmlDType::F32)), whole);
    let eight = of(Mixture::Pure(GgmlDType::Q8_0));
    assert_eq!(eight, of(Mixture::Pure(GgmlDType::Q8_0)));
    assert!(eight != whole && eight != of(Mixture::Pure(GgmlDType::Q4K)));
    let (_dir, path) = written(&config, Mixture::Pure(GgmlDType::Q8_0));
    let mut bytes = fs::read(&path).unwrap();
    // The last tensor ends the file, its length is a multiple of 32: no padding.
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_ne!(of_place(&path, &config).unwrap(), eight);
}

#[test]
fn another_models_file_is_refused_with_what_was_found_and_wanted() {
    let config = whole_blocks(json!({}));
    let (dir, path) = written(&config, Mixture::Pure(GgmlDType::Q8_0));
    let other = dir.path().join("other.gguf");
    let cases = [
        ("general.architecture", Some(Said::String("llama".into())), "model_type makes it qwen3"),
        ("qwen3.block_count", Some(Said::U32(3)), "= 3, and config.json's num_hidden_layers"),
        ("qwen3.attention.head_count_kv", Some(Said::U32(4)), "num_key_value_heads makes it 2"),
        ("qwen3.attention.head_count_kv", None, "= 4, and"),
        ("qwen3.attention.layer_norm_rms_epsilon", Some(Said::F32(1e-5)), "rms_norm_eps"),
        ("qwen3.attention.layer_norm_rms_epsilon", None, "= nothing, and"),
        ("qwen3.rope.freq_base", Some(Said::F32(1e6)), "= 1000000, and config.json's rope_theta"),
        ("qwen3.rope.scaling.type", Some(Said::String("yarn".into())), "rope_scaling"),
        ("qwen3.context_length", Some(Said::U64(65)), "max_position_embeddings makes it 64"),
        ("split.count", Some(Said::U16(2)), "llama-gguf-split --merge"),
    ];
    for (key, value, said) in cases {
        let mut parts = Parts::of(&path);
        parts.say(key, value);
        parts.write(&other);
        let found = refusal(&other, &config);
        assert!(found.contains(said) && found.contains("other.gguf"), "{key}: {found}");
    }
    // What llama.cpp takes where nothing is said is no difference.
    let mut parts = Parts::of(&path);
    parts.say("qwen3.rope.freq_base", None);
    parts.write(&other);
    load(&other, &config, DType::F32).unwrap();
    assert!(
        refusal(&other, &whole_blocks(json!({"rope_parameters": null, "rope_theta": 1e6})))
            .contains("= 10000")
    );
}

#[test]
fn tensors_of_other_names_types_and_shapes_are_refused() {
    let config = whole_blocks(json!({}));
    let (dir, path) = written(&config, Mixture::Pure(GgmlDType::Q8_0));
    let other = dir.path().join("other.gguf");
    let changed = |change: &dyn Fn(&mut Tensors)| {
        let mut parts = Parts::of(&path);
        change(&mut parts.tensors);
        parts.write(&other);
        refusal(&other, &config)
    };
    let at = |tensors: &[(String, QTensor)], name: &str| {
        tensors.iter().position(|(other, _)| other == name).unwrap()
    };
    let q = |rows: usize, dtype| {
        let tensor = Tensor::zeros((rows, 256), DType::F32, &Device::Cpu).unwrap();
        QTensor::quantize(&tensor, dtype).unwrap()
    };
    let said = changed(&|all| {
        let at = at(all, "blk.1.attn_q.weight");
        all[at].0 = "blk.1.attn_qq.weight".to_owned();
    });
    assert!(said.contains("lacks 1") && said.contains("layers.1.self_attn.q_proj"), "{said}");
    let said = changed(&|all| all.push(("blk.2.attn_q.weight".to_owned(), q(1, GgmlDType::F16))));
    assert!(said.contains("layers.2.self_attn.q_proj") && said.contains("not describe"), "{said}");
    let said = changed(&|all| {
        let at = at(all, "blk.0.ffn_up.weight");
        all[at].1 = q(511, GgmlDType::Q8_0);
    });
    assert!(said.contains("[511, 256]") && said.contains("[512, 256]"), "{said}");
    let said = changed(&|all| {
        let at = at(all, "blk.0.ffn_up.weight");
        all[at].1 = q(512, GgmlDType::Q5_0);
    });
    assert!(said.contains("stored as Q5_0") && said.contains("Q4_K"), "{said}");
}

#[test]
fn a_head_of_its_own_beside_a_tied_one_is_refused() {
    let tied = whole_blocks(json!({}));
    let untied = whole_blocks(json!({"tie_word_embeddings": false}));
    let (_dir, path) = written(&untied, Mixture::Pure(GgmlDType::Q8_0));
    assert!(refusal(&path, &tied).contains("set tie_word_embeddings to false"));
    load(&path, &untied, DType::F32).unwrap();
}

#[test]
fn a_student_does_not_start_from_rounded_numbers() {
    let config = whole_blocks(json!({}));
    let (_dir, path) = written(&config, Mixture::Pure(GgmlDType::Q8_0));
    let said = Student::load(&path, config, Training::default(), &Device::Cpu).err().unwrap();
    assert!(said.to_string().contains("safetensors"), "{said}");
}

#[test]
fn a_file_cut_short_is_refused_wherever_it_is_cut() {
    let config = config(json!({"num_hidden_layers": 1}));
    let (dir, path) = written(&config, Mixture::Pure(GgmlDType::F16));
    let (bytes, cut) = (fs::read(&path).unwrap(), dir.path().join("cut.gguf"));
    let lengths = (0..2000).chain((2000..bytes.len()).step_by(97)).chain([bytes.len() - 1]);
    for length in lengths {
        fs::write(&cut, &bytes[..length]).unwrap();
        let said = open(&cut, &config).expect_err("it is cut short").to_string();
        assert!(said.contains("cut.gguf") && said.contains("fetch it again"), "{length}: {said}");
    }
    assert!(open(Path::new("/nowhere/x.gguf"), &config).is_err());
}

#[test]
fn alignments_that_are_none_and_names_said_twice_are_refused() {
    let config = config(json!({}));
    let (dir, path) = written(&config, Mixture::Pure(GgmlDType::F16));
    let other = dir.path().join("other.gguf");
    for alignment in [0, 3, 31, 96, 1 << 21] {
        let mut parts = Parts::of(&path);
        parts.say("general.alignment", Some(Said::U32(alignment)));
        parts.write(&other);
        assert!(refusal(&other, &config).contains("general.alignment"), "{alignment}");
    }
    let mut parts = Parts::of(&path);
    parts.metadata.push(("qwen3.block_count".to_owned(), Said::U32(2)));
    parts.write(&other);
    assert!(refusal(&other, &config).contains("twice"));
    let mut parts = Parts::of(&path);
    let another =
        QTensor::quantize(&Tensor::ones(24, DType::F32, &Device::Cpu).unwrap(), GgmlDType::F32);
    parts.tensors.push(("model.norm.weight".to_owned(), another.unwrap()));
    parts.write(&other);
    let said = refusal(&other, &config);
    assert!(said.contains("`model.norm.weight` twice"), "{said}");
}

/// What real files hold beside: the vocabulary, lists of numbers, numbers of every kind.
#[test]
fn lists_are_passed_over() {
    let config = config(json!({}));
    let (dir, path) = written(&config, Mixture::Pure(GgmlDType::F16));
    let other = dir.path().join("other.gguf");
    let mut parts = Parts::of(&path);
    let tokens = (0..300).map(|at| Said::String("x".repeat(at))).collect();
    for (key, value) in [
        ("tokenizer.ggml.tokens", Said::Array(tokens)),
        ("tokenizer.ggml.scores", Said::Array(vec![Said::F32(1.0); 5000])),
        ("tokenizer.ggml.token_type", Said::Array(vec![Said::I32(-1); 7])),
        ("a", Said::Array(vec![])),
        ("b", Said::Bool(true)),
        ("c", Said::I8(-3)),
        ("d", Said::F64(0.5)),
    ] {
        parts.say(key, Some(value));
    }
    parts.write(&other);
    let (found, wanted) = (load(&other, &config, DType::F32), load(&path, &config, DType::F32));
    assert_eq!(bits(found.unwrap().flat()), bits(wanted.unwrap().flat()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever byte of the header is another, what is said is an error or a file like any other.
    #[test]
    fn no_bytes_cause_a_panic(changes in prop::collection::vec((0usize..2200, any::<u8>()), 1..4)) {
        let config = config(json!({"num_hidden_layers": 1}));
        let (_dir, path) = written(&config, Mixture::Pure(GgmlDType::F16));
        let mut bytes = fs::read(&path).unwrap();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        fs::write(&path, bytes).unwrap();
        let _ = load(&path, &config, DType::F32);
    }
}
