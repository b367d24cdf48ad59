//! Pieces that training and evaluation are both made ready from: a model's folder, rows, a
//! teacher, and the student.

use std::path::{Path, PathBuf};

use distill::batch::Sequence;
use distill::codec::{Codec, MAX_PACKED_CLASSES};
use distill::fingerprint::Fingerprint;
use distill::handshake::{SignalKind, StudentFacts};
use distill::schedule::{LrSchedule, ScheduleKind};
use hub::chat::ChatTemplate;
use hub::settings::HubSettings;
use hub::source::resolve_model;
use hub::tokenizer::Tokenizer;
use model::config::Qwen3Config;
use model::device::Device;
use model::learner::Learner;
use model::load::WeightsError;
use model::needs::Taught;
use model::ops::Precision;
use model::ops::adamw::AdamW;
use model::ops::head::{Divergence, LossSettings, Tail};
use model::recompute::{Recompute, longest};
use model::student::{StudentError, Training};

use crate::candidates;
use crate::checkpoint;
use crate::config::{
    self, CodecKind, Config, DtypeChoice, Resume, SchedulerKind, SignalConfig, StudentInit,
    TailKind,
};
use crate::data::{self, RowSet, TokenizeOptions};
use crate::error::TrainError;
use crate::needs::{self, Room, Subject};
use crate::observer::Observer;
use crate::saving::STATE_FILE;
use crate::state::{self, Identity, Progress};

/// A model's folder, its small files read.
pub(crate) struct Source {
    /// The folder.
    pub(crate) dir: PathBuf,
    /// Where the weights are: the folder, or a GGUF file in it.
    pub(crate) weights: PathBuf,
    /// The name it was given by.
    pub(crate) id: String,
    pub(crate) config: Qwen3Config,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: Option<ChatTemplate>,
}

/// What a run is made of before anybody is asked anything.
pub(crate) struct Material {
    pub(crate) source: Source,
    /// Training rows, each with a scored position.
    pub(crate) rows: RowSet,
    /// Held-out rows; may be none.
    pub(crate) held_out: RowSet,
}

impl Material {
    /// Finds the student's folder and reads all rows; tells what became of them.
    pub(crate) fn gather(config: &Config, observer: &mut dyn Observer) -> Result<Self, TrainError> {
        let source = Source::open(&config.student, config.student_revision.as_deref())?;
        let options = TokenizeOptions {
            loss_on: config.loss_on,
            chat_template: config.chat_template,
            max_length: config.max_length,
        };
        let mut note = |text: &str| observer.note(text);
        let rows = source.rows(
            "training",
            &config.train_file,
            config.max_train_samples,
            options,
            &mut note,
        )?;
        let held_out = match &config.eval_file {
            Some(file) => {
                source.rows("held-out", file, config.max_eval_samples, options, &mut note)?
            }
            None => RowSet::default(),
        };
        Ok(Self { source, rows, held_out })
    }
}

impl Source {
    /// Reads rows and makes them tokens; tells what became of them.
    pub(crate) fn rows(
        &self,
        what: &str,
        files: &str,
        limit: Option<usize>,
        options: TokenizeOptions,
        note: &mut dyn FnMut(&str),
    ) -> Result<RowSet, TrainError> {
        let rows = data::load(files, limit)?;
        let done = data::tokenize(&rows, &self.tokenizer, self.template.as_ref(), &options)?;
        done.fit(self.config.max_position_embeddings, options.max_length)?;
        let report = done.report;
        note(&format!(
            "{what}: {} rows, {} tokens, {} of them learned; {} rows cut to {} tokens, {} left \
             out (nothing to learn in them)",
            done.sequences.len(),
            report.tokens,
            report.scored,
            report.truncated,
            options.max_length,
            report.skipped
        ));
        Ok(done.into())
    }

    /// Finds a model and reads its small files.
    pub(crate) fn open(spec: &str, revision: Option<&str>) -> Result<Self, TrainError> {
        let found = resolve_model(spec, revision, &HubSettings::from_env())?;
        Ok(Self {
            config: Qwen3Config::from_dir(&found.dir)?,
            tokenizer: Tokenizer::load(&found.dir)?,
            template: ChatTemplate::load(&found.dir)?,
            dir: found.dir,
            weights: found.weights,
            id: found.id,
        })
    }

    /// What this model states of itself to a teacher, for these rows.
    pub(crate) fn student_facts(
        &self,
        sets: [&[Sequence]; 2],
        signal: &SignalConfig,
    ) -> StudentFacts {
        let vocab_size = self.config.vocab_size;
        StudentFacts {
            tokenizer_fingerprint: Fingerprint(self.tokenizer.fingerprint()),
            vocab_size,
            tokenizer_size: self.tokenizer.size(),
            max_length: sets.into_iter().flatten().map(Sequence::len).max().unwrap_or(0),
            signal: match signal.kind {
                config::SignalKind::TopK => SignalKind::TopK,
                config::SignalKind::Candidates => SignalKind::Candidates,
                config::SignalKind::Sampled => SignalKind::Sampled,
                config::SignalKind::Full => SignalKind::Full,
                config::SignalKind::Coded => SignalKind::Coded,
            },
            top_k: match signal.kind {
                config::SignalKind::TopK => signal.top_k,
                config::SignalKind::Candidates => candidates::entries(signal.top_k, vocab_size),
                config::SignalKind::Sampled => signal.exact,
                config::SignalKind::Full | config::SignalKind::Coded => 0,
            },
            codec: layout(signal.codec, vocab_size),
        }
    }
}

/// The layout that is wanted, where it can name so many classes.
fn layout(wanted: CodecKind, classes: usize) -> Codec {
    match wanted {
        _ if classes > MAX_PACKED_CLASSES => Codec::Raw,
        CodecKind::Packed => Codec::Packed,
        CodecKind::Raw => Codec::Raw,
        CodecKind::Compact => Codec::Compact,
        CodecKind::Compact8 => Codec::Compact8,
    }
}

/// The loss of a run with these settings.
pub(crate) fn loss_of(config: &Config, precision: Precision) -> LossSettings {
    let compared = (config.tail, config.divergence.with(config.beta));
    loss(config.alpha, config.temperature, compared, precision)
}

/// The loss these options mean.
pub(crate) fn loss(
    alpha: f64,
    temperature: f64,
    (tail, divergence): (TailKind, Divergence),
    precision: Precision,
) -> LossSettings {
    let tail = match tail {
        TailKind::Bucket => Tail::Bucket,
        TailKind::Renormalise => Tail::Renormalise,
    };
    LossSettings { alpha, temperature, divergence, tail, precision }
}

/// The arithmetic a choice means on a device.
pub(crate) fn precision(choice: DtypeChoice, device: Device) -> Precision {
    match choice {
        DtypeChoice::Auto => device.auto_precision(),
        DtypeChoice::Bf16 => Precision::Bf16,
        DtypeChoice::F32 => Precision::F32,
        DtypeChoice::F16 => Precision::F16,
    }
}

/// A student made ready.
pub(crate) struct Learning {
    pub(crate) student: Box<dyn Learner>,
    /// What it has done.
    pub(crate) progress: Progress,
    /// What it takes of memory.
    pub(crate) memory: needs::Plan,
}

/// The student and what it has done: from a checkpoint, from its files, or drawn. `free` bytes of the machine's memory
/// are there for it.
pub(crate) fn student(
    config: &Config,
    source: &Source,
    (rows, taught): (&RowSet, Taught),
    free: Option<u64>,
    identity: &Identity,
    observer: &mut dyn Observer,
) -> Result<Learning, TrainError> {
    let device = model::device::choose(&config.device, |text| observer.note(text))?;
    let subject = subject(config, &source.config, rows, (device, taught));
    let room = Room::found(device, free)?;
    let memory = subject.settle(room, &mut |text| observer.note(text))?;
    let training = Training { recompute: memory.recompute, ..subject.training };
    let shape = source.config.clone();
    if let Some(dir) = checkpoint_of(config, &config.output_dir, observer)? {
        let progress = state::load(&dir, identity)?;
        let student = device.saved_learner(&dir.join(STATE_FILE), shape, training)?;
        observer.note(&format!("goes on from {} (step {})", dir.display(), progress.step));
        return Ok(Learning { student, progress, memory });
    }
    let student = match config.student_init {
        StudentInit::Pretrained => pretrained(source, training, device)?,
        StudentInit::Random => device.random_learner(shape, config.seed, training)?,
    };
    Ok(Learning { student, progress: Progress::default(), memory })
}

/// What of a run takes memory. A teacher's output matrix lies in the machine's memory before that is measured; a card
/// gets one of its own.
fn subject<'a>(
    config: &Config,
    shape: &'a Qwen3Config,
    rows: &RowSet,
    (device, taught): (Device, Taught),
) -> Subject<'a> {
    let lengths = rows.sequences.iter().map(Sequence::len);
    Subject {
        device,
        config: shape,
        training: Training {
            precision: precision(config.dtype, device),
            optimiser: AdamW {
                beta1: config.adam_beta1,
                beta2: config.adam_beta2,
                epsilon: config.adam_epsilon,
                weight_decay: config.weight_decay,
            },
            recompute: Recompute::None,
        },
        rows: longest(lengths, config.per_device_train_batch_size),
        taught: match (device, taught) {
            (Device::Cpu, Taught::All { .. }) => Taught::Nothing,
            (_, taught) => taught,
        },
        alone: config.gradient_accumulation_steps == 1,
        recompute: config.recompute,
        on_memory: config.on_memory,
    }
}

/// A student that begins with the weights of its source.
///
/// # Errors
/// [`TrainError::NoWeights`] where the source has none; else what is wrong with them.
pub(crate) fn pretrained(
    source: &Source,
    training: Training,
    device: Device,
) -> Result<Box<dyn Learner>, TrainError> {
    match device.learner(&source.weights, source.config.clone(), training) {
        Err(StudentError::Weights(WeightsError::NoWeights { dir })) => {
            Err(TrainError::NoWeights { dir })
        }
        found => Ok(found?),
    }
}

/// The learning rate of each of so many steps.
pub(crate) fn schedule(config: &Config, steps: u64) -> Result<LrSchedule, TrainError> {
    let kind = match config.lr_scheduler_type {
        SchedulerKind::Constant => ScheduleKind::Constant,
        SchedulerKind::Linear => ScheduleKind::Linear,
        SchedulerKind::Cosine => ScheduleKind::Cosine,
        SchedulerKind::ConstantWithWarmup => ScheduleKind::ConstantWithWarmup,
    };
    Ok(LrSchedule::new(kind, config.learning_rate, config.warmup_steps as f64, steps)?)
}

/// The checkpoint to go on from, verified; none to begin anew.
fn checkpoint_of(
    config: &Config,
    output_dir: &Path,
    observer: &mut dyn Observer,
) -> Result<Option<PathBuf>, TrainError> {
    match &config.resume_from_checkpoint {
        Resume::Off => Ok(None),
        Resume::Path(dir) => {
            checkpoint::verify(dir)?;
            Ok(Some(dir.clone()))
        }
        Resume::Auto => {
            let (found, notes) = checkpoint::newest_valid(&output_dir.join("checkpoints"))?;
            notes.iter().for_each(|note| observer.note(note));
            if found.is_none() {
                let dir = output_dir.join("checkpoints");
                observer.note(&format!("no checkpoint in {}: begins at step 0", dir.display()));
            }
            Ok(found.map(|(dir, _)| dir))
        }
    }
}

#[cfg(test)]
#[path = "setup_tests.rs"]
mod tests;
