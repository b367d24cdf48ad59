//! The settings of `student-trainer cache`.

use std::path::PathBuf;

use client::Access;

use super::kinds::{ChatTemplateUse, LossOn, ProgressKind};
use super::layers::Layers;
use super::reader::Reader;
use super::signal::SignalConfig;
use super::teachers::teachers;
use super::{count, length, optional_count, seconds, temperature};
use crate::cache::place::fault as place_fault;

/// Everything `cache build` needs to know. Fields are named as the flags.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each field is the option of the same name in OPTIONS")]
pub struct CacheBuildConfig {
    pub cache: String,
    pub teacher: Vec<String>,
    pub access: Access,
    pub teacher_timeout: f64,
    pub teacher_window: usize,
    pub student: String,
    pub student_revision: Option<String>,
    pub train_file: String,
    pub eval_file: Option<String>,
    pub max_train_samples: Option<usize>,
    pub max_eval_samples: Option<usize>,
    pub max_length: usize,
    pub loss_on: LossOn,
    pub chat_template: ChatTemplateUse,
    pub temperature: f64,
    pub signal: SignalConfig,
    pub progress: ProgressKind,
}

/// Everything `cache verify` and `cache info` need to know.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is the option of the same name in OPTIONS")]
pub struct CacheConfig {
    pub cache: String,
    /// `info` only.
    pub json: bool,
}

/// Everything `cache export` needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is the option of the same name in OPTIONS")]
pub struct CacheExportConfig {
    pub cache: String,
    pub parquet: PathBuf,
}

/// Everything `cache import` needs to know.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each field is the option of the same name in OPTIONS")]
pub struct CacheImportConfig {
    pub cache: String,
    pub parquet: PathBuf,
    pub student: Option<String>,
    pub teacher_model: Option<String>,
    pub temperature: f64,
}

/// Where a cache is, looked at as far as can be without going there.
pub(super) fn place(r: &mut Reader<'_>) -> Option<String> {
    let place = r.text("cache")?;
    if let Some(fault) = place_fault(&place) {
        r.fault(fault);
    }
    Some(place)
}

fn cache(r: &mut Reader<'_>) -> String {
    place(r).unwrap_or_else(|| r.required("cache", "a directory or an address"))
}

fn parquet(r: &mut Reader<'_>) -> PathBuf {
    r.required("parquet", "a .parquet file").into()
}

impl CacheBuildConfig {
    /// The settings of a build.
    ///
    /// # Errors
    /// Every fault: missing, unreadable, out of range.
    pub fn from_layers(layers: &Layers) -> Result<Self, Vec<String>> {
        let mut r = Reader::new(layers);
        let (teacher, access) = teachers(&mut r);
        let config = Self {
            cache: cache(&mut r),
            teacher,
            access,
            teacher_timeout: seconds(&mut r, "teacher-timeout"),
            teacher_window: count(&mut r, "teacher-window"),
            student: r.required("student", "a local directory or a hub id"),
            student_revision: r.text("student-revision"),
            train_file: r.required("train-file", "a path, a glob or hf://datasets/..."),
            eval_file: r.text("eval-file"),
            max_train_samples: optional_count(&mut r, "max-train-samples"),
            max_eval_samples: optional_count(&mut r, "max-eval-samples"),
            max_length: length(&mut r),
            loss_on: r.choice("loss-on"),
            chat_template: r.choice("chat-template"),
            temperature: temperature(&mut r),
            signal: SignalConfig::read(&mut r),
            progress: r.choice("progress"),
        };
        config.signal.is_kept(&mut r, true);
        if config.teacher.is_empty() {
            r.fault("--teacher is missing: a cache is filled with a teacher's answers; give its address");
        }
        r.finish(config)
    }
}

impl CacheConfig {
    /// The settings of `verify` and `info`.
    ///
    /// # Errors
    /// Every fault: missing, unreadable.
    pub fn from_layers(layers: &Layers) -> Result<Self, Vec<String>> {
        let mut r = Reader::new(layers);
        let config = Self { cache: cache(&mut r), json: r.switch("json") };
        r.finish(config)
    }
}

impl CacheExportConfig {
    /// The settings of an export.
    ///
    /// # Errors
    /// Every fault: missing.
    pub fn from_layers(layers: &Layers) -> Result<Self, Vec<String>> {
        let mut r = Reader::new(layers);
        let config = Self { cache: cache(&mut r), parquet: parquet(&mut r) };
        r.finish(config)
    }
}

impl CacheImportConfig {
    /// The settings of an import.
    ///
    /// # Errors
    /// Every fault: missing, out of range.
    pub fn from_layers(layers: &Layers) -> Result<Self, Vec<String>> {
        let mut r = Reader::new(layers);
        let config = Self {
            cache: cache(&mut r),
            parquet: parquet(&mut r),
            student: r.text("student"),
            teacher_model: r.text("teacher-model"),
            temperature: temperature(&mut r),
        };
        r.finish(config)
    }
}
