//! The gate: the same checks for a person and for CI, cheap ones first.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::run::{LibraryTests, cargo, programs, run, say, with_features};
use crate::{emulated_card, tidy};

/// Everything CI checks. Writes nothing but build artefacts.
pub(crate) fn verify() -> Result<()> {
    run(cargo().args(["fmt", "--all", "--check"]))?;
    tidy::check()?;
    let deny = ["--", "-D", "warnings"];
    run(cargo().args(["clippy", "--release", "--workspace", "--all-targets"]).args(deny))?;
    run(cargo()
        .args(["doc", "--release", "--workspace", "--no-deps", "--document-private-items"])
        .env("RUSTDOCFLAGS", "-D warnings"))?;
    run(cargo().args(["build", "--release", "--workspace", "--bins", "--examples"]))?;
    run(cargo().args(["test", "--release", "--workspace"]))?;
    load(&["--short"])?;
    features()?;
    say("\nverify: all checks passed");
    Ok(())
}

/// What the features add: spans of the teacher, and where nvcc is at hand the side of NVIDIA cards: the kernels compile for
/// each capability, the programs build without a card, and what drives one, with what nvcc compiles, does so over a
/// driver that has none.
fn features() -> Result<()> {
    let nvcc = run(Command::new(emulated_card::nvcc()).arg("--version"));
    if let Err(error) = &nvcc {
        let required = std::env::var("LIMBECK_REQUIRE").unwrap_or_default();
        ensure!(!required.split(',').any(|word| word == "nvcc"), "nvcc is required: {error}");
        say("SKIPPED the side of NVIDIA cards: no nvcc (CUDA_HOME)");
    }
    // What nvcc warns of is an error here.
    let cargo = || {
        let mut command = cargo();
        command.env("KERNELS_STRICT", "1");
        command
    };
    let with_cards = format!("teacher-server/otel,{}", emulated_card::FEATURES);
    let features = if nvcc.is_ok() { &with_cards } else { "teacher-server/otel" };
    let deny = ["--all-targets", "--", "-D", "warnings"];
    run(cargo().arg("clippy").args(with_features(features)).args(deny))?;
    let tests = LibraryTests::build(cargo(), features)?;
    run(&mut tests.of("teacher-server", &["otel"])?)?;
    if nvcc.is_ok() {
        emulated_card::test(&tests, &programs(cargo(), features)?)?;
    }
    Ok(())
}

/// Formats, and applies what clippy can apply by itself.
pub(crate) fn fix() -> Result<()> {
    run(cargo().args(["fmt", "--all"]))?;
    run(cargo().args(["clippy", "--fix", "--allow-dirty", "--release", "--workspace"]))
}

/// The server under load.
pub(crate) fn load(words: &[&str]) -> Result<()> {
    run(cargo().args(["bench", "--quiet", "--workspace", "--bench", "load", "--"]).args(words))
}

/// Hands golden-value folders to the program that checks them: xtask itself imports no crate of
/// the workspace.
pub(crate) fn oracle(folders: &[&str]) -> Result<()> {
    let program = ["run", "--quiet", "--release", "--bin", "oracle", "--"];
    let mut failed = 0;
    for folder in folders {
        // Cargo runs in the repository's root; the folder is named from where the person stands.
        let folder = std::path::absolute(folder)?;
        say(format!("\n{}", folder.display()));
        failed += usize::from(!cargo().args(program).arg(folder).status()?.success());
    }
    ensure!(failed == 0, "{failed} of {} folders failed", folders.len());
    Ok(())
}
