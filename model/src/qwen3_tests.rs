//! What must hold of the network whatever its weights: rows do not see each other, recomputing
//! changes no bit, and bad batches are refused.

use candle_core::Device;
use serde_json::{Value, json};

use super::*;
use crate::recompute::Recompute;
use crate::test_support::{batch, bits, config, relative, sequences, student, values};

fn model(changes: Value) -> Qwen3 {
    let config = config(changes);
    let weights = Weights::random(&config, 3, &Device::Cpu).unwrap();
    Qwen3::new(config, weights, Precision::F32).unwrap()
}

#[test]
fn a_row_gives_the_same_hidden_states_alone_and_among_others() {
    let config = config(json!({"attention_bias": true}));
    let rows = sequences(&[9, 1, 17, 4], 61, 1);
    for precision in [Precision::F32, Precision::Bf16, Precision::F16] {
        let weights = Weights::random(&config, 3, &Device::Cpu).unwrap();
        let model = Qwen3::new(config.clone(), weights, precision).unwrap();
        let packed = model.forward_hidden(&TokenBatch::pack(&rows)).unwrap();
        let mut alone = Vec::new();
        for row in &rows {
            alone.extend(bits(&model.forward_hidden(&TokenBatch::pack([row])).unwrap()));
        }
        assert_eq!(bits(&packed), alone, "{precision}");
    }
}

#[test]
fn a_token_changes_nothing_before_it_and_something_after() {
    let model = model(json!({}));
    let mut rows = sequences(&[12, 12], 61, 2);
    let before = values(&model.forward_hidden(&TokenBatch::pack(&rows)).unwrap());
    rows[0].ids[7] = (rows[0].ids[7] + 1) % 61;
    let after = values(&model.forward_hidden(&TokenBatch::pack(&rows)).unwrap());
    let changed: Vec<usize> =
        (0..24).filter(|t| before[t * 24..][..24] != after[t * 24..][..24]).collect();
    assert_eq!(changed, (7..12).collect::<Vec<_>>());
}

#[test]
fn inference_and_training_forward_have_equal_bits() {
    let model = model(json!({"attention_bias": true, "tie_word_embeddings": false}));
    let batch = batch(&[9, 5, 20], 61, 3);
    let inference = model.forward_hidden(&batch).unwrap();
    for recompute in [Recompute::None, Recompute::Blocks] {
        let (training, _) = model.forward_train(&batch, recompute).unwrap();
        assert_eq!(bits(&training), bits(&inference));
    }
}

#[test]
fn recomputing_blocks_gives_the_same_gradient_bits() {
    let config = config(json!({"attention_bias": true, "num_hidden_layers": 3}));
    let student = student(&config);
    let batch = batch(&[9, 5, 20], 61, 3);
    let gradient = |recompute| {
        student.gradients().zero().unwrap();
        let (hidden, tape) = student.model().forward_train(&batch, recompute).unwrap();
        student.model().backward(tape, &hidden, student.gradients()).unwrap();
        bits(student.gradients().flat())
    };
    let kept = gradient(Recompute::None);
    assert!(kept.iter().any(|bits| *bits != 0));
    assert_eq!(gradient(Recompute::Blocks), kept);
}

#[test]
fn rows_as_long_as_the_positions_work_and_longer_ones_are_refused() {
    let model = model(json!({"max_position_embeddings": 2000, "num_hidden_layers": 1}));
    // Longer than the first tables: they grow.
    let long = model.forward_hidden(&batch(&[2000], 61, 4)).unwrap();
    assert!(values(&long).iter().all(|v| v.is_finite()));
    let error = model.forward_hidden(&batch(&[3, 2001], 61, 4)).unwrap_err().to_string();
    assert!(error.contains("row 1 has 2001 tokens") && error.contains("2000"), "{error}");
}

#[test]
fn bad_batches_are_refused_with_row_and_position() {
    let model = model(json!({}));
    let mut rows = sequences(&[4, 6], 61, 5);
    rows[1].ids[2] = 61;
    let error = model.forward_hidden(&TokenBatch::pack(&rows)).unwrap_err().to_string();
    let wanted = "token id 61 at position 2 of row 1; the vocabulary has 61";
    assert!(error.contains(wanted), "{error}");
    assert!(matches!(model.forward_hidden(&TokenBatch::pack(&[])), Err(ModelError::Empty)));
}

#[test]
fn sixteen_bit_weights_compute_as_their_widened_values() {
    let config = config(json!({"attention_bias": true, "tie_word_embeddings": false}));
    let wide = Weights::random(&config, 5, &Device::Cpu).unwrap();
    let batch = batch(&[9, 5], 61, 6);
    for dtype in [DType::BF16, DType::F16] {
        let narrow = wide.flat().to_dtype(dtype).unwrap();
        let rounded = narrow.to_dtype(DType::F32).unwrap();
        let hidden = |flat| {
            let weights = Weights::from_flat(flat, Arc::clone(wide.index())).unwrap();
            let model = Qwen3::new(config.clone(), weights, Precision::F32).unwrap();
            bits(&model.forward_hidden(&batch).unwrap())
        };
        assert_eq!(hidden(narrow), hidden(rounded));
    }
}

#[test]
fn bf16_precision_stays_near_f32() {
    let config = config(json!({"initializer_range": 0.1}));
    let weights = Weights::random(&config, 5, &Device::Cpu).unwrap();
    let hidden = |precision| {
        let model = Qwen3::new(config.clone(), weights.clone(), precision).unwrap();
        values(&model.forward_hidden(&batch(&[9, 5], 61, 6)).unwrap())
    };
    let (exact, rounded) = (hidden(Precision::F32), hidden(Precision::Bf16));
    let error = relative(&rounded, &exact);
    // bf16 keeps 8 bits: 2^-9 a factor, a few factors a layer.
    assert!((1e-5..2e-2).contains(&error), "{error}");
}

#[test]
fn look_ups_of_the_padding_token_give_its_row_no_gradient() {
    let untied = |pad: Value| config(json!({"tie_word_embeddings": false, "pad_token_id": pad}));
    let embedding = |config| {
        let student = student(&config);
        let batch = batch(&[9, 20], 61, 3);
        assert!(batch.ids().contains(&batch.ids()[4]));
        let (hidden, tape) = student.model().forward_train(&batch, Recompute::None).unwrap();
        student.model().backward(tape, &hidden, student.gradients()).unwrap();
        let grad = student.gradients().get("model.embed_tokens.weight").unwrap();
        (batch.ids()[4] as usize, grad.to_vec2::<f32>().unwrap())
    };
    let (used, mut without) = embedding(untied(Value::Null));
    let (_, with) = embedding(untied(json!(used)));
    assert!(without[used].iter().any(|g| *g != 0.0));
    without[used].fill(0.0);
    assert_eq!(with, without);
}
