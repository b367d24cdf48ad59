//! The commands of the repository: `cargo xtask verify | fix | oracle DIR | load | bench | fuzz |
//! emulated-card | gpu`.
//!
//! `verify` is everything CI checks and writes nothing but build artefacts; `fix` rewrites.

mod bench;
mod emulated_card;
mod fuzz;
mod gpu;
mod run;
mod tidy;
mod verify;

use anyhow::{Result, bail};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  verify        everything CI checks: formatting, tidy, clippy, documentation, tests
  fix           formats, and applies clippy's machine-applicable suggestions
  tidy          the checks of the repository's own shape alone
  oracle DIR…   runs golden-value folders (see docs/architecture.md, Proof) and prints the worst
                error of each kind beside its tolerance; exit status 1 beyond one
  load [--short] [PART…]
                the server under load, each part held against its figure: unary, stream, overload,
                memory, idle, overhead, wire; all by default (half an hour). --short takes two
                minutes and judges what does not depend on the machine's speed. --model DIR is
                whose overhead is measured
  bench [engine] [job] [start] [cache] [signals] [quantised] [--rounds N] [--rows N] [--top-k K] [--python PROGRAM]
                beside PyTorch in one alternating run: training steps and scoring on random
                weights, the notebook's whole job; the time a start takes; a cache's speed; what
                students become under each signal; and what quantising costs a teacher's. All but
                the last two by default
  fuzz [TARGET…] [--runs N] [--keep]
                libFuzzer on the targets of fuzz/, all by default, 1,000,000 times each; --keep
                puts the fewest inputs that reach every place into fuzz/corpus
  emulated-card [--test]
                builds a driver without a card, with the kernels as nvcc compiles them, and both programs to run on
                it (needs nvcc and c++); --test runs the tests of kernels and whole steps on it, and both services
  gpu --pack DIR
                builds what a machine with a card needs, stripped, into DIR (needs nvcc of CUDA 13.0)
  gpu [--bin-dir DIR] [--python PROGRAM] [--device cuda:N] [--minutes M] [--out DIR]
      [--parts checks,figures,job,sanitizer]
                on that machine (DIR/xtask gpu): every kernel against f64, golden values, a tiny
                distillation, then figures beside PyTorch's, a job at real shapes, NVIDIA's checker;
                a table, and JSON in gpu-report";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let Some(compiled) = fuzz::as_compiler(&words) {
        return compiled;
    }
    match words.as_slice() {
        [.., "--help" | "-h"] | ["help"] => {
            run::say(USAGE);
            Ok(())
        }
        ["verify"] => verify::verify(),
        ["fix"] => verify::fix(),
        ["tidy"] => tidy::check(),
        ["oracle", rest @ ..] if !rest.is_empty() => verify::oracle(rest),
        ["load", rest @ ..] => verify::load(rest),
        ["bench", rest @ ..] => bench::bench(rest),
        ["fuzz", rest @ ..] => fuzz::fuzz(rest),
        ["emulated-card"] => emulated_card::tell(),
        ["emulated-card", "--test"] => {
            let tests = run::LibraryTests::build(run::cargo(), emulated_card::FEATURES)?;
            emulated_card::test(&tests, &run::programs(run::cargo(), emulated_card::FEATURES)?)
        }
        ["gpu", rest @ ..] => gpu::gpu(rest),
        _ => {
            run::say(USAGE);
            bail!("unknown command: {}", words.join(" "))
        }
    }
}
