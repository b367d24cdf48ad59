//! A resumed student continues with the same bits; another model's state is refused.

use candle_core::Device;
use serde_json::json;

use super::*;
use crate::ops::head::Teaching;
use crate::test_support::{batch, bits, config, settings, signal, student};

fn train(student: &mut Student, steps: std::ops::Range<u64>) {
    for step in steps {
        let batch = batch(&[15, 9], 61, step);
        let scored = batch.scored().len();
        let signal = signal(scored, 61, &settings(), step);
        let scale = 1.0 / scored as f64;
        student.backward(&batch, 61, Some(Teaching::TopK(&signal)), &settings(), scale).unwrap();
        student.step(1e-2, Some(1.0)).unwrap();
    }
}

fn load(path: &Path, config: Qwen3Config) -> Result<Student, StudentError> {
    load_state(path, config, Training::default(), &Device::Cpu)
}

#[test]
fn a_resumed_run_has_the_bits_of_one_that_was_not_interrupted() {
    let config = config(json!({"attention_bias": true}));
    let mut whole = student(&config);
    train(&mut whole, 0..5);

    let mut first = student(&config);
    train(&mut first, 0..2);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    save_state(&TrainingState::of(&first), &path).unwrap();
    let mut resumed = load(&path, config).unwrap();
    assert_eq!((resumed.steps(), bits(resumed.state())), (2, bits(first.state())));
    train(&mut resumed, 2..5);
    assert_eq!((resumed.steps(), bits(resumed.state())), (5, bits(whole.state())));

    let again = folder.path().join("again.safetensors");
    save_state(&TrainingState::of(&first), &again).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), std::fs::read(again).unwrap());
}

#[test]
fn another_models_state_and_other_files_are_refused_with_what_was_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    save_state(&TrainingState::of(&student(&config(json!({})))), &path).unwrap();
    let other = config(json!({"attention_bias": true}));
    let error = load(&path, other.clone()).err().unwrap().to_string();
    let wanted = ParameterIndex::new(&other).digest();
    assert!(error.contains("state.safetensors") && error.contains(&wanted), "{error}");

    let mut bytes = std::fs::read(&path).unwrap();
    bytes.truncate(bytes.len() - 1);
    std::fs::write(&path, bytes).unwrap();
    let error = load(&path, config(json!({}))).err().unwrap().to_string();
    assert!(error.contains("bytes where its header describes"), "{error}");

    let model = folder.path().join("model.safetensors");
    let plain = config(json!({}));
    crate::save::save_model(folder.path(), &plain, student(&plain).weights(), DType::F32).unwrap();
    let error = load(&model, plain).err().unwrap().to_string();
    assert!(error.contains("its parameter layout is none"), "{error}");
}

#[test]
fn no_step_is_made_while_the_state_is_read() {
    let mut student = student(&config(json!({})));
    let state = TrainingState::of(&student);
    let before = bits(student.state());
    let error = student.step(1e-2, None).unwrap_err();
    assert!(matches!(error, StudentError::BeingRead), "{error}");
    assert_eq!((bits(student.state()), student.steps()), (before, 0));
    drop(state);
    student.step(1e-2, None).unwrap();
}
