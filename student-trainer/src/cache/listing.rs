//! `segments.json`: what an object store holds of a cache.

use std::fs;
use std::path::Path;

use distill::fingerprint::Fingerprint;
use serde::{Deserialize, Serialize};

use super::error::{CacheError, at};
use super::manifest::BLOB;
use super::store::{index_name, segment_name};
use crate::files;

/// The list of what is in the store.
pub(super) const LIST: &str = "segments.json";

/// A file in the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) bytes: u64,
    /// BLAKE3, 64 hexadecimal digits.
    pub(super) digest: String,
}

impl Listed {
    pub(super) fn of(name: String, bytes: &[u8]) -> Self {
        let digest = blake3::hash(bytes).to_hex().to_string();
        Self { name, bytes: bytes.len() as u64, digest }
    }

    /// What it is called in the store.
    pub(super) fn object(&self) -> String {
        format!("{}-{}", self.digest, self.name)
    }

    /// Whether a file is this one; `known` are those that were compared before.
    pub(super) fn is_at(&self, path: &Path, known: &List) -> bool {
        let same_length = fs::metadata(path).is_ok_and(|meta| meta.len() == self.bytes);
        let same = || fs::read(path).is_ok_and(|b| Self::of(self.name.clone(), &b) == *self);
        same_length && (known.files.contains(self) || same())
    }
}

/// `segments.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct List {
    pub(super) files: Vec<Listed>,
}

impl List {
    /// From its text.
    ///
    /// # Errors
    /// What is wrong with it, and what to do.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let list: Self = serde_json::from_slice(text).map_err(|e| {
            format!(
                "{LIST} is damaged ({e}): put it back as it was; where it is removed, a machine with a copy sends \
                 all of it with its next build, and what no machine has is asked for again"
            )
        })?;
        // A name of anything else would lead out of the directory.
        match list.files.iter().find(|file| !is_ours(&file.name)) {
            Some(file) => Err(format!("{LIST} lists {:?}", file.name)),
            None => Ok(list),
        }
    }

    /// What a directory has of the store, as was noted there; nothing where nothing is.
    pub(super) fn of_copy(dir: &Path) -> Self {
        let known = files::read(&dir.join(LIST)).ok();
        known.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// Notes in a directory which files of it are those of the store.
    pub(super) fn write(&self, dir: &Path) -> Result<(), CacheError> {
        let text = serde_json::to_vec_pretty(self).unwrap_or_default();
        let path = dir.join(LIST);
        at("write", &path, files::write(&path, &text))
    }
}

/// Whether a name is that of a segment, its index, or what hidden states are read with.
fn is_ours(name: &str) -> bool {
    if name.strip_suffix(BLOB).is_some_and(|digest| digest.parse::<Fingerprint>().is_ok()) {
        return true;
    }
    let number = |end| name.strip_prefix("segment-")?.strip_suffix(end)?.parse::<u32>().ok();
    [".seg", ".idx"]
        .into_iter()
        .find_map(number)
        .is_some_and(|number| name == segment_name(number) || name == index_name(number))
}
