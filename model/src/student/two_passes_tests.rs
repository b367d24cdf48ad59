//! Two passes leave the same bits as gradients that are kept, and stop where those would.

use candle_core::{Device, Tensor};
use serde_json::json;

use crate::config::Qwen3Config;
use crate::ops::Precision;
use crate::ops::head::{LossSettings, Teaching};
use crate::recompute::Recompute;
use crate::student::{Student, StudentError, Training};
use crate::test_support::{batch, bits, config, settings, signal, student_with};

fn in_two_passes(config: &Qwen3Config) -> Student {
    let training = Training { recompute: Recompute::Gradients, ..Training::default() };
    student_with(config, training)
}

fn backward(student: &mut Student, seed: u64) -> Result<(), StudentError> {
    let batch = batch(&[12, 1, 20, 7], 61, seed);
    let scored = batch.scored().len();
    let signal = signal(scored, 61, &settings(), seed);
    let settings = LossSettings { precision: student.model().precision(), ..settings() };
    student
        .backward(&batch, 61, Some(Teaching::TopK(&signal)), &settings, 1.0 / scored as f64)
        .map(drop)
}

#[test]
fn what_is_computed_again_changes_no_bit_of_state_or_norm() {
    for (tied, bias) in [(true, false), (false, true)] {
        let config = config(json!({
            "tie_word_embeddings": tied, "attention_bias": bias, "num_hidden_layers": 3,
        }));
        let train = |precision, recompute, clip| {
            let training = Training { precision, recompute, ..Training::default() };
            let mut student = student_with(&config, training);
            let step = |seed| {
                backward(&mut student, seed).unwrap();
                student.step(1e-2, clip).unwrap().to_bits()
            };
            let norms: Vec<u64> = (0..4).map(step).collect();
            (norms, bits(student.state()))
        };
        // A norm that clips every step, and none.
        for (precision, clip) in
            [(Precision::F32, Some(0.05)), (Precision::F32, None), (Precision::Bf16, Some(0.05))]
        {
            let kept = train(precision, Recompute::None, clip);
            for recompute in [Recompute::Blocks, Recompute::Gradients] {
                let found = train(precision, recompute, clip);
                assert_eq!(found, kept, "{recompute}, tied {tied}, {precision}, {clip:?}");
            }
        }
    }
}

/// The gradients of `up_proj` in block 1 overflow, and nothing else does: all it gives is 0, so that
/// nothing large goes forward, and what goes back is multiplied by 0 below it.
fn overflowing() -> (Student, String) {
    let student = in_two_passes(&config(json!({"num_hidden_layers": 3})));
    let weight = |part: &str| format!("model.layers.1.mlp.{part}.weight");
    let down = student.weights().get(&weight("down_proj")).unwrap();
    down.slice_set(&Tensor::full(1e38_f32, (24, 40), &Device::Cpu).unwrap(), 0, 0).unwrap();
    student.weights().get(&weight("up_proj")).unwrap().zero_set().unwrap();
    (student, weight("up_proj"))
}

#[test]
fn a_gradient_that_is_not_finite_names_its_parameter_and_changes_nothing() {
    let (mut student, name) = overflowing();
    let before = bits(student.state());
    let batch = batch(&[12, 1, 20, 7], 61, 1);
    let signal = signal(batch.scored().len(), 61, &settings(), 1);
    // A little larger each time, until the sums overflow and their terms do not yet.
    let mut scale = 1e-3;
    let error = loop {
        student.backward(&batch, 61, Some(Teaching::TopK(&signal)), &settings(), scale).unwrap();
        match student.step(0.0, Some(1.0)) {
            Ok(_) => scale *= 1.1,
            Err(error) => break error,
        }
        assert!(scale < 1e3, "nothing overflows");
    };
    let StudentError::GradientNotFinite { parameter, .. } = &error else { panic!("{error}") };
    assert_eq!(*parameter, name);
    assert_eq!(bits(&student.state().narrow(0, 0, 1).unwrap()), before[..before.len() / 3]);
    // The step is over: the next batch is taken.
    backward(&mut student, 1).unwrap();
}

#[test]
fn a_second_batch_before_the_step_is_refused_and_the_step_forgotten() {
    let mut student = in_two_passes(&config(json!({})));
    backward(&mut student, 1).unwrap();
    let error = backward(&mut student, 2).unwrap_err();
    assert!(matches!(error, StudentError::OneBatch), "{error}");
    backward(&mut student, 2).unwrap();
    student.step(1e-3, None).unwrap();
}

#[test]
fn a_step_without_a_batch_decays_the_weights_as_ever() {
    let decayed = |recompute| {
        let training = Training { recompute, ..Training::default() };
        let mut student = student_with(&config(json!({})), training);
        assert_eq!(student.step(1e-2, Some(1.0)).unwrap(), 0.0);
        bits(student.state())
    };
    assert_eq!(decayed(Recompute::Gradients), decayed(Recompute::None));
}

#[test]
fn a_loss_that_is_not_finite_leaves_no_pass_behind() {
    let config = config(json!({"tie_word_embeddings": false}));
    let mut student = in_two_passes(&config);
    let head = student.weights().get("lm_head.weight").unwrap();
    let kept = head.copy().unwrap();
    head.slice_set(&Tensor::full(f32::NAN, (1, 24), &Device::Cpu).unwrap(), 0, 3).unwrap();
    let batch = batch(&[12, 7], 61, 1);
    let ce_only = LossSettings { alpha: 0.0, ..settings() };
    let error = student.backward(&batch, 61, None, &ce_only, 0.1).unwrap_err();
    assert!(matches!(error, StudentError::LossNotFinite { .. }), "{error}");
    head.slice_set(&kept, 0, 0).unwrap();
    backward(&mut student, 1).unwrap();
    student.step(1e-3, None).unwrap();
}

#[test]
fn an_update_that_fails_on_its_way_is_told_and_remembered() {
    let mut student = in_two_passes(&config(json!({})));
    backward(&mut student, 1).unwrap();
    // A gradient of another size: the second pass cannot go its way.
    let pass = student.first_pass.as_mut().unwrap();
    pass.d = Tensor::zeros((1, 24), candle_core::DType::F32, &Device::Cpu).unwrap();
    assert!(!student.is_half_updated());
    let error = student.step(1e-3, None).unwrap_err();
    assert!(matches!(error, StudentError::HalfUpdated { .. }), "{error}");
    assert!(student.is_half_updated() && student.steps() == 0);
}
