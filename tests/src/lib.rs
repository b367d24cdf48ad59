//! The harness of the integration tests: where things lie, how the programs are started, and how a
//! test that cannot run here says so.

mod programs;
mod python;
mod shared;

pub use programs::{Teacher, binary, run, trainer};
pub use python::{Python, python};
pub use shared::{root, shared};

/// Says that a test is skipped and why, where a person reading the output of the tests sees it.
#[expect(clippy::print_stderr, reason = "test output is for the person who runs the tests")]
pub fn skip(test: &str, why: &str) {
    eprintln!("SKIPPED {test}: {why}");
}
