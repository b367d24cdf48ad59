//! Why a run ends without its result. Each error names the thing, both values and the remedy.

use std::path::PathBuf;

use candle_core::Error as TensorError;
use model::config::ConfigError;
use model::device::DeviceError;
use model::load::WeightsError;
use model::qwen3::ModelError;
use model::save::SaveError;
use model::student::StudentError;

use crate::cache::CacheError;
use crate::checkpoint::CheckpointError;
use crate::config::DivergenceKind;
use crate::data::{DataError, RowSet};
use crate::needs::amount;
use crate::outputs::OutputError;
use crate::reading::ReadingError;
use crate::teacher::TeacherError;

/// Why training or evaluation stopped.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The output directory.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// A checkpoint could not be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// More candidates than a request holds.
    #[error(
        "--signal candidates names twice --top-k {k} ids a position: of {place} a request of {bytes} \
         bytes, and this teacher takes {limit} (its --max-request-bytes); lower --top-k or --max-length"
    )]
    CandidatesTooMany {
        /// Entries of the teacher's.
        k: usize,
        /// The row.
        place: String,
        /// Bytes of its request.
        bytes: usize,
        /// Bytes the teacher takes.
        limit: usize,
    },
    /// The teacher: not reached, not fitting, or lost on the way.
    #[error(transparent)]
    Teacher(#[from] TeacherError),
    /// The cache of the teacher's answers.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Training or held-out rows.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Where the model comes from.
    #[error(transparent)]
    Hub(#[from] hub::source::HubError),
    /// The model's tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] hub::tokenizer::TokenizerError),
    /// The model's chat template.
    #[error(transparent)]
    Chat(#[from] hub::chat::ChatError),
    /// The model's configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The model's weights.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A model could not be written.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A batch cannot be computed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A student cannot be made, or a step cannot be done.
    #[error(transparent)]
    Student(#[from] StudentError),
    /// A teacher's answers cannot be read.
    #[error(transparent)]
    Reading(#[from] ReadingError),
    /// A code without a step as it is wanted.
    #[error("{wanted}: the teacher's code has no such step{ends}")]
    NoStep {
        /// The option, with its value.
        wanted: String,
        /// What there is.
        ends: String,
    },
    /// No place for what hidden states are read with.
    #[error(
        "neither XDG_CACHE_HOME nor HOME is set: say with --decoder-dir where to keep the teacher's output \
         matrix"
    )]
    NoDecoderDir,
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The learning-rate schedule.
    #[error(transparent)]
    Schedule(#[from] distill::schedule::ScheduleError),
    /// A loss or a gradient that is not a number.
    #[error(
        "step {step}: {source}. Rows of the training set concerned: {rows}. The state before this \
         step is kept"
    )]
    NotFinite {
        /// The step that was not done.
        step: u64,
        /// Where the rows stand.
        rows: String,
        /// What is not finite.
        source: Box<StudentError>,
    },
    /// An evaluation whose loss is not a number.
    #[error(
        "{model}: the loss is not finite on {count} of {of} held-out rows ({rows}); its weights \
         hold, or lead to, numbers that are not finite: take another model, or an earlier \
         checkpoint"
    )]
    EvaluationNotFinite {
        /// The model, and after which step where it is being trained.
        model: String,
        /// How many rows are concerned.
        count: usize,
        /// Of how many.
        of: usize,
        /// Where the first of them stand.
        rows: String,
    },
    /// A teacher's failure that has to do with one row.
    #[error("{source} (row {row} is {place})")]
    AtRow {
        /// Index of the row in its set.
        row: usize,
        /// Where it stands.
        place: String,
        /// The failure.
        source: Box<TeacherError>,
    },
    /// A teacher's failure in the middle of a run.
    #[error(
        "{source}. The {step} steps done are in the checkpoint {}: once the teacher is well, run \
         the same command {how} to go on from there", checkpoint.display()
    )]
    Interrupted {
        /// What happened.
        source: Box<TrainError>,
        /// Steps done.
        step: u64,
        /// Where they are kept.
        checkpoint: PathBuf,
        /// With which flags.
        how: &'static str,
    },
    /// Files that could not be written in the middle of a run.
    #[error(
        "{source}. The newest whole checkpoint is {} (step {step}): once files can be written, \
         run the same command {how} to go on from there", checkpoint.display()
    )]
    Unsaved {
        /// What happened.
        source: Box<TrainError>,
        /// Step of that checkpoint.
        step: u64,
        /// Where it is.
        checkpoint: PathBuf,
        /// With which flags.
        how: &'static str,
    },
    /// A student without weights, and no word that it should have none.
    #[error(
        "{} holds no weights (model.safetensors, or its index with shards); to begin from seeded \
         random weights give --student-init random",
        dir.display()
    )]
    NoWeights {
        /// The student's directory.
        dir: PathBuf,
    },
    /// More than one teacher.
    #[error("--teacher names {found} teachers; several are not offered yet: give one address")]
    SeveralTeachers {
        /// How many.
        found: usize,
    },
    /// A divergence the teacher's answers do not suffice for.
    #[error(
        "--divergence {divergence} needs the mass of the tokens a teacher does not send, which {url} \
         cannot say at --temperature {temperature}: use --divergence forward-kl or --temperature 1, or \
         teacher-server, which says it at every temperature"
    )]
    Divergence {
        /// The teacher's address.
        url: String,
        /// What was wanted.
        divergence: DivergenceKind,
        /// The temperature.
        temperature: f32,
    },
    /// A run that does not fit into memory.
    #[error("{what} takes {} and {} are free on {device}; take {remedy}", amount(*wanted), amount(*free))]
    Memory {
        /// What is to be computed at once.
        what: String,
        /// Bytes it takes.
        wanted: u64,
        /// Bytes there are for it.
        free: u64,
        /// The device.
        device: String,
        /// What to do.
        remedy: String,
    },
    /// A batch that is too large to be planned.
    #[error("{what} is more than the {most} that are planned; take a smaller {smaller}")]
    Unplanned {
        /// What is.
        what: String,
        /// At most so much.
        most: String,
        /// Options.
        smaller: &'static str,
    },
    /// A batch for which the device's memory did not suffice although it was planned.
    #[error(
        "step {step}: a batch of {rows} rows, {tokens} tokens in all, did not fit into the device's memory ({source}); \
         {remedy}. The state before this step is kept"
    )]
    OutOfMemory {
        /// The step that was not done.
        step: u64,
        /// Rows computed at once.
        rows: usize,
        /// Their tokens.
        tokens: usize,
        /// What to do.
        remedy: &'static str,
        /// What the device said.
        source: Box<StudentError>,
    },
    /// A held-out set without a scored token.
    #[error("the held-out rows have no scored token: check --eval-file and --loss-on")]
    NothingHeldOut,
    /// A signal asked for the end before there was anything to save.
    #[error("stopped before the first step")]
    Stopped,
}

impl TrainError {
    /// Whether the file system refused: what was to be saved cannot be, for now.
    pub(crate) fn is_of_the_disk(&self) -> bool {
        matches!(
            self,
            Self::Output(OutputError::Io { .. })
                | Self::Checkpoint(CheckpointError::Io { .. })
                | Self::Save(_)
                | Self::Student(StudentError::Save(_))
        )
    }

    /// Whether the device's memory did not suffice: less may.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Model(ModelError::OutOfMemory(_)))
    }

    /// Whether the device failed.
    pub(crate) fn is_of_the_device(&self) -> bool {
        let (Self::Model(error) | Self::Student(StudentError::Model(error))) = self else {
            return false;
        };
        matches!(error, ModelError::Device(_) | ModelError::DeviceLost(_))
    }

    /// Whether an operation refused what it was given, as it does with numbers that are none: the device is sound.
    pub(crate) fn is_of_an_operation(&self) -> bool {
        matches!(self, Self::Model(ModelError::Operation(_)))
    }

    /// Whether a teacher has no code of its hidden states, and makes none.
    pub(crate) fn is_without_code(&self) -> bool {
        let Self::Teacher(TeacherError::Client(client::Error::Refused { code, .. })) = self else {
            return false;
        };
        *code == tonic::Code::FailedPrecondition
    }
}

/// A teacher's error, with the place of the row it speaks of.
pub(crate) fn at_row(source: TeacherError, rows: &RowSet) -> TrainError {
    let row = if let TeacherError::Reply { row, .. }
    | TeacherError::Alignment { row, .. }
    | TeacherError::NotKept { row, .. } = &source
    {
        Some(*row)
    } else if let TeacherError::Lost { row, .. } = &source {
        *row
    } else {
        None
    };
    match row {
        Some(row) => TrainError::AtRow { row, place: rows.place(row), source: Box::new(source) },
        None => source.into(),
    }
}
