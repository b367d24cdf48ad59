//! A driver without a card (`kernels/emulation/driver`), as the libraries that a program looks for when it opens one:
//! what drives a card then runs as it is, on a machine that has none.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::run::{cargo, root, run, say};

/// Where its sources lie, and where else they look for what they include.
const DRIVER: &str = "kernels/emulation/driver";
const INCLUDED: [&str; 3] = ["kernels/cuda", "kernels/emulation", DRIVER];

/// Builds it; the folder that `LD_LIBRARY_PATH` is to name.
pub(crate) fn build() -> Result<PathBuf> {
    let folder = root().join("target/emulated-card");
    std::fs::create_dir_all(&folder)?;
    let mut sources = vec![root().join("kernels/emulation/blocks.cpp")];
    for (from, end) in [("kernels/cuda", "cu"), (DRIVER, "cpp")] {
        for entry in std::fs::read_dir(root().join(from))? {
            let path = entry?.path();
            sources.extend(Some(path).filter(|path| path.extension().is_some_and(|e| e == end)));
        }
    }
    sources.sort();
    let lines = sources.iter().map(|path| format!("#include \"{}\"\n", path.display()));
    let all = folder.join("all.cpp");
    std::fs::write(&all, lines.collect::<String>())?;
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let library = folder.join("libcuda.so");
    // As kernels/build.rs compiles the emulation, and why.
    run(Command::new(compiler)
        .args(["-std=c++20", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off"])
        .args(["-U_FORTIFY_SOURCE", "-Wall", "-Wextra"])
        .args(INCLUDED.map(|folder| format!("-I{}", root().join(folder).display())))
        .arg("-o")
        .arg(&library)
        .arg(&all))?;
    let products = folder.join("libcublasLt.so");
    if products.symlink_metadata().is_err() {
        symlink("libcuda.so", &products)
            .with_context(|| format!("cannot make {}", products.display()))?;
    }
    Ok(folder)
}

/// Runs the tests of kernels, and of whole steps, on it.
pub(crate) fn test(cargo_with: impl Fn() -> Command) -> Result<()> {
    let folder = build()?;
    let on_it = |package: &str, tests: &[&str]| {
        run(cargo_with()
            .args(["test", "--release", "--features", "cuda", "--package", package, "--lib", "--"])
            .args(tests)
            .env("LD_LIBRARY_PATH", &folder)
            // What usual numbers are set anew: a test of the driver itself knows it by this.
            .env("EMULATED_CARD", "count=1")
            .env("LIMBECK_TEST_DEVICE", "cuda:0"))
    };
    on_it("kernels", &["card::"])?;
    on_it("model", &["card::", "emulated_tests::"])
}

/// Builds it and says how it is used.
pub(crate) fn tell() -> Result<()> {
    let folder = build()?;
    run(cargo()
        .args(["build", "--release", "--features", "teacher-server/cuda,student-trainer/cuda"])
        .args(["--package", "teacher-server", "--package", "student-trainer"]))?;
    say(format!(
        "LD_LIBRARY_PATH={} target/release/student-trainer train --device cuda:0 …",
        folder.display()
    ));
    Ok(())
}
