//! What is true without a machine.
//!
//! No tokio, tonic, candle, file, socket, clock or system randomness: time and random numbers are
//! arguments. Everything here is tested in seconds, and the tensor code of `model` is tested
//! against it.
//!
//! Reading order: [`batch`] (tokens), [`signal`], [`codec`], [`hidden`], [`coded`] and [`matrix`] (what a
//! teacher says of them, and what reads it), [`mod@reference`] (the loss and its gradient, in float64),
//! [`schedule`], [`order`], [`perplexity`] (training arithmetic), [`window`] and [`backoff`] (requests in
//! flight), [`queue`] (what waits for the teacher's device, and whose turn it is) and [`share`] (who may
//! have how much of a bound), [`cache`] (answers kept for later runs, as bytes), [`handshake`] and
//! [`fingerprint`] (who speaks with whom).

pub mod backoff;
pub mod batch;
pub mod cache;
pub mod codec;
pub mod coded;
pub mod fingerprint;
pub mod handshake;
pub mod hidden;
pub mod matrix;
pub mod order;
pub mod perplexity;
pub mod queue;
pub mod reference;
pub mod schedule;
pub mod share;
pub mod signal;
pub mod window;
