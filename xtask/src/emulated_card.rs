//! A driver without a card (`kernels/emulation/driver`) and the kernels as nvcc compiles them, as the libraries that a
//! program looks for when it opens one: what drives a card, and what is compiled for one, then runs as it is on a
//! machine that has none.

mod ptx;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::gpu::job;
use crate::run::{LibraryTests, cargo, programs, root, run, say};

/// Where its sources lie, and where else they look for what they include.
const DRIVER: &str = "kernels/emulation/driver";
const INCLUDED: [&str; 3] = ["kernels/cuda", "kernels/emulation", DRIVER];
/// As `kernels/build.rs` compiles the emulation, and why; numbers wrap as a card's do.
const FLAGS: [&str; 8] = [
    "-std=c++20",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fwrapv",
    "-fno-strict-aliasing",
    "-U_FORTIFY_SOURCE",
    "-Wall",
];
/// What nvcc makes of the kernels.
const COMPILED: &str = "kernels.ptx";
/// For what nvcc compiled: not all registers are used, nor written on a path that never reads them.
const AS_COMPILED: [&str; 3] = ["-O1", "-Wno-unused", "-Wno-maybe-uninitialized"];

/// What gives every crate its side of cards.
pub(crate) const FEATURES: &str = "teacher-server/cuda,student-trainer/cuda";

/// Builds it; the folder that `LD_LIBRARY_PATH` is to name.
pub(crate) fn build() -> Result<PathBuf> {
    let folder = root().join("target/emulated-card");
    std::fs::create_dir_all(&folder)?;
    let mut objects = compiled_kernels(&folder)?;
    let sources = sources(DRIVER, "cpp")?.into_iter();
    let sources = sources.chain([root().join("kernels/emulation/blocks.cpp")]);
    objects.push(object(&including(&folder.join("driver.cpp"), sources)?, &["-O2", "-Wextra"])?);
    let library = folder.join("libcuda.so");
    run(Command::new(compiler()).arg("-shared").arg("-o").arg(&library).args(&objects))?;
    let products = folder.join("libcublasLt.so");
    if products.symlink_metadata().is_err() {
        symlink("libcuda.so", &products)
            .with_context(|| format!("cannot make {}", products.display()))?;
    }
    Ok(folder)
}

/// The kernels, compiled by nvcc for a card and from that for the host, by as many compilers as there are cores.
fn compiled_kernels(folder: &Path) -> Result<Vec<PathBuf>> {
    let source = including(&folder.join("all.cu"), sources("kernels/cuda", "cu")?.into_iter())?;
    let compiled = folder.join(COMPILED);
    // What cards newer than all are given; that for older ones differs in how a bfloat16 is widened, and in nothing else.
    run(Command::new(nvcc())
        .args(["-ptx", "-arch=compute_90", "-std=c++17", "-O3", "-o"])
        .arg(&compiled)
        .arg(format!("-I{}", root().join("kernels/cuda").display()))
        .arg(source))?;
    let text = std::fs::read_to_string(&compiled)?;
    let parts = ptx::translate(&text, thread::available_parallelism()?.get())
        .with_context(|| format!("{}", compiled.display()))?;
    thread::scope(|scope| {
        let parts = parts.into_iter().enumerate().map(|(at, part)| {
            let source = folder.join(format!("kernels-{at}.cpp"));
            scope.spawn(move || {
                std::fs::write(&source, part)?;
                object(&source, &AS_COMPILED)
            })
        });
        let threads: Vec<_> = parts.collect();
        threads.into_iter().map(|part| part.join().expect("a compiler's thread")).collect()
    })
}

/// Compiles a source for the host.
fn object(source: &Path, more: &[&str]) -> Result<PathBuf> {
    let object = source.with_extension("o");
    run(Command::new(compiler())
        .args(FLAGS)
        .args(more)
        .args(INCLUDED.map(|folder| format!("-I{}", root().join(folder).display())))
        .args([Path::new("-c"), source, Path::new("-o"), &object]))?;
    Ok(object)
}

fn compiler() -> String {
    std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned())
}

/// The files of a folder that end so.
fn sources(folder: &str, end: &str) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(root().join(folder))?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let mut paths: Vec<PathBuf> =
        paths.into_iter().filter(|path| path.extension().is_some_and(|e| e == end)).collect();
    paths.sort();
    Ok(paths)
}

/// A source that includes these.
fn including(path: &Path, sources: impl Iterator<Item = PathBuf>) -> Result<PathBuf> {
    let lines = sources.map(|source| format!("#include \"{}\"\n", source.display()));
    std::fs::write(path, lines.collect::<String>())?;
    Ok(path.to_owned())
}

/// Where nvcc is, as the kernels' build looks for it.
pub(crate) fn nvcc() -> PathBuf {
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os);
    let homes = homes.map(PathBuf::from).chain([PathBuf::from("/usr/local/cuda")]);
    let installed = homes.map(|home| home.join("bin/nvcc")).find(|path| path.exists());
    installed.unwrap_or_else(|| PathBuf::from("nvcc"))
}

/// Runs the tests of kernels, of whole steps and of what is started ahead on it, which together run every kernel; both
/// services, that lie in `programs`; and without it what is said where no card can be used.
pub(crate) fn test(tests: &LibraryTests, programs: &Path) -> Result<()> {
    let folder = build()?;
    run(&mut tests.of("kernels", &["a_card_that_is_not_there"])?)?;
    run(&mut tests.of("model", &["where_no_card_can_be_used"])?)?;
    let ran = folder.join("ran.txt");
    std::fs::write(&ran, "")?;
    let steps = ["card::", "emulated_tests::", "golden_c_on_a_card", "where_no_card_can_be_used"];
    for (package, names) in [
        ("kernels", &steps[..1]),
        ("model", &steps),
        ("teacher-server", &["tests::ahead"]),
        ("student-trainer", &["ahead_tests"]),
    ] {
        run(tests
            .of(package, names)?
            .env("LD_LIBRARY_PATH", &folder)
            // Its usual number of cards: that something is set tells a test of messages that this driver can be set.
            .env("EMULATED_CARD", "count=1")
            .env("EMULATED_CARD_RAN", &ran)
            .env("LIMBECK_TEST_DEVICE", "cuda:0"))?;
    }
    let (compiled, ran) =
        (std::fs::read_to_string(folder.join(COMPILED))?, std::fs::read_to_string(&ran)?);
    let missed: Vec<&str> =
        ptx::kernels(&compiled).filter(|kernel| ran.lines().all(|line| line != *kernel)).collect();
    ensure!(
        missed.is_empty(),
        "no test runs {}: give them one (model/src/ops/emulated_tests), or take them out of kernels/cuda",
        missed.join(", ")
    );
    say(format!("\nall {} kernels ran", ptx::kernels(&compiled).count()));
    let at = job::Where {
        programs,
        device: "cuda:0",
        libraries: Some(&folder),
        by: Instant::now() + Duration::from_secs(300),
    };
    let apart = job::tiny(&at, &job::SECONDS_OF_AN_EMULATION).context("both services on it")?;
    say(format!("both services on it: losses at most {apart:.1e} from the processor's"));
    Ok(())
}

/// Builds it and says how it is used.
pub(crate) fn tell() -> Result<()> {
    let folder = build()?;
    let programs = programs(cargo(), FEATURES)?;
    say(format!(
        "LD_LIBRARY_PATH={} {}/student-trainer train --device cuda:0 …",
        folder.display(),
        programs.display()
    ));
    Ok(())
}
