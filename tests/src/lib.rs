//! The harness of the integration tests: how the programs are started, and what the tests need
//! beside them.

mod programs;

pub use programs::{Teacher, binary, run, teacher, trainer};
pub use test_support::{Python, python, root, shared, skip};
