//! The whole house at once: the real programs, over loopback, and the Python peers.

mod angles;
mod bad_input;
mod cache;
mod calibrate;
mod containers;
mod demo;
mod hub;
mod job;
mod memory;
mod peers;
mod peers_signals;
mod precision;
mod s3;
mod secrets;
mod secure;
mod signals;
mod stop;
mod vocabulary;
