//! Model folders on this machine, and what may be a hub id.

use std::path::Path;

use super::{HubError, ResolvedModel};

/// A model that is a directory.
pub(super) fn model(spec: &str, revision: Option<&str>) -> Result<ResolvedModel, HubError> {
    refuse_revision(spec, revision)?;
    let dir = Path::new(spec);
    let names = file_names(dir)?;
    check_model_files(spec, &names)?;
    let files: Vec<String> = names.iter().filter(|name| is_gguf(name)).cloned().collect();
    let weights = match &files[..] {
        _ if has_safetensors(&names) => dir.to_owned(),
        [] => dir.to_owned(),
        [file] => dir.join(file),
        _ => return Err(HubError::SeveralGguf { dir: dir.to_owned(), files }),
    };
    Ok(ResolvedModel { dir: dir.to_owned(), weights, id: spec.to_owned(), revision: None })
}

/// A model that is a GGUF file, with its configuration and its tokenizer beside it.
pub(super) fn file(spec: &str, revision: Option<&str>) -> Result<ResolvedModel, HubError> {
    refuse_revision(spec, revision)?;
    let file = Path::new(spec);
    let dir = match file.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        Some(_) | None => Path::new("."),
    };
    complete(spec, spec, &file_names(dir)?)?;
    let (dir, weights) = (dir.to_owned(), file.to_owned());
    Ok(ResolvedModel { dir, weights, id: spec.to_owned(), revision: None })
}

fn refuse_revision(spec: &str, revision: Option<&str>) -> Result<(), HubError> {
    let Some(revision) = revision else { return Ok(()) };
    let (spec, revision) = (spec.to_owned(), revision.to_owned());
    Err(HubError::RevisionOfDirectory { spec, revision })
}

/// Whether this is the name of a GGUF file.
pub(super) fn is_gguf(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf"))
}

fn has_safetensors(names: &[String]) -> bool {
    names.iter().any(|name| name.ends_with(".safetensors"))
}

/// What a GGUF file needs beside it.
fn complete(id: &str, file: &str, names: &[String]) -> Result<(), HubError> {
    let is_there = |wanted: &str| names.iter().any(|name| name == wanted);
    let missing: Vec<&str> =
        ["config.json", "tokenizer.json"].into_iter().filter(|name| !is_there(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let (id, file, missing) = (id.to_owned(), file.to_owned(), missing.join(" and "));
    Err(HubError::GgufAlone { id, file, missing })
}

/// Whether files with these names can be a model: a config.json, and weights that are not pickled.
/// A config.json without any weights may be the start of an untrained student; one beside a GGUF file is not.
pub(super) fn check_model_files(id: &str, names: &[String]) -> Result<(), HubError> {
    let safe = has_safetensors(names);
    if let Some(file) = names.iter().find(|name| is_gguf(name))
        && !safe
    {
        complete(id, file, names)?;
    }
    if !names.iter().any(|name| name == "config.json") {
        return Err(HubError::NotAModel { id: id.to_owned(), found: names.to_vec() });
    }
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
