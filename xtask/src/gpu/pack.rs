//! What `cargo xtask gpu` runs on a machine without Rust: programs and tests built with `--features cuda`, stripped, in one
//! folder, and this program itself.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::{CHECKS, PEER, PROGRAMS, TESTS};
use crate::emulated_card::FEATURES;
use crate::run::{LibraryTests, cargo, programs, root, run, say};

/// Fills `dir`.
pub(super) fn pack(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let built = programs(cargo(), FEATURES)?;
    for program in PROGRAMS {
        strip(&built.join(program), &dir.join(program))?;
    }
    let tests = LibraryTests::build(cargo(), FEATURES)?;
    for (package, name) in TESTS {
        for (_, _, asked) in CHECKS.iter().filter(|(_, of, _)| *of == name) {
            tests.of(package, &[asked])?;
        }
        strip(tests.program(package)?, &dir.join(name))?;
    }
    strip(&std::env::current_exe()?, &dir.join("xtask"))?;
    std::fs::copy(root().join("tests/python").join(PEER), dir.join(PEER))?;
    let bytes: u64 = std::fs::read_dir(dir)?
        .map(|entry| Ok(entry?.metadata()?.len()))
        .sum::<std::io::Result<u64>>()?;
    say(format!(
        "\n{} holds {:.1} MiB; on the machine with the card: {}/xtask gpu",
        dir.display(),
        bytes as f64 / f64::from(1 << 20),
        dir.display()
    ));
    Ok(())
}

fn strip(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("strip").arg("-o").arg(to).arg(from))
}
