//! The settings of a run: what was written becomes what is meant, or a list of all that is wrong.
//!
//! Reading order: `options` (the table of names, defaults and help), `layers` (flags over
//! environment over file over defaults), `reader` (text to typed values), then this file.

mod cache;
mod command;
mod comparison;
mod fidelity;
mod kinds;
mod layers;
mod options;
mod plan;
mod profile;
mod reader;
mod signal;
mod teachers;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use model::profile::Turns;
use proto::limits::{MAX_TEMPERATURE, MIN_TEMPERATURE};
use serde::{Serialize, Serializer};

pub use cache::{CacheBuildConfig, CacheConfig, CacheExportConfig, CacheImportConfig};
pub use command::{Command, OptionSpec, VARIABLE_PREFIX};
use comparison::{beta, comparison};
pub use fidelity::SignalsConfig;
pub use kinds::{
    ChatTemplateUse, Choice, CodecKind, DivergenceKind, DtypeChoice, HiddenFormKind, LossOn,
    OnMemory, ProgressKind, RecomputeChoice, Resume, SaveDtype, SchedulerKind, SignalKind,
    StudentInit, TailKind,
};
pub use layers::{CONFIG_VARIABLE, Layers, Origin, Written, unknown_variables};
pub use options::{OPTIONS, options_of};
pub use plan::PlanConfig;
use plan::gradients_add_up;
use reader::Reader;
pub use signal::{DEFAULT_SIGNAL_ERROR, SignalConfig};
use teachers::teachers;

use client::Access;

/// Everything `train` needs to know. Fields are named as the flags; [`OPTIONS`] says what each
/// means.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "each field is the option of the same name in OPTIONS")]
pub struct Config {
    pub teacher: Vec<String>,
    #[serde(flatten, serialize_with = "teachers::papers")]
    pub access: Access,
    pub teacher_timeout: f64,
    pub teacher_window: usize,
    /// MiB for the teacher's answers.
    pub teacher_memory: usize,
    /// Where the teacher's answers are kept over runs.
    pub cache: Option<String>,
    pub student: String,
    pub student_revision: Option<String>,
    pub student_init: StudentInit,
    pub train_file: String,
    pub eval_file: Option<String>,
    pub max_train_samples: Option<usize>,
    pub max_eval_samples: Option<usize>,
    pub max_length: usize,
    pub loss_on: LossOn,
    pub chat_template: ChatTemplateUse,
    pub shuffle: bool,
    pub seed: u64,
    pub alpha: f64,
    pub temperature: f64,
    #[serde(flatten)]
    pub signal: SignalConfig,
    pub tail: TailKind,
    pub divergence: DivergenceKind,
    pub beta: f64,
    pub learning_rate: f64,
    pub lr_scheduler_type: SchedulerKind,
    pub warmup_steps: usize,
    pub weight_decay: f64,
    pub adam_beta1: f64,
    pub adam_beta2: f64,
    pub adam_epsilon: f64,
    #[serde(serialize_with = "finite_or_word")]
    pub max_grad_norm: f64,
    pub num_train_epochs: usize,
    /// Steps after which to stop; where it is given, epochs do not count.
    pub max_steps: Option<usize>,
    pub per_device_train_batch_size: usize,
    pub gradient_accumulation_steps: usize,
    pub device: String,
    pub dtype: DtypeChoice,
    pub recompute: RecomputeChoice,
    pub on_memory: OnMemory,
    pub output_dir: PathBuf,
    pub overwrite_output_dir: bool,
    pub save_dtype: SaveDtype,
    pub eval_steps: Option<usize>,
    /// Steps between checkpoints; 0 writes none.
    pub save_steps: usize,
    pub save_total_limit: usize,
    pub resume_from_checkpoint: Resume,
    pub logging_steps: usize,
    pub profile: Option<PathBuf>,
    pub profile_steps: Turns,
    pub progress: ProgressKind,
}

/// Everything `eval` needs to know. Fields are named as the flags.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "each field is the option of the same name in OPTIONS")]
pub struct EvalConfig {
    pub model: String,
    pub revision: Option<String>,
    pub eval_file: String,
    pub teacher: Vec<String>,
    #[serde(flatten, serialize_with = "teachers::papers")]
    pub access: Access,
    pub teacher_timeout: f64,
    pub teacher_window: usize,
    /// Where the teacher's answers are kept over runs.
    pub cache: Option<String>,
    pub max_eval_samples: Option<usize>,
    pub max_length: usize,
    pub loss_on: LossOn,
    pub chat_template: ChatTemplateUse,
    pub temperature: f64,
    #[serde(flatten)]
    pub signal: SignalConfig,
    pub tail: TailKind,
    pub divergence: DivergenceKind,
    pub beta: f64,
    pub per_device_train_batch_size: usize,
    pub device: String,
    pub dtype: DtypeChoice,
    pub progress: ProgressKind,
    pub json: bool,
}

/// Everything `demo` needs to know.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "each field is the option of the same name in OPTIONS")]
pub struct DemoConfig {
    pub output_dir: PathBuf,
    pub seeds: u64,
    pub progress: ProgressKind,
}

impl Config {
    /// The settings of a training run.
    ///
    /// # Errors
    /// Every fault: missing, unreadable, out of range, contradictory.
    pub fn from_layers(layers: &Layers) -> Result<Self, Vec<String>> {
        let mut r = Reader::new(layers);
        let (teacher, access) = teachers(&mut r);
        let (profile, profile_steps) = profile::profile(&mut r);
        let config = Self {
            teacher,
            access,
            teacher_timeout: seconds(&mut r, "teacher-timeout"),
            teacher_window: count(&mut r, "teacher-window"),
            teacher_memory: r.number("teacher-memory", .., "a whole number of MiB from 0"),
            cache: cache::place(&mut r),
            student: r.required("student", "a local directory or a hub id"),
            student_revision: r.text("student-revision"),
            student_init: r.choice("student-init"),
            train_file: r.required("train-file", "a path, a glob or hf://datasets/..."),
            eval_file: r.text("eval-file"),
            max_train_samples: optional_count(&mut r, "max-train-samples"),
            max_eval_samples: optional_count(&mut r, "max-eval-samples"),
            max_length: length(&mut r),
            loss_on: r.choice("loss-on"),
            chat_template: r.choice("chat-template"),
            shuffle: r.switch("shuffle"),
            seed: r.number("seed", .., "a whole number from 0"),
            alpha: r.number("alpha", 0.0..=1.0, "a number from 0 to 1"),
            temperature: temperature(&mut r),
            signal: SignalConfig::read(&mut r),
            tail: r.choice("tail"),
            divergence: r.choice("divergence"),
            beta: beta(&mut r),
            learning_rate: not_negative(&mut r, "learning-rate"),
            lr_scheduler_type: r.choice("lr-scheduler-type"),
            warmup_steps: r.number("warmup-steps", .., "a whole number of steps from 0"),
            weight_decay: not_negative(&mut r, "weight-decay"),
            adam_beta1: r.number("adam-beta1", 0.0..1.0, "a number from 0 to below 1"),
            adam_beta2: r.number("adam-beta2", 0.0..1.0, "a number from 0 to below 1"),
            adam_epsilon: r.number("adam-epsilon", SMALLEST..=1.0, "a number above 0, at most 1"),
            max_grad_norm: r.number(
                "max-grad-norm",
                SMALLEST..=f64::INFINITY,
                "a number above 0, or inf for no clipping",
            ),
            num_train_epochs: count(&mut r, "num-train-epochs"),
            max_steps: optional_count(&mut r, "max-steps"),
            per_device_train_batch_size: count(&mut r, "per-device-train-batch-size"),
            gradient_accumulation_steps: count(&mut r, "gradient-accumulation-steps"),
            device: device(&mut r),
            dtype: r.choice("dtype"),
            recompute: r.choice("recompute"),
            on_memory: r.choice("on-memory"),
            output_dir: r.required("output-dir", "a directory to write to").into(),
            overwrite_output_dir: r.switch("overwrite-output-dir"),
            save_dtype: r.choice("save-dtype"),
            eval_steps: optional_count(&mut r, "eval-steps"),
            save_steps: r.number("save-steps", .., "a whole number of steps from 0"),
            save_total_limit: count(&mut r, "save-total-limit"),
            resume_from_checkpoint: resume(&r),
            logging_steps: count(&mut r, "logging-steps"),
            profile,
            profile_steps,
            progress: r.choice("progress"),
        };
        let config = Self { max_steps: steps_or_epochs(&mut r, config.max_steps), ..config };
        comparison(&mut r, config.divergence, config.tail);
        let comparison = (config.divergence, config.tail);
        config.signal.carries(&mut r, comparison, config.temperature);
        config.signal.is_kept(&mut r, config.cache.is_some());
        contradictions(&mut r, &config);
        r.finish(config)
    }
}

impl EvalConfig {
    /// The settings of an evaluation.
    ///
    /// # Errors
    /// Every fault: missing, unreadable, out of range.
    pub fn from_layers(layers: &Layers) -> Result<Self, Vec<String>> {
        let mut r = Reader::new(layers);
        let (teacher, access) = teachers(&mut r);
        let config = Self {
            model: r.required("model", "a local directory or a hub id"),
            revision: r.text("revision"),
            eval_file: r.required("eval-file", "a path, a glob or hf://datasets/..."),
            teacher,
            access,
            teacher_timeout: seconds(&mut r, "teacher-timeout"),
            teacher_window: count(&mut r, "teacher-window"),
            cache: cache::place(&mut r),
            max_eval_samples: optional_count(&mut r, "max-eval-samples"),
            max_length: length(&mut r),
            loss_on: r.choice("loss-on"),
            chat_template: r.choice("chat-template"),
            temperature: temperature(&mut r),
            signal: SignalConfig::read(&mut r),
            tail: r.choice("tail"),
            divergence: r.choice("divergence"),
            beta: beta(&mut r),
            per_device_train_batch_size: count(&mut r, "per-device-train-batch-size"),
            device: device(&mut r),
            dtype: r.choice("dtype"),
            progress: r.choice("progress"),
            json: r.switch("json"),
        };
        comparison(&mut r, config.divergence, config.tail);
        let comparison = (config.divergence, config.tail);
        config.signal.carries(&mut r, comparison, config.temperature);
        config.signal.is_kept(&mut r, config.cache.is_some());
        r.finish(config)
    }
}

impl DemoConfig {
    /// The settings of the demonstration.
    ///
    /// # Errors
    /// Every fault: unreadable, out of range.
    pub fn from_layers(layers: &Layers) -> Result<Self, Vec<String>> {
        let mut r = Reader::new(layers);
        let config = Self {
            output_dir: r.required("output-dir", "a directory to write to").into(),
            seeds: r.number("seeds", 1..=20, "a whole number from 1 to 20"),
            progress: r.choice("progress"),
        };
        r.finish(config)
    }
}

/// The smallest number that counts as above zero.
const SMALLEST: f64 = f64::MIN_POSITIVE;

fn count(r: &mut Reader<'_>, name: &str) -> usize {
    r.number(name, 1.., "a whole number from 1")
}

fn optional_count(r: &mut Reader<'_>, name: &str) -> Option<usize> {
    r.optional_number(name, 1.., "a whole number from 1")
}

fn not_negative(r: &mut Reader<'_>, name: &str) -> f64 {
    r.number(name, 0.0..=f64::MAX, "a number from 0")
}

fn seconds(r: &mut Reader<'_>, name: &str) -> f64 {
    r.number(name, 0.0..=1e6, "a number of seconds from 0 to 1000000")
}

fn length(r: &mut Reader<'_>) -> usize {
    r.number("max-length", 2.., "a whole number of tokens from 2 (a position needs a next token)")
}

fn temperature(r: &mut Reader<'_>) -> f64 {
    let range = f64::from(MIN_TEMPERATURE)..=f64::from(MAX_TEMPERATURE);
    let wanted = format!("a number from {MIN_TEMPERATURE} to {MAX_TEMPERATURE}");
    r.number("temperature", range, &wanted)
}

fn top_k(r: &mut Reader<'_>) -> usize {
    r.number("top-k", 1..=usize::MAX, "a whole number from 1 to the teacher's limit")
}

/// A device this build can compute on.
fn device(r: &mut Reader<'_>) -> String {
    let name = r.text("device").unwrap_or_default();
    if let Err(error) = model::device::check(&name) {
        r.fault(format!("--device {name} is refused: {error}"));
    }
    name
}

fn resume(r: &Reader<'_>) -> Resume {
    match r.text("resume-from-checkpoint").as_deref() {
        None | Some("off" | "false") => Resume::Off,
        Some("auto" | "true") => Resume::Auto,
        Some(path) => Resume::Path(path.into()),
    }
}

/// Epochs and steps both say when to stop: the one written in the higher place counts, and both in
/// one place is a contradiction.
fn steps_or_epochs(r: &mut Reader<'_>, max_steps: Option<usize>) -> Option<usize> {
    let layers = r.layers();
    match (layers.given("max-steps"), layers.given("num-train-epochs")) {
        (Some(steps), Some(epochs)) if steps == epochs => {
            r.fault("--max-steps and --num-train-epochs both say when to stop; give one of them");
            None
        }
        (Some(steps), Some(epochs)) if epochs > steps => None,
        _ => max_steps,
    }
}

/// Settings that are right one by one and wrong together.
fn contradictions(r: &mut Reader<'_>, c: &Config) {
    let layers = r.layers();
    if c.alpha > 0.0 && c.teacher.is_empty() && c.cache.is_none() {
        r.fault(format!(
            "--teacher is missing: --alpha {} learns from a teacher; give its address, or --alpha \
             0 for plain training",
            c.alpha
        ));
    }
    if c.lr_scheduler_type == SchedulerKind::Constant && c.warmup_steps > 0 {
        r.fault(format!(
            "--warmup-steps {} does nothing with --lr-scheduler-type constant; use \
             constant_with_warmup",
            c.warmup_steps
        ));
    }
    if c.overwrite_output_dir && c.resume_from_checkpoint != Resume::Off {
        r.fault(
            "--overwrite-output-dir and --resume-from-checkpoint contradict each other: one throws \
             away what the other goes on from",
        );
    }
    gradients_add_up(r, c.recompute, c.gradient_accumulation_steps);
    if c.output_dir.starts_with("~") {
        r.fault(format!(
            "--output-dir {} would make a directory named `~`: only a shell knows that it means the \
             home directory, and not within quotes or a settings file; write the path out",
            c.output_dir.display()
        ));
    }
    for name in ["eval-steps", "max-eval-samples"] {
        if c.eval_file.is_none() && layers.given(name) == Some(&Origin::Flag) {
            r.fault(format!("--{name} says nothing without --eval-file"));
        }
    }
}

/// JSON knows no infinity: it is written as a word.
fn finite_or_word<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if value.is_finite() {
        serializer.serialize_f64(*value)
    } else {
        serializer.serialize_str("inf")
    }
}
