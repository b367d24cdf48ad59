//! Tokenizer checks.
