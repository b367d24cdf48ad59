//! The layout against published parameter counts, and what must lie side by side.

use std::collections::BTreeSet;

use candle_core::Device;
use serde_json::json;

use super::*;
use crate::test_support::{config, values};

#[test]
fn the_published_models_have_their_published_number_of_parameters() {
    let model = |hidden: usize, mlp: usize, layers: usize, heads: usize, tied: bool| {
        ParameterIndex::new(&config(json!({
            "vocab_size": 151936, "hidden_size": hidden, "intermediate_size": mlp,
            "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": 8,
            "head_dim": 128, "tie_word_embeddings": tied,
        })))
        .total()
    };
    assert_eq!(model(1024, 3072, 28, 16, true), 596_049_920, "Qwen3-0.6B");
    assert_eq!(model(2560, 9728, 36, 32, true), 4_022_468_096, "Qwen3-4B");
    assert_eq!(model(4096, 12288, 36, 32, false), 8_190_735_360, "Qwen3-8B");
}

#[test]
fn parameters_fill_the_flat_tensor_without_gap_or_overlap() {
    for (tied, bias) in [(true, false), (false, true)] {
        let config = config(json!({"tie_word_embeddings": tied, "attention_bias": bias}));
        let index = ParameterIndex::new(&config);
        let mut end = 0;
        for parameter in index.parameters() {
            assert_eq!(parameter.offset, end, "{}", parameter.name);
            assert_eq!(index.get(&parameter.name), Some(parameter));
            end += parameter.len();
        }
        assert_eq!(end, index.total());
        let names: BTreeSet<_> = index.parameters().iter().map(|p| &p.name).collect();
        assert_eq!(names.len(), index.parameters().len());
        assert_eq!(names.iter().any(|name| name.ends_with("o_proj.bias")), bias);
    }
}

#[test]
fn joined_views_hold_their_parts_in_order() {
    let config = config(json!({"attention_bias": true, "num_hidden_layers": 2}));
    let index = ParameterIndex::new(&config);
    let numbers: Vec<f32> = (0..index.total()).map(|n| n as f32).collect();
    let flat = Tensor::from_vec(numbers, index.total(), &Device::Cpu).unwrap();
    let views = ModelViews::new(&flat, &index, 2).unwrap();
    let parts = |names: [&str; 3], kind: &str| -> Vec<f32> {
        let name = |part: &str| format!("model.layers.1.self_attn.{part}.{kind}");
        names.iter().flat_map(|part| values(&index.view(&flat, &name(part)).unwrap())).collect()
    };
    let names = ["q_proj", "k_proj", "v_proj"];
    let block = &views.blocks[1];
    assert_eq!(block.qkv.dims(), [config.qkv_width(), config.hidden_size]);
    assert_eq!(values(&block.qkv), parts(names, "weight"));
    assert_eq!(values(block.qkv_bias.as_ref().unwrap()), parts(names, "bias"));
    let view = |name: &str| values(&index.view(&flat, name).unwrap());
    let gate_up =
        [view("model.layers.1.mlp.gate_proj.weight"), view("model.layers.1.mlp.up_proj.weight")];
    assert_eq!(values(&block.gate_up), gate_up.concat());
    assert_eq!(values(&views.head), view("model.embed_tokens.weight"), "the head is tied");
}

#[test]
fn the_digest_tells_layouts_apart() {
    let digest = |changes| ParameterIndex::new(&config(changes)).digest();
    let plain = digest(json!({}));
    assert_eq!(plain, digest(json!({"rope_theta": 5.0})));
    assert_ne!(plain, digest(json!({"attention_bias": true})));
    assert_ne!(plain, digest(json!({"tie_word_embeddings": false})));
    assert_ne!(plain, digest(json!({"vocab_size": 62})));
}

#[test]
fn an_unknown_name_is_refused() {
    let index = ParameterIndex::new(&config(json!({})));
    let flat = Tensor::zeros(index.total(), DType::F32, &Device::Cpu).unwrap();
    let message = index.view(&flat, "lm_head.weight").unwrap_err().to_string();
    assert!(message.contains("lm_head.weight"), "{message}");
}
