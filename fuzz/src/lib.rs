//! What may never happen, whatever comes over the wire: one function a target, which takes any bytes
//! and panics where a law is broken.
//!
//! libFuzzer calls them with inputs of its own making (`cargo xtask fuzz`, see the README beside);
//! the tests call them with the inputs that were kept of that.
//!
//! [`request`] and [`reply`] are messages in both directions, [`packed`] and [`compact`] the arrays in
//! them, [`states`] what came with hidden states, [`bodies`] what comes over HTTP.

pub mod bodies;
pub mod compact;
pub mod packed;
pub mod reply;
pub mod request;
pub mod states;

mod answers;
mod draw;
mod memory;
mod teachers;

/// A target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: of its program, and of the folder of its corpus.
    pub name: &'static str,
    /// Tries an input; whether it was accepted as far as it can be. Panics where a law is broken.
    pub run: fn(&[u8]) -> bool,
    /// Inputs to begin with, all of them accepted.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: [Target; 6] = [
    Target { name: "request", run: request::run, seeds: request::seeds },
    Target { name: "reply", run: reply::run, seeds: reply::seeds },
    Target { name: "packed", run: packed::run, seeds: packed::seeds },
    Target { name: "compact", run: compact::run, seeds: compact::seeds },
    Target { name: "states", run: states::run, seeds: states::seeds },
    Target { name: "bodies", run: bodies::run, seeds: bodies::seeds },
];
