//! A name becomes a folder: a local directory as it stands, or a repository of the hub.

#[path = "source/error.rs"]
mod error;
#[path = "source/local.rs"]
mod local;
#[path = "source/remote.rs"]
mod remote;

pub use error::HubError;
pub(crate) use local::is_repository_id;

use std::path::{Path, PathBuf};

use crate::client::{Kind, Repository};
use crate::dataset;
use crate::settings::HubSettings;

/// A model's folder, ready to be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedModel {
    /// The folder: config.json, the tokenizer's files, as a rule safetensors.
    pub dir: PathBuf,
    /// Where the weights are: the folder, or a GGUF file in it.
    pub weights: PathBuf,
    /// The hub id, or the directory or file as it was given.
    pub id: String,
    /// The commit, for a model of the hub.
    pub revision: Option<String>,
}

/// Finds the folder of a model: an existing directory is used as it stands, or a GGUF file with what lies beside it;
/// of a directory without safetensors the one GGUF file. Anything else is a hub id, `ORG/NAME` or `NAME`, downloaded into the shared cache unless it is there already.
/// Only the configuration, the tokenizer's files and safetensors are downloaded.
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
    if local::is_gguf(spec) && Path::new(spec).is_file() {
        return local::file(spec, revision);
    }
    if !local::is_repository_id(spec) {
        return Err(HubError::NotASource { spec: spec.to_owned() });
    }
    let repo = repository(Kind::Model, spec, revision.unwrap_or("main"))?;
    let (dir, commit) = remote::model(&repo, settings)?;
    Ok(ResolvedModel { weights: dir.clone(), dir, id: spec.to_owned(), revision: Some(commit) })
}

/// The local files of a hub dataset's split, `hf://datasets/ORG/NAME[@REV][/SPLIT]`, downloaded
/// into the shared cache unless they are there already; in the order of their names. Without a
/// split, `train`. A split may be named with its subset (`main/train`), or be a file of the
/// repository.
///
/// # Errors
/// [`HubError`]; when the split is not there, with the splits and files that are.
pub fn resolve_dataset(spec: &str, settings: &HubSettings) -> Result<Vec<PathBuf>, HubError> {
    let wanted = dataset::Spec::parse(spec)?;
    let repo = repository(Kind::Dataset, &wanted.id, &wanted.revision)?;
    remote::dataset(&repo, &wanted.split, settings)
}

fn repository(kind: Kind, id: &str, revision: &str) -> Result<Repository, HubError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./+".contains(&b);
    let hidden = revision.split('/').any(|part| part.starts_with('.'));
    if !crate::client::is_safe_path(revision) || !revision.bytes().all(plain) || hidden {
        return Err(HubError::BadRevision { revision: revision.to_owned() });
    }
    Ok(Repository { kind, id: id.to_owned(), revision: revision.to_owned() })
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
