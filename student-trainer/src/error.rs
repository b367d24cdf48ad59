//! Why a run ends without its result. Each error names the thing, both values and the remedy.

use std::path::PathBuf;

use candle_core::Error as TensorError;
use model::config::ConfigError;
use model::device::DeviceError;
use model::load::WeightsError;
use model::qwen3::ModelError;
use model::save::SaveError;
use model::student::StudentError;

use crate::checkpoint::CheckpointError;
use crate::data::DataError;
use crate::outputs::OutputError;
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
    /// The teacher: not reached, not fitting, or lost on the way.
    #[error(transparent)]
    Teacher(#[from] TeacherError),
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
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The learning-rate schedule.
    #[error(transparent)]
    Schedule(#[from] distill::schedule::ScheduleError),
    /// A loss or a gradient that is not a number.
    #[error(
        "step {step}: {source}. Rows of the training set concerned, counted from 0 among those \
         kept: {rows:?}. The state before this step is kept"
    )]
    NotFinite {
        /// The step that was not done.
        step: u64,
        /// Indices of the rows, in the training set.
        rows: Vec<usize>,
        /// What is not finite.
        source: Box<StudentError>,
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
    /// A held-out set without a scored token.
    #[error("the held-out rows have no scored token: check --eval-file and --loss-on")]
    NothingHeldOut,
    /// A signal asked for the end before there was anything to save.
    #[error("stopped before the first step")]
    Stopped,
}
