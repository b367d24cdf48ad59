//! What the output directory receives: claimed before the training, filled after it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// What a run writes at the root of an output directory before it is over.
const UNFINISHED: [&str; 4] = ["checkpoints", "metrics.jsonl", "runs", "report.html"];
/// What it writes in the end, beside the model.
const SUMMARY: &str = "summary.json";

/// The file whose lock says that a run is using the directory. It stays behind, empty of meaning:
/// what counts is the lock, which the system takes off however the run ends.
const LOCK: &str = ".student-trainer.lock";

/// An output directory that this run alone may write to, until this is dropped.
#[derive(Debug)]
#[must_use = "dropped, the directory is free for other runs"]
pub struct Claim {
    _locked: File,
}

/// What may be in an output directory when a run begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// Nothing.
    Nothing,
    /// A run to go on with: checkpoints, or what a run leaves that had not come to its first one.
    Continued,
    /// Whatever a run left, which will be replaced, beside files of others, which stay. A model that
    /// no run left is not for this program to replace.
    Overwritten,
    /// Anything: nothing of it is read or removed.
    Anything,
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
    /// Nothing to go on with.
    #[error(
        "--resume-from-checkpoint: --output-dir {} holds no checkpoints, and {found} in it is not \
         of a run that was interrupted before its first one; nothing was changed. To begin anew \
         choose another directory",
        dir.display()
    )]
    NothingToResume {
        /// The directory.
        dir: PathBuf,
        /// One of the names in it.
        found: String,
    },
    /// A model that is somebody else's.
    #[error(
        "--output-dir {} holds a model ({found}) that no run of this program left there, and \
         --overwrite-output-dir would replace it; choose another directory",
        dir.display()
    )]
    ForeignModel {
        /// The directory.
        dir: PathBuf,
        /// The model's file.
        found: String,
    },
    /// The student's own files.
    #[error(
        "--output-dir {} is the directory of the student itself, which would be replaced; choose \
         another",
        dir.display()
    )]
    StudentItself {
        /// The directory.
        dir: PathBuf,
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

/// Makes sure that `dir` exists, may be written to, is used by no other run, and that what is in it
/// is what `reuse` allows. Removes nothing.
///
/// # Errors
/// [`OutputError`] with the directory and the remedy.
pub fn claim(dir: &Path, reuse: Reuse) -> Result<Claim, OutputError> {
    at("create", dir, fs::create_dir_all(dir))?;
    // Looked at before, to put no lock into a stranger's directory; and again once it is ours.
    refuse_occupied(dir, reuse)?;
    let claim = lock(dir)?;
    refuse_occupied(dir, reuse)?;
    Ok(claim)
}

fn refuse_occupied(dir: &Path, reuse: Reuse) -> Result<(), OutputError> {
    let mut names = Vec::new();
    for entry in at("list", dir, fs::read_dir(dir))? {
        let name = at("list", dir, entry)?.file_name().to_string_lossy().into_owned();
        if name != LOCK {
            names.push(name);
        }
    }
    names.sort();
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    let dir = dir.to_path_buf();
    match reuse {
        Reuse::Anything => Ok(()),
        Reuse::Nothing => match names.into_iter().next() {
            Some(found) => Err(OutputError::NotEmpty { dir, found }),
            None => Ok(()),
        },
        Reuse::Continued if has_checkpoints(&dir) => Ok(()),
        Reuse::Continued => {
            match names.into_iter().find(|name| !UNFINISHED.contains(&name.as_str())) {
                Some(found) => Err(OutputError::NothingToResume { dir, found }),
                None => Ok(()),
            }
        }
        Reuse::Overwritten => {
            let ours = has(SUMMARY) || UNFINISHED.iter().any(|name| has(name));
            match names.into_iter().find(|name| is_model_file(name)) {
                Some(found) if !ours => Err(OutputError::ForeignModel { dir, found }),
                _ => Ok(()),
            }
        }
    }
}

fn has_checkpoints(dir: &Path) -> bool {
    let entries = fs::read_dir(dir.join("checkpoints"));
    entries.is_ok_and(|mut entries| entries.next().is_some())
}

/// Refuses an output directory that is the student's own.
///
/// # Errors
/// [`OutputError::StudentItself`].
pub fn apart_from_student(dir: &Path, student: &Path) -> Result<(), OutputError> {
    let same = match (dir.canonicalize(), student.canonicalize()) {
        (Ok(dir), Ok(student)) => dir == student,
        _ => false,
    };
    if same { Err(OutputError::StudentItself { dir: dir.to_path_buf() }) } else { Ok(()) }
}

/// Whether a file makes a directory a model: without it nobody takes what is left for one.
fn is_model_file(name: &str) -> bool {
    name == "config.json" || name.starts_with("model") && name.contains(".safetensors")
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

/// Removes what an earlier run of this program left in `dir`, its model too: until this run has
/// made its own there must be none to be taken for it.
///
/// # Errors
/// Those of the file system.
pub fn clear(dir: &Path) -> Result<(), OutputError> {
    for entry in at("list", dir, fs::read_dir(dir))? {
        let path = at("list", dir, entry)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !(name == SUMMARY || UNFINISHED.contains(&&*name) || is_model_file(&name)) {
            continue;
        }
        let is_dir = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir());
        let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
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
        let error = claim(root.path(), Reuse::Nothing).unwrap_err().to_string();
        assert!(error.contains("thesis.tex") && error.contains("--overwrite-output-dir"));
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "nothing was put into it");
        let _claim = claim(root.path(), Reuse::Overwritten).unwrap();
        clear(root.path()).unwrap();
        assert!(root.path().join("thesis.tex").is_file(), "only our own files are removed");
        drop(claim(&root.path().join("new/nested"), Reuse::Nothing).unwrap());
    }

    #[test]
    fn a_run_goes_on_only_where_one_was() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path();
        let put = |name: &str| fs::write(dir.join(name), "x").unwrap();
        drop(claim(dir, Reuse::Continued).unwrap());
        // Killed before its first checkpoint.
        put("metrics.jsonl");
        fs::create_dir(dir.join("checkpoints")).unwrap();
        drop(claim(dir, Reuse::Continued).unwrap());
        // A model is nothing to begin on top of.
        put("model.safetensors");
        let error = claim(dir, Reuse::Continued).unwrap_err().to_string();
        assert!(error.contains("model.safetensors") && error.contains("no checkpoints"), "{error}");
        fs::create_dir(dir.join("checkpoints/step-000001")).unwrap();
        drop(claim(dir, Reuse::Continued).unwrap());
    }

    #[test]
    fn a_model_that_no_run_left_is_not_overwritten_and_one_of_a_run_is_gone_at_once() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path();
        let put = |name: &str| fs::write(dir.join(name), "x").unwrap();
        put("config.json");
        put("tokenizer.json");
        let error = claim(dir, Reuse::Overwritten).unwrap_err().to_string();
        assert!(error.contains("config.json") && error.contains("another directory"), "{error}");
        put("summary.json");
        put("model-00001-of-00002.safetensors");
        put("model.safetensors.index.json");
        drop(claim(dir, Reuse::Overwritten).unwrap());
        clear(dir).unwrap();
        let left = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name());
        let mut left: Vec<_> = left.collect();
        left.sort();
        assert_eq!(left, [LOCK, "tokenizer.json"]);
        assert!(apart_from_student(dir, &dir.join(".")).is_err());
        assert!(apart_from_student(dir, &dir.join("absent")).is_ok());
    }

    #[test]
    fn a_directory_in_use_is_refused_naming_the_other_process_until_that_ends() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path();
        let first = claim(dir, Reuse::Nothing).unwrap();
        fs::write(dir.join("metrics.jsonl"), "{}").unwrap();
        for reuse in [Reuse::Nothing, Reuse::Continued, Reuse::Overwritten, Reuse::Anything] {
            let error = claim(dir, reuse).unwrap_err().to_string();
            let used = reuse != Reuse::Nothing;
            let word = if used { "in use by another run" } else { "metrics.jsonl" };
            assert!(error.contains(word) && error.contains(&dir.display().to_string()), "{error}");
        }
        let error = claim(dir, Reuse::Anything).unwrap_err().to_string();
        assert!(error.contains(&format!("(process {})", std::process::id())), "{error}");
        fs::remove_file(dir.join("metrics.jsonl")).unwrap();
        assert!(matches!(claim(dir, Reuse::Nothing), Err(OutputError::InUse { .. })));
        drop(first);
        // What a killed run leaves of its claim is nothing that must be allowed.
        assert!(dir.join(LOCK).is_file());
        drop(claim(dir, Reuse::Nothing).unwrap());
    }

    #[test]
    fn a_path_below_a_file_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "x").unwrap();
        let error = claim(&file.join("out"), Reuse::Nothing).unwrap_err().to_string();
        assert!(error.contains("file/out"), "{error}");
    }
}
