//! Repositories of the hub: what of them is needed, and whether the cache has it.

use std::path::{Path, PathBuf};

use super::{HubError, local};
use crate::cache::CachedRepository;
use crate::client::{Client, Repository};
use crate::dataset;
use crate::download;
use crate::files::{self, TOKENIZER_FILES};
use crate::settings::HubSettings;

/// The index of weights in several files.
const INDEX: &str = "model.safetensors.index.json";

/// A model's folder in the cache and its commit.
pub(super) fn model(
    repo: &Repository,
    settings: &HubSettings,
) -> Result<(PathBuf, String), HubError> {
    if let Some(variable) = settings.offline {
        return cached_model(repo, settings).map_err(|missing| HubError::Offline {
            id: repo.id.clone(),
            revision: repo.revision.clone(),
            cache: settings.cache.clone(),
            missing,
            variable,
        });
    }
    let client = Client::new(settings);
    let info = match client.info(repo) {
        Ok(info) => info,
        Err(error @ (HubError::Unreachable { .. } | HubError::TimedOut { .. })) => {
            let Ok(cached) = cached_model(repo, settings) else { return Err(error) };
            tracing::warn!("{error}; using {} as the cache has it", repo.id);
            return Ok(cached);
        }
        Err(error) => return Err(error),
    };
    let names: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
    local::check_model_files(&repo.id, &names)?;
    let has = |name: &str| names.iter().any(|n| n == name);
    let mut wanted: Vec<String> = std::iter::once("config.json")
        .chain(TOKENIZER_FILES.iter().copied())
        .filter(|name| has(name))
        .map(str::to_owned)
        .collect();
    if has("model.safetensors") {
        wanted.push("model.safetensors".to_owned());
    } else if has(INDEX) {
        wanted.push(INDEX.to_owned());
        let dir = download::fetch(&client, settings, repo, &info.sha, &wanted)?;
        let shards = shards(&repo.id, &dir)?;
        if let Some(absent) = shards.iter().find(|shard| !has(shard)) {
            let reason = format!("names {absent}, which the repository does not have");
            return Err(HubError::BadIndex { id: repo.id.clone(), index: INDEX.into(), reason });
        }
        wanted.extend(shards);
    } else {
        let in_front = |name: &&String| name.ends_with(".safetensors") && !name.contains('/');
        wanted.extend(names.iter().filter(in_front).cloned());
    }
    let dir = download::fetch(&client, settings, repo, &info.sha, &wanted)?;
    Ok((dir, info.sha))
}

/// A model that the cache has whole, or what of it is missing.
fn cached_model(repo: &Repository, settings: &HubSettings) -> Result<(PathBuf, String), String> {
    let cached = CachedRepository::new(&settings.cache, repo);
    let commit = cached.commit().ok_or("the whole repository")?;
    let dir = cached.snapshot(&commit);
    let names = cached.files_of(&commit);
    let has = |name: &str| names.iter().any(|n| n == name);
    for name in ["config.json", "tokenizer.json"] {
        if !has(name) {
            return Err(name.to_owned());
        }
    }
    if has(INDEX) && !has("model.safetensors") {
        let shards = shards(&repo.id, &dir).map_err(|error| error.to_string())?;
        return match shards.into_iter().find(|shard| !has(shard)) {
            Some(shard) => Err(shard),
            None => Ok((dir, commit)),
        };
    }
    if !names.iter().any(|name| name.ends_with(".safetensors")) {
        return Err("model.safetensors".to_owned());
    }
    Ok((dir, commit))
}

/// The files an index names, sorted.
fn shards(id: &str, dir: &Path) -> Result<Vec<String>, HubError> {
    let bad = |reason: String| HubError::BadIndex { id: id.into(), index: INDEX.into(), reason };
    let index = files::read_json(&dir.join(INDEX)).map_err(|error| bad(error.to_string()))?;
    let map = index["weight_map"].as_object().ok_or_else(|| bad("has no weight_map".into()))?;
    let mut shards = Vec::new();
    for (tensor, file) in map {
        match file.as_str() {
            Some(file) if file.ends_with(".safetensors") && !file.contains(['/', '\\']) => {
                shards.push(file.to_owned());
            }
            _ => return Err(bad(format!("sends {tensor} to {file}, which is no shard"))),
        }
    }
    shards.sort();
    shards.dedup();
    Ok(shards)
}

/// The files of a dataset's split.
pub(super) fn dataset(
    repo: &Repository,
    split: &str,
    settings: &HubSettings,
) -> Result<Vec<PathBuf>, HubError> {
    if let Some(variable) = settings.offline {
        return cached_dataset(repo, split, settings).unwrap_or_else(|| {
            Err(HubError::Offline {
                id: repo.id.clone(),
                revision: repo.revision.clone(),
                cache: settings.cache.clone(),
                missing: "the whole repository".to_owned(),
                variable,
            })
        });
    }
    let client = Client::new(settings);
    let info = match client.info(repo) {
        Ok(info) => info,
        Err(error @ (HubError::Unreachable { .. } | HubError::TimedOut { .. })) => {
            let Some(Ok(cached)) = cached_dataset(repo, split, settings) else {
                return Err(error);
            };
            tracing::warn!("{error}; using {} as the cache has it", repo.id);
            return Ok(cached);
        }
        Err(error) => return Err(error),
    };
    let names: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
    let chosen = dataset::choose(&repo.id, split, &names)?;
    let dir = download::fetch(&client, settings, repo, &info.sha, &chosen)?;
    Ok(chosen.iter().map(|file| dir.join(file)).collect())
}

/// A split among the files the cache has; `None` when it has nothing of the repository.
fn cached_dataset(
    repo: &Repository,
    split: &str,
    settings: &HubSettings,
) -> Option<Result<Vec<PathBuf>, HubError>> {
    let cached = CachedRepository::new(&settings.cache, repo);
    let commit = cached.commit()?;
    let dir = cached.snapshot(&commit);
    let chosen = dataset::choose(&repo.id, split, &cached.files_of(&commit));
    Some(chosen.map(|files| files.iter().map(|file| dir.join(file)).collect()))
}
