//! The notebook's whole job. Ours is two processes over gRPC on loopback; the peer is one process that
//! holds both models.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{Settings, median};
use crate::run::{read, root, say};

/// One row of the table: a figure of a run.
type Figure = fn(&Run) -> f64;

/// What one run of the whole job took.
struct Run {
    whole_seconds: f64,
    train_tokens_per_second: f64,
    score_tokens_per_second: f64,
    peak_mib: f64,
    wire_bytes_per_token: f64,
    student_perplexity: f64,
    /// Per cent of the training's time.
    trainer_waiting: f64,
    /// Per cent of the time the teacher's device thread had something to do.
    teacher_handover: f64,
}

/// Runs the benchmark.
pub(super) fn bench(settings: &Settings) -> Result<()> {
    let peer = settings.has_peer(&settings.shared.join("bench/torch_seed_loop.py"));
    let (mut ours, mut f32s, mut bf16s) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=settings.rounds {
        say(format!("round {round} of {}", settings.rounds));
        ours.push(our_run(settings)?);
        if peer {
            f32s.push(peer_run(settings, "float32")?);
            bf16s.push(peer_run(settings, "bfloat16")?);
        }
    }
    table(&ours, &f32s, &bf16s);
    Ok(())
}

/// Our whole job: teacher started, student trained and evaluated, teacher stopped.
fn our_run(settings: &Settings) -> Result<Run> {
    let begun = Instant::now();
    let (mut teacher, grpc, http) = start_teacher(&settings.model("gsm8k-teacher")?)?;
    let output = root().join("target/bench");
    let trained = train(settings, &grpc, &output);
    let metrics = scrape(&http);
    let teacher_peak = peak_mib(teacher.id());
    teacher.kill()?;
    teacher.wait()?;
    trained?;
    let whole_seconds = begun.elapsed().as_secs_f64();
    let text = std::fs::read_to_string(output.join("summary.json"))?;
    let summary: Value = serde_json::from_str(&text)?;
    let number = |name: &str| summary[name].as_f64().with_context(|| format!("no {name}"));
    let metrics = metrics?;
    let compute = counter(&metrics, "teacher_compute_seconds_sum")?;
    let handover = counter(&metrics, "teacher_device_handover_seconds_total")?;
    Ok(Run {
        whole_seconds,
        train_tokens_per_second: number("tokens_per_second")?,
        score_tokens_per_second: counter(&metrics, "teacher_tokens_total")? / compute,
        peak_mib: number("peak_rss_bytes")? / f64::from(1 << 20) + teacher_peak?,
        wire_bytes_per_token: number("wire_bytes_per_token")?,
        student_perplexity: number("student_perplexity_after")?,
        trainer_waiting: 100.0 * number("teacher_wait_fraction")?,
        teacher_handover: 100.0 * handover / (handover + compute),
    })
}

pub(super) fn start_teacher(model: &Path) -> Result<(Child, String, String)> {
    let mut child = Command::new(root().join("target/release/teacher-server"))
        .args(["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--model"])
        .arg(model)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start teacher-server")?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut line)?;
    let (grpc, http) = line
        .trim()
        .strip_prefix("listening grpc=")
        .and_then(|rest| rest.split_once(" http="))
        .with_context(|| format!("the teacher's first line was {line:?}"))?;
    Ok((child, grpc.to_owned(), http.to_owned()))
}

fn train(settings: &Settings, grpc: &str, output: &Path) -> Result<()> {
    let shared = |path: &str| settings.shared.join(path).display().to_string();
    let mut command = Command::new(root().join("target/release/student-trainer"));
    command
        .args(["train", "--teacher", &format!("grpc://{grpc}")])
        .args(["--student", &shared("models/gsm8k-student")])
        .args(["--train-file", &shared("data/gsm8k/train.jsonl")])
        .args(["--eval-file", &shared("data/gsm8k/test.jsonl")])
        .args(["--max-train-samples", &settings.rows, "--max-eval-samples", "100"])
        .args(["--top-k", &settings.top_k])
        .args(["--loss-on", "all", "--shuffle", "false", "--max-grad-norm", "inf"])
        .args(["--overwrite-output-dir", "--dtype", "f32", "--progress", "none", "--output-dir"])
        .arg(output)
        .stdout(Stdio::null());
    read(&mut command).map(drop)
}

fn scrape(http: &str) -> Result<String> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(http)?;
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Value of a Prometheus sample without labels.
fn counter(metrics: &str, name: &str) -> Result<f64> {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = line.with_context(|| format!("the teacher's /metrics has no {name}"))?;
    value.trim().parse().with_context(|| format!("{name} is {value}"))
}

/// Largest resident memory a running process ever had.
fn peak_mib(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"))
        .context("no VmHWM")?;
    Ok(kib.trim().parse::<f64>()? / 1024.0)
}

fn peer_run(settings: &Settings, dtype: &str) -> Result<Run> {
    let shared = |path: &str| settings.shared.join(path).display().to_string();
    let begun = Instant::now();
    let mut command = Command::new(&settings.python);
    command
        .arg(settings.shared.join("bench/torch_seed_loop.py"))
        .args(["--teacher", &shared("models/gsm8k-teacher")])
        .args(["--student", &shared("models/gsm8k-student")])
        .args(["--train", &shared("data/gsm8k/train.jsonl")])
        .args(["--eval", &shared("data/gsm8k/test.jsonl")])
        .args(["--train-samples", &settings.rows, "--dtype", dtype]);
    let text = read(&mut command)?;
    let whole_seconds = begun.elapsed().as_secs_f64();
    let last = text.lines().last().context("the peer printed nothing")?;
    let line: Value = serde_json::from_str(last)?;
    let number = |name: &str| line[name].as_f64().with_context(|| format!("no {name}"));
    let mut scoring = Command::new(&settings.python);
    scoring.arg(root().join("tests/python/score_rate.py")).args([
        &shared("models/gsm8k-teacher"),
        &shared("data/gsm8k/train.jsonl"),
        dtype,
    ]);
    Ok(Run {
        whole_seconds,
        train_tokens_per_second: number("tokens_per_s")?,
        score_tokens_per_second: read(&mut scoring)?.trim().parse()?,
        peak_mib: number("peak_rss_mb")?,
        wire_bytes_per_token: f64::NAN,
        student_perplexity: number("student_ppl_after")?,
        trainer_waiting: f64::NAN,
        teacher_handover: f64::NAN,
    })
}

fn table(ours: &[Run], f32s: &[Run], bf16s: &[Run]) {
    say("\nmedians; in brackets the median over rounds of ours / theirs");
    say(format!("{:<34}{:>12}{:>24}{:>24}", "", "ours f32", "torch f32", "torch bf16"));
    let rows: [(&str, Figure); 8] = [
        ("whole job, s", |run| run.whole_seconds),
        ("training, tokens/s", |run| run.train_tokens_per_second),
        ("teacher scoring, tokens/s", |run| run.score_tokens_per_second),
        ("peak memory (both models), MiB", |run| run.peak_mib),
        ("wire, bytes a token of a row", |run| run.wire_bytes_per_token),
        ("student perplexity after", |run| run.student_perplexity),
        ("trainer waiting for the teacher, %", |run| run.trainer_waiting),
        ("teacher's thread handing out, %", |run| run.teacher_handover),
    ];
    for (name, figure) in rows {
        let own = median(ours.iter().map(figure).collect());
        let cell = |peers: &[Run]| {
            let theirs = median(peers.iter().map(figure).collect());
            let ratios = ours.iter().zip(peers).map(|(our, peer)| figure(our) / figure(peer));
            let ratio = median(ratios.collect());
            if theirs.is_nan() { "-".to_owned() } else { format!("{theirs:.1} ({ratio:.2})") }
        };
        say(format!("{name:<34}{own:>12.1}{:>24}{:>24}", cell(f32s), cell(bf16s)));
    }
}
