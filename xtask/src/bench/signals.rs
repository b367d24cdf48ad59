//! What students become under each signal: the study's job (256 rows, 2 epochs, batches of 4, rate 1e-3,
//! alpha 0.7), a seed a round; held-out perplexity, and divergence from the teacher over all classes.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::Settings;
use super::job::start_teacher;
use crate::run::{read, root, say};

/// Signals by their names and options; the last one is everything.
const SIGNALS: [(&str, &str); 13] = [
    ("cross-entropy alone", "--alpha 0"),
    ("top-64 and the rest", "--top-k 64"),
    ("the same, 8 bits a value", "--top-k 64 --codec compact8"),
    ("top-16, the student's 16", "--signal candidates --top-k 16"),
    ("top-64, the student's 64", "--signal candidates --top-k 64"),
    ("50 draws", "--signal sampled --draws 50"),
    ("16 draws, the top 16", "--signal sampled --draws 16 --exact 16"),
    ("coded, 22 bytes", "--signal coded --signal-bytes 22"),
    ("coded, 44 bytes", "--signal coded --signal-bytes 44"),
    ("full, int4", "--signal full --hidden-form int4"),
    ("full, int8", "--signal full --hidden-form int8"),
    ("full, bf16", "--signal full --hidden-form bf16"),
    ("full, float32", "--signal full --hidden-form f32"),
];
const TEMPERATURES: [&str; 2] = ["1", "5"];

/// What one student came to.
struct Student {
    perplexity: f64,
    divergence: f64,
    bytes: f64,
}

/// Runs the benchmark.
pub(super) fn bench(settings: &Settings) -> Result<()> {
    let (mut teacher, grpc, _) = start_teacher(&settings.model("gsm8k-teacher")?)?;
    let found = students(settings, &grpc);
    teacher.kill()?;
    teacher.wait()?;
    table(&found?);
    Ok(())
}

/// By temperature, signal and seed.
fn students(settings: &Settings, grpc: &str) -> Result<Vec<Vec<Vec<Student>>>> {
    let mut all = Vec::new();
    for temperature in TEMPERATURES {
        let mut of_temperature = Vec::new();
        for (name, options) in SIGNALS {
            say(format!("{name} at temperature {temperature}"));
            let seeds = 1..=settings.rounds;
            let of_seed = |seed| student(settings, grpc, (temperature, options, seed));
            of_temperature.push(seeds.map(of_seed).collect::<Result<Vec<_>>>()?);
        }
        all.push(of_temperature);
    }
    Ok(all)
}

fn student(
    settings: &Settings,
    grpc: &str,
    (temperature, options, seed): (&str, &str, usize),
) -> Result<Student> {
    let output = root().join("target/bench-signals");
    let shared = |path: &str| settings.shared.join(path).display().to_string();
    let program = root().join("target/release/student-trainer");
    let common = |command: &mut Command| {
        command
            .args(["--teacher", &format!("grpc://{grpc}"), "--temperature", temperature])
            .args(["--loss-on", "all", "--progress", "none"]);
    };
    let mut train = Command::new(&program);
    train
        .args(["train", "--student", &shared("models/gsm8k-student")])
        .args(["--train-file", &shared("data/gsm8k/train.jsonl"), "--max-train-samples", "256"])
        .args(["--num-train-epochs", "2", "--learning-rate", "1e-3", "--save-steps", "0"])
        .args(["--overwrite-output-dir", "--seed", &seed.to_string(), "--output-dir"])
        .arg(&output)
        .args(options.split(' '));
    common(&mut train);
    read(&mut train)?;
    let mut eval = Command::new(&program);
    eval.args(["eval", "--eval-file", &shared("data/gsm8k/test.jsonl"), "--model"])
        .arg(&output)
        .args(["--max-eval-samples", "100", "--signal", "full", "--hidden-form", "f32", "--json"]);
    common(&mut eval);
    let measured: Value = serde_json::from_str(&read(&mut eval)?)?;
    let summary = number_of(&output.join("summary.json"))?;
    let number = |value: &Value, name: &str| value[name].as_f64().with_context(|| name.to_owned());
    Ok(Student {
        perplexity: number(&measured, "perplexity")?,
        divergence: number(&measured, "kl")?,
        bytes: number(&summary, "wire_bytes_per_token")?,
    })
}

fn number_of(path: &Path) -> Result<Value> {
    Ok(serde_json::from_str(&std::fs::read_to_string(path)?)?)
}

/// Mean and range over seeds; and what each student is above that of everything, seed by seed.
fn table(found: &[Vec<Vec<Student>>]) {
    for (of_temperature, temperature) in found.iter().zip(TEMPERATURES) {
        say(format!("\ntemperature {temperature}; mean (range) over seeds"));
        say(format!(
            "{:<26}{:>8}{:>26}{:>22}{:>26}",
            "", "bytes", "perplexity", "above full", "KL"
        ));
        let full = of_temperature.last().map(Vec::as_slice).unwrap_or_default();
        for (students, (name, _)) in of_temperature.iter().zip(SIGNALS) {
            let of = |figure: fn(&Student) -> f64| students.iter().map(figure).collect::<Vec<_>>();
            let pairs = students.iter().zip(full);
            let above = pairs.map(|(one, all)| one.perplexity - all.perplexity).collect();
            say(format!(
                "{name:<26}{:>8.1}{:>26}{:>22}{:>26}",
                students.first().map_or(0.0, |student| student.bytes),
                spread(of(|student| student.perplexity), 2),
                spread(above, 2),
                spread(of(|student| student.divergence), 4),
            ));
        }
    }
}

fn spread(values: Vec<f64>, digits: usize) -> String {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{mean:.digits$} ({least:.digits$}–{most:.digits$})")
}
