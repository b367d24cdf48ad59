//! Files that are read whole, and written so that they are there whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Error, Result, Write as _};
use std::path::{Path, PathBuf};

/// How the name of a file ends that is not whole yet.
pub(crate) const BEGUN: &str = ".part";

/// The bytes of a file.
///
/// # Errors
/// The system's; also for what is no file: a pipe would be waited for.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    match fs::metadata(path)?.is_file() {
        true => fs::read(path),
        false => Err(Error::other("it is no file")),
    }
}

/// Writes a file, on the disk when this returns.
///
/// # Errors
/// The system's; what was there before stays then.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::rename(begin(path, bytes)?, path)
}

/// Writes what is to be renamed to `path`. Only one program may write a file at a time; what one that was
/// killed has left is written over.
///
/// # Errors
/// The system's.
pub(crate) fn begin(path: &Path, bytes: &[u8]) -> Result<PathBuf> {
    let mut begun = OsString::from(path);
    begun.push(BEGUN);
    let begun = PathBuf::from(begun);
    let mut file = File::create(&begun)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(begun)
}
