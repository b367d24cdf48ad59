//! `cargo xtask bench`: ours and PyTorch's in turn, one table a part.
//!
//! Machines are noisy: both sides run alternately in one call, and what is quoted is the median of
//! the ratios of neighbouring runs. Without Python or the peer's script ours runs alone, with a word.

mod cache;
mod engine;
mod job;
mod quantised;
mod signals;
mod start;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::run::{cargo, root, run, say};

struct Settings {
    rounds: usize,
    /// Training rows of the whole job.
    rows: String,
    /// Entries a position of ours in the whole job.
    top_k: String,
    shared: PathBuf,
    python: String,
}

/// Runs the parts that are named, all of them by default; see [`crate`]'s usage.
pub(crate) fn bench(arguments: &[&str]) -> Result<()> {
    let split = arguments.iter().position(|word| word.starts_with("--"));
    let (parts, options) = arguments.split_at(split.unwrap_or(arguments.len()));
    let settings = Settings::read(options)?;
    run(cargo().args(["build", "--release", "--workspace", "--bins"]))?;
    for part in if parts.is_empty() { &["engine", "job", "start", "cache"] } else { parts } {
        match *part {
            "engine" => engine::bench(&settings)?,
            "job" => job::bench(&settings)?,
            "start" => start::bench(&settings)?,
            "cache" => cache::bench(&settings)?,
            "signals" => signals::bench(&settings)?,
            "quantised" => quantised::bench(&settings)?,
            other => {
                bail!(
                    "unknown part {other}: bench has engine, job, start, cache, signals and quantised"
                )
            }
        }
    }
    Ok(())
}

impl Settings {
    fn read(options: &[&str]) -> Result<Self> {
        let mut settings = Self {
            rounds: 3,
            rows: "500".to_owned(),
            top_k: "64".to_owned(),
            shared: std::env::var_os("DISTILL_SHARED")
                .map_or_else(|| root().join("../shared"), PathBuf::from),
            python: std::env::var("LIMBECK_PYTHON").unwrap_or_else(|_| "python3".to_owned()),
        };
        for pair in options.chunks(2) {
            let [name, value] = pair else { bail!("{} needs a value", pair[0]) };
            match *name {
                "--rounds" => settings.rounds = value.parse().context("--rounds wants a number")?,
                "--rows" => settings.rows = (*value).to_owned(),
                "--top-k" => settings.top_k = (*value).to_owned(),
                "--python" => settings.python = (*value).to_owned(),
                other => {
                    bail!("unknown option {other}: bench takes --rounds, --rows, --top-k, --python")
                }
            }
        }
        Ok(settings)
    }

    /// A model of the shared folder.
    fn model(&self, name: &str) -> Result<PathBuf> {
        let found = self.shared.join("models").join(name);
        ensure!(found.exists(), "{} does not exist: set DISTILL_SHARED", found.display());
        Ok(found)
    }

    /// Whether a peer's script and what it imports are there; says so when they are not.
    fn has_peer(&self, script: &Path) -> bool {
        let imports =
            Command::new(&self.python).args(["-c", "import torch, transformers"]).output();
        let found = script.exists() && imports.is_ok_and(|output| output.status.success());
        if !found {
            say(
                "peer skipped: no Python with torch and transformers (--python), or no peer script",
            );
        }
        found
    }
}

/// The middle value, or the mean of the two middle ones; NaN of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}
