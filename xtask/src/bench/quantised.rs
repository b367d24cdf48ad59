//! What quantising a teacher costs its signal: the small teacher as GGUF files, each measured by `student-trainer eval`
//! against the unquantised one, over all classes of every position of real text.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{Settings, job};
use crate::run::{read, root, say};

/// The kinds of files (`engine_bench gguf`), the unquantised numbers rounded to 16 bits among them: how much is lost
/// where nothing is quantised.
const KINDS: [&str; 5] = ["F16", "Q8_0", "Q6_K", "Q4_K_M", "Q4_K"];
/// Temperatures at which the divergence is taken.
const TEMPERATURES: [&str; 2] = ["1", "5"];
/// What a GGUF file needs beside it.
const SMALL_FILES: [&str; 4] =
    ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];

/// Runs the benchmark.
pub(super) fn bench(settings: &Settings) -> Result<()> {
    let teacher = settings.model("gsm8k-teacher")?;
    let data = settings.shared.join("data/gsm8k/test.jsonl");
    let (mut server, grpc, _) = job::start_teacher(&teacher)?;
    let measured = table(&teacher, &data, &grpc);
    server.kill()?;
    server.wait()?;
    measured
}

fn table(teacher: &Path, data: &Path, grpc: &str) -> Result<()> {
    let head = ["MiB", "KL at T = 1", "KL at T = 5", "agreement, %", "perplexity", "unquantised"];
    say(format!("{:<8}{}", "", head.map(|name| format!("{name:>14}")).concat()));
    for kind in KINDS {
        let file = converted(teacher, kind)?;
        let mib = std::fs::metadata(&file)?.len() as f64 / f64::from(1 << 20);
        let found = TEMPERATURES.map(|temperature| measure(&file, data, grpc, temperature));
        let [at_one, at_five] = found;
        let (at_one, at_five) = (at_one?, at_five?);
        let number = |of: &Value, name: &str| of[name].as_f64().with_context(|| name.to_owned());
        say(format!(
            "{kind:<8}{mib:>14.2}{:>14.2e}{:>14.2e}{:>14.2}{:>14.4}{:>14.4}",
            number(&at_one, "kl")?,
            number(&at_five, "kl")?,
            100.0 * number(&at_one, "agreement")?,
            number(&at_one, "perplexity")?,
            number(&at_one, "teacher_perplexity")?,
        ));
    }
    Ok(())
}

/// The teacher as a file of this kind, in a directory of its own.
fn converted(teacher: &Path, kind: &str) -> Result<PathBuf> {
    let dir = root().join("target/bench/quantised").join(kind);
    std::fs::create_dir_all(&dir)?;
    for name in SMALL_FILES {
        // Not fs::copy: it would take over that nobody may write.
        std::fs::write(dir.join(name), std::fs::read(teacher.join(name))?)?;
    }
    let file = dir.join("model.gguf");
    let mut command = Command::new(root().join("target/release/engine_bench"));
    let left = read(command.arg("gguf").arg(teacher).arg(kind).arg(&file))?;
    left.lines().for_each(|name| say(format!("{kind}: {name} stays in bfloat16")));
    Ok(file)
}

fn measure(file: &Path, data: &Path, grpc: &str, temperature: &str) -> Result<Value> {
    let mut command = Command::new(root().join("target/release/student-trainer"));
    command
        .args(["eval", "--json", "--dtype", "f32", "--loss-on", "all", "--signal", "full"])
        .args(["--temperature", temperature, "--teacher", &format!("grpc://{grpc}")])
        .arg("--model")
        .arg(file)
        .arg("--eval-file")
        .arg(data);
    serde_json::from_str(&read(&mut command)?).context("eval prints JSON")
}
