//! The server over real loopback sockets, with a fake model: one file a subject.

mod bad_input;
mod bounds;
mod dialects;
mod flow;
pub(crate) mod harness;
mod idle;
mod life;
mod replies;
mod security;
mod text;
