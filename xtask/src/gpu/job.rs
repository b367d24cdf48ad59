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

/// Where a job runs.
pub(crate) struct Where<'a> {
    /// Both services lie there.
    pub(crate) programs: &'a Path,
    /// In the words of `--device`.
    pub(crate) device: &'a str,
    /// Where they find the libraries of a card, if not as the system has it.
    pub(crate) libraries: Option<&'a Path>,
    /// When it must be done.
    pub(crate) by: Instant,
}

/// A job's folder, and where it runs.
struct Job<'a> {
    at: &'a Where<'a>,
    dir: PathBuf,
}

/// How much of the demonstration's data a job takes: steps of so many rows, cut to so many tokens, and as many rows to
/// evaluate.
pub(crate) struct Size {
    steps: usize,
    rows: usize,
    tokens: usize,
}

/// What a card learns in seconds.
pub(super) const SECONDS_OF_A_CARD: Size = Size { steps: 12, rows: 16, tokens: 128 };
/// What an emulated one does.
pub(crate) const SECONDS_OF_AN_EMULATION: Size = Size { steps: 3, rows: 2, tokens: 16 };

/// How far losses and logarithms of perplexities on a card in bfloat16 may be from the processor's in float32: ten times what
/// the processor's own bfloat16 is off in the steps of [`SECONDS_OF_A_CARD`].
const NEAR: f64 = 0.01;

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
fn within_folder<T>(at: &Where<'_>, job: impl FnOnce(&Job<'_>) -> Result<T>) -> Result<T> {
    let dir = std::env::temp_dir().join(format!("limbeck-gpu-job-{}", std::process::id()));
    let of = Job { at, dir };
    let mut trainer = of.program("student-trainer");
    let found = within(trainer.args(["demo", "data", "--output-dir"]).arg(&of.dir), of.left())
        .and_then(|_| job(&of));
    // In a folder of temporary files: what stays there goes with them.
    let _ = std::fs::remove_dir_all(&of.dir);
    found
}

/// The demonstration's teacher teaches a student that begins from nothing, which learns what it does where teacher and
/// student are the processor's, and that is something; how far apart the two come.
pub(crate) fn tiny(at: &Where<'_>, size: &Size) -> Result<f64> {
    within_folder(at, |job| {
        let [there, here] =
            [(at.device, "there"), ("cpu", "here")].map(|run| job.learned(run, size));
        let (there, here) = (there?, here?);
        let apart = there.iter().zip(&here).map(|(there, here)| (there - here).abs());
        let furthest = apart.fold(0.0, f64::max);
        ensure!(
            there.len() == size.steps + 2 && here.len() == there.len() && furthest <= NEAR,
            "the losses of {} steps, and the evaluations around them, are {there:.4?} on {} and {here:.4?} on the \
             processor: at most {NEAR} apart was wanted",
            size.steps,
            at.device
        );
        let [before, after] = [there[0], there[size.steps + 1]].map(f64::exp);
        ensure!(after < before, "perplexity went from {before} to {after} on {}", at.device);
        Ok(furthest)
    })
}

/// The notebook's job with random weights of Qwen3-4B's and Qwen3-0.6B's shapes: seconds of a step.
pub(super) fn real(at: &Where<'_>, python: &str) -> Result<Value> {
    within_folder(at, |job| {
        let mut models = Command::new(python);
        within(models.arg(at.programs.join(PEER)).arg("models").arg(&job.dir), job.left())?;
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
        let run =
            job.run((at.device, "run"), ["real-teacher", "real-student"], &rows, |trainer| {
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
        self.at.by.saturating_duration_since(Instant::now())
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.at.programs.join(name));
        command.envs(self.at.libraries.map(|folder| ("LD_LIBRARY_PATH", folder)));
        command
    }

    /// The loss of every step, with the logarithms of the perplexities before the first and behind the last.
    fn learned(&self, run: (&str, &str), size: &Size) -> Result<Vec<f64>> {
        let [train, eval] = ["train.jsonl", "eval.jsonl"].map(|file| self.dir.join(file));
        let [steps, rows, tokens] =
            [size.steps, size.rows, size.tokens].map(|number| number.to_string());
        let run = self.run(run, ["teacher", "student"], &train, |trainer| {
            trainer
                .args(["--student-init", "random", "--learning-rate", "1e-3", "--loss-on", "all"])
                .args(["--max-steps", &steps, "--per-device-train-batch-size", &rows])
                .args(["--max-length", &tokens, "--max-eval-samples", &rows, "--eval-file"])
                .arg(&eval);
        })?;
        let json = |text: &str| Ok::<Value, anyhow::Error>(serde_json::from_str(text)?);
        let summary = json(&std::fs::read_to_string(run.join("summary.json"))?)?;
        let perplexity = |when: &str| {
            let name = format!("student_perplexity_{when}");
            summary[&*name].as_f64().map(f64::ln).context(name)
        };
        let mut learned = vec![perplexity("before")?];
        for line in std::fs::read_to_string(run.join("metrics.jsonl"))?.lines() {
            learned.push(json(line)?["loss"].as_f64().context("a step's loss")?);
        }
        learned.push(perplexity("after")?);
        Ok(learned)
    }

    /// A run on a device, and its name; teacher and student of these folders, rows to learn, and what else the trainer is told.
    /// Gives where it lies.
    fn run(
        &self,
        (device, name): (&str, &str),
        [teacher, student]: [&str; 2],
        rows: &Path,
        more: impl FnOnce(&mut Command),
    ) -> Result<PathBuf> {
        let log = self.dir.join("teacher.log");
        let mut server = self
            .program("teacher-server")
            .args(["--device", device, "--listen", "127.0.0.1:0"])
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
        let run = self.dir.join(name);
        let mut trainer = self.program("student-trainer");
        trainer
            .args(["train", "--device", device, "--teacher", &format!("grpc://{address}")])
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
