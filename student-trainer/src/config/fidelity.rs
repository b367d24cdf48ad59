//! The settings of `student-trainer signals`.

use std::path::PathBuf;

use client::Access;
use proto::limits::MIN_TEMPERATURE;

use super::kinds::{ChatTemplateUse, LossOn, ProgressKind};
use super::layers::Layers;
use super::reader::Reader;
use super::signal::HIGHEST_OF_ALL;
use super::teachers::teachers;
use super::{count, device, length, seconds};

/// Everything `signals` needs to know. Fields are named as the flags.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each field is the option of the same name in OPTIONS")]
pub struct SignalsConfig {
    pub teacher: Vec<String>,
    pub access: Access,
    pub teacher_timeout: f64,
    pub teacher_window: usize,
    pub student: String,
    pub student_revision: Option<String>,
    pub data: String,
    pub max_samples: usize,
    pub max_length: usize,
    pub loss_on: LossOn,
    pub chat_template: ChatTemplateUse,
    pub temperatures: Vec<f64>,
    pub budget: Option<f64>,
    pub decoder_dir: Option<PathBuf>,
    pub per_device_train_batch_size: usize,
    pub device: String,
    pub output_dir: PathBuf,
    pub progress: ProgressKind,
    pub json: bool,
}

impl SignalsConfig {
    /// The settings of the table.
    ///
    /// # Errors
    /// Every fault: missing, unreadable, out of range.
    pub fn from_layers(layers: &Layers) -> Result<Self, Vec<String>> {
        let mut r = Reader::new(layers);
        let (teacher, access) = teachers(&mut r);
        let config = Self {
            teacher,
            access,
            teacher_timeout: seconds(&mut r, "teacher-timeout"),
            teacher_window: count(&mut r, "teacher-window"),
            student: r.required("student", "a local directory or a hub id"),
            student_revision: r.text("student-revision"),
            data: r.required("data", "a path, a glob or hf://datasets/..."),
            max_samples: count(&mut r, "max-samples"),
            max_length: length(&mut r),
            loss_on: r.choice("loss-on"),
            chat_template: r.choice("chat-template"),
            temperatures: temperatures(&mut r),
            budget: r.optional_number("budget", 1.0..=1e6, "a number of bytes from 1"),
            decoder_dir: r.text("decoder-dir").map(PathBuf::from),
            per_device_train_batch_size: count(&mut r, "per-device-train-batch-size"),
            device: device(&mut r),
            output_dir: r.required("output-dir", "a directory to write to").into(),
            progress: r.choice("progress"),
            json: r.switch("json"),
        };
        if config.teacher.is_empty() {
            r.fault("--teacher is missing: its signals are what is measured; give its address");
        }
        r.finish(config)
    }
}

/// A list of temperatures, a comma between them.
fn temperatures(r: &mut Reader<'_>) -> Vec<f64> {
    // All is measured against all classes.
    let range = f64::from(MIN_TEMPERATURE)..=HIGHEST_OF_ALL;
    let text = r.text("temperatures").unwrap_or_default();
    let read = |word: &str| word.trim().parse::<f64>().ok().filter(|t| range.contains(t));
    let found: Option<Vec<f64>> = text.split(',').map(read).collect();
    found.unwrap_or_else(|| {
        r.fault(format!(
            "--temperatures {text} is refused: wanted numbers from {MIN_TEMPERATURE} to \
             {HIGHEST_OF_ALL}, a comma between them"
        ));
        Vec::new()
    })
}
