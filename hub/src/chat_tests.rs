//! Chat template checks.
