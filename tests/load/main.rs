//! Load: `cargo xtask load [--short] [PART…]`. Each part starts a server of its own as a process,
//! asks it, and holds what is found against the figure it must reach.
//!
//! `--short` takes a minute or two and judges what does not depend on the machine's speed:
//! failures, order, memory.

#![expect(clippy::print_stdout, reason = "it is a program")]

mod ask;
mod child;
mod device;
mod parts;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// How much is asked.
pub(crate) struct Scale {
    short: bool,
    unary: Duration,
    sequences: u64,
    overload: Duration,
    requests: u64,
    connections: usize,
    turns: usize,
    turn: Duration,
    wire: Duration,
}

const LONG: Scale = Scale {
    short: false,
    unary: Duration::from_secs(300),
    sequences: 10_000,
    overload: Duration::from_secs(30),
    requests: 1_000_000,
    connections: 5_000,
    turns: 30,
    turn: Duration::from_secs(3),
    wire: Duration::from_secs(10),
};

const SHORT: Scale = Scale {
    short: true,
    unary: Duration::from_secs(10),
    sequences: 2_000,
    overload: Duration::from_secs(5),
    requests: 100_000,
    // Below the 1,024 open files that many machines allow.
    connections: 400,
    turns: 2,
    turn: Duration::from_secs(1),
    wire: Duration::from_secs(3),
};

const PARTS: [&str; 7] = ["unary", "stream", "overload", "memory", "idle", "overhead", "wire"];

/// Something that was measured, and what it must reach.
pub(crate) struct Figure {
    name: String,
    found: f64,
    bound: Option<(&'static str, f64)>,
    unit: &'static str,
    timed: bool,
}

impl Figure {
    fn at_most(name: &str, found: f64, most: f64, unit: &'static str) -> Self {
        Self { bound: Some(("≤", most)), ..Self::told(name, found, unit) }
    }

    fn at_least(name: &str, found: f64, least: f64, unit: &'static str) -> Self {
        Self { bound: Some(("≥", least)), ..Self::told(name, found, unit) }
    }

    /// Nothing is asked of it.
    fn told(name: &str, found: f64, unit: &'static str) -> Self {
        Self { name: name.to_owned(), found, bound: None, unit, timed: false }
    }

    /// It depends on the machine's speed: the short form shows it and does not judge it.
    fn timed(self) -> Self {
        Self { timed: true, ..self }
    }

    fn missed(&self, scale: &Scale) -> bool {
        let judged = !(scale.short && self.timed);
        judged
            && self.bound.is_some_and(|(sign, bound)| match sign {
                "≤" => self.found > bound,
                _ => self.found < bound,
            })
    }

    fn line(&self, scale: &Scale) -> String {
        let bound = self.bound.map(|(sign, b)| format!("{sign} {b} {}", self.unit));
        let word = match (&bound, self.missed(scale)) {
            (None, _) => "",
            (Some(_), true) => "MISSED",
            (Some(_), false) if scale.short && self.timed => "not judged",
            (Some(_), false) => "ok",
        };
        let found = format!("{:.2} {}", self.found, self.unit);
        format!(
            "| {} | {} | {} | {word} |",
            self.name,
            found.trim(),
            bound.unwrap_or_default().trim()
        )
    }
}

/// The value of an option among words; its default where it is not there.
fn value<T: std::str::FromStr>(words: &[String], name: &str, default: T) -> Result<T> {
    let Some(place) = words.iter().position(|word| word == name) else { return Ok(default) };
    let word = words.get(place + 1).with_context(|| format!("{name} needs a value"))?;
    word.parse().map_err(|_| anyhow::anyhow!("{name} {word}: no such value"))
}

fn main() -> Result<()> {
    // As the programs do.
    model::malloc::tune();
    // Cargo adds --bench.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let model = value(&words, "--model", String::new())?;
    let seconds = Duration::from_secs(value(&words, "--seconds", 10)?);
    match words.first().map(String::as_str) {
        Some("serve") => {
            let (rate, connections) =
                (value(&words, "--rate", 0.0)?, value(&words, "--connections", 256)?);
            return device::Server { rate, model, connections }.run();
        }
        Some("bare") => return bare(model, seconds),
        Some("ask") => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let url: String = value(&words, "--url", String::new())?;
            let at_once = value(&words, "--at-once", 16)?;
            let length = value(&words, "--length", 1024)?;
            return in_turn(|| runtime.block_on(parts::rate(&url, at_once, length, 64, seconds)));
        }
        _ => {}
    }
    load(&words, &model)
}

/// Every part that is named, all of them by default, and a table.
fn load(words: &[String], model: &str) -> Result<()> {
    let scale = if words.iter().any(|word| word == "--short") { SHORT } else { LONG };
    let named: Vec<&str> =
        words.iter().map(String::as_str).filter(|word| !word.starts_with("--")).collect();
    let named: Vec<&str> = named.into_iter().filter(|word| *word != model).collect();
    if let Some(word) = named.iter().find(|word| !PARTS.contains(word)) {
        bail!("unknown part {word}: load has {}", PARTS.join(", "));
    }
    let model = match model {
        "" => concat!(env!("CARGO_MANIFEST_DIR"), "/../student-trainer/demo/teacher"),
        model => model,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut missed = 0;
    println!("| what | found | wanted | |\n|---|---|---|---|");
    for part in PARTS.into_iter().filter(|part| named.is_empty() || named.contains(part)) {
        let figures = runtime
            .block_on(async {
                match part {
                    "unary" => parts::unary(&scale).await,
                    "stream" => parts::stream(&scale).await,
                    "overload" => parts::overload(&scale).await,
                    "memory" => parts::memory(&scale).await,
                    "idle" => parts::idle(&scale).await,
                    "overhead" => parts::overhead(&scale, model),
                    _ => parts::wire(&scale),
                }
            })
            .with_context(|| format!("the part {part}"))?;
        for figure in figures {
            missed += usize::from(figure.missed(&scale));
            println!("{}", figure.line(&scale));
        }
    }
    ensure!(missed == 0, "{missed} figures were missed");
    Ok(())
}

/// Prints what is measured, once for each line that is read.
fn in_turn(mut measure: impl FnMut() -> Result<f64>) -> Result<()> {
    for line in std::io::stdin().lines() {
        line?;
        println!("{}", measure()?);
    }
    Ok(())
}

/// Tokens a second of the model alone, on the thread that calls: 64 sequences at a time.
fn bare(model: String, time: Duration) -> Result<()> {
    let mut loaded = device::load(model).map_err(|e| anyhow::anyhow!("{e}"))?;
    let classes = loaded.facts.vocab_size as usize;
    let job = |id| {
        let codec = distill::codec::Codec::Packed;
        ask::job(id, parts::SEQUENCE, 64.min(classes), classes, codec)
    };
    let jobs: Vec<_> = (0..64).map(job).collect();
    let jobs: Vec<_> = jobs.iter().collect();
    loaded.scorer.score(&jobs)?;
    in_turn(|| {
        let (begin, mut tokens) = (Instant::now(), 0);
        while begin.elapsed() < time {
            loaded.scorer.score(&jobs)?;
            tokens += 64 * parts::SEQUENCE;
        }
        Ok(tokens as f64 / begin.elapsed().as_secs_f64())
    })
}
