//! A distillation over gRPC with both services on one card: the demonstration's models, a few steps.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::within;

/// Steps it takes.
const STEPS: &str = "12";

/// A service that is ended with what holds it.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        // One that has ended already is as well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The demonstration's teacher teaches its student on this device, and the student learns.
pub(super) fn tiny(programs: &Path, device: &str, limit: Duration) -> Result<()> {
    let dir = std::env::temp_dir().join(format!("limbeck-gpu-job-{}", std::process::id()));
    let mut trainer = Command::new(programs.join("student-trainer"));
    within(trainer.args(["demo", "data", "--output-dir"]).arg(&dir), limit)?;
    let found = taught(programs, device, &dir, limit);
    // In a folder of temporary files: what stays there goes with them.
    let _ = std::fs::remove_dir_all(&dir);
    found
}

fn taught(programs: &Path, device: &str, dir: &Path, limit: Duration) -> Result<()> {
    let mut server = Command::new(programs.join("teacher-server"))
        .args(["--device", device, "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"])
        .arg("--model")
        .arg(dir.join("teacher"))
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(dir.join("teacher.log"))?)
        .spawn()
        .context("the teacher does not start")?;
    let said = server.stdout.take().context("the teacher's output")?;
    let _server = Service(server);
    let line = BufReader::new(said).lines().next().transpose()?.unwrap_or_default();
    let address = line.strip_prefix("listening grpc=").and_then(|rest| rest.split(' ').next());
    let Some(address) = address else {
        bail!("the teacher did not serve: {}", std::fs::read_to_string(dir.join("teacher.log"))?)
    };
    let run = dir.join("run");
    let mut trainer = Command::new(programs.join("student-trainer"));
    trainer
        .args(["train", "--device", device, "--teacher", &format!("grpc://{address}")])
        .args(["--max-steps", STEPS, "--resume-from-checkpoint", "off"])
        .arg("--output-dir")
        .arg(&run)
        .arg("--student")
        .arg(dir.join("student"))
        .arg("--train-file")
        .arg(dir.join("train.jsonl"))
        .arg("--eval-file")
        .arg(dir.join("eval.jsonl"));
    within(&mut trainer, limit)?;
    let report: Value = serde_json::from_str(&std::fs::read_to_string(run.join("summary.json"))?)?;
    let [before, after] = ["before", "after"]
        .map(|when| report[format!("student_perplexity_{when}")].as_f64().unwrap_or(f64::NAN));
    ensure!(after < before, "perplexity went from {before} to {after}");
    Ok(())
}
