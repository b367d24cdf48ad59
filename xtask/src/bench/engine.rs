//! The engine alone, on random weights and tokens: `engine_bench` (package `model`) and its peer,
//! `tests/python/engine_peer.py`.

use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{Settings, median};
use crate::run::{read, root, say};

/// Steps that are not counted: memory is touched, caches are filled.
const WARM_UP: usize = 2;

/// One comparison: what both sides are told, as `engine_bench` reads it.
struct Pair {
    what: &'static str,
    ours: &'static str,
    peer: &'static str,
}

/// What is compared. `0` for k tells the peer to take the teacher's logits as they are, as one does in
/// PyTorch, and in scoring to stop at its logits.
const PAIRS: [Pair; 7] = [
    Pair {
        what: "step, small, 4 x 256, f32",
        ours: "step small 4x256 f32 64 14",
        peer: "step small 4x256 f32 64 14",
    },
    Pair {
        what: "step, small, 4 x 256, bf16",
        ours: "step small 4x256 bf16 64 14",
        peer: "step small 4x256 bf16 64 14",
    },
    Pair {
        what: "step, Qwen3-0.6B, 1 x 512, bf16",
        ours: "step qwen3-0.6b 1x512 bf16 64 5",
        peer: "step qwen3-0.6b 1x512 bf16 0 5",
    },
    Pair {
        what: "the same, --recompute blocks",
        ours: "step qwen3-0.6b 1x512 bf16 64 5 blocks",
        peer: "step qwen3-0.6b 1x512 bf16 0 5",
    },
    Pair {
        what: "the same, --recompute gradients",
        ours: "step qwen3-0.6b 1x512 bf16 64 5 gradients",
        peer: "step qwen3-0.6b 1x512 bf16 0 5",
    },
    Pair {
        what: "score, Qwen3-0.6B, 4 x 512, bf16",
        ours: "score qwen3-0.6b 4x512 bf16 64 6",
        peer: "score qwen3-0.6b 4x512 bf16 0 6",
    },
    Pair {
        what: "score, Qwen3-0.6B, 1 x 2,048, bf16",
        ours: "score qwen3-0.6b 1x2048 bf16 64 6",
        peer: "score qwen3-0.6b 1x2048 bf16 0 6",
    },
];

/// Ours alone, over the tokens of a batch: rows of one length, so that attention's share is the same.
const TOKENS: [&str; 4] = ["1x64", "4x64", "16x64", "64x64"];

/// Ours alone, over the classes: `loss` of 512 positions.
const CLASSES: [usize; 4] = [4_096, 16_384, 65_536, 151_936];

/// Ours alone: listed tokens beside hidden states as wide as Qwen3-4B's, as they are and in a code.
const SIGNALS: [&str; 3] = ["64", "full:2560", "coded:2560"];

/// A run of either side.
struct Run {
    /// Median of the steps that count.
    seconds: f64,
    peak_mib: f64,
    /// Above what was there before the first step.
    above_mib: f64,
}

/// Runs the benchmark.
pub(super) fn bench(settings: &Settings) -> Result<()> {
    let script = root().join("tests/python/engine_peer.py");
    let peer = settings.has_peer(&script);
    let head = ["ours", "torch", "faster", "memory"];
    say(format!("{:<38}{:>22}{:>22}{:>10}{:>10}", "", head[0], head[1], head[2], head[3]));
    for Pair { what, ours: our_words, peer: peer_words } in PAIRS {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..settings.rounds {
            ours.push(our_run(our_words)?);
            if peer {
                theirs.push(run(Command::new(&settings.python).arg(&script), peer_words)?);
            }
        }
        let cell = |runs: &[Run]| {
            let of = |figure: fn(&Run) -> f64| median(runs.iter().map(figure).collect());
            match runs {
                [] => "-".to_owned(),
                _ => format!("{:.3} s, {:.0} MiB", of(|r| r.seconds), of(|r| r.peak_mib)),
            }
        };
        let ratio = |figure: fn(&Run, &Run) -> f64| {
            let ratio =
                median(ours.iter().zip(&theirs).map(|(our, their)| figure(our, their)).collect());
            if ratio.is_nan() { "-".to_owned() } else { format!("{ratio:.2}") }
        };
        let faster = ratio(|our, their| their.seconds / our.seconds);
        let memory = ratio(|our, their| our.peak_mib / their.peak_mib);
        let (our_cell, their_cell) = (cell(&ours), cell(&theirs));
        say(format!("{what:<38}{our_cell:>22}{their_cell:>22}{faster:>10}{memory:>10}"));
        if what.starts_with("score") {
            let above = |runs: &[Run]| median(runs.iter().map(|run| run.above_mib).collect());
            let (our, their) = (above(&ours), above(&theirs));
            say(format!("{:<38}{our:>18.0} MiB{their:>18.0} MiB", "  above the weights"));
        }
    }
    scaling()
}

/// Whether time grows with the tokens and memory does not grow with the classes.
fn scaling() -> Result<()> {
    for (what, words) in [
        ("step, small, bf16: microseconds a token", "step small {} bf16 64 14"),
        ("score, Qwen3-0.6B, bf16: the same", "score qwen3-0.6b {} bf16 64 5"),
    ] {
        say(format!("\n{what}"));
        for tokens in TOKENS {
            let (rows, length) = tokens.split_once('x').context("ROWSxTOKENS")?;
            let count: f64 = rows.parse::<f64>()? * length.parse::<f64>()?;
            let seconds = our_run(&words.replace("{}", tokens))?.seconds;
            say(format!("{tokens:>8}{:>10.0}", 1e6 * seconds / count));
        }
    }
    say("\nloss, 512 positions, bf16: seconds, and MiB above matrix, gradient and hidden states");
    for classes in CLASSES {
        let run = our_run(&format!("loss qwen3-0.6b:{classes} 1x512 bf16 64 5"))?;
        say(format!("{classes:>8}{:>10.3}{:>10.0}", run.seconds, run.above_mib));
    }
    say("\nstep, Qwen3-0.6B, 1 x 512, bf16, by what the teacher says: seconds");
    for signal in SIGNALS {
        let run = our_run(&format!("step qwen3-0.6b 1x512 bf16 {signal} 5"))?;
        say(format!("{signal:>12}{:>10.3}", run.seconds));
    }
    Ok(())
}

fn our_run(words: &str) -> Result<Run> {
    run(&mut Command::new(root().join("target/release/engine_bench")), words)
}

fn run(program: &mut Command, words: &str) -> Result<Run> {
    let text = read(program.args(words.split(' ')))?;
    let line: Value = serde_json::from_str(text.lines().last().context("nothing was printed")?)?;
    let seconds = line["seconds"].as_array().context("no seconds")?;
    let counted = seconds.iter().skip(WARM_UP).filter_map(Value::as_f64).collect();
    let number = |name: &str| line[name].as_f64().with_context(|| format!("no {name}"));
    Ok(Run {
        seconds: median(counted),
        peak_mib: number("peak_mib")?,
        above_mib: number("above_mib")?,
    })
}
