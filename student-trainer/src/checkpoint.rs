//! Checkpoints: directories that appear whole or not at all.
//!
//! The protocol: files go to a hidden directory beside the final one and are fsynced; a manifest
//! with each file's length and BLAKE3 hash follows last; a rename makes the directory visible; the
//! parent is fsynced; only then are older checkpoints pruned. So whatever moment the process dies
//! at, every visible checkpoint is complete, and bits that rot afterwards are noticed.

use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The manifest's name within a checkpoint.
pub const MANIFEST: &str = "manifest.json";
/// Version of the layout described by the manifest.
pub const FORMAT_VERSION: u32 = 1;

/// What a complete checkpoint consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this layout.
    pub format_version: u32,
    /// Optimiser steps done.
    pub step: u64,
    /// Every other file of the directory.
    pub files: Vec<FileRecord>,
}

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Name within the directory.
    pub name: String,
    /// Length in bytes.
    pub bytes: u64,
    /// BLAKE3 of the contents, 64 hexadecimal digits.
    pub blake3: String,
}

/// A checkpoint directory and its manifest.
pub type Found = (PathBuf, Manifest);

/// Why a checkpoint could not be written or is not loaded.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file system refused.
    #[error("checkpoint: cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Checkpoints, and none of them whole.
    #[error(
        "no checkpoint in {} is whole: {}. Restore one from a copy, or begin anew in another \
         --output-dir",
        root.display(), notes.join(". ")
    )]
    NoneWhole {
        /// The directory of the checkpoints.
        root: PathBuf,
        /// What is wrong with each.
        notes: Vec<String>,
    },
    /// No manifest: not a checkpoint, or one from an interrupted copy.
    #[error("{} is not a complete checkpoint: it has no {MANIFEST}", dir.display())]
    Incomplete {
        /// The directory.
        dir: PathBuf,
    },
    /// A manifest or state that cannot be read.
    #[error("{}: {reason}; the checkpoint is damaged or of another version", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A layout this program does not know.
    #[error(
        "{}: checkpoint format {found}, this program reads {FORMAT_VERSION}; \
         resume with the version that wrote it", dir.display()
    )]
    Version {
        /// The directory.
        dir: PathBuf,
        /// The version found.
        found: u32,
    },
    /// A file whose length or hash is not the manifest's.
    #[error(
        "{}: {what} is {found}, the manifest says {wanted}; the file was changed or damaged after \
         it was written", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// `length` or `BLAKE3`.
        what: &'static str,
        /// What the file has.
        found: String,
        /// What it should have.
        wanted: String,
    },
    /// A checkpoint of a run that this configuration would not continue.
    #[error(
        "{}: made with {key} = {found}, this run has {wanted}; a resumed run must be the same run: \
         restore the option or start in another --output-dir", dir.display()
    )]
    OtherRun {
        /// The checkpoint.
        dir: PathBuf,
        /// The option that differs.
        key: String,
        /// Its value in the checkpoint.
        found: String,
        /// Its value now.
        wanted: String,
    },
    /// The contents do not fit the model.
    #[error("{}: {reason}", dir.display())]
    Contents {
        /// The checkpoint.
        dir: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Writes a checkpoint of `step` below `root`; `fill` writes its files into the directory it is
/// given. Returns the visible directory.
///
/// # Errors
/// Those of the file system and of `fill`; nothing visible is left behind.
pub fn write<E: From<CheckpointError>>(
    root: &Path,
    step: u64,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<PathBuf, E> {
    let visible = root.join(name(step));
    let hidden = root.join(format!(".tmp-{}-{}", name(step), std::process::id()));
    clear(&hidden)?;
    at("create", &hidden, fs::create_dir_all(&hidden))?;
    let written = fill(&hidden).and_then(|()| Ok(seal(&hidden, step)?));
    if let Err(error) = written {
        // The first error is the one to tell; a leftover hidden directory is cleared next time.
        let _ = fs::remove_dir_all(&hidden);
        return Err(error);
    }
    clear(&visible)?;
    at("rename", &hidden, fs::rename(&hidden, &visible))?;
    sync(root)?;
    Ok(visible)
}

/// Checks every file of a checkpoint against its manifest.
///
/// # Errors
/// [`CheckpointError`] names the first thing that is missing or differs.
pub fn verify(dir: &Path) -> Result<Manifest, CheckpointError> {
    let path = dir.join(MANIFEST);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(CheckpointError::Incomplete { dir: dir.to_path_buf() });
        }
        Err(source) => return Err(CheckpointError::Io { action: "read", path, source }),
    };
    let manifest: Manifest = serde_json::from_str(&text)
        .map_err(|e| CheckpointError::Unreadable { path: path.clone(), reason: e.to_string() })?;
    if manifest.format_version != FORMAT_VERSION {
        let found = manifest.format_version;
        return Err(CheckpointError::Version { dir: dir.to_path_buf(), found });
    }
    for record in &manifest.files {
        if Path::new(&record.name).components().count() != 1 || record.name.contains("..") {
            let reason = format!("names a file outside the checkpoint: {}", record.name);
            return Err(CheckpointError::Unreadable { path, reason });
        }
        check(&dir.join(&record.name), record)?;
    }
    Ok(manifest)
}

/// The newest checkpoint below `root` whose files are what its manifest says, and a sentence about
/// each newer one that is not.
///
/// # Errors
/// When `root` cannot be listed (a missing one holds no checkpoints), or there are checkpoints and
/// none of them is whole.
pub fn newest_valid(root: &Path) -> Result<(Option<Found>, Vec<String>), CheckpointError> {
    let mut notes = Vec::new();
    for (_, dir) in list(root)?.into_iter().rev() {
        match verify(&dir) {
            Ok(manifest) => return Ok((Some((dir, manifest)), notes)),
            Err(error) => notes.push(error.to_string()),
        }
    }
    if notes.is_empty() {
        return Ok((None, notes));
    }
    Err(CheckpointError::NoneWhole { root: root.to_path_buf(), notes })
}

/// Takes the checkpoints after `step` out of the row, and gives their new places: a run that goes on
/// from an earlier step makes others, and neither pruning nor the next resumption may take these for
/// the newest. They keep their contents under a name of their own (`aside-step-000060`).
///
/// # Errors
/// Those of the file system.
pub fn set_aside_after(root: &Path, step: u64) -> Result<Vec<PathBuf>, CheckpointError> {
    let later = list(root)?.into_iter().filter(|(found, _)| *found > step);
    let mut places = Vec::new();
    for (found, dir) in later {
        let free = |number: u32| match number {
            1 => root.join(format!("aside-{}", name(found))),
            _ => root.join(format!("aside-{}-{number}", name(found))),
        };
        let place = (1..).map(free).find(|place| !place.exists()).unwrap_or_default();
        at("rename", &dir, fs::rename(&dir, &place))?;
        places.push(place);
    }
    if !places.is_empty() {
        sync(root)?;
    }
    Ok(places)
}

/// Removes all but the `keep` newest checkpoints (at least one stays) and what interrupted saves
/// left behind.
///
/// # Errors
/// Those of the file system.
pub fn prune(root: &Path, keep: usize) -> Result<(), CheckpointError> {
    let all = list(root)?;
    let surplus = all.len().saturating_sub(keep.max(1));
    for (_, dir) in &all[..surplus] {
        clear(dir)?;
    }
    for entry in at("list", root, fs::read_dir(root))? {
        let entry = at("list", root, entry)?;
        if entry.file_name().to_string_lossy().starts_with(".tmp-step-") {
            clear(&entry.path())?;
        }
    }
    Ok(())
}

/// The visible checkpoints below `root` by ascending step.
fn list(root: &Path) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
    let entries = match fs::read_dir(root) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => at("list", root, other)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = at("list", root, entry)?;
        let file_name = entry.file_name();
        let step = file_name.to_str().and_then(|n| n.strip_prefix("step-")).map(str::parse);
        if let Some(Ok(step)) = step {
            found.push((step, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// Fsyncs the files of a directory and writes the manifest over them, last.
fn seal(dir: &Path, step: u64) -> Result<(), CheckpointError> {
    let mut files = Vec::new();
    for entry in at("list", dir, fs::read_dir(dir))? {
        let path = at("list", dir, entry)?.path();
        let bytes = at("read", &path, fs::metadata(&path))?.len();
        sync(&path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.push(FileRecord { name, bytes, blake3: hash(&path)? });
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let manifest = Manifest { format_version: FORMAT_VERSION, step, files };
    let text = serde_json::to_vec_pretty(&manifest).map_err(io::Error::from);
    let path = dir.join(MANIFEST);
    let text = at("write", &path, text)?;
    let mut file = at("create", &path, File::create(&path))?;
    at("write", &path, file.write_all(&text))?;
    at("sync", &path, file.sync_all())?;
    sync(dir)
}

/// Compares a file with its record: the length first, since it costs nothing.
fn check(path: &Path, record: &FileRecord) -> Result<(), CheckpointError> {
    let bytes = at("read", path, fs::metadata(path))?.len();
    let damaged = |what, found: String, wanted: String| {
        Err(CheckpointError::Damaged { path: path.to_path_buf(), what, found, wanted })
    };
    if bytes != record.bytes {
        return damaged("length", bytes.to_string(), record.bytes.to_string());
    }
    let found = hash(path)?;
    if found != record.blake3 {
        return damaged("BLAKE3", found, record.blake3.clone());
    }
    Ok(())
}

/// BLAKE3 of a file, read in pieces.
fn hash(path: &Path) -> Result<String, CheckpointError> {
    let mut hasher = blake3::Hasher::new();
    let file = at("read", path, File::open(path))?;
    at("read", path, hasher.update_reader(file).map(|_| ()))?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Makes a file or a directory's entries last through a crash.
fn sync(path: &Path) -> Result<(), CheckpointError> {
    at("sync", path, File::open(path).and_then(|file| file.sync_all()))
}

/// Removes a directory that may not exist.
fn clear(dir: &Path) -> Result<(), CheckpointError> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(CheckpointError::Io { action: "remove", path: dir.to_path_buf(), source: e })
        }
        _ => Ok(()),
    }
}

/// A checkpoint's name: `step-000500`.
pub(crate) fn name(step: u64) -> String {
    format!("step-{step:06}")
}

fn at<T>(action: &'static str, path: &Path, result: io::Result<T>) -> Result<T, CheckpointError> {
    result.map_err(|source| CheckpointError::Io { action, path: path.to_path_buf(), source })
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
