//! The command line: built from the table of options, read into settings.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches};
use student_trainer::config::{
    CONFIG_VARIABLE, CacheBuildConfig, CacheConfig, CacheExportConfig, CacheImportConfig, Command,
    Config, DemoConfig, EvalConfig, Layers, OptionSpec, PlanConfig, SignalsConfig, options_of,
    unknown_variables,
};

/// What a person asked for.
#[derive(Debug)]
pub(crate) enum Asked {
    /// `train`
    Train(Box<Config>),
    /// `eval`
    Eval(Box<EvalConfig>),
    /// `cache build`
    CacheBuild(Box<CacheBuildConfig>),
    /// `cache verify`
    CacheVerify(CacheConfig),
    /// `cache info`
    CacheInfo(CacheConfig),
    /// `cache export`
    CacheExport(CacheExportConfig),
    /// `cache import`
    CacheImport(CacheImportConfig),
    /// `plan`
    Plan(Box<PlanConfig>),
    /// `signals`
    Signals(Box<SignalsConfig>),
    /// `demo`
    Demo(DemoConfig),
    /// `demo data`: where to write models and rows.
    DemoData(PathBuf),
    /// `demo make-models`: where to write them.
    MakeModels(PathBuf),
}

impl Asked {
    /// Whether there are steps between which it can be told to stop, with something to finish.
    pub(crate) fn has_steps(&self) -> bool {
        match self {
            Self::Train(_)
            | Self::Eval(_)
            | Self::CacheBuild(_)
            | Self::Signals(_)
            | Self::Demo(_)
            | Self::MakeModels(_) => true,
            Self::CacheVerify(_)
            | Self::CacheInfo(_)
            | Self::CacheExport(_)
            | Self::CacheImport(_)
            | Self::Plan(_)
            | Self::DemoData(_) => false,
        }
    }
}

/// Why nothing was done.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The command line itself: clap's own message, or its help.
    Line(clap::Error),
    /// Faults of the settings, all of them.
    Settings(Vec<String>),
}

/// Environment variables, by name.
pub(crate) type Environment = BTreeMap<String, String>;

/// Reads a command line, the environment and the file named with `--config`.
///
/// # Errors
/// [`Refusal`] with everything that is wrong.
pub(crate) fn read(
    arguments: impl IntoIterator<Item = impl Into<OsString>>,
    environment: &Environment,
) -> Result<Asked, Refusal> {
    let arguments = arguments.into_iter().map(|argument| dashed(argument.into()));
    let matches = command_line().try_get_matches_from(arguments).map_err(Refusal::Line)?;
    let unknown = unknown_variables(environment.keys().map(String::as_str));
    if !unknown.is_empty() {
        return Err(Refusal::Settings(unknown));
    }
    let variable = |name: &str| environment.get(name).cloned();
    let settings = |command, matches: &ArgMatches| layers(command, matches, variable);
    match matches.subcommand() {
        Some(("train", m)) => settings(Command::Train, m)
            .and_then(|layers| Config::from_layers(&layers))
            .map(|config| Asked::Train(Box::new(config))),
        Some(("eval", m)) => settings(Command::Eval, m)
            .and_then(|layers| EvalConfig::from_layers(&layers))
            .map(|config| Asked::Eval(Box::new(config))),
        Some(("plan", m)) => settings(Command::Plan, m)
            .and_then(|layers| PlanConfig::from_layers(&layers))
            .map(|config| Asked::Plan(Box::new(config))),
        Some(("signals", m)) => settings(Command::Signals, m)
            .and_then(|layers| SignalsConfig::from_layers(&layers))
            .map(|config| Asked::Signals(Box::new(config))),
        Some(("demo", m)) => match m.subcommand() {
            Some(("data", m)) => Ok(Asked::DemoData(path_of(m, "dir").unwrap_or_default())),
            Some(("make-models", m)) => {
                Ok(Asked::MakeModels(path_of(m, "dir").unwrap_or_default()))
            }
            Some(_) | None => settings(Command::Demo, m)
                .and_then(|layers| DemoConfig::from_layers(&layers))
                .map(Asked::Demo),
        },
        Some(("cache", m)) => match m.subcommand() {
            Some((name, m)) => read_cache(name, |command| settings(command, m)),
            None => Err(vec!["no command of cache given".to_owned()]),
        },
        // clap refuses other names itself.
        Some(_) | None => Err(vec!["no command given".to_owned()]),
    }
    .map_err(Refusal::Settings)
}

/// The commands of `cache`, with what was written for them.
fn read_cache(
    name: &str,
    settings: impl Fn(Command) -> Result<Layers, Vec<String>>,
) -> Result<Asked, Vec<String>> {
    Ok(match name {
        "build" => {
            let layers = settings(Command::CacheBuild)?;
            Asked::CacheBuild(Box::new(CacheBuildConfig::from_layers(&layers)?))
        }
        "verify" => Asked::CacheVerify(CacheConfig::from_layers(&settings(Command::CacheVerify)?)?),
        "export" => {
            Asked::CacheExport(CacheExportConfig::from_layers(&settings(Command::CacheExport)?)?)
        }
        "import" => {
            Asked::CacheImport(CacheImportConfig::from_layers(&settings(Command::CacheImport)?)?)
        }
        // clap lets no other name come here.
        _ => Asked::CacheInfo(CacheConfig::from_layers(&settings(Command::CacheInfo)?)?),
    })
}

/// `--learning_rate` as `--learning-rate`: other trainers spell flags so.
fn dashed(argument: OsString) -> OsString {
    match argument.to_str().and_then(|text| text.strip_prefix("--")) {
        Some(text) => {
            let name = text.find('=').unwrap_or(text.len());
            format!("--{}{}", text[..name].replace('_', "-"), &text[name..]).into()
        }
        None => argument,
    }
}

fn layers(
    command: Command,
    matches: &ArgMatches,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Layers, Vec<String>> {
    let flags: BTreeMap<_, _> = options_of(command)
        .filter_map(|option| {
            let values = matches.get_many::<String>(option.name)?;
            Some((option.name, values.cloned().collect::<Vec<_>>().join(",")))
        })
        .collect();
    let named = path_of(matches, "config")
        .or_else(|| variable(CONFIG_VARIABLE).filter(|p| !p.is_empty()).map(Into::into));
    let text = named.as_deref().map(read_config).transpose()?;
    let file = named.as_deref().zip(text.as_deref());
    Layers::new(command, flags, variable, file)
}

fn read_config(path: &Path) -> Result<String, Vec<String>> {
    std::fs::read_to_string(path)
        .map_err(|e| vec![format!("--config {}: cannot be read: {e}", path.display())])
}

fn path_of(matches: &ArgMatches, name: &str) -> Option<PathBuf> {
    matches.get_one::<PathBuf>(name).cloned()
}

/// The whole command line.
fn command_line() -> clap::Command {
    clap::Command::new("student-trainer")
        .version(env!("CARGO_PKG_VERSION"))
        .about(ABOUT)
        .after_help(GENERAL)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(command("train", TRAIN_ABOUT, Command::Train, TRAIN))
        .subcommand(command("eval", "Measure a model on held-out rows", Command::Eval, EVAL))
        .subcommand(command("plan", PLAN_ABOUT, Command::Plan, PLAN))
        .subcommand(command("signals", SIGNALS_ABOUT, Command::Signals, SIGNALS))
        .subcommand(cache())
        .subcommand(demo(command("demo", DEMO_ABOUT, Command::Demo, DEMO)))
}

/// A command with its options.
fn command(
    name: &'static str,
    about: &'static str,
    command: Command,
    examples: &'static str,
) -> clap::Command {
    let empty = clap::Command::new(name).about(about).after_help(examples).arg(config_file());
    options_of(command).fold(empty, |built, option| built.arg(argument(option)))
}

fn cache() -> clap::Command {
    clap::Command::new("cache")
        .about("Keep a teacher's answers, so that later runs ask for nothing")
        .after_help(CACHE)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(command(
            "build",
            "Ask a teacher about every row, once; stopped or killed, go on there the next time",
            Command::CacheBuild,
            CACHE,
        ))
        .subcommand(command(
            "verify",
            "Read every record; status 1 names those that are damaged",
            Command::CacheVerify,
            CACHE,
        ))
        .subcommand(command("info", "Say what a cache holds", Command::CacheInfo, CACHE))
        .subcommand(command(
            "export",
            "Write a cache as a Parquet file that other trainers read",
            Command::CacheExport,
            CACHE,
        ))
        .subcommand(command(
            "import",
            "Put the answers of such a file into a cache",
            Command::CacheImport,
            CACHE,
        ))
}

fn demo(command: clap::Command) -> clap::Command {
    let directory = |default, help| {
        Arg::new("dir")
            .long("output-dir")
            .value_name("DIR")
            .value_parser(clap::value_parser!(PathBuf))
            .default_value(default)
            .help(help)
    };
    let data = clap::Command::new("data")
        .about("Write the demonstration's models and rows, for runs of your own")
        .arg(directory(
            "demo-data",
            "Receives teacher/, student/, train.jsonl, eval.jsonl, and in tuning-*.jsonl the rows \
             the settings were chosen on",
        ));
    let make_models = clap::Command::new("make-models")
        .about("Train the demonstration's own teacher and student anew, from nothing")
        .arg(directory("student-trainer/demo", "Receives teacher/ and student/"));
    command.subcommand(data).subcommand(make_models)
}

fn config_file() -> Arg {
    Arg::new("config")
        .long("config")
        .value_name("FILE")
        .value_parser(clap::value_parser!(PathBuf))
        .help("TOML file of settings; its keys are the flags below with _ for -")
}

/// The flag of an option. All values are text here; `config` reads them, so that every fault of
/// every place is found at once and in the same words.
fn argument(option: &'static OptionSpec) -> Arg {
    let default = option.default.map(|text| format!(" [default: {text}]")).unwrap_or_default();
    let several = option.name == "teacher";
    let argument = Arg::new(option.name)
        .long(option.name)
        .value_name(option.value)
        .help(format!("{}{default}", option.help))
        .help_heading(option.group)
        .allow_negative_numbers(true)
        .action(if several { ArgAction::Append } else { ArgAction::Set });
    match option.switch {
        true => argument.num_args(0..=1).default_missing_value("true"),
        false => argument,
    }
}

const ABOUT: &str =
    "Distils a large language model into a small one, with a teacher that answers over gRPC.";

const GENERAL: &str = "\
Every option is a flag (--learning-rate), an environment variable (STUDENT_TRAINER_LEARNING_RATE)
and a key of the TOML file given with --config (learning_rate). Flags beat the environment, the
environment beats the file, the file beats the default.

Exit status: 0 done, 1 failed, 2 bad usage or configuration, 128 + the signal when it was stopped before
it was done. RUST_LOG=debug shows more.
Start with: student-trainer demo";

const TRAIN_ABOUT: &str = "Train a student on a teacher's signals";

const TRAIN: &str = "\
Examples:
  student-trainer train --teacher grpc://127.0.0.1:50051 --student Qwen/Qwen3-0.6B \\
      --train-file hf://datasets/timdettmers/openassistant-guanaco --output-dir out
  student-trainer train --config run.toml --learning-rate 1e-4 --output-dir out2
  student-trainer train --alpha 0 --student DIR --train-file rows.jsonl --output-dir plain

Every option is also a variable (STUDENT_TRAINER_LEARNING_RATE) and a key of the --config file
(learning_rate). --output-dir receives the model in Hugging Face form, metrics.jsonl, summary.json,
report.html, TensorBoard events in runs/ and checkpoints/.";

const EVAL: &str = "\
Examples:
  student-trainer eval --model out --eval-file test.jsonl
  student-trainer eval --model out --eval-file test.jsonl --teacher grpc://127.0.0.1:50051 --json

With a teacher: its perplexity on the same positions, KL(teacher || model) at --temperature on the
signal, and the share of positions where both find the same token most probable.";

const PLAN_ABOUT: &str = "Say what training takes of a device's memory, before anything is taken";

const PLAN: &str = "\
Examples:
  student-trainer plan --student Qwen/Qwen3-0.6B --device cuda:0
  student-trainer plan --student Qwen/Qwen3-0.6B --device cuda:0 --device-memory 24GiB \\
      --per-device-train-batch-size 16 --json
  student-trainer plan --config run.toml

Needs no teacher and no weights, and with --device-memory no card; the student's config.json and tokenizer.json
are read. On a card the figures are those of the step's own programs and an allowance for the driver; on the CPU they
are an estimate.
The status is 0 also where training would be refused: --json says so as `refusal`.";

const SIGNALS_ABOUT: &str = "Measure what each signal of a teacher is worth, on your own rows";

const SIGNALS: &str = "\
Examples:
  student-trainer signals --teacher grpc://127.0.0.1:50051 --student Qwen/Qwen3-0.6B --data rows.jsonl
  student-trainer signals --teacher grpc://127.0.0.1:50051 --student DIR --data rows.jsonl --budget 64

For each signal: bytes a position, the angle between the student's gradient under it and under the
teacher's full distribution, the ratio of their norms, the error of the loss, and the time on both
sides. A gradient 40 degrees off teaches something else than the teacher says.";

const CACHE: &str = "\
Examples:
  student-trainer cache build --cache answers --teacher grpc://127.0.0.1:50051 \\
      --student Qwen/Qwen3-0.6B --train-file rows.jsonl --eval-file held-out.jsonl
  student-trainer train --cache answers --student Qwen/Qwen3-0.6B --train-file rows.jsonl \\
      --eval-file held-out.jsonl --output-dir out
  student-trainer cache verify --cache answers
  student-trainer cache export --cache answers --parquet answers.parquet

A cache holds the answers of one model about ids of one tokenizer, for one --signal
and its parameters, and one --temperature where the signal depends on it. A run of anything else is refused.
train and eval fill a cache as they go, too (--cache).";

const DEMO_ABOUT: &str =
    "Distil a small student from a real teacher server on this machine, in about a minute";

const DEMO: &str = "\
Needs no network, no GPU and no arguments. Starts a teacher-server on a loopback port, trains the
same student with and without the teacher over several seeds, and shows which came nearer to the
teacher on text neither has seen.";

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;
