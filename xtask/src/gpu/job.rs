//! Distillations over gRPC with both services on one card: the demonstration's models for a few steps, and models of
//! real shapes for the rate.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{PEER, within};

/// Rows of a step at real shapes, and tokens of each.
const REAL_ROWS: usize = 16;
const REAL_TOKENS: usize = 1024;
/// Steps of an epoch, and the first of each that do not count: in those of the first epoch both sides wake up.
const STEPS: usize = 12;
const WAKING: usize = 4;

/// A job's folder, and who runs in it.
struct Job<'a> {
    programs: &'a Path,
    device: &'a str,
    dir: PathBuf,
    by: Instant,
}

/// A service that is ended with what holds it.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        // One that has ended already is as well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// In a folder of its own, which goes whatever becomes of it.
fn within_folder<T>(
    programs: &Path,
    device: &str,
    by: Instant,
    job: impl FnOnce(&Job<'_>) -> Result<T>,
) -> Result<T> {
    let dir = std::env::temp_dir().join(format!("limbeck-gpu-job-{}", std::process::id()));
    let of = Job { programs, device, dir, by };
    let mut trainer = of.program("student-trainer");
    let found = within(trainer.args(["demo", "data", "--output-dir"]).arg(&of.dir), of.left())
        .and_then(|_| job(&of));
    // In a folder of temporary files: what stays there goes with them.
    let _ = std::fs::remove_dir_all(&of.dir);
    found
}

/// The demonstration's teacher teaches a student that begins from nothing, and the student learns.
pub(super) fn tiny(programs: &Path, device: &str, by: Instant) -> Result<()> {
    within_folder(programs, device, by, |job| {
        let [train, eval] = ["train.jsonl", "eval.jsonl"].map(|file| job.dir.join(file));
        let run = job.run(["teacher", "student"], &train, |trainer| {
            trainer.args(["--student-init", "random", "--learning-rate", "1e-3"]);
            trainer.args(["--max-steps", "12", "--eval-file"]).arg(&eval);
        })?;
        let summary: Value =
            serde_json::from_str(&std::fs::read_to_string(run.join("summary.json"))?)?;
        let [before, after] = ["before", "after"]
            .map(|when| summary[format!("student_perplexity_{when}")].as_f64().unwrap_or(f64::NAN));
        ensure!(after < before, "perplexity went from {before} to {after}");
        Ok(())
    })
}

/// The notebook's job with random weights of Qwen3-4B's and Qwen3-0.6B's shapes: seconds of a step.
pub(super) fn real(programs: &Path, device: &str, python: &str, by: Instant) -> Result<Value> {
    within_folder(programs, device, by, |job| {
        let mut models = Command::new(python);
        within(models.arg(programs.join(PEER)).arg("models").arg(&job.dir), job.left())?;
        let rows = job.dir.join("long.jsonl");
        let text = std::fs::read_to_string(job.dir.join("train.jsonl"))?;
        let lines: Vec<&str> = text.lines().collect();
        let row = |at: usize| {
            // Many more tokens than are taken: rows are cut.
            let words: Vec<&str> = lines.iter().cycle().skip(at).take(300).copied().collect();
            json!({"text": words.join(" ")}).to_string()
        };
        let all: Vec<String> = (0..STEPS * REAL_ROWS).map(row).collect();
        std::fs::write(&rows, all.join("\n"))?;
        let [at_once, length] = [REAL_ROWS, REAL_TOKENS].map(|number| number.to_string());
        let run = job.run(["real-teacher", "real-student"], &rows, |trainer| {
            trainer
                .args([
                    "--num-train-epochs",
                    &super::figures::EPOCHS.to_string(),
                    "--per-device-train-batch-size",
                    &at_once,
                ])
                .args(["--max-length", &length, "--top-k", "64", "--temperature", "5"]);
        })?;
        let seconds = seconds_of_a_step(&std::fs::read_to_string(run.join("metrics.jsonl"))?)?;
        Ok(json!({"name": "job over gRPC", "of": "ours", "seconds": seconds, "operations": 0,
                  "bytes": 0, "memory": 0}))
    })
}

/// The mean over the steps that count, of the trainer's metrics.
fn seconds_of_a_step(metrics: &str) -> Result<f64> {
    let mut counted = Vec::new();
    for (at, line) in metrics.lines().enumerate().filter(|(at, _)| at % STEPS >= WAKING) {
        let step: Value = serde_json::from_str(line)?;
        let [tokens, rate] = ["tokens", "tokens_per_second"].map(|name| step[name].as_f64());
        let seconds = tokens.zip(rate).map(|(tokens, rate)| tokens / rate);
        counted.push(seconds.with_context(|| format!("step {}: no rate", at + 1))?);
    }
    ensure!(!counted.is_empty(), "no steps in metrics.jsonl");
    Ok(counted.iter().sum::<f64>() / counted.len() as f64)
}

impl Job<'_> {
    fn left(&self) -> Duration {
        self.by.saturating_duration_since(Instant::now())
    }

    fn program(&self, name: &str) -> Command {
        Command::new(self.programs.join(name))
    }

    /// Teacher and student of these folders, rows to learn, and what else the trainer is told; where the run lies.
    fn run(
        &self,
        [teacher, student]: [&str; 2],
        rows: &Path,
        more: impl FnOnce(&mut Command),
    ) -> Result<PathBuf> {
        let log = self.dir.join("teacher.log");
        let mut server = self
            .program("teacher-server")
            .args(["--device", self.device, "--listen", "127.0.0.1:0"])
            .args(["--http-listen", "127.0.0.1:0", "--model"])
            .arg(self.dir.join(teacher))
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log)?)
            .spawn()
            .context("the teacher does not start")?;
        let said = server.stdout.take().context("the teacher's output")?;
        let _server = Service(server);
        // Heard by a thread: a teacher that hangs while it opens the card must not hang this.
        let (told, heard) = mpsc::channel();
        std::thread::spawn(move || {
            let line = BufReader::new(said).lines().next();
            // Nobody listens any more where it came too late.
            let _ = told.send(line.and_then(Result::ok).unwrap_or_default());
        });
        let line = heard.recv_timeout(self.left()).unwrap_or_default();
        let address = line.strip_prefix("listening grpc=").and_then(|rest| rest.split(' ').next());
        let Some(address) = address else {
            bail!("the teacher did not serve: {}", std::fs::read_to_string(&log)?)
        };
        let run = self.dir.join(format!("run-{student}"));
        let mut trainer = self.program("student-trainer");
        trainer
            .args(["train", "--device", self.device, "--teacher", &format!("grpc://{address}")])
            .args(["--resume-from-checkpoint", "off", "--save-steps", "0", "--output-dir"])
            .arg(&run)
            .arg("--student")
            .arg(self.dir.join(student))
            .arg("--train-file")
            .arg(rows);
        more(&mut trainer);
        within(&mut trainer, self.left())?;
        Ok(run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_in_which_both_sides_wake_up_do_not_count() {
        let step = |at: usize| {
            let rate = if at % STEPS < WAKING { 1.0 } else { 100.0 * (1 + at / STEPS) as f64 };
            json!({"step": at + 1, "tokens": 200, "tokens_per_second": rate}).to_string()
        };
        // Of two epochs, at 2 seconds a step and at 1.
        let metrics: Vec<String> = (0..2 * STEPS).map(step).collect();
        assert_eq!(seconds_of_a_step(&metrics.join("\n")).unwrap(), 1.5);
        let none = json!({"step": 5, "tokens": 200}).to_string();
        assert!(seconds_of_a_step(&[&*none; 5].join("\n")).is_err());
        assert!(seconds_of_a_step("").is_err());
    }
}
