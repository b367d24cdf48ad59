//! The engine on a card: the network, the loss and the optimiser as programs of [`kernels`], over whatever carries
//! them out ([`Executor`]). On a card nothing of a step passes through the host but tokens in and signals and losses
//! out; in the emulation the same programs are what tests hold against the processor's engine and `f64`.

mod block;
mod network;

use kernels::executor::Executor;

use crate::qwen3::ModelError;

/// What an executor says, as the engine says it.
fn failed<X: Executor>(error: X::Error) -> ModelError {
    match X::is_out_of_memory(&error) {
        true => ModelError::OutOfMemory(error.to_string()),
        false => ModelError::Device(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
