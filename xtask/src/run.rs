//! Running other programs, and saying what is being done.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// Prints one line for the person at the terminal.
#[expect(clippy::print_stdout, reason = "the one place where xtask speaks")]
pub(crate) fn say(text: impl std::fmt::Display) {
    println!("{text}");
}

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the root").to_owned()
}

/// The cargo that runs us, as a person would call it: what it tells a program of its package is seen by the build scripts
/// of others, and a dependency that looks at it (ring) would be compiled once more, with all above it.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// When this program started: each command is shown with its time.
static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Runs a command to its end; an error when it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = announced(command);
    let status = command.status().with_context(|| format!("cannot start: {shown}"))?;
    ensure!(status.success(), "failed ({status}): {shown}");
    Ok(())
}

/// Runs a command and returns what it wrote to standard output.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let shown = shown(command);
    let output = command.output().with_context(|| format!("cannot start: {shown}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "failed ({}): {shown}\n{complaint}", output.status);
    String::from_utf8(output.stdout).with_context(|| format!("not UTF-8: the output of {shown}"))
}

/// What stands above a command's own output.
fn announced(command: &Command) -> String {
    let shown = shown(command);
    say(format!("\n[{:.0} s]\n$ {shown}", STARTED.elapsed().as_secs_f64()));
    shown
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// The crates that features change. Named together: features of dependencies are joined over all that is named, and those
/// of the trainer's are what the whole workspace has, so that none is compiled once more.
pub(crate) fn with_features(features: &str) -> impl Iterator<Item = &str> {
    let packages = ["kernels", "model", "teacher-server", "student-trainer"];
    let packages = packages.into_iter().flat_map(|package| ["--package", package]);
    ["--release", "--features", features].into_iter().chain(packages)
}

/// Builds their programs with these features; the folder in which they lie.
pub(crate) fn programs(mut cargo: Command, features: &str) -> Result<PathBuf> {
    run(cargo.args(["build", "--bins"]).args(with_features(features)))?;
    let text = read(self::cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: Value = serde_json::from_str(&text)?;
    let target =
        metadata["target_directory"].as_str().context("cargo names no target directory")?;
    Ok(Path::new(target).join("release"))
}

/// The programs of their library tests, by crate.
pub(crate) struct LibraryTests(HashMap<String, PathBuf>);

impl LibraryTests {
    /// Builds them with this cargo.
    pub(crate) fn build(mut cargo: Command, features: &str) -> Result<Self> {
        cargo.args(["test", "--lib", "--no-run", "--message-format", "json-render-diagnostics"]);
        cargo.args(with_features(features));
        let shown = announced(&cargo);
        let output = cargo.stderr(Stdio::inherit()).output()?;
        ensure!(output.status.success(), "failed ({}): {shown}", output.status);
        let messages = output.stdout.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        let messages = messages.map(serde_json::from_slice).collect::<Result<Vec<Value>, _>>()?;
        let programs = messages.iter().filter_map(|message| {
            let manifest = Path::new(message["manifest_path"].as_str()?);
            let package = manifest.parent()?.file_name()?.to_str()?;
            Some((package.to_owned(), PathBuf::from(message["executable"].as_str()?)))
        });
        Ok(Self(programs.collect()))
    }

    /// The program with a crate's tests.
    pub(crate) fn program(&self, package: &str) -> Result<&Path> {
        let program = self.0.get(package).with_context(|| format!("no tests of {package}"))?;
        Ok(program)
    }

    /// A command that runs a crate's tests of these names, where cargo would run them.
    ///
    /// # Errors
    /// A name that no test has: running none of them would pass.
    pub(crate) fn of(&self, package: &str, names: &[&str]) -> Result<Command> {
        let program = self.program(package)?;
        for name in names {
            let listed = read(Command::new(program).args(["--list", name]))?;
            ensure!(listed.contains(": test"), "{package} has no test that is called {name}");
        }
        let mut command = Command::new(program);
        command.current_dir(root().join(package)).args(names);
        Ok(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_test_has_is_refused() {
        let own = std::env::current_exe().unwrap();
        let tests = LibraryTests(HashMap::from([("xtask".to_owned(), own)]));
        assert!(tests.of("xtask", &["a_name_that_no_test"]).is_ok());
        let error = tests.of("xtask", &["a_name_that", "no_such_name"]).unwrap_err();
        assert!(error.to_string().contains("no_such_name"), "{error}");
        assert!(tests.of("model", &["a_name_that"]).is_err());
    }
}
