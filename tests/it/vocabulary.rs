//! Output matrices padded beyond the tokenizer by different amounts, as Qwen's are (151,669 tokens
//! in 151,936 rows or in 152,064): the distribution is over the rows both have.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use tests::{Teacher, root, run, trainer};

const EMBEDDING: &str = "model.embed_tokens.weight";
/// Rows of the demonstration's student, one a token.
const TOKENS: usize = 1024;
/// Rows both models have, and rows only the larger has.
const COMMON: usize = TOKENS + 8;
const LARGER: usize = COMMON + 32;

/// Writes the demonstration's student with its embedding (which is its output matrix too) padded
/// to so many rows. The rows up to `COMMON` are a tenth of a token's; those beyond are ten times a
/// token's row and its negative: at every position some of them outweigh every real class.
fn write_padded(dir: &Path, rows: usize) {
    let source = root().join("student-trainer/demo/student");
    std::fs::create_dir(dir).expect("a folder");
    for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        std::fs::copy(source.join(file), dir.join(file)).expect(file);
    }
    let config = std::fs::read_to_string(source.join("config.json")).expect("config.json");
    let mut config: Value = serde_json::from_str(&config).expect("JSON");
    assert_eq!(config["vocab_size"], TOKENS);
    config["vocab_size"] = rows.into();
    config["dtype"] = json!("float32");
    std::fs::write(dir.join("config.json"), config.to_string()).expect("config.json");

    let bytes = std::fs::read(source.join("model.safetensors")).expect("model.safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        tensors.insert(name, (view.shape().to_vec(), floats(&view)));
    }
    let (shape, embedding) = tensors.get_mut(EMBEDDING).expect("an embedding");
    let width = shape[1];
    for row in TOKENS..rows {
        let factor = match row {
            ..COMMON => 0.1,
            _ if row % 2 == 0 => 10.0,
            _ => -10.0,
        };
        // Neighbours share a token: one of the pair is above 0 whatever the hidden state.
        let token = 300 + row / 2 % 64 * 5;
        let padding: Vec<f32> =
            embedding[token * width..][..width].iter().map(|v| v * factor).collect();
        embedding.extend(padding);
    }
    shape[0] = rows;
    let bytes: BTreeMap<_, _> = tensors
        .iter()
        .map(|(name, (shape, values))| (name, (shape, values.iter().flat_map(|v| v.to_le_bytes()))))
        .map(|(name, (shape, bytes))| (name, (shape, bytes.collect::<Vec<u8>>())))
        .collect();
    let views = bytes.iter().map(|(name, (shape, bytes))| {
        (*name, TensorView::new(Dtype::F32, (*shape).clone(), bytes).expect("a tensor"))
    });
    let file = safetensors::serialize(views, None).expect("a file");
    std::fs::write(dir.join("model.safetensors"), file).expect("model.safetensors");
}

/// The values of a tensor stored as F32 or BF16.
fn floats(view: &TensorView<'_>) -> Vec<f32> {
    let data = view.data();
    if view.dtype() == Dtype::F32 {
        return data
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
    }
    assert_eq!(view.dtype(), Dtype::BF16);
    data.chunks_exact(2).map(|b| f32::from_bits(u32::from_le_bytes([0, 0, b[0], b[1]]))).collect()
}

/// Trains and returns the summary and the steps' metrics.
fn train(
    server: &Teacher,
    student: &Path,
    rows: &Path,
    out: &Path,
    rate: &str,
) -> (Value, Vec<Value>) {
    let text = |path: &Path| path.display().to_string();
    let output = run(&mut trainer(&[
        "train",
        "--teacher",
        &server.url(),
        "--student",
        &text(student),
        "--train-file",
        &text(rows),
        "--eval-file",
        &text(rows),
        "--output-dir",
        &text(out),
        "--num-train-epochs",
        "2",
        "--dtype",
        "f32",
        "--learning-rate",
        rate,
    ]));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read = |name: &str| std::fs::read_to_string(out.join(name)).expect(name);
    let parse = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
    (parse(&read("summary.json")), read("metrics.jsonl").lines().map(parse).collect())
}

/// Teacher and student are one model but for the rows that only one of them has.
fn equal_but_for_the_padding(teacher_rows: usize, student_rows: usize) {
    let desk = tempfile::tempdir().expect("a folder");
    let path = |name: &str| desk.path().join(name);
    write_padded(&path("teacher"), teacher_rows);
    write_padded(&path("student"), student_rows);
    let texts = ["Two and two are four.", "Tom has 3 red apples.", "A cat sat on the mat."];
    let lines: String = texts.iter().map(|text| format!("{{\"text\": \"{text}\"}}\n")).collect();
    std::fs::write(path("rows.jsonl"), lines.repeat(4)).expect("rows");
    let server = Teacher::start(&path("teacher"), &["--dtype", "f32"]);

    let (summary, steps) =
        train(&server, &path("student"), &path("rows.jsonl"), &path("still"), "0");
    assert_eq!(steps.len(), 6);
    for step in &steps {
        // At T = 5; the metrics' KL has its factor T². The codec rounds the teacher's logits, so
        // equal models are not nearer than about 1e-7.
        let kl = step["kl"].as_f64().expect("kl") / 25.0;
        assert!((0.0..1e-6).contains(&kl), "KL {kl:e} of equal models: {step}");
        // The k largest of 1,032 classes hold less than all; the larger rows would hold it.
        let mass = step["teacher_mass"].as_f64().expect("teacher_mass");
        assert!((0.05..0.999).contains(&mass), "{step}");
    }
    let number = |summary: &Value, name: &str| summary[name].as_f64().expect("a number");
    let teacher = number(&summary, "teacher_perplexity");
    let student = number(&summary, "student_perplexity_before");
    assert!((teacher / student - 1.0).abs() < 1e-5, "perplexities {teacher} and {student}");

    let (summary, _) =
        train(&server, &path("student"), &path("rows.jsonl"), &path("moved"), "1e-3");
    let after = number(&summary, "student_perplexity_after");
    assert!(after < student, "perplexity {student} -> {after}");
    // What is saved has the student's own rows, the unused ones too.
    let bytes = std::fs::read(path("moved/model.safetensors")).expect("model.safetensors");
    let saved = SafeTensors::deserialize(&bytes).expect("safetensors");
    assert_eq!(saved.tensor(EMBEDDING).expect("an embedding").shape()[0], student_rows);
}

#[test]
fn a_teacher_with_more_rows_is_cut_to_the_students() {
    equal_but_for_the_padding(LARGER, COMMON);
}

#[test]
fn a_student_with_more_rows_is_cut_to_the_teachers() {
    equal_but_for_the_padding(COMMON, LARGER);
}
