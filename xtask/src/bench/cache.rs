//! The cache: answers in and out, opening, and what it makes of an epoch, beside plain fine-tuning and
//! beside asking a teacher.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::job::start_teacher;
use super::{Settings, median};
use crate::run::{read, root, say};

/// Rows, scored positions of each, entries a position.
const ANSWERS: [&str; 3] = ["2000", "150", "64"];
const RECORDS: &str = "10000000";

/// Runs the benchmark.
pub(super) fn bench(settings: &Settings) -> Result<()> {
    let place = root().join("target/bench/cache");
    let (mut read_rate, mut write_rate, mut spent) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..settings.rounds {
        let mut words = vec!["throughput"];
        words.extend(ANSWERS);
        let found = measure(&place, &words)?;
        read_rate.push(number(&found, "read_tokens_per_second")?);
        write_rate.push(number(&found, "write_tokens_per_second")?);
        spent.push(1e6 * number(&found, "write_seconds_per_token")?);
    }
    let (read_rate, write_rate) = (median(read_rate), median(write_rate));
    say(format!("top-64 out of the cache, page cache warm: {read_rate:.0} tokens/s, one thread"));
    say(format!(
        "top-64 into the cache: {write_rate:.0} tokens/s; of it on the training thread, {:.2} us a token",
        median(spent)
    ));
    let found = measure(&place, &["open", RECORDS])?;
    let (seconds, bytes) = (number(&found, "seconds")?, number(&found, "index_bytes_per_record")?);
    say(format!("opening {RECORDS} records: {seconds:.2} s, {bytes:.1} bytes of index a record"));
    epochs(settings, &place)
}

/// Runs of one epoch in turn: without a teacher, from a full cache, asking a teacher, and filling an
/// empty cache.
fn epochs(settings: &Settings, place: &Path) -> Result<()> {
    let (mut teacher, grpc, _) = start_teacher(&settings.model("gsm8k-teacher")?)?;
    let url = format!("grpc://{grpc}");
    let ran = (|| {
        let full = place.join("full");
        let full = full.display().to_string();
        let empty = place.join("empty").display().to_string();
        train(settings, &["--teacher", &url, "--cache", &full])?;
        let (mut cached, mut filled) = (Vec::new(), Vec::new());
        for round in 1..=settings.rounds {
            say(format!("round {round} of {}", settings.rounds));
            let plain = train(settings, &["--alpha", "0"])?;
            cached.push(train(settings, &["--cache", &full])? / plain);
            let asked = train(settings, &["--teacher", &url])?;
            drop(std::fs::remove_dir_all(&empty));
            filled.push(train(settings, &["--teacher", &url, "--cache", &empty])? / asked);
        }
        let (cached, filled) = (median(cached), median(filled));
        say(format!("an epoch from a full cache: {cached:.3} of plain fine-tuning's time"));
        say(format!("an epoch that fills a cache: {filled:.3} of the time without one"));
        Ok(())
    })();
    teacher.kill()?;
    teacher.wait()?;
    ran
}

/// Seconds of the steps of one epoch.
fn train(settings: &Settings, more: &[&str]) -> Result<f64> {
    let shared = |path: &str| settings.shared.join(path).display().to_string();
    let output = root().join("target/bench/epoch");
    let mut command = Command::new(root().join("target/release/student-trainer"));
    command
        .args(["train", "--student", &shared("models/gsm8k-student"), "--num-train-epochs", "1"])
        .args(["--train-file", &shared("data/gsm8k/train.jsonl"), "--loss-on", "all"])
        .args(["--max-train-samples", &settings.rows, "--top-k", &settings.top_k])
        .args(["--overwrite-output-dir", "--save-steps", "0", "--dtype", "f32"])
        .args(["--progress", "none", "--output-dir"])
        .arg(&output)
        .args(more)
        .stdout(Stdio::null());
    read(&mut command)?;
    let text = std::fs::read_to_string(output.join("summary.json"))?;
    number(&serde_json::from_str(&text)?, "train_seconds")
}

/// What `cache_bench` says, run in an empty directory.
fn measure(place: &Path, words: &[&str]) -> Result<Value> {
    drop(std::fs::remove_dir_all(place));
    let mut bench = Command::new(root().join("target/release/cache_bench"));
    let text = read(bench.arg(place).args(words))?;
    std::fs::remove_dir_all(place).context("the cache measured")?;
    Ok(serde_json::from_str(text.lines().last().context("nothing was printed")?)?)
}

fn number(found: &Value, name: &str) -> Result<f64> {
    found[name].as_f64().with_context(|| format!("no {name}"))
}
