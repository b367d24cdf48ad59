//! Any configuration: the packed forward against a slow one in float64, row by row.

use candle_core::Device;
use distill::batch::TokenBatch;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::ops::reference::{QkvWeights, attention, linear, prepare_qkv, rms_norm, swiglu};
use crate::test_support::{batch, config, relative, values};

/// The logits `[N, V]`, from the parameters under their names and the definition of the network.
fn logits(config: &Qwen3Config, weights: &Weights, batch: &TokenBatch) -> Vec<f32> {
    let get = |name: &str| -> Vec<f64> {
        values(&weights.get(name).unwrap()).into_iter().map(f64::from).collect()
    };
    let (n, d, mlp) = (batch.ids().len(), config.hidden_size, config.intermediate_size);
    let layout = QkvLayout {
        heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
    };
    let (wide, eps) = (config.num_attention_heads * config.head_dim, config.rms_norm_eps);
    let angle = |at: usize| {
        let (position, pair) = (at / (config.head_dim / 2), at % (config.head_dim / 2));
        position as f64 * config.rope_theta.powf(-2.0 * pair as f64 / config.head_dim as f64)
    };
    let (sin, cos): (Vec<f64>, Vec<f64>) =
        (0..n * config.head_dim / 2).map(|at| angle(at).sin_cos()).unzip();
    let embedding = get("model.embed_tokens.weight");
    let mut x: Vec<f64> =
        batch.ids().iter().flat_map(|&id| &embedding[id as usize * d..][..d]).copied().collect();
    for layer in 0..config.num_hidden_layers {
        let of = |part: &str| get(&format!("model.layers.{layer}.{part}"));
        let joined = |parts: [&str; 3], kind: &str| -> Vec<f64> {
            parts.iter().flat_map(|part| of(&format!("self_attn.{part}.{kind}"))).collect()
        };
        let qkv = ["q_proj", "k_proj", "v_proj"];
        let normed = rms_norm(&x, &of("input_layernorm.weight"), eps);
        let mut raw = linear(&normed, &joined(qkv, "weight"), n, d, layout.width());
        if config.attention_bias {
            add_rows(&mut raw, &joined(qkv, "bias"));
        }
        let (q_norm, k_norm) = (&of("self_attn.q_norm.weight"), &of("self_attn.k_norm.weight"));
        let norms = QkvWeights { q_norm, k_norm, eps, cos: &cos, sin: &sin };
        let ready = prepare_qkv(&raw, &norms, &layout, batch.row_ends());
        let (attended, _) = attention(&ready, &layout, batch.row_ends());
        let mut added = linear(&attended, &of("self_attn.o_proj.weight"), n, wide, d);
        if config.attention_bias {
            add_rows(&mut added, &of("self_attn.o_proj.bias"));
        }
        add_rows(&mut x, &added);
        let normed = rms_norm(&x, &of("post_attention_layernorm.weight"), eps);
        let gate = linear(&normed, &of("mlp.gate_proj.weight"), n, d, mlp);
        let up = linear(&normed, &of("mlp.up_proj.weight"), n, d, mlp);
        let gate_up: Vec<f64> =
            gate.chunks(mlp).zip(up.chunks(mlp)).flat_map(|(g, u)| [g, u].concat()).collect();
        let added = linear(&swiglu(&gate_up, mlp), &of("mlp.down_proj.weight"), n, mlp, d);
        add_rows(&mut x, &added);
    }
    let hidden = rms_norm(&x, &get("model.norm.weight"), eps);
    let head = if config.tie_word_embeddings { embedding } else { get("lm_head.weight") };
    linear(&hidden, &head, n, d, config.vocab_size).into_iter().map(|z| z as f32).collect()
}

/// Adds `y` to every `y.len()` values of `x`.
fn add_rows(x: &mut [f64], y: &[f64]) {
    x.chunks_mut(y.len()).for_each(|row| row.iter_mut().zip(y).for_each(|(a, b)| *a += b));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn the_forward_pass_is_the_networks_definition(
        (kv_heads, group, head_dim) in (1usize..4, 1usize..4, 1usize..20),
        (hidden, mlp, layers, vocab) in (4usize..70, 1usize..90, 1usize..4, 2usize..150),
        (tied, bias) in (any::<bool>(), any::<bool>()),
        lengths in proptest::collection::vec(1usize..40, 1..5),
        theta in 2.0f64..1e6,
        seed in any::<u64>(),
    ) {
        let config = config(json!({
            "num_key_value_heads": kv_heads, "num_attention_heads": kv_heads * group,
            "head_dim": 2 * head_dim, "hidden_size": hidden, "intermediate_size": mlp,
            "num_hidden_layers": layers, "vocab_size": vocab, "tie_word_embeddings": tied,
            "attention_bias": bias, "rope_parameters": {"rope_theta": theta},
        }));
        let weights = Weights::random(&config, seed, &Device::Cpu).unwrap();
        // Norms and biases that are not the 1 and 0 of a fresh model.
        let bits = |at: usize| (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        let noise: Vec<f32> =
            (0..weights.index().total()).map(|at| 0.1 * bits(at) as f32 / 16_777_216.0).collect();
        let noise = Tensor::from_vec(noise, weights.index().total(), &Device::Cpu).unwrap();
        let flat = (weights.flat() + noise).unwrap();
        let weights = Weights::from_flat(flat, Arc::clone(weights.index())).unwrap();
        let batch = batch(&lengths, vocab, seed);
        let wanted = logits(&config, &weights, &batch);
        let model = Qwen3::new(config, weights, Precision::F32).unwrap();
        let hidden = model.forward_hidden(&batch).unwrap();
        let ours = crate::ops::matmul::linear(&hidden, model.head(), Precision::F32).unwrap();
        let error = relative(&values(&ours), &wanted);
        prop_assert!(error < 2e-5, "relative error {error}");
    }
}
