//! Qwen3 that can be trained: files, network, operations and optimiser, on candle's tensors.
//!
//! candle holds the numbers; its autograd is not used, because its fused norm, rotation and
//! softmax drop gradients without a word. Every operation has a forward and an explicit backward
//! in [`ops`], and every parameter lives in one flat tensor ([`weights`]) with a gradient tensor
//! of the same layout ([`gradients`]).
//!
//! Reading order: [`config`] (what a model is), [`parameters`] (where each tensor lies),
//! [`weights`] (in and out of files: [`tensor_file`], [`mod@gguf`], [`load`], [`save`]), [`qwen3`] and its
//! blocks (forward and backward), [`recompute`] (memory against time) and [`needs`] (how much of it), [`student`] (training state and step),
//! [`coding`] (hidden states as few bytes), [`generate`].

pub mod card;
pub mod coding;
pub mod config;
pub mod device;
pub mod fingerprint;
pub mod generate;
pub mod gguf;
pub mod golden;
pub mod gradients;
pub mod language_model;
pub mod learner;
pub mod load;
pub mod malloc;
pub mod needs;
pub mod ops;
pub mod parameters;
pub mod profile;
pub mod qwen3;
pub mod recompute;
pub mod save;
pub mod started;
pub mod state_file;
pub mod student;
pub mod tensor_file;
pub mod weights;

mod block;
mod config_rope;
mod files;
#[cfg(test)]
mod test_support;
