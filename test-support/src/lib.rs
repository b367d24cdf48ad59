//! What a test needs beside the repository (shared material, Python packages, a Docker engine), and
//! how a test that lacks it says so. A dev-dependency of every crate, a dependency of none.

mod python;
mod require;
mod shared;

pub use python::{Python, python};
pub use require::skip;
pub use shared::{root, shared};
