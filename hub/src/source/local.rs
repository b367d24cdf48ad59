//! Model folders on this machine, and what may be a hub id.

use std::path::Path;

use super::{HubError, ResolvedModel};

/// A model that is a directory.
pub(super) fn model(spec: &str, revision: Option<&str>) -> Result<ResolvedModel, HubError> {
    if let Some(revision) = revision {
        let (spec, revision) = (spec.to_owned(), revision.to_owned());
        return Err(HubError::RevisionOfDirectory { spec, revision });
    }
    let dir = Path::new(spec);
    let names = file_names(dir)?;
    check_model_files(spec, &names)?;
    Ok(ResolvedModel { dir: dir.to_owned(), id: spec.to_owned(), revision: None })
}

/// Whether files with these names can be a model: a config.json, and weights that are not pickled.
/// A config.json without any weights may be the start of an untrained student.
pub(super) fn check_model_files(id: &str, names: &[String]) -> Result<(), HubError> {
    if !names.iter().any(|name| name == "config.json") {
        return Err(HubError::NotAModel { id: id.to_owned(), found: names.to_vec() });
    }
    let safe = names.iter().any(|name| name.ends_with(".safetensors"));
    match names.iter().find(|name| is_pickle(name)) {
        Some(pickle) if !safe => {
            Err(HubError::OnlyPickle { id: id.to_owned(), file: pickle.clone() })
        }
        _ => Ok(()),
    }
}

/// Weights that run code when they are read.
fn is_pickle(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name);
    let pickled = [".pt", ".pth", ".pkl", ".pickle", ".ckpt"];
    pickled.iter().any(|end| file.ends_with(end))
        || (file.ends_with(".bin") && file.starts_with("pytorch_model"))
}

/// Whether text may be a hub id: one or two parts of letters, digits, `-`, `_` and `.`, neither
/// starting nor ending with `-` or `.`, without `--` or `..` (the hub's own rule).
pub(crate) fn is_repository_id(spec: &str) -> bool {
    let parts: Vec<&str> = spec.split('/').collect();
    let part_is_good = |part: &str| {
        let plain = part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        let edge = |c| matches!(c, '-' | '.');
        plain
            && !part.is_empty()
            && part.len() <= 96
            && !part.starts_with(edge)
            && !part.ends_with(edge)
    };
    parts.len() <= 2
        && parts.iter().all(|part| part_is_good(part))
        && !spec.contains("--")
        && !spec.contains("..")
}

fn file_names(dir: &Path) -> Result<Vec<String>, HubError> {
    let fail = |source| HubError::Io { doing: "list", path: dir.to_owned(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        names.push(entry.map_err(fail)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
