//! What training and answering take of a device's memory, said before anything is taken: on a card to the byte, as the
//! programs of the step say it ([`crate::card`]), on the processor about ([`crate::recompute`]).

use std::path::Path;

use serde::Serialize;

use crate::card;
use crate::config::Qwen3Config;
use crate::device::Device;
use crate::ops::Precision;
use crate::recompute::Recompute;
use crate::student::{Student, StudentError, Training};
use crate::weights::WeightsError;

/// Memory, by what it is for, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Needs {
    /// The weights as products read them, where these are not the optimiser's; tables of the rotation.
    pub model: u64,
    /// Master weights and both moments.
    pub optimiser: u64,
    /// Gradients of the parameters.
    pub gradients: u64,
    /// What is kept of the forward pass, and what a block needs while it is computed.
    pub activations: u64,
    /// Logits, hidden states of the scored positions and their sums.
    pub loss: u64,
    /// The teacher's output matrix, of a teacher that says everything.
    pub teacher: u64,
    /// What the library of matrix products works in.
    pub workspace: u64,
    /// Places for what is sent and fetched.
    pub travelling: u64,
    /// What lies unused between buffers.
    pub gaps: u64,
}

impl Needs {
    /// All parts by name, in the order in which they are shown.
    pub fn parts(&self) -> [(&'static str, u64); 9] {
        [
            ("model", self.model),
            ("optimiser", self.optimiser),
            ("gradients", self.gradients),
            ("activations", self.activations),
            ("loss", self.loss),
            ("teacher's matrix", self.teacher),
            ("workspace", self.workspace),
            ("inputs, outputs", self.travelling),
            ("gaps", self.gaps),
        ]
    }

    /// What is taken whatever the batch is.
    pub fn lasting(&self) -> u64 {
        self.model + self.optimiser + self.gradients + self.teacher + self.workspace
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }
}

/// What a teacher says of a position, as far as it takes memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taught {
    /// Nothing: there is no teacher.
    Nothing,
    /// So many tokens, at most.
    Listed {
        /// Tokens of a position.
        k: usize,
        /// How many likeliest ones the student is asked for itself; 0 for none.
        own: usize,
    },
    /// Everything: its hidden states, and an output matrix `[classes, width]`.
    All {
        /// Numbers of a hidden state.
        width: usize,
        /// Rows of the matrix.
        classes: usize,
    },
}

/// A batch that is to be learned from: all positions but the last of each row are scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch<'a> {
    /// Tokens of each row.
    pub rows: &'a [usize],
    /// What is said of its positions.
    pub taught: Taught,
}

/// What training takes with batches like this one.
///
/// # Errors
/// When a card cannot do what is asked.
pub fn training(
    device: Device,
    config: &Qwen3Config,
    training: &Training,
    batch: Batch<'_>,
) -> Result<Needs, StudentError> {
    match device {
        Device::Cpu => Ok(on_processor(config, training.recompute, batch)),
        Device::Cuda(_) => card::needs::training(config, training, batch),
    }
}

/// What a model of a directory or a GGUF file takes of a card to answer about batches of such rows, all positions asked for
/// the `k` likeliest classes. None on the processor.
///
/// # Errors
/// When the card cannot do what is asked, or a GGUF file cannot be read.
pub fn answering(
    device: Device,
    place: &Path,
    config: &Qwen3Config,
    precision: Precision,
    batch: (&[usize], usize),
) -> Result<Option<Needs>, WeightsError> {
    match device {
        Device::Cpu => Ok(None),
        Device::Cuda(_) => card::needs::answering(place, config, precision, batch).map(Some),
    }
}

fn on_processor(config: &Qwen3Config, recompute: Recompute, batch: Batch<'_>) -> Needs {
    let step = recompute.step(config, batch.rows.iter().sum());
    let matrix = match batch.taught {
        Taught::All { width, classes } => (width * classes * size_of::<f32>()) as u64,
        Taught::Nothing | Taught::Listed { .. } => 0,
    };
    Needs {
        optimiser: Student::state_bytes(config),
        gradients: step.gradients,
        activations: step.activations,
        loss: step.loss,
        teacher: matrix,
        ..Needs::default()
    }
}

/// The choices there are on a device, from the fastest to the leanest. `alone` says whether an optimiser step takes one
/// batch only.
pub fn choices(device: Device, alone: bool) -> &'static [Recompute] {
    match device {
        Device::Cpu if alone => &Recompute::ALL,
        Device::Cpu | Device::Cuda(_) => &[Recompute::None, Recompute::Blocks],
    }
}

/// Of choices from the fastest to the leanest the first that takes at most `available` bytes; the leanest that there is
/// where none does.
pub fn choose(choices: &[(Recompute, Needs)], available: u64) -> Recompute {
    let fits = choices.iter().find(|(_, needs)| needs.total() <= available);
    let leanest = || choices.iter().min_by_key(|(_, needs)| needs.total());
    fits.or_else(leanest).map(|(choice, _)| *choice).unwrap_or_default()
}

/// Bytes as a person reads them.
pub fn amount(bytes: u64) -> String {
    match bytes {
        0..0x4000_0000 => format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

#[cfg(test)]
#[path = "needs_tests.rs"]
mod tests;
