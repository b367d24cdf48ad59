//! Files that are written so that they are there whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

/// What a file is called until it is whole.
pub(crate) fn begun(path: &Path) -> PathBuf {
    path.with_added_extension("tmp")
}

/// Writes beside the file, brings it to the disk, then gives it its name. What was there before stays where that fails.
///
/// # Errors
/// The system's, or what `fill` says.
pub(crate) fn write<E: From<io::Error>>(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<(), E>,
) -> Result<(), E> {
    let begun = begun(path);
    let whole = || -> Result<(), E> {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(&begun)?);
        fill(&mut file)?;
        file.flush()?;
        file.get_ref().sync_all()?;
        Ok(fs::rename(&begun, path)?)
    };
    // What is half written is of no use to anybody.
    whole().inspect_err(|_| drop(fs::remove_file(&begun)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_stays_until_the_new_file_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace.json");
        write(&path, |file| file.write_all(b"older")).unwrap();
        let full = |file: &mut BufWriter<File>| {
            file.write_all(b"newer")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        };
        assert_eq!(write(&path, full).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read(&path).unwrap(), b"older");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing half written is left");
        write(&path, |file| file.write_all(b"newer")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"newer");
    }
}
