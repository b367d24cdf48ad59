//! The cache on disk: the layout Python's `huggingface_hub` reads and writes.
//!
//! ```text
//! CACHE/models--ORG--NAME/blobs/ETAG                 the bytes of a file
//!                        /snapshots/COMMIT/FILE      a relative link to its blob
//!                        /refs/REVISION              the commit a branch or tag stood for
//! CACHE/.locks/models--ORG--NAME/ETAG.lock           held while a blob is written
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use crate::client::Repository;
use crate::source::HubError;

/// The part of the cache that belongs to one repository at one revision.
pub(crate) struct CachedRepository {
    root: PathBuf,
    locks: PathBuf,
    revision: String,
    layout: hf_hub::CacheRepo,
}

impl CachedRepository {
    pub(crate) fn new(cache: &Path, repo: &Repository) -> Self {
        let folder = repo.named().folder_name();
        Self {
            root: cache.join(&folder),
            locks: cache.join(".locks").join(&folder),
            revision: repo.revision.clone(),
            layout: hf_hub::Cache::new(cache.to_owned()).repo(repo.named()),
        }
    }

    /// The commit the revision stood for when it was last asked for; a commit stands for itself.
    pub(crate) fn commit(&self) -> Option<String> {
        if self.snapshot(&self.revision).is_dir() {
            return Some(self.revision.clone());
        }
        let commit = fs::read_to_string(self.root.join("refs").join(&self.revision)).ok()?;
        let commit = commit.trim();
        let plain = !commit.is_empty() && commit.bytes().all(|b| b.is_ascii_alphanumeric());
        plain.then(|| commit.to_owned())
    }

    /// The folder of a commit's files.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.layout.pointer_path(commit)
    }

    /// The names of a commit's files that are here, sorted; in folders below too.
    pub(crate) fn files_of(&self, commit: &str) -> Vec<String> {
        let mut names = Vec::new();
        collect_files(&self.snapshot(commit), "", &mut names);
        names.sort();
        names
    }

    /// Where the bytes of a blob are.
    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.layout.blob_path(etag)
    }

    /// Waits until no other process writes this blob, and keeps others from it.
    pub(crate) fn lock(&self, etag: &str) -> Result<fs::File, HubError> {
        create_dir(&self.locks)?;
        let path = self.locks.join(format!("{etag}.lock"));
        let fail = io("lock", &path);
        let file = fs::File::options().create(true).append(true).open(&path).map_err(&fail)?;
        if let Err(fs::TryLockError::WouldBlock) = file.try_lock() {
            tracing::info!(lock = %path.display(), "another process downloads this file; waiting");
            file.lock().map_err(&fail)?;
        }
        Ok(file)
    }

    /// Makes a file of a commit point to its blob.
    pub(crate) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<PathBuf, HubError> {
        let pointer = self.snapshot(commit).join(file);
        if pointer.exists() {
            return Ok(pointer);
        }
        create_dir(pointer.parent().unwrap_or(&self.root))?;
        // A link whose blob somebody deleted.
        let _ = fs::remove_file(&pointer);
        let up = "../".repeat(2 + file.matches('/').count());
        symlink(&format!("{up}blobs/{etag}"), &pointer)?;
        Ok(pointer)
    }

    /// Remembers which commit the revision stands for.
    pub(crate) fn remember(&self, commit: &str) -> Result<(), HubError> {
        let path = self.root.join("refs").join(&self.revision);
        if commit == self.revision || fs::read_to_string(&path).is_ok_and(|known| known == commit) {
            return Ok(());
        }
        create_dir(path.parent().unwrap_or(&self.root))?;
        let new = self.root.join("refs").join(format!(".{commit}.{}", std::process::id()));
        fs::write(&new, commit).map_err(io("write", &new))?;
        fs::rename(&new, &path).map_err(io("write", &path))
    }
}

/// An error of the file system, as [`HubError`].
pub(crate) fn io(doing: &'static str, path: &Path) -> impl Fn(std::io::Error) -> HubError {
    let path = path.to_owned();
    move |source| HubError::Io { doing, path: path.clone(), source }
}

pub(crate) fn create_dir(path: &Path) -> Result<(), HubError> {
    fs::create_dir_all(path).map_err(io("create", path))
}

#[cfg(unix)]
fn symlink(target: &str, link: &Path) -> Result<(), HubError> {
    match std::os::unix::fs::symlink(target, link) {
        // Another process was faster, with the same link.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        done => done.map_err(io("link", link)),
    }
}

#[cfg(not(unix))]
fn symlink(target: &str, link: &Path) -> Result<(), HubError> {
    let blob = link.parent().unwrap_or(link).join(target);
    fs::copy(blob, link).map(drop).map_err(io("write", link))
}

fn collect_files(dir: &Path, prefix: &str, names: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        // Of links, what they lead to; a link to nothing is no file.
        match fs::metadata(entry.path()) {
            Ok(kind) if kind.is_dir() => collect_files(&entry.path(), &format!("{name}/"), names),
            Ok(_) => names.push(name),
            Err(_) => {}
        }
    }
}
