//! The harness of the integration tests: where things lie, how the programs are started, and how a
//! test that cannot run here says so.

mod programs;
mod python;
mod shared;

pub use programs::{Teacher, binary, run, trainer};
pub use python::{Python, python};
pub use shared::{root, shared};

/// Says that a test is skipped and why, where a person reading the output of the tests sees it.
///
/// # Panics
/// When `$LIMBECK_REQUIRE` is set: there nothing may be skipped.
pub fn skip(test: &str, why: &str) {
    use std::io::Write as _;
    assert!(std::env::var_os("LIMBECK_REQUIRE").is_none(), "{test} must not be skipped: {why}");
    // Not `eprintln!`, which the test runner swallows for tests that pass.
    drop(writeln!(std::io::stderr(), "SKIPPED {test}: {why}"));
}
