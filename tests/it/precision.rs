//! A whole run in bf16 beside the same run in f32.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tests::{Teacher, run, shared, trainer};

/// Trains on the shared models with products in `dtype` on both sides; returns the summary.
fn train(models: &Path, data: &Path, out: &Path, dtype: &str) -> Value {
    let text = |path: &Path| path.display().to_string();
    let server = Teacher::start(&models.join("gsm8k-teacher"), &["--dtype", dtype]);
    let output = run(&mut trainer(&[
        "train",
        "--teacher",
        &server.url(),
        "--student",
        &text(&models.join("gsm8k-student")),
        "--train-file",
        &text(&data.join("train.jsonl")),
        "--eval-file",
        &text(&data.join("test.jsonl")),
        "--output-dir",
        &text(out),
        "--max-train-samples",
        "80",
        "--max-eval-samples",
        "24",
        "--num-train-epochs",
        "1",
        "--learning-rate",
        "5e-4",
        "--dtype",
        dtype,
    ]));
    assert!(output.status.success(), "{dtype}: {}", String::from_utf8_lossy(&output.stderr));
    let summary = std::fs::read_to_string(out.join("summary.json")).expect("summary.json");
    serde_json::from_str(&summary).expect("JSON")
}

#[test]
fn a_run_in_bf16_ends_beside_the_one_in_f32_and_keeps_its_weights_and_moments_in_f32() {
    let test = "a_run_in_bf16_ends_beside_the_one_in_f32_and_keeps_its_weights_and_moments_in_f32";
    let (Some(models), Some(data)) = (shared("models", test), shared("data/gsm8k", test)) else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let outs = ["f32", "bf16"].map(|dtype| folder.path().join(dtype));
    let f32 = train(&models, &data, &outs[0], "f32");
    let bf16 = train(&models, &data, &outs[1], "bf16");
    let number = |summary: &Value, name: &str| summary[name].as_f64().expect("a number");
    let (before, after) = ("student_perplexity_before", "student_perplexity_after");
    assert!(number(&f32, after) < 0.95 * number(&f32, before), "nothing was learned: {f32}");
    for name in ["teacher_perplexity", before, after] {
        let (wide, narrow) = (number(&f32, name), number(&bf16, name));
        // Float32 alone differs by 1e-11 (the teacher's bf16 signal orders a sum otherwise): nearer
        // than 1e-6, and --dtype would have changed nothing.
        let difference = (narrow / wide - 1.0).abs();
        let bounds = 1e-6..0.01;
        assert!(bounds.contains(&difference), "{name}: {narrow} in bf16, {wide} in f32");
    }

    let state = outs[1].join("checkpoints/step-000020/training_state.safetensors");
    let bytes = std::fs::read(&state).expect("training_state.safetensors");
    let state = SafeTensors::deserialize(&bytes).expect("safetensors");
    for name in ["master", "exp_avg", "exp_avg_sq"] {
        let tensor = state.tensor(name).expect(name);
        assert_eq!(tensor.dtype(), Dtype::F32, "{name}");
        // Numbers rounded to bf16 end in 16 zero bits.
        let numbers = tensor.data().chunks_exact(4);
        let total = numbers.len();
        let finer = numbers.filter(|bytes| bytes[..2] != [0, 0]).count();
        assert!(2 * finer > total, "{name}: {finer} of {total} are finer than bf16");
    }
}
