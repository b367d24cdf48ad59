//! What `gpu` is called with.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use super::{PROGRAMS, TESTS};

/// What there is to run, in this order: what a call does not come to may be asked for in a call of its own.
pub(super) const PARTS: [&str; 4] = ["checks", "figures", "job", "sanitizer"];

/// What it is called with.
pub(super) struct Settings {
    /// Where the prebuilt programs lie.
    pub(super) programs: PathBuf,
    pub(super) python: String,
    /// `cuda:N`; `cpu` rehearses what does not need a card.
    pub(super) device: String,
    pub(super) minutes: f64,
    /// Which of [`PARTS`].
    pub(super) parts: Vec<String>,
    /// Receives the table and the JSON.
    pub(super) out: PathBuf,
    /// Golden values lie below it.
    pub(super) shared: PathBuf,
}

impl Settings {
    pub(super) fn read(options: &[&str]) -> Result<Self> {
        let beside = std::env::current_exe()?.parent().map(Path::to_owned).unwrap_or_default();
        let mut settings = Self {
            programs: beside,
            python: std::env::var("LIMBECK_PYTHON").unwrap_or_else(|_| "python3".to_owned()),
            device: "cuda:0".to_owned(),
            minutes: 8.0,
            parts: PARTS.map(str::to_owned).to_vec(),
            out: PathBuf::from("gpu-report"),
            shared: PathBuf::from(std::env::var_os("DISTILL_SHARED").unwrap_or("../shared".into())),
        };
        for pair in options.chunks(2) {
            let [name, value] = pair else { bail!("{} needs a value", pair[0]) };
            match *name {
                "--bin-dir" => settings.programs = PathBuf::from(value),
                "--python" => settings.python = (*value).to_owned(),
                "--device" => settings.device = (*value).to_owned(),
                "--minutes" => settings.minutes = value.parse().context("--minutes")?,
                "--parts" => settings.parts = value.split(',').map(str::to_owned).collect(),
                "--out" => settings.out = PathBuf::from(value),
                other => bail!(
                    "unknown option {other}: gpu takes --bin-dir, --python, --device, --minutes, --parts, --out, or --pack DIR"
                ),
            }
        }
        let minutes = settings.minutes;
        ensure!(minutes > 0.0 && minutes <= 1440.0, "--minutes is {minutes}: wanted up to 1440");
        if let Some(part) = settings.parts.iter().find(|part| !PARTS.contains(&part.as_str())) {
            bail!("--parts: {part} is none of {}", PARTS.join(", "));
        }
        Ok(settings)
    }

    /// Whether a part is asked for.
    pub(super) fn wants(&self, part: &str) -> bool {
        self.parts.iter().any(|asked| asked == part)
    }

    /// Refuses to begin without what a pack holds.
    pub(super) fn has_pack(&self) -> Result<()> {
        let tests = TESTS.iter().map(|(_, name)| name);
        let missing: Vec<&str> = PROGRAMS
            .iter()
            .chain(tests)
            .filter(|name| !self.programs.join(name).exists())
            .copied()
            .collect();
        ensure!(
            missing.is_empty(),
            "{} lacks {}: `cargo xtask gpu --pack DIR` builds a pack (with nvcc, without a card), and DIR/xtask gpu runs \
             it on a machine with one",
            self.programs.display(),
            missing.join(", ")
        );
        Ok(())
    }
}
