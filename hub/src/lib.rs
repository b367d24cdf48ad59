//! Where models, tokenizers and datasets come from: a folder, the shared cache, or the hub.
//!
//! Reading order: [`source`] (a name becomes a folder), [`settings`] (what the environment says),
//! `cache` (the layout shared with Python's `huggingface_hub`), `client` and `download` (the
//! wire), `dataset` (which files of a dataset repository are a split), [`tokenizer`] (text to
//! ids), [`chat`] (messages to text), [`files`] (what is copied beside a saved model).

mod cache;
pub mod chat;
mod client;
mod dataset;
mod download;
pub mod files;
mod progress;
pub mod settings;
pub mod source;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tokenizer;
