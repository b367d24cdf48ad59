//! The contract between a teacher and those who learn from it.
//!
//! Reading order: `distill/v1/teacher.proto` (every field, unit, bound and failure), [`convert`]
//! (the one place where foreign bytes are checked: wire types stop there), [`limits`] (sizes both
//! sides must agree on). docs/wire.md has the byte layouts and the failure table.

/// Generated from `distill/v1/teacher.proto`.
#[expect(missing_docs, reason = "prost documents no enum conversion or module it generates")]
#[expect(clippy::allow_attributes_without_reason, reason = "generated, without reasons")]
pub mod v1 {
    tonic::include_proto!("distill.v1");
}

/// The encoded descriptor set of the contract, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

pub mod causes;
pub mod convert;
pub mod limits;
