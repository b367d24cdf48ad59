//! The trainer: rows of text become tokens, a teacher says what it expects at each position, the
//! student learns from both.
//!
//! Reading order: [`train`] (the loop, the file to read first), [`feed`] and [`teacher`] (signals
//! in training order from a service), [`eval`], [`checkpoint`], [`outputs`] and [`summary`] (what
//! remains), [`observer`] (what is told meanwhile), [`error`].

pub mod observer;
pub mod summary;
