//! The server over real loopback sockets, with a fake model: one file a subject.

mod attacks;
mod bad_calls;
mod bad_input;
mod bounds;
mod by_hand;
mod dialects;
mod flow;
pub(crate) mod harness;
mod held;
mod hidden;
mod idle;
mod life;
#[cfg(feature = "otel")]
mod otel;
mod reading;
mod replies;
mod security;
mod shares;
mod slow;
mod spans;
mod text;
