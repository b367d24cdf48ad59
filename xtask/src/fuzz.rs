//! `cargo xtask fuzz`: libFuzzer on the targets of the crate `fuzz`, each a number of times (see its
//! README).

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::run::{cargo, root, run};

/// Executions of a target where nobody says how many.
const RUNS: &str = "1000000";
/// Longest input, in bytes: larger ones reach nothing more and take longer.
const MOST_BYTES: u32 = 600;
/// Longest time for one input, in seconds.
const PATIENCE: u32 = 60;

/// Set for the compiler's calls that this program stands before.
const AS_COMPILER: &str = "LIMBECK_FUZZ_COMPILER";
/// How code is compiled that libFuzzer can follow, edge by edge and comparison by comparison; a number
/// that overflows is a fault to be found. There is no unsafe code in it, so no sanitizer watches.
const INSTRUMENTED: [&str; 7] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cdebug-assertions=yes",
    "-Coverflow-checks=yes",
];
/// The crates that are compiled so: what reads foreign bytes, and the targets. What they use of others'
/// generic code, serde's and prost's for the most part, is compiled with them.
const FOLLOWED: [&str; 4] = ["distill", "proto", "teacher_server", "fuzz"];

/// What is asked for.
struct Settings<'a> {
    targets: Vec<&'a str>,
    runs: &'a str,
    keep: bool,
}

/// Runs targets, all where none is named.
pub(crate) fn fuzz(words: &[&str]) -> Result<()> {
    let known = targets()?;
    let Settings { targets, runs, keep } = settings(words, &known)?;
    let programs = build(&targets)?;
    for target in targets {
        let corpus = Corpus::of(target)?;
        one(&programs, target, runs, &corpus)?;
        if keep {
            corpus.keep(&programs.join(target))?;
        }
    }
    Ok(())
}

/// The names of the targets: of their programs.
fn targets() -> Result<Vec<String>> {
    let folder = root().join("fuzz/targets");
    let mut names = Vec::new();
    for file in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        names.extend(file?.path().file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

fn settings<'a>(words: &[&'a str], known: &'a [String]) -> Result<Settings<'a>> {
    let mut settings = Settings { targets: vec![], runs: RUNS, keep: false };
    let mut words = words.iter();
    while let Some(&word) = words.next() {
        match word {
            "--runs" => settings.runs = words.next().context("--runs needs a number")?,
            "--keep" => settings.keep = true,
            name if known.iter().any(|known| known == name) => settings.targets.push(name),
            other => bail!("no target {other}; there are {}", known.join(", ")),
        }
    }
    let number = settings.runs.parse::<u64>();
    ensure!(number.is_ok(), "--runs {}: wanted a number", settings.runs);
    if settings.targets.is_empty() {
        settings.targets = known.iter().map(String::as_str).collect();
    }
    Ok(settings)
}

/// Builds the programs of targets; the folder they are in.
fn build(targets: &[&str]) -> Result<PathBuf> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let found = Command::new(&compiler).arg("--version").output().is_ok();
    ensure!(
        found,
        "libFuzzer is compiled by a C++ compiler and there is no {compiler}: install g++ or set CXX"
    );
    let folder = root().join("target");
    // Cargo asks this program to compile the workspace's crates and keeps them apart from the others.
    run(cargo()
        .args(["build", "--release", "--package", "fuzz", "--features", "libfuzzer"])
        .args(targets.iter().flat_map(|target| ["--bin", target]))
        .env("CARGO_TARGET_DIR", &folder)
        .env("RUSTC_WORKSPACE_WRAPPER", std::env::current_exe()?)
        .env(AS_COMPILER, "1"))?;
    Ok(folder.join("release"))
}

/// Where cargo asks for it, compiles a crate of the workspace, instrumented if it is to be followed.
pub(crate) fn as_compiler(words: &[&str]) -> Option<Result<()>> {
    let [rustc, rest @ ..] = words else { return None };
    std::env::var_os(AS_COMPILER)?;
    let mut command = Command::new(rustc);
    command.args(rest);
    let name = rest.iter().skip_while(|word| **word != "--crate-name").nth(1);
    let is_target = rest.iter().any(|word| word.contains("fuzz/targets/"));
    if name.is_some_and(|name| FOLLOWED.contains(name) || is_target) {
        command.args(INSTRUMENTED);
    }
    let status = command.status().with_context(|| format!("cannot start {rustc}"));
    Some(status.and_then(|status| {
        ensure!(status.success(), "{rustc}: {status}");
        Ok(())
    }))
}

/// Where a target's inputs are.
struct Corpus {
    /// Those found here, which may go.
    found: PathBuf,
    /// Those that are kept in the repository.
    kept: PathBuf,
    /// Those it begins with.
    seeds: PathBuf,
}

impl Corpus {
    /// Makes the folders, and writes the seeds.
    fn of(target: &str) -> Result<Self> {
        let beside = |what: &str| root().join("target/fuzz").join(what).join(target);
        let kept = root().join("fuzz/corpus").join(target);
        let corpus = Self { found: beside("found"), kept, seeds: beside("seeds") };
        for folder in [&corpus.found, &corpus.kept, &corpus.seeds] {
            std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        let program = ["run", "--quiet", "--release", "--package", "fuzz", "--bin", "seeds", "--"];
        run(cargo().args(program).arg(target).arg(&corpus.seeds))?;
        Ok(corpus)
    }

    fn folders(&self) -> [&Path; 3] {
        [&self.found, &self.kept, &self.seeds]
    }

    /// Puts in the place of what is kept the fewest inputs that reach every place all together reach.
    fn keep(&self, program: &Path) -> Result<()> {
        let fewest = self.found.with_extension("fewest");
        let gone = |folder: &Path| match std::fs::remove_dir_all(folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        gone(&fewest)?;
        std::fs::create_dir_all(&fewest)?;
        run(Command::new(program)
            // How often a place is reached would make it thousands.
            .args(["-set_cover_merge=1", "-use_counters=0", &format!("-max_len={MOST_BYTES}")])
            .arg(&fewest)
            .args(self.folders()))?;
        gone(&self.kept)?;
        std::fs::rename(&fewest, &self.kept)
            .context("cannot put the kept inputs in their place")?;
        Ok(())
    }
}

/// Runs one target. An input that breaks a law is left in `target/fuzz/faults`.
fn one(programs: &Path, target: &str, runs: &str, corpus: &Corpus) -> Result<()> {
    let faults = root().join("target/fuzz/faults");
    std::fs::create_dir_all(&faults)?;
    let mut command = Command::new(programs.join(target));
    command
        .arg(format!("-runs={runs}"))
        .arg(format!("-max_len={MOST_BYTES}"))
        .arg(format!("-timeout={PATIENCE}"))
        .arg(format!("-artifact_prefix={}/{target}-", faults.display()))
        .arg("-print_final_stats=1");
    let dictionary = root().join(format!("fuzz/dictionaries/{target}.dict"));
    if dictionary.exists() {
        command.arg(format!("-dict={}", dictionary.display()));
    }
    let ran = run(command.args(corpus.folders()));
    ran.with_context(|| {
        format!(
            "{target} broke a law, see above. Copy the input from {} to fuzz/corpus/{target}: then \
             `cargo test --release -p fuzz` shows it without libFuzzer",
            faults.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_named_or_all_and_the_rest_is_refused() {
        let known = ["bodies".to_owned(), "packed".to_owned()];
        let read = |words: &[&'static str]| {
            let settings = settings(words, &known).map_err(|error| error.to_string())?;
            Ok((settings.targets.join(" "), settings.runs.to_owned(), settings.keep))
        };
        let all = Ok(("bodies packed".to_owned(), RUNS.to_owned(), false));
        assert_eq!(read(&[]), all);
        let one = Ok(("packed".to_owned(), "7".to_owned(), true));
        assert_eq!(read(&["packed", "--runs", "7", "--keep"]), one);
        let refused: [(&[&str], &str); 3] = [
            (&["other"], "no target other; there are bodies, packed"),
            (&["--runs"], "--runs needs a number"),
            (&["--runs", "many"], "--runs many: wanted a number"),
        ];
        for (words, says) in refused {
            assert_eq!(read(words), Err(says.to_owned()));
        }
    }
}
