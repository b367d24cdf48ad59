//! The teacher: a gRPC service that scores token sequences for a student to learn from.
//!
//! The way of a request, one room after another: [`service`] reads and checks it, [`distill::queue`]
//! admits it, [`engine`] packs it with others on the thread that owns the device, [`scorer`] is the model
//! ([`qwen3_scorer`]) behind a trait, and the service sends the answer in chunks. What comes over HTTP in
//! the words of other trainers ([`dialects`]) goes the same way from the [`desk`] on. Beside it goes what
//! hidden states are read with ([`decoder`], made as [`calibrate`] says, and [`mod@fetch`]). Around it:
//! [`config`] and [`settings`] (what was asked of the server), [`accept`], [`guard`] with [`tls`] and
//! [`access`], and [`client`] (who comes in), [`connection`], [`idle`], [`deadline`] and [`shutdown`]
//! (how it ends), [`unfinished`], [`held`], [`watches`] and [`room`] (how much one may hold),
//! [`metrics`], [`http`], [`spans`] with their [`request_id`], [`telemetry`] and [`seldom`] (what it
//! shows), [`error`], [`protocol`] and [`unreadable`] (what it refuses).

pub mod config;
pub mod settings;

pub mod calibrate;
pub mod decoder;
pub mod qwen3_scorer;
pub mod scorer;

pub mod engine;

pub mod desk;
pub mod dialects;
pub mod fetch;
pub mod score_stream;
pub mod service;
pub mod text;

pub mod accept;
pub mod access;
pub mod client;
pub mod connection;
pub mod deadline;
pub mod guard;
pub mod held;
pub mod http;
pub mod idle;
pub mod metrics;
pub mod protocol;
pub mod request_id;
pub mod room;
pub mod seldom;
pub mod shutdown;
pub mod spans;
pub mod state;
pub mod telemetry;
pub mod tls;
pub mod unfinished;
pub mod unreadable;
pub mod watches;

pub mod banner;
pub mod error;
pub mod health;
pub mod output;
pub mod testing;

mod serve;

pub use guard::Guard;
pub use serve::{Listeners, ServeError, serve};

#[cfg(test)]
mod serve_tests;
