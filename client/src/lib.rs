//! Speaks to a teacher: where it is, whom to trust, what it says of itself, and its scores.
//!
//! This is what the trainer itself uses. Whether teacher and student fit is decided by
//! [`distill::handshake`], what bytes mean by [`proto::convert`], and when to ask again by
//! [`distill::window`]; here the other side is reached, asked, and named in every error.
//!
//! ```no_run
//! use client::{Access, Address, Heard};
//! use distill::codec::Codec;
//! use distill::queue::Priority;
//! use distill::signal::Entries;
//! use proto::convert::ScoreJob;
//!
//! # async fn ask() -> Result<(), Box<dyn std::error::Error>> {
//! let teacher = Address::parse("grpc://127.0.0.1:50051", &Access::default())?;
//! let facts = teacher.info().await?;
//! let classes = facts.vocab_size;
//! let mut stream = teacher.open(facts.terms(classes)).await?;
//! stream.send(ScoreJob {
//!     id: 1,
//!     tokens: vec![785, 6722, 315, 9625, 374],
//!     ranges: vec![0..5],
//!     temperature: 1.0,
//!     entries: Entries::Top,
//!     k: 4,
//!     codec: Codec::Raw,
//!     classes,
//!     priority: Priority::Normal,
//! })?;
//! while let Heard::Part { .. } = stream.next().await? {} // long answers come in parts
//! # Ok(())
//! # }
//! ```

mod access;
mod address;
mod decoder;
mod error;
mod exchange;
mod stranger;
mod trust;
pub mod vllm;

pub use access::{Access, AccessError, Papers};
pub use address::{Address, Bearer, Grpc};
pub use decoder::part_of;
pub use error::{Error, Failure, Fault};
pub use exchange::{Exchange, Full, Heard};
