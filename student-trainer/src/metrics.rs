//! `metrics.jsonl`: one line a step, whole lines only, readable while the run goes on.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, Write};
use std::path::Path;

use student_trainer::observer::StepReport;

/// An open metrics file.
#[derive(Debug)]
pub(crate) struct Metrics {
    file: File,
    /// A line every so many steps.
    every: u64,
}

impl Metrics {
    /// Opens the file of a run that has done `start_step` steps.
    ///
    /// Lines of later steps, which a resumed run takes again, are cut off; so is a last line that
    /// a dying process left half written.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn open(path: &Path, start_step: u64, every: u64) -> io::Result<Self> {
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let kept = length_until(&mut BufReader::new(&file), start_step)?;
        file.set_len(kept)?;
        file.seek(io::SeekFrom::End(0))?;
        Ok(Self { file, every: every.max(1) })
    }

    /// Writes a step's line, where this step has one. The line reaches the system in one write, so
    /// a reader never sees a part of it for long.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn record(&mut self, report: &StepReport) -> io::Result<()> {
        if !report.step.is_multiple_of(self.every) {
            return Ok(());
        }
        let mut line = serde_json::to_vec(report)?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.file.flush()
    }
}

#[cfg(test)]
impl Metrics {
    /// One on a full disk.
    pub(crate) fn full() -> Self {
        Self { file: OpenOptions::new().write(true).open("/dev/full").unwrap(), every: 1 }
    }
}

/// Reads the steps of a metrics file back.
///
/// # Errors
/// Those of the file system, or a line that is no step.
pub(crate) fn read(path: &Path) -> io::Result<Vec<StepReport>> {
    let lines = BufReader::new(File::open(path)?).lines();
    lines.map(|line| Ok(serde_json::from_str(&line?)?)).collect()
}

/// Bytes of the leading whole lines whose step is at most `last`.
fn length_until(reader: &mut impl BufRead, last: u64) -> io::Result<u64> {
    #[derive(serde::Deserialize)]
    struct Line {
        step: u64,
    }
    let (mut length, mut bytes) = (0, Vec::new());
    while reader.read_until(b'\n', &mut bytes)? > 0 {
        let whole = bytes.ends_with(b"\n");
        let known = serde_json::from_slice::<Line>(&bytes).is_ok_and(|line| line.step <= last);
        if !(whole && known) {
            break;
        }
        length += bytes.len() as u64;
        bytes.clear();
    }
    Ok(length)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A step whose numbers all differ.
    pub(crate) fn step(step: u64) -> StepReport {
        StepReport {
            step,
            epoch: step as f64 / 8.0,
            loss: 3.5 - step as f64 / 16.0,
            kl: Some(1.25),
            ce: 2.75,
            learning_rate: 5e-5,
            grad_norm: 0.875,
            tokens: 512,
            tokens_per_second: 4096.0,
            teacher_wait_seconds: 0.03125,
            teacher_mass: Some(0.9375),
            student_mass: Some(0.75),
            kl_rest: Some(0.5),
            teacher_entropy: Some(1.5),
            wire_bytes: 98_304,
            wire_tokens: 512,
        }
    }

    #[test]
    fn a_line_has_the_names_other_people_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        Metrics::open(&path, 0, 1).unwrap().record(&step(1)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        let names: Vec<_> = line.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
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
                "wire_tokens"
            ]
        );
        assert_eq!(read(&path).unwrap(), [step(1)]);
    }

    #[test]
    fn a_resumed_run_takes_later_and_broken_lines_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut metrics = Metrics::open(&path, 0, 1).unwrap();
        (1..=4).for_each(|n| metrics.record(&step(n)).unwrap());
        metrics.file.write_all(b"{\"step\":5,\"lo").unwrap();
        drop(metrics);
        let mut resumed = Metrics::open(&path, 2, 1).unwrap();
        resumed.record(&step(3)).unwrap();
        assert_eq!(read(&path).unwrap(), [step(1), step(2), step(3)]);
        drop(Metrics::open(&path, 0, 1).unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
    }

    #[test]
    fn logging_steps_thins_the_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut metrics = Metrics::open(&path, 0, 3).unwrap();
        (1..=7).for_each(|n| metrics.record(&step(n)).unwrap());
        assert_eq!(read(&path).unwrap(), [step(3), step(6)]);
    }
}
