//! Whether a trace can be written to a place without harm to what is there: known before a model is loaded.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::OPENING;
use crate::files;

/// Why a trace is not written to a place.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// A file of something else.
    #[error(
        "--profile {} would replace a file that is no trace of this program; name one that does not exist, or \
         remove it", path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A directory, a pipe, a device.
    #[error("--profile {} is no regular file; name one that does not exist", path.display())]
    NoFile {
        /// What it is called.
        path: PathBuf,
    },
    /// The file system refused.
    #[error(
        "--profile {}: cannot {action} {}: {source}; name a file in a directory that exists and can be written to",
        path.display(), tried.display()
    )]
    Io {
        /// The trace.
        path: PathBuf,
        /// What was attempted.
        action: &'static str,
        /// On which file.
        tried: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Refuses a place where a trace would destroy something, or could not be written. Nothing is changed there.
///
/// # Errors
/// [`PlaceError`], with the place and the remedy.
pub fn check(path: &Path) -> Result<(), PlaceError> {
    let failed = |action, tried: &Path| {
        let (path, tried) = (path.to_owned(), tried.to_owned());
        move |source| PlaceError::Io { path, action, tried, source }
    };
    let new = match fs::metadata(path) {
        // Not opened before: a pipe would be waited for.
        Ok(found) if !found.is_file() => return Err(PlaceError::NoFile { path: path.to_owned() }),
        Ok(_) if is_trace(path).map_err(failed("read", path))? => false,
        Ok(_) => return Err(PlaceError::Foreign { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => return Err(failed("read", path)(error)),
    };
    // What will be made is made: no permission says as much.
    let begun = files::begun(path);
    for made in [Some(&*begun), Some(path).filter(|_| new)].into_iter().flatten() {
        let tried = OpenOptions::new().write(true).create_new(true).open(made);
        tried.and_then(|_| fs::remove_file(made)).map_err(failed("make", made))?;
    }
    Ok(())
}

/// Whether a file begins as every trace does.
fn is_trace(path: &Path) -> io::Result<bool> {
    let mut begins = Vec::new();
    File::open(path)?.take(OPENING.len() as u64).read_to_end(&mut begins)?;
    Ok(begins == OPENING.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    use super::super::Profile;
    use super::*;

    fn refusal(path: &Path) -> String {
        let error = check(path).unwrap_err().to_string();
        assert!(error.contains(&format!("--profile {}", path.display())), "{error}");
        error
    }

    #[test]
    fn only_a_trace_is_replaced_and_nothing_is_left_of_the_check() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace.json");
        check(&path).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        Profile::begin().write(&path).unwrap();
        let trace = fs::read(&path).unwrap();
        check(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), trace);
        for bytes in [&b""[..], b"{", b"{\"prompt\": \"1 + 1\"}\n", b"{\"displaytimeunit\":1}"] {
            fs::write(&path, bytes).unwrap();
            assert!(refusal(&path).contains("no trace"));
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
    }

    #[test]
    fn what_is_no_regular_file_is_refused_without_waiting_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let [pipe, socket] = ["pipe", "socket"].map(|name| dir.path().join(name));
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let _listener = UnixListener::bind(&socket).unwrap();
        for path in [dir.path(), &pipe, &socket, Path::new("/dev/null")] {
            assert!(refusal(path).contains("no regular file"));
        }
    }

    #[test]
    fn a_place_that_cannot_be_written_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let said = refusal(&dir.path().join("missing/trace.json"));
        assert!(said.contains("a directory that exists"), "{said}");
        // Whatever the permissions say: the one who runs the tests may be above them.
        refusal(Path::new("/proc/trace.json"));
        refusal(&dir.path().join("new/"));
        refusal(&dir.path().join("x".repeat(300)));
        let (path, beside) = (dir.path().join("a.json"), dir.path().join("a.json.tmp"));
        fs::write(&beside, "somebody's").unwrap();
        assert!(refusal(&path).contains("a.json.tmp"));
        assert_eq!(fs::read(&beside).unwrap(), b"somebody's");
    }
}
