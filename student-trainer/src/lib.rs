//! The trainer: rows of text become tokens, a teacher says what it expects at each position, the
//! student learns from both.
//!
//! Reading order: [`mod@train`] (the loop, the file to read first), `run` and `setup` (what a run
//! is made of), [`data`] (rows to tokens), [`plan`] (which rows when), [`needs`] and [`at_once`] (how many fit into memory), [`asking`], [`signals`], [`feed`], `link` and
//! [`teacher`] (signals in training order from a service), [`reading`] and `decoder` (what the loss is
//! given of them, and what that takes), [`cache`] (answers kept for later runs), [`proof`] (that they are
//! about the right tokens), [`eval`] and [`measure`], [`fidelity`] (what each signal is worth), [`checkpoint`] and [`state`], [`outputs`] and
//! [`summary`] (what remains), [`observer`] (what is told meanwhile), [`stop`], [`config`] (every
//! option), [`error`].

pub mod asking;
pub mod at_once;
pub mod cache;
mod candidates;
pub mod checkpoint;
pub mod config;
pub mod data;
mod decoder;
pub mod error;
pub mod eval;
pub mod feed;
pub mod fidelity;
mod files;
mod joining;
mod link;
pub mod measure;
mod memory;
pub mod needs;
pub mod observer;
pub mod outputs;
pub mod plan;
pub mod proof;
pub mod reading;
mod run;
mod saving;
mod setup;
pub mod signals;
pub mod state;
mod step;
pub mod stop;
pub mod summary;
pub mod teacher;
#[cfg(test)]
mod testing;
mod timing;
mod toll;
pub mod train;
