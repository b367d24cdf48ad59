//! What the output directory receives: claimed before the training, filled after it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Names this program writes at the root of an output directory; `--overwrite-output-dir` removes
/// these and nothing else.
const OURS: [&str; 5] = ["checkpoints", "metrics.jsonl", "summary.json", "runs", "report.html"];

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

/// Makes sure that `dir` exists, may be written to, and is free for this run: empty, or `reuse`
/// allows what is in it. Removes nothing.
///
/// # Errors
/// [`OutputError`] with the directory and the remedy.
pub fn claim(dir: &Path, reuse: bool) -> Result<(), OutputError> {
    at("create", dir, fs::create_dir_all(dir))?;
    let first = at("list", dir, fs::read_dir(dir))?.next();
    if let (Some(entry), false) = (first, reuse) {
        let found = at("list", dir, entry)?.file_name().to_string_lossy().into_owned();
        return Err(OutputError::NotEmpty { dir: dir.to_path_buf(), found });
    }
    let probe = dir.join(format!(".writable-{}", std::process::id()));
    at("write to", dir, fs::write(&probe, b"x"))?;
    at("write to", dir, fs::remove_file(&probe))
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
        claim(root.path(), true).unwrap();
        clear(root.path()).unwrap();
        assert!(root.path().join("thesis.tex").is_file(), "only our own files are removed");
        claim(&root.path().join("new/nested"), false).unwrap();
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
