//! The training state of a student in one safetensors file, so that a resumed run continues with
//! the same bits.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde_json::{Map, json};

use crate::config::Qwen3Config;
use crate::parameters::ParameterIndex;
use crate::save::{Entry, write_tensors};
use crate::student::{Student, StudentError, Training};
use crate::tensor_file::{StoredDtype, StoredTensor, TensorFile};
use crate::weights::{Weights, WeightsError, zeros};

/// The rows of the state, in order.
const ROWS: [&str; 3] = ["master", "exp_avg", "exp_avg_sq"];

/// A student's configuration, weights and state as they are after a step. On the processor they share the student's
/// memory, so that no second copy of it exists, and [`Student::step`] refuses to change it while this is alive.
pub struct TrainingState {
    /// The model's configuration.
    pub config: Qwen3Config,
    /// The master weights.
    pub weights: Weights,
    /// Master weights and both moments, `[3, P]` float32.
    state: Tensor,
    /// Optimiser steps done.
    steps: u64,
    /// Of the student whose memory it is.
    lent: Option<Arc<()>>,
}

impl TrainingState {
    /// Of these parts, which are nobody else's; `state` is `[3, P]` float32.
    pub(crate) fn new(config: Qwen3Config, weights: Weights, state: Tensor, steps: u64) -> Self {
        Self { config, weights, state, steps, lent: None }
    }

    /// Whether it is the memory of a student, which makes no step while this is alive.
    pub fn is_lent(&self) -> bool {
        self.lent.is_some()
    }

    /// The state of a student as it is now.
    pub fn of(student: &Student) -> Self {
        Self {
            config: student.model().config().clone(),
            weights: student.weights().clone(),
            state: student.state().clone(),
            steps: student.steps(),
            lent: Some(student.lend()),
        }
    }
}

/// Writes master weights and moments (`[P]` float32 each) and the step count. The metadata names
/// the layout ([`ParameterIndex::digest`]).
///
/// # Errors
/// [`StudentError::Save`].
pub fn save_state(student: &TrainingState, path: &Path) -> Result<(), StudentError> {
    let index = student.weights.index();
    let metadata = Map::from_iter([
        ("format".to_owned(), json!("pt")),
        ("layout".to_owned(), json!(index.digest())),
        ("step".to_owned(), json!(student.steps.to_string())),
    ]);
    let mut entries = Vec::with_capacity(ROWS.len());
    for (row, name) in ROWS.iter().enumerate() {
        entries.push(Entry {
            name: (*name).to_owned(),
            shape: vec![index.total()],
            flat: student.state.narrow(0, row, 1)?.flatten_all()?,
        });
    }
    Ok(write_tensors(path, metadata, &entries, DType::F32)?)
}

/// A student as [`save_state`] left it.
///
/// # Errors
/// [`StudentError::State`] when the file is another model's or damaged, with what was found and
/// wanted; [`StudentError::Weights`] when it cannot be read.
pub fn load_state(
    path: &Path,
    config: Qwen3Config,
    training: Training,
    device: &Device,
) -> Result<Student, StudentError> {
    let file = TensorFile::open(path).map_err(WeightsError::File)?;
    let index = ParameterIndex::new(&config);
    let wrong = |reason| StudentError::State { path: path.to_owned(), reason };
    let layout = file.metadata().get("layout").map_or("none", String::as_str);
    if layout != index.digest() {
        let wanted = index.digest();
        return Err(wrong(format!("its parameter layout is {layout}; wanted {wanted}")));
    }
    let step = file.metadata().get("step").map_or("none", String::as_str);
    let steps =
        step.parse().map_err(|_| wrong(format!("its step is `{step}`; wanted a number")))?;
    let total = index.total();
    let mut state = zeros::<f32>(ROWS.len() * total)?;
    for (row, name) in ROWS.iter().enumerate() {
        let found = file.tensor(name).map_err(WeightsError::File)?;
        let fits =
            |tensor: &StoredTensor| tensor.dtype == StoredDtype::F32 && tensor.shape == [total];
        let Some(tensor) = found.filter(fits) else {
            return Err(wrong(format!("wanted a tensor `{name}` of F32 [{total}]")));
        };
        let into = &mut state[row * total..(row + 1) * total];
        file.read(&tensor, 0, into).map_err(WeightsError::File)?;
    }
    Student::from_state(config, index, state, steps, training, device)
}

#[cfg(test)]
#[path = "state_file_tests.rs"]
mod tests;
