//! For tests: a stand-in of the hub's HTTP interface, and tiny models to load.
//!
//! Compiled for this crate's own tests, and for others with the feature `testing`.

#[path = "testing/stand_in.rs"]
mod stand_in;
#[path = "testing/tiny.rs"]
mod tiny;

pub use stand_in::{Fault, Hosted, StandIn};
pub use tiny::{CHAT_TEMPLATE, tiny_tokenizer_json, write_tiny_tokenizer};
