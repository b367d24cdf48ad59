//! The main job, by the real programs: what it prints, what it leaves, and that it repeats itself.

use std::path::Path;

use serde_json::Value;
use tests::{Teacher, run, shared, trainer};

/// Flags of a short run on the shared models.
fn short_run(
    models: &Path,
    data: &Path,
    teacher: &str,
    output: &Path,
    more: &[&str],
) -> Vec<String> {
    let text = |path: std::path::PathBuf| path.display().to_string();
    let mut flags = vec![
        "train".to_owned(),
        "--teacher".to_owned(),
        teacher.to_owned(),
        "--student".to_owned(),
        text(models.join("gsm8k-student")),
        "--train-file".to_owned(),
        text(data.join("train.jsonl")),
        "--eval-file".to_owned(),
        text(data.join("test.jsonl")),
        "--output-dir".to_owned(),
        text(output.to_owned()),
    ];
    let rows = ["--max-train-samples", "48", "--max-eval-samples", "16", "--num-train-epochs", "1"];
    flags.extend(rows.iter().chain(more).map(|flag| (*flag).to_owned()));
    flags
}

fn train(flags: &[String]) -> String {
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let output = run(&mut trainer(&flags));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "train ended with {}:\n{complaint}", output.status);
    String::from_utf8(output.stdout).expect("train prints UTF-8")
}

fn read_json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn metrics(output: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(output.join("metrics.jsonl")).expect("metrics.jsonl");
    text.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
}

#[test]
fn a_server_of_the_vllm_dialect_teaches_the_same_at_temperature_1_and_is_warned_of_at_another() {
    let test = "a_server_of_the_vllm_dialect_teaches_the_same_at_temperature_1_and_is_warned_of_at_another";
    let (Some(models), Some(data)) = (shared("models", test), shared("data/gsm8k", test)) else {
        return;
    };
    let teacher = Teacher::start(&models.join("gsm8k-teacher"), &[]);
    let folder = tempfile::tempdir().expect("a folder");
    let job = |name: &str, url: &str, temperature: &str| {
        let output = folder.path().join(name);
        let more =
            ["--temperature", temperature, "--top-k", "20", "--per-device-train-batch-size", "16"];
        let output_text = {
            let flags = short_run(&models, &data, url, &output, &more);
            let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
            run(&mut trainer(&flags))
        };
        let said = String::from_utf8_lossy(&output_text.stderr).into_owned();
        assert!(output_text.status.success(), "{said}");
        (metrics(&output), said)
    };
    let dialect = format!("vllm+http://{}", teacher.http);
    let (ours, _) = job("ours", &teacher.url(), "1");
    let (theirs, said) = job("theirs", &dialect, "1");
    assert!(said.contains("/tokenize") && !said.contains("renormalise"), "{said}");
    assert_eq!((ours.len(), theirs.len()), (3, 3));
    for (a, b) in ours.iter().zip(&theirs) {
        for name in ["loss", "kl", "ce", "teacher_mass"] {
            let (a, b) = (a[name].as_f64().unwrap(), b[name].as_f64().unwrap());
            assert!((a - b).abs() < 2e-4 * a.abs(), "{name}: {a} {b}");
        }
    }
    let (steps, said) = job("warm", &dialect, "5");
    for piece in [&dialect, "--temperature 5", "--tail renormalise", "teacher-server"] {
        assert!(said.contains(piece), "no {piece:?} in {said}");
    }
    assert!(steps.iter().all(|step| step["teacher_mass"].is_null()), "{steps:?}");
}

#[test]
fn the_job_prints_its_table_and_leaves_what_the_contract_lists() {
    let test = "the_job_prints_its_table_and_leaves_what_the_contract_lists";
    let (Some(models), Some(data)) = (shared("models", test), shared("data/gsm8k", test)) else {
        return;
    };
    let teacher = Teacher::start(&models.join("gsm8k-teacher"), &[]);
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("out");
    let flags = short_run(&models, &data, &teacher.url(), &output, &["--learning-rate", "5e-4"]);
    let printed = train(&flags);
    for word in ["teacher", "student before", "student after"] {
        assert!(printed.to_lowercase().contains(word), "no {word:?} in the table:\n{printed}");
    }
    let summary = read_json(&output.join("summary.json"));
    let number =
        |name: &str| summary[name].as_f64().unwrap_or_else(|| panic!("no {name}: {summary}"));
    for name in ["teacher_perplexity", "student_perplexity_before", "student_perplexity_after"] {
        assert!(number(name) > 1.0);
        assert!(number(&format!("{name}_row_mean")) > 1.0);
    }
    assert!(number("student_perplexity_after") < number("student_perplexity_before"));
    assert!(number("teacher_perplexity") < number("student_perplexity_after"));
    let counted = ["steps", "tokens", "train_seconds", "tokens_per_second", "peak_rss_bytes"];
    for name in counted.iter().chain(&["teacher_wait_fraction", "wire_bytes_per_token", "seed"]) {
        assert!(number(name) >= 0.0, "{name}");
    }
    assert_eq!(number("steps"), 12.0, "48 rows in batches of 4");
    assert!(
        number("wire_bytes_per_token") <= 400.0,
        "{} B a token",
        number("wire_bytes_per_token")
    );
    assert_eq!(summary["epoch_loss"].as_array().map(Vec::len), Some(1));
    assert_eq!(summary["fingerprint_teacher"].as_str().map(str::len), Some(64));
    let lines = metrics(&output);
    assert_eq!(lines.len(), 12);
    let fields = [
        "step",
        "epoch",
        "loss",
        "kl",
        "ce",
        "learning_rate",
        "grad_norm",
        "tokens",
        "tokens_per_second",
        "teacher_wait_seconds",
        "teacher_mass",
        "student_mass",
        "kl_rest",
        "teacher_entropy",
        "wire_bytes",
    ];
    for (index, line) in lines.iter().enumerate() {
        for field in fields {
            assert!(line[field].is_number(), "metrics.jsonl line {index}: no {field} in {line}");
        }
        let (loss, kl, ce) = (&line["loss"], &line["kl"], &line["ce"]);
        let total = 0.7 * kl.as_f64().unwrap() + 0.3 * ce.as_f64().unwrap();
        assert!((loss.as_f64().unwrap() - total).abs() < 1e-6 * total, "alpha·kl + (1-alpha)·ce");
    }
    for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        let source = std::fs::read(models.join("gsm8k-student").join(file)).expect(file);
        assert_eq!(std::fs::read(output.join(file)).expect(file), source, "{file} byte for byte");
    }
    assert!(output.join("report.html").exists() && output.join("config.json").exists());
}

#[test]
fn the_same_seed_gives_the_same_bits_and_another_seed_does_not() {
    let test = "the_same_seed_gives_the_same_bits_and_another_seed_does_not";
    let (Some(models), Some(data)) = (shared("models", test), shared("data/gsm8k", test)) else {
        return;
    };
    let teacher = Teacher::start(&models.join("gsm8k-teacher"), &[]);
    let folder = tempfile::tempdir().expect("a folder");
    let weights = |name: &str, seed: &str| {
        let output = folder.path().join(name);
        train(&short_run(&models, &data, &teacher.url(), &output, &["--seed", seed]));
        std::fs::read(output.join("model.safetensors")).expect("model.safetensors")
    };
    let first = weights("first", "1");
    assert!(first == weights("second", "1"), "the same seed gave other weights");
    assert!(first != weights("third", "2"), "another seed gave the same weights");
}

#[test]
fn a_teacher_that_equals_the_student_has_nothing_to_teach() {
    let test = "a_teacher_that_equals_the_student_has_nothing_to_teach";
    let (Some(models), Some(data)) = (shared("models", test), shared("data/gsm8k", test)) else {
        return;
    };
    let teacher = Teacher::start(&models.join("gsm8k-student"), &[]);
    let folder = tempfile::tempdir().expect("a folder");
    for temperature in ["0.5", "1", "5"] {
        let output = folder.path().join(temperature);
        let still = ["--learning-rate", "0", "--weight-decay", "0", "--temperature", temperature];
        train(&short_run(&models, &data, &teacher.url(), &output, &still));
        let squared = temperature.parse::<f64>().unwrap().powi(2);
        for line in metrics(&output) {
            let kl = line["kl"].as_f64().unwrap() / squared;
            assert!((0.0..1e-6).contains(&kl), "KL {kl:e} at T = {temperature}");
        }
    }
}

#[test]
fn without_a_teacher_alpha_zero_trains_a_model_from_its_config_alone() {
    let test = "without_a_teacher_alpha_zero_trains_a_model_from_its_config_alone";
    let (Some(models), Some(data)) = (shared("models", test), shared("data/gsm8k", test)) else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let bare = folder.path().join("bare");
    std::fs::create_dir(&bare).expect("a folder");
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        std::fs::copy(models.join("gsm8k-student").join(file), bare.join(file)).expect(file);
    }
    let output = folder.path().join("out");
    let text = |path: &Path| path.display().to_string();
    let train_file = text(&data.join("train.jsonl"));
    let flags = [
        "train",
        "--alpha",
        "0",
        "--student-init",
        "random",
        "--learning-rate",
        "1e-3",
        "--max-train-samples",
        "48",
        "--max-eval-samples",
        "16",
        "--num-train-epochs",
        "1",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain(["--student".to_owned(), text(&bare), "--train-file".to_owned(), train_file])
    .chain(["--eval-file".to_owned(), text(&data.join("test.jsonl"))])
    .chain(["--output-dir".to_owned(), text(&output)]);
    train(&flags.collect::<Vec<_>>());
    let summary = read_json(&output.join("summary.json"));
    let before = summary["student_perplexity_before"].as_f64().expect("before");
    let after = summary["student_perplexity_after"].as_f64().expect("after");
    // Random weights know nothing: about V = 4,096 equally likely tokens.
    assert!((3_000.0..5_500.0).contains(&before), "perplexity {before} before any step");
    assert!(after < 0.5 * before, "{before} -> {after}");
}
