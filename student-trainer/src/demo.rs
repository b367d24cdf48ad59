//! The demonstration: a real teacher server, a small student, and what the teacher was worth.
//!
//! Reading order: `corpus` (the text), `models` (how teacher and student were made), `server` (the
//! teacher as a child process), `compare` (the runs), `answers` (what the models say), `page` (the
//! report). Everything it needs is in this program.

mod answers;
mod compare;
mod corpus;
mod models;
mod page;
mod server;

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use student_trainer::config::DemoConfig;
use student_trainer::outputs::{self, Reuse};
use student_trainer::stop::Stop;

use crate::progress::Console;
use crate::table::duration;
use compare::Comparison;
use corpus::{Row, Split, rows, to_jsonl};
pub(crate) use models::make_models;
use server::TeacherServer;

/// Directory of models and rows within the output directory.
const DATA: &str = "data";
/// Rows the student learns from: few, so that what a teacher adds to a row counts.
const TRAIN_ROWS: usize = 320;
/// Rows it is measured on; no question of theirs is among the training rows.
const HELD_OUT_ROWS: usize = 128;
/// Seeds of the two corpora; the teacher's own text has another (`models`).
const TRAIN_SEED: u64 = 2;
const HELD_OUT_SEED: u64 = 3;
/// Seeds of the rows that the settings in `compare` were chosen on. None of their held-out
/// questions is among those reported.
const TUNING_TRAIN_SEED: u64 = 4;
const TUNING_HELD_OUT_SEED: u64 = 5;

/// Runs the demonstration.
pub(crate) fn run(config: &DemoConfig, console: &Console, stop: &Stop) -> anyhow::Result<()> {
    let begin = Instant::now();
    let _claim = outputs::claim(&config.output_dir, Reuse::Anything)?;
    let dir = prepare(&config.output_dir)?;
    console.tell(&format!(
        "{}\nA student learns a made-up island from {TRAIN_ROWS} questions and answers: once from \
         the text alone\n(plain training), and with a teacher that answers over gRPC: its most probable \
         tokens (distilled), and its\nhidden states, coded. Same rows, steps and seeds.\n",
        console.bold("Distillation on this machine: no network, no GPU, a minute or two.")
    ));
    let held_out = write_data(&dir.join(DATA))?;
    let server = TeacherServer::start(&dir.join(DATA).join("teacher"), &dir, console)?;
    console.tell(&format!("teacher-server answers at {}", server.url()));
    let comparison = Comparison::carry_out(&dir, server.url(), config.seeds, console, stop)?;
    drop(server);

    let samples = answers::sample(&dir, &held_out)?;
    let seconds = begin.elapsed().as_secs_f64();
    let summary = serde_json::to_string_pretty(&comparison.to_json(seconds))?;
    fs::write(dir.join("summary.json"), summary + "\n").context("writing summary.json")?;
    let sample = samples.first().map(page::sample_text);
    let report = page::of(&comparison, &dir, samples, seconds).to_html();
    fs::write(dir.join("report.html"), report).context("writing report.html")?;
    console.result(&format!("\n{}\n{}\n", comparison.table().to_text(), comparison.verdict()))?;
    if let Some(sample) = sample {
        console.result(&format!("\n{sample}\n"))?;
    }
    console.result(&format!(
        "{} in all; the report is {}\n",
        duration(seconds),
        dir.join("report.html").display()
    ))
}

/// Writes the demonstration's models and rows into `dir`, and in `tuning-*.jsonl` those its
/// settings were chosen on; returns the held-out rows.
pub(crate) fn write_data(dir: &Path) -> anyhow::Result<Vec<Row>> {
    models::unpack(dir)?;
    let held_out = rows(HELD_OUT_SEED, HELD_OUT_ROWS, Split::HeldOut);
    let write = |name: &str, rows: &[Row]| {
        let path = dir.join(name);
        fs::write(&path, to_jsonl(rows)?).with_context(|| format!("writing {}", path.display()))
    };
    write("train.jsonl", &rows(TRAIN_SEED, TRAIN_ROWS, Split::Train))?;
    write("eval.jsonl", &held_out)?;
    write("tuning-train.jsonl", &rows(TUNING_TRAIN_SEED, TRAIN_ROWS, Split::Train))?;
    write("tuning-eval.jsonl", &tuning_held_out(&held_out))?;
    Ok(held_out)
}

/// Held-out rows to choose settings on, without a question of `reported`.
fn tuning_held_out(reported: &[Row]) -> Vec<Row> {
    let taken: HashSet<&str> = reported.iter().map(|row| row.question.as_str()).collect();
    let mut drawn = rows(TUNING_HELD_OUT_SEED, 2 * HELD_OUT_ROWS, Split::HeldOut);
    drawn.retain(|row| !taken.contains(row.question.as_str()));
    drawn.truncate(HELD_OUT_ROWS);
    drawn
}

/// An output directory without the runs of an earlier demonstration. Only what the demonstration
/// itself writes is removed.
fn prepare(dir: &Path) -> anyhow::Result<std::path::PathBuf> {
    let context = || format!("--output-dir {}", dir.display());
    for name in [compare::RUNS, DATA] {
        let path = dir.join(name);
        if path.is_dir() {
            fs::remove_dir_all(&path).with_context(context)?;
        }
    }
    dir.canonicalize().with_context(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_chosen_on_questions_that_are_not_reported() {
        let reported = rows(HELD_OUT_SEED, HELD_OUT_ROWS, Split::HeldOut);
        let tuning = tuning_held_out(&reported);
        assert_eq!(tuning.len(), HELD_OUT_ROWS);
        let same = |row: &Row| reported.iter().any(|other| other.question == row.question);
        assert!(!tuning.iter().any(same));
        // Two draws of the same grammar do meet: leaving them out is needed.
        let drawn = rows(TUNING_HELD_OUT_SEED, HELD_OUT_ROWS, Split::HeldOut);
        assert!(drawn.iter().any(same), "no question was ever left out");
    }
}
