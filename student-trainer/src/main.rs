//! `student-trainer`: reads what was asked for and does it.
//!
//! Reading order: `cli` (the command line), `progress` (what a person sees; the one place that
//! prints), `keeping` (the commands of the cache), `fidelity_page` (the table of signals), `needs_page` (the plan of memory), `recorder` with `metrics`, `tensorboard` and `report` (what is kept of a run), `demo`.
//! The training itself is the library.

mod cli;
mod demo;
mod fidelity_page;
mod keeping;
mod metrics;
mod needs_page;
mod progress;
mod recorder;
mod report;
mod table;
mod tensorboard;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Context;
use student_trainer::config::{Config, EvalConfig, ProgressKind};
use student_trainer::stop::Stop;
use tracing_subscriber::EnvFilter;

use cli::{Asked, Refusal};
use progress::Console;
use recorder::Recorder;

fn main() -> ExitCode {
    model::malloc::tune();
    let text = |(name, value): (OsString, OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    let environment = std::env::vars_os().filter_map(text).collect();
    let asked = match cli::read(std::env::args_os(), &environment) {
        Ok(asked) => asked,
        Err(refusal) => return refuse(refusal),
    };
    let console = Console::new(match &asked {
        Asked::Train(config) => config.progress,
        Asked::Eval(config) => config.progress,
        Asked::Demo(config) => config.progress,
        Asked::CacheBuild(config) => config.progress,
        Asked::Signals(config) => config.progress,
        Asked::CacheVerify(_)
        | Asked::CacheInfo(_)
        | Asked::CacheExport(_)
        | Asked::CacheImport(_)
        | Asked::Plan(_)
        | Asked::DemoData(_)
        | Asked::MakeModels(_) => ProgressKind::Auto,
    });
    listen_to_logs(&console);
    let stop = Stop::default();
    match carry_out(asked, &console, &stop) {
        Ok(code) => code,
        Err(error) => {
            console.stop_bar();
            console.say(&format!("error: {}", complaint(&error)));
            // Whatever it was that a stop cut short.
            if stop.requested() { ExitCode::from(stop.exit_code()) } else { ExitCode::FAILURE }
        }
    }
}

/// An error and its causes, without those it has told already.
fn complaint(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if told.contains(&cause) {
            continue;
        }
        if !told.is_empty() {
            told.push_str(": ");
        }
        told.push_str(&cause);
    }
    told
}

/// Says what is wrong with the command line or the settings: status 2 (help: 0).
fn refuse(refusal: Refusal) -> ExitCode {
    match refusal {
        Refusal::Line(error) => error.exit(),
        Refusal::Settings(faults) => {
            let console = Console::new(ProgressKind::None);
            faults.iter().for_each(|fault| console.say(&format!("error: {fault}")));
            ExitCode::from(2)
        }
    }
}

/// What is logged unless `RUST_LOG` says otherwise.
const DEFAULT_LOG: &str = "warn,hub=info";

/// Log lines go to stderr, around the progress bar; `RUST_LOG` says which, warnings and downloads by default.
fn listen_to_logs(console: &Console) {
    let asked = std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|text| !text.is_empty());
    let (filter, wrong) = match asked.map(EnvFilter::try_new) {
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (EnvFilter::new(DEFAULT_LOG), Some(error)),
        None => (EnvFilter::new(DEFAULT_LOG), None),
    };
    let (writer, colour) = (console.clone(), console.colour());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colour)
        .with_writer(move || writer.clone())
        .init();
    if let Some(error) = wrong {
        tracing::warn!("RUST_LOG cannot be used ({error}); the log is as without it");
    }
}

fn carry_out(asked: Asked, console: &Console, stop: &Stop) -> anyhow::Result<ExitCode> {
    // What has nothing to finish ends at once, as any program does.
    if asked.has_steps() {
        let teller = console.clone();
        stop.on_signals(move |text| teller.tell(text)).context("listening for signals")?;
    }
    match asked {
        Asked::Train(config) => return train(&config, console, stop),
        Asked::Eval(config) => evaluate(&config, console, stop)?,
        Asked::Plan(config) => needs_page::run(&config, console)?,
        Asked::Signals(config) => fidelity_page::run(&config, console, stop)?,
        Asked::Demo(config) => demo::run(&config, console, stop)?,
        Asked::CacheBuild(config) => return keeping::build(&config, console, stop),
        Asked::CacheVerify(config) => keeping::verify(&config, console)?,
        Asked::CacheInfo(config) => keeping::info(&config, console)?,
        Asked::CacheExport(config) => keeping::export(&config, console)?,
        Asked::CacheImport(config) => keeping::import(&config, console)?,
        Asked::DemoData(dir) => drop(demo::write_data(&dir)?),
        Asked::MakeModels(dir) => demo::make_models(&dir, console, stop)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn train(config: &Config, console: &Console, stop: &Stop) -> anyhow::Result<ExitCode> {
    let mut recorder = Recorder::new(config, console);
    let done = student_trainer::train::train(config, &mut recorder, stop);
    recorder.ended();
    let summary = done?;
    recorder.complete()?;
    if summary.stopped_early {
        return Ok(ExitCode::from(stop.exit_code()));
    }
    let table = progress::results(&summary);
    if !table.rows.is_empty() {
        console.result(&format!("\n{}\n", table.to_text()))?;
    }
    let outputs = config.output_dir.display();
    console.tell(&format!("wrote {outputs}  (report.html shows the run)"));
    Ok(ExitCode::SUCCESS)
}

fn evaluate(config: &EvalConfig, console: &Console, stop: &Stop) -> anyhow::Result<()> {
    let mut note = |text: &str| console.tell(text);
    let measured = student_trainer::measure::measure(config, &mut note, stop)?;
    if config.json {
        console.result(&format!("{}\n", serde_json::to_string_pretty(&measured)?))
    } else {
        console.result(&format!("{}\n", progress::measurement(&measured).to_text()))
    }
}
