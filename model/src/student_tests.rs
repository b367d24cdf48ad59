//! Training: every parameter learns, the split of a step into batches changes nothing, and what
//! is not finite stops before the update.

use serde_json::json;

use super::*;
use crate::test_support::{
    batch, bits, config, relative, sequences, settings, signal, student, student_with, values,
};
use distill::signal::TopK;

fn add_gradient(student: &mut Student, batch: &TokenBatch, signal: &TopK, scale: f64) -> HeadLoss {
    student.backward(batch, 61, Some(Teaching::TopK(signal)), &settings(), scale).unwrap()
}

#[test]
fn every_parameter_receives_a_finite_gradient_that_is_not_zero() {
    for (tied, bias) in [(true, false), (false, false), (true, true), (false, true)] {
        let config = config(json!({"tie_word_embeddings": tied, "attention_bias": bias}));
        let mut student = student(&config);
        let batch = batch(&[12, 20, 7], 61, 1);
        let scored = batch.scored().len();
        let signal = signal(scored, 61, &settings(), 2);
        add_gradient(&mut student, &batch, &signal, 1.0 / scored as f64);
        for name in student.weights().names() {
            let gradient = values(&student.gradients().get(name).unwrap());
            assert!(gradient.iter().all(|g| g.is_finite()), "{name}");
            assert!(gradient.iter().any(|g| *g != 0.0), "{name} receives nothing");
        }
    }
}

#[test]
fn the_gradient_is_the_slope_of_the_loss() {
    let config = config(json!({"attention_bias": true, "tie_word_embeddings": false}));
    let (mut student, batch) = (student(&config), batch(&[12, 9], 61, 1));
    let scored = batch.scored().len() as f64;
    let signal = signal(batch.scored().len(), 61, &settings(), 2);
    add_gradient(&mut student, &batch, &signal, 1.0 / scored);
    let gradient = student.gradients().flat().clone();
    let norm = squared_norm(&gradient).unwrap().sqrt();
    let start = student.weights().flat().copy().unwrap();
    let total = |along: f64| {
        let moved = (&start + (&gradient * (along / norm)).unwrap()).unwrap();
        student.weights().flat().slice_set(&moved, 0, 0).unwrap();
        let loss =
            student.evaluate(&batch, 61, Some(Teaching::TopK(&signal)), &settings()).unwrap();
        let pairs = loss.kl.iter().zip(&loss.ce);
        let sum: f64 =
            pairs.map(|(kl, ce)| 0.7 * 4.0 * f64::from(*kl) + 0.3 * f64::from(*ce)).sum();
        sum / scored
    };
    let step = 1e-2;
    let slope = (total(step) - total(-step)) / (2.0 * step);
    assert!((slope / norm - 1.0).abs() < 1e-3, "slope {slope}, norm of the gradient {norm}");
}

#[test]
fn loss_and_gradient_do_not_depend_on_packing_or_micro_batches() {
    let config = config(json!({"attention_bias": true}));
    let mut student = student(&config);
    let rows = sequences(&[12, 1, 20, 7, 2, 15], 61, 1);
    let whole = TokenBatch::pack(&rows);
    let scale = 1.0 / whole.scored().len() as f64;
    let all = signal(whole.scored().len(), 61, &settings(), 2);
    let one = add_gradient(&mut student, &whole, &all, scale);
    let together = values(student.gradients().flat());
    for size in [1, 2, 4] {
        student.gradients().zero().unwrap();
        let (mut ce, mut kl, mut first) = (Vec::new(), Vec::new(), 0);
        for part in rows.chunks(size) {
            let part = TokenBatch::pack(part);
            let end = first + part.scored().len();
            let loss = add_gradient(&mut student, &part, &all.slice(first..end), scale);
            first = end;
            ce.extend(loss.ce);
            kl.extend(loss.kl);
        }
        assert!(relative(&ce, &one.ce) < 1e-6 && relative(&kl, &one.kl) < 1e-6);
        let split = values(student.gradients().flat());
        let error = relative(&split, &together);
        assert!(error < 1e-6, "micro-batches of {size} rows: {error}");
    }
}

#[test]
fn the_same_seed_gives_the_same_bits_whatever_the_threads() {
    // Products large enough to be divided among threads.
    let config = config(json!({
        "hidden_size": 96, "intermediate_size": 200, "head_dim": 24, "vocab_size": 5000,
        "max_position_embeddings": 200,
    }));
    for precision in [Precision::F32, Precision::Bf16] {
        let train = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let training = Training { precision, ..Training::default() };
                let mut student = student_with(&config, training);
                let settings = LossSettings { precision, ..settings() };
                for step in 0..3 {
                    let batch = batch(&[150, 9, 64], 5000, step);
                    let scored = batch.scored().len();
                    let signal = signal(scored, 5000, &settings, step);
                    let (said, scale) = (Teaching::TopK(&signal), 1.0 / scored as f64);
                    student.backward(&batch, 5000, Some(said), &settings, scale).unwrap();
                    student.step(1e-2, Some(1.0)).unwrap();
                }
                bits(student.state())
            })
        };
        let one = train(1);
        for threads in [1, 2, 4] {
            assert_eq!(train(threads), one, "{threads} threads, {precision}");
        }
    }
}

#[test]
fn a_step_lowers_the_loss_and_clears_the_gradient() {
    let mut student = student(&config(json!({})));
    let batch = batch(&[20, 20], 61, 1);
    let scored = batch.scored().len();
    let signal = signal(scored, 61, &settings(), 2);
    let sum = |loss: &HeadLoss| -> f32 { loss.ce.iter().chain(&loss.kl).sum() };
    let before = sum(&add_gradient(&mut student, &batch, &signal, 1.0 / scored as f64));
    let norm = student.step(1e-2, None).unwrap();
    assert!(norm > 0.0);
    assert_eq!(student.steps(), 1);
    assert!(values(student.gradients().flat()).iter().all(|g| *g == 0.0));
    let after = student.evaluate(&batch, 61, Some(Teaching::TopK(&signal)), &settings()).unwrap();
    assert!(sum(&after) < before);
}

#[test]
fn a_loss_that_is_not_finite_names_its_rows_and_changes_nothing() {
    let mut student = student(&config(json!({"tie_word_embeddings": false})));
    let mut rows = sequences(&[8, 8, 8], 60, 1);
    rows[1].ids[0] = 60;
    let poison = Tensor::full(f32::NAN, (1, 24), &Device::Cpu).unwrap();
    let embedding = student.weights().get("model.embed_tokens.weight").unwrap();
    embedding.slice_set(&poison, 0, 60).unwrap();
    let before = bits(student.state());
    let batch = TokenBatch::pack(&rows);
    let settings = LossSettings { alpha: 0.0, ..settings() };
    let error = student.backward(&batch, 61, None, &settings, 0.1).unwrap_err();
    assert!(matches!(&error, StudentError::LossNotFinite { rows } if *rows == [1]), "{error}");
    assert!(values(student.gradients().flat()).iter().all(|g| *g == 0.0), "no half gradient");
    assert_eq!(bits(student.state()), before);
}

#[test]
fn a_gradient_that_is_not_finite_stops_before_the_update() {
    let mut student = student(&config(json!({})));
    let before = bits(student.state());
    let name = "model.layers.1.mlp.down_proj.weight";
    let infinite = Tensor::full(f32::INFINITY, (1, 40), &Device::Cpu).unwrap();
    student.gradients().get(name).unwrap().slice_set(&infinite, 0, 3).unwrap();
    let error = student.step(1e-3, Some(1.0)).unwrap_err();
    let found =
        matches!(&error, StudentError::GradientNotFinite { parameter, .. } if parameter == name);
    assert!(found, "{error}");
    assert!(matches!(student.step(f64::NAN, None), Err(StudentError::LearningRate { .. })));
    assert_eq!((bits(student.state()), student.steps()), (before, 0));
    // The gradients were cleared, so the run can go on.
    assert_eq!(student.step(1e-3, Some(1.0)).unwrap(), 0.0);
}

#[test]
fn a_batch_without_scored_positions_adds_nothing() {
    let mut student = student(&config(json!({})));
    let batch = batch(&[1, 1], 61, 1);
    assert!(batch.scored().is_empty());
    let settings = LossSettings { alpha: 0.0, ..settings() };
    let loss = student.backward(&batch, 61, None, &settings, 1.0).unwrap();
    assert!(loss.ce.is_empty());
    assert!(values(student.gradients().flat()).iter().all(|g| *g == 0.0));
}
