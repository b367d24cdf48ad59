//! From the start of the trainer to its first step, with a checkpoint of Qwen3-0.6B's shapes: 1.2 GB in
//! bfloat16, random weights, in the page cache. Without a teacher: what its network costs is its own.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use super::{Settings, median};
use crate::run::{root, run, say};

/// Runs the benchmark.
pub(super) fn bench(settings: &Settings) -> Result<()> {
    let (program, bench) = (root().join("target/release"), root().join("target/bench"));
    let checkpoint = bench.join("qwen3-0.6b");
    let mut write = Command::new(program.join("engine_bench"));
    run(write.args(["checkpoint", "qwen3-0.6b"]).arg(&checkpoint))?;
    let tokenizer = settings.model("gsm8k-student")?;
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::write(checkpoint.join(file), std::fs::read(tokenizer.join(file))?)?;
    }
    let rows = bench.join("rows.jsonl");
    std::fs::write(&rows, "{\"text\": \"A row to begin with, and no more than that.\"}\n")?;
    let (mut ready, mut stepped) = (Vec::new(), Vec::new());
    for _ in 0..settings.rounds {
        let begin = Instant::now();
        let mut trainer = Command::new(program.join("student-trainer"))
            .args(["train", "--alpha", "0", "--chat-template", "none", "--dtype", "bf16"])
            .args(["--max-steps", "1", "--save-steps", "0", "--progress", "plain"])
            .args(["--overwrite-output-dir", "--output-dir"])
            .arg(bench.join("start"))
            .arg("--student")
            .arg(&checkpoint)
            .arg("--train-file")
            .arg(&rows)
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start student-trainer")?;
        // It names the student once all is loaded, and then its first step.
        for line in BufReader::new(trainer.stderr.take().context("no stderr")?).lines() {
            let (line, seconds) = (line?, begin.elapsed().as_secs_f64());
            match line.split_whitespace().next() {
                Some("student") => ready.push(seconds),
                Some("step") => stepped.push(seconds),
                _ => {}
            }
        }
        ensure!(trainer.wait()?.success(), "student-trainer failed");
    }
    let times = [ready.len(), stepped.len()];
    ensure!(times == [settings.rounds; 2], "the trainer's lines were not understood");
    let (ready, stepped) = (median(ready), median(stepped));
    say(format!(
        "start to first step, 1.2 GB checkpoint: {ready:.2} s; the step done: {stepped:.2} s"
    ));
    Ok(())
}
