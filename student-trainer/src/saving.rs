//! Checkpoints, written beside the computation. On the processor a thread of their own reads the student's memory
//! while the next step goes forward and back, and only that step's update waits for it; of a card's it has a copy.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use candle_core::DType;
use model::save::save_model;
use model::state_file::{TrainingState, save_state};

use crate::checkpoint::{self, CheckpointError};
use crate::config::{Config, SaveDtype};
use crate::error::TrainError;
use crate::observer::Observer;
use crate::outputs::{self, OutputError};
use crate::run::{CHECKPOINTS, Run};
use crate::state::{self, Identity, Progress};

/// The training state's file within a checkpoint.
pub(crate) const STATE_FILE: &str = "training_state.safetensors";

/// All a checkpoint is made of, as it is after a step.
pub(crate) struct Snapshot {
    pub(crate) student: TrainingState,
    pub(crate) progress: Progress,
    pub(crate) identity: Identity,
    /// Where the tokenizer's files are.
    pub(crate) model_dir: PathBuf,
    pub(crate) dtype: SaveDtype,
    /// The directory of the checkpoints.
    pub(crate) root: PathBuf,
    /// Checkpoints that stay.
    pub(crate) keep: usize,
}

/// Readies the output directory for a run that goes on from this step.
pub(crate) fn make_way(
    config: &Config,
    student: &Path,
    step: u64,
    observer: &mut dyn Observer,
) -> Result<(), TrainError> {
    outputs::apart_from_student(&config.output_dir, student)?;
    if config.overwrite_output_dir {
        outputs::clear(&config.output_dir)?;
    }
    let root = config.output_dir.join(CHECKPOINTS);
    for place in checkpoint::set_aside_after(&root, step)? {
        let place = place.display();
        observer.note(&format!("a later checkpoint was set aside: {place}"));
    }
    Ok(())
}

/// A checkpoint that is being written.
pub(crate) struct Saving {
    /// The step it is of.
    pub(crate) step: u64,
    /// Whether it is written from the student's own memory.
    pub(crate) is_lent: bool,
    thread: JoinHandle<Result<Written, TrainError>>,
}

/// A checkpoint that is whole on the disk.
pub(crate) struct Written {
    /// Its directory.
    pub(crate) dir: PathBuf,
    /// Why older ones could not be removed, where they could not.
    pub(crate) unpruned: Option<CheckpointError>,
}

impl Run {
    /// Begins to write a checkpoint, once the one before it is written.
    pub(crate) fn begin_checkpoint(
        &mut self,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        self.finish_checkpoint(observer)?;
        self.saving = Some(Saving::start(self.snapshot()?)?);
        Ok(())
    }

    /// Waits for a checkpoint that is written from the student's own memory, which must stay as it is until then.
    pub(crate) fn wait_to_change(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let is_lent = self.saving.as_ref().is_some_and(|saving| saving.is_lent);
        if is_lent { self.finish_checkpoint(observer) } else { Ok(()) }
    }

    /// Takes note of a checkpoint that has been written meanwhile.
    pub(crate) fn notice_checkpoint(
        &mut self,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        let is_written = self.saving.as_ref().is_some_and(Saving::is_written);
        if is_written { self.finish_checkpoint(observer) } else { Ok(()) }
    }

    /// Waits for a checkpoint that is being written, where there is one.
    pub(crate) fn finish_checkpoint(
        &mut self,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        let Some(saving) = self.saving.take() else { return Ok(()) };
        let step = saving.step;
        let Written { dir, unpruned } = saving.finish()?;
        self.saved_step = step;
        observer.note(&format!("checkpoint {}", dir.display()));
        // The steps are safe; what is left lying takes room only.
        if let Some(error) = unpruned {
            observer.note(&format!("older checkpoints stay: {error}"));
        }
        Ok(())
    }

    /// Writes a checkpoint and waits for it.
    pub(crate) fn save_checkpoint(
        &mut self,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        self.begin_checkpoint(observer)?;
        self.finish_checkpoint(observer)
    }
}

impl Saving {
    /// Begins to write; the student's memory, where it is lent, must stay as it is until [`Saving::finish`].
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn start(snapshot: Snapshot) -> Result<Self, TrainError> {
        let (step, root) = (snapshot.progress.step, snapshot.root.clone());
        let is_lent = snapshot.student.is_lent();
        let thread = std::thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(move || snapshot.write())
            .map_err(|source| OutputError::Io {
                action: "start a thread to write to",
                path: root,
                source,
            })?;
        Ok(Self { step, is_lent, thread })
    }

    /// Whether it is written, or failed.
    pub(crate) fn is_written(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until it is written.
    ///
    /// # Errors
    /// Those of the file system; nothing visible is left behind.
    pub(crate) fn finish(self) -> Result<Written, TrainError> {
        match self.thread.join() {
            Ok(written) => written,
            // What it panicked with goes on here.
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Snapshot {
    /// Writes the checkpoint, then removes those beyond the limit.
    fn write(&self) -> Result<Written, TrainError> {
        let dir = checkpoint::write(&self.root, self.progress.step, |dir| {
            self.write_model(dir)?;
            save_state(&self.student, &dir.join(STATE_FILE))?;
            state::save(dir, &self.progress, &self.identity)?;
            Ok::<(), TrainError>(())
        })?;
        let unpruned = checkpoint::prune(&self.root, self.keep).err();
        Ok(Written { dir, unpruned })
    }

    /// Writes the model: config, weights and the tokenizer's files.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn write_model(&self, dir: &Path) -> Result<(), TrainError> {
        let dtype = match self.dtype {
            SaveDtype::F32 => DType::F32,
            SaveDtype::Bf16 => DType::BF16,
        };
        save_model(dir, &self.student.config, &self.student.weights, dtype)?;
        hub::files::copy_tokenizer_files(&self.model_dir, dir).map_err(|source| {
            OutputError::Io { action: "copy the tokenizer to", path: dir.to_owned(), source }
        })?;
        Ok(())
    }
}
