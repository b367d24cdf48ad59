//! What the output directory receives: claimed before the training, filled after it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Names this program writes at the root of an output directory; `--overwrite-output-dir` removes
/// these and nothing else.
const OURS: [&str; 5] = ["checkpoints", "metrics.jsonl", "summary.json", "runs", "report.html"];

/// The file whose lock says that a run is using the directory. It stays behind, empty of meaning:
/// what counts is the lock, which the system takes off however the run ends.
const LOCK: &str = ".student-trainer.lock";

/// An output directory that this run alone may write to, until this is dropped.
#[derive(Debug)]
#[must_use = "dropped, the directory is free for other runs"]
pub struct Claim {
    _locked: File,
}

/// Why an output directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// Files of somebody else, or of an earlier run.
    #[error(
        "--output-dir {} is not empty (it holds {found}); choose another, continue the run in it \
         with --resume-from-checkpoint auto, or replace it with --overwrite-output-dir true",
        dir.display()
    )]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
        /// One of the names in it.
        found: String,
    },
    /// Another run is at work in it.
    #[error(
        "--output-dir {} is in use by another run{}; wait for it to end, or choose another \
         directory",
        dir.display(), holder.map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// Process id of the other run, as it wrote it down.
        holder: Option<u32>,
    },
    /// The file system refused.
    #[error("--output-dir: cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Makes sure that `dir` exists, may be written to, is used by no other run, and is free for this
/// one: empty, or `reuse` allows what is in it. Removes nothing.
///
/// # Errors
/// [`OutputError`] with the directory and the remedy.
pub fn claim(dir: &Path, reuse: bool) -> Result<Claim, OutputError> {
    at("create", dir, fs::create_dir_all(dir))?;
    // Looked at before, to put no lock into a stranger's directory; and again once it is ours.
    let checked = || if reuse { Ok(()) } else { refuse_occupied(dir) };
    checked()?;
    let claim = lock(dir)?;
    checked()?;
    Ok(claim)
}

fn refuse_occupied(dir: &Path) -> Result<(), OutputError> {
    for entry in at("list", dir, fs::read_dir(dir))? {
        let name = at("list", dir, entry)?.file_name();
        if name != LOCK {
            let found = name.to_string_lossy().into_owned();
            return Err(OutputError::NotEmpty { dir: dir.to_path_buf(), found });
        }
    }
    Ok(())
}

fn lock(dir: &Path) -> Result<Claim, OutputError> {
    let path = dir.join(LOCK);
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = at("write to", dir, opened)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let holder = fs::read_to_string(&path).ok().and_then(|pid| pid.trim().parse().ok());
            return Err(OutputError::InUse { dir: dir.to_path_buf(), holder });
        }
        // Some network file systems know no locks; there the runs' owner has to keep them apart.
        Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {}
        Err(TryLockError::Error(e)) => at("lock", &path, Err(e))?,
    }
    let pid = format!("{}\n", std::process::id());
    at("write to", dir, file.set_len(0).and_then(|()| file.write_all(pid.as_bytes())))?;
    Ok(Claim { _locked: file })
}

/// Removes what an earlier run of this program left in `dir`.
///
/// # Errors
/// Those of the file system.
pub fn clear(dir: &Path) -> Result<(), OutputError> {
    for name in OURS {
        let path = dir.join(name);
        let removed = match fs::symlink_metadata(&path) {
            Err(_) => Ok(()),
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(&path),
            Ok(_) => fs::remove_file(&path),
        };
        at("remove", &path, removed)?;
    }
    Ok(())
}

pub(crate) fn at<T>(
    action: &'static str,
    path: &Path,
    result: io::Result<T>,
) -> Result<T, OutputError> {
    result.map_err(|source| OutputError::Io { action, path: path.to_path_buf(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_occupied_directory_is_refused_with_what_is_in_it_unless_reuse_is_allowed() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("thesis.tex"), "x").unwrap();
        let error = claim(root.path(), false).unwrap_err().to_string();
        assert!(error.contains("thesis.tex") && error.contains("--overwrite-output-dir"));
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "nothing was put into it");
        let _claim = claim(root.path(), true).unwrap();
        clear(root.path()).unwrap();
        assert!(root.path().join("thesis.tex").is_file(), "only our own files are removed");
        drop(claim(&root.path().join("new/nested"), false).unwrap());
    }

    #[test]
    fn a_directory_in_use_is_refused_naming_the_other_process_until_that_ends() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path();
        let first = claim(dir, false).unwrap();
        fs::write(dir.join("metrics.jsonl"), "{}").unwrap();
        for reuse in [true, false] {
            let error = claim(dir, reuse).unwrap_err().to_string();
            let word = if reuse { "in use by another run" } else { "metrics.jsonl" };
            assert!(error.contains(word) && error.contains(&dir.display().to_string()), "{error}");
        }
        let error = claim(dir, true).unwrap_err().to_string();
        assert!(error.contains(&format!("(process {})", std::process::id())), "{error}");
        fs::remove_file(dir.join("metrics.jsonl")).unwrap();
        assert!(matches!(claim(dir, false), Err(OutputError::InUse { .. })));
        drop(first);
        // What a killed run leaves of its claim is nothing that must be allowed.
        assert!(dir.join(LOCK).is_file());
        drop(claim(dir, false).unwrap());
    }

    #[test]
    fn a_path_below_a_file_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "x").unwrap();
        let error = claim(&file.join("out"), false).unwrap_err().to_string();
        assert!(error.contains("file/out"), "{error}");
    }
}
