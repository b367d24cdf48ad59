//! Data checks.
