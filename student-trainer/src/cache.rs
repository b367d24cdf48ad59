//! Answers of a teacher kept over runs: what was asked once is not asked again.
//!
//! Reading order: `manifest` (what all answers of a cache have in common), `payload` (an answer as bytes:
//! the one place that knows signals), `store` (a directory of segments, read), `append` (the same,
//! written), `remote` (the same in an object store, over the calls of `bucket`, sent by `sender`) and `place` (which of them
//! is meant), `handle` (what a run holds: lookups, and a thread that writes), `join` (which of teacher and
//! cache a run needs), [`build`] and [`table`] (the commands). The formats are [`distill::cache`]'s and
//! stand in docs/cache.md.

pub(crate) mod append;
mod bucket;
pub mod build;
mod error;
pub(crate) mod handle;
pub(crate) mod join;
mod listing;
pub(crate) mod manifest;
pub(crate) mod payload;
pub(crate) mod place;
mod remote;
mod sender;
pub mod speed;
pub(crate) mod store;
pub mod table;

pub use error::CacheError;
pub(crate) use handle::{Cache, Lookup};
pub(crate) use manifest::Manifest;

#[cfg(test)]
#[path = "cache/copy_tests.rs"]
mod copy_tests;
#[cfg(test)]
mod faulty;
#[cfg(test)]
#[path = "cache/kill_tests.rs"]
mod kill_tests;
#[cfg(test)]
#[path = "cache/remote_tests.rs"]
mod remote_tests;
#[cfg(test)]
#[path = "cache/run_tests.rs"]
mod run_tests;
#[cfg(test)]
#[path = "cache/store_tests.rs"]
mod store_tests;
