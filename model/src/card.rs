//! The engine on a card: the network, the loss and the optimiser as programs of [`kernels`], over whatever carries
//! them out ([`Executor`]). On a card nothing of a step passes through the host but tokens in and signals and losses
//! out; in the emulation the same programs are what tests hold against the processor's engine and `f64`.

mod answering;
mod answers;
pub mod bench;
mod block;
mod engine;
mod learner;
mod logits;
mod loss;
pub(crate) mod needs;
mod network;
mod quantised;
mod signals;
mod waiting;
mod weight;

use half::bf16;
use kernels::executor::{Executor, Outputs};
use kernels::program::{Kind, View};

use crate::qwen3::ModelError;
pub use engine::CardModel;
#[cfg(feature = "emulation")]
pub use kernels::emulation;
pub use learner::CardLearner;

/// What an executor says, as the engine says it.
fn failed<X: Executor>(error: X::Error) -> ModelError {
    let text = error.to_string();
    match [X::is_out_of_memory(&error), X::is_lost(&error)] {
        [true, _] => ModelError::OutOfMemory(text),
        [false, true] => ModelError::DeviceLost(text),
        [false, false] => ModelError::Device(text),
    }
}

/// What was put out in the activations' type, as float32.
fn floats(outputs: &Outputs, view: View) -> Vec<f32> {
    match view.kind {
        Kind::Bf16 => outputs.get::<bf16>(view).into_iter().map(bf16::to_f32).collect(),
        Kind::F32 | Kind::F64 | Kind::U32 | Kind::Bytes => outputs.get(view),
    }
}

#[cfg(test)]
mod tests;
