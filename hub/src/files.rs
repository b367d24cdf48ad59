//! The small files that travel with a model, and reading them within bounds.

use std::io::Read;
use std::path::{Path, PathBuf};

/// The files a saved model takes over from the model it started from, byte for byte: whatever
/// decides how text becomes ids and back, and how an answer is generated.
pub const TOKENIZER_FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
];

/// Largest file read into memory whole, in bytes (tokenizer.json reaches about 35 MB).
pub const MAX_SMALL_FILE: u64 = 512 << 20;

/// Copies those of [`TOKENIZER_FILES`] that exist in `from` into `to`, byte for byte, and returns
/// their names.
///
/// # Errors
/// When a file exists and cannot be copied; the error names it.
pub fn copy_tokenizer_files(from: &Path, to: &Path) -> std::io::Result<Vec<&'static str>> {
    let mut copied = Vec::new();
    for &name in TOKENIZER_FILES {
        let source = from.join(name);
        if !source.is_file() {
            continue;
        }
        // Not fs::copy: that would carry over the read-only mode of a cached blob.
        let copy = std::fs::read(&source).and_then(|bytes| std::fs::write(to.join(name), bytes));
        copy.map_err(|e| std::io::Error::new(e.kind(), format!("{}: {e}", source.display())))?;
        copied.push(name);
    }
    Ok(copied)
}

/// Why a small file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system's own reason.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// Larger than [`MAX_SMALL_FILE`].
    #[error("{path} is larger than {MAX_SMALL_FILE} bytes: it cannot be what its name says")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Not UTF-8.
    #[error("{path} is not UTF-8 text (first bad byte at offset {offset})")]
    NotText {
        /// The file.
        path: PathBuf,
        /// Offset of the first byte that is not UTF-8.
        offset: usize,
    },
    /// Not JSON.
    #[error("{path} is not valid JSON: {reason}")]
    NotJson {
        /// The file.
        path: PathBuf,
        /// The parser's reason, with line and column.
        reason: String,
    },
}

/// Reads a text file of at most [`MAX_SMALL_FILE`] bytes; a byte order mark is dropped.
///
/// # Errors
/// [`FileError`], naming the file.
pub fn read_text(path: &Path) -> Result<String, FileError> {
    let fail = |source| FileError::Read { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(fail)?;
    let mut bytes = Vec::new();
    file.take(MAX_SMALL_FILE + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > MAX_SMALL_FILE {
        return Err(FileError::TooLarge { path: path.to_owned() });
    }
    let text = String::from_utf8(bytes).map_err(|e| FileError::NotText {
        path: path.to_owned(),
        offset: e.utf8_error().valid_up_to(),
    })?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    })
}

/// Reads a JSON file as [`read_text`] does; nesting deeper than 128 is an error.
///
/// # Errors
/// [`FileError`], naming the file.
pub fn read_json(path: &Path) -> Result<serde_json::Value, FileError> {
    serde_json::from_str(&read_text(path)?)
        .map_err(|e| FileError::NotJson { path: path.to_owned(), reason: e.to_string() })
}

/// [`read_json`], or `None` when there is no such file.
///
/// # Errors
/// [`FileError`], naming the file.
pub fn read_json_if_any(path: &Path) -> Result<Option<serde_json::Value>, FileError> {
    if path.is_file() { read_json(path).map(Some) } else { Ok(None) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_what_exists_byte_for_byte_and_nothing_else() {
        let from = tempfile::tempdir().unwrap();
        let to = tempfile::tempdir().unwrap();
        std::fs::write(from.path().join("tokenizer.json"), b"{ \"a\" :1}\r\n").unwrap();
        std::fs::write(from.path().join("model.safetensors"), b"x").unwrap();
        let copied = copy_tokenizer_files(from.path(), to.path()).unwrap();
        assert_eq!(copied, ["tokenizer.json"]);
        assert_eq!(std::fs::read(to.path().join("tokenizer.json")).unwrap(), b"{ \"a\" :1}\r\n");
        assert!(!to.path().join("model.safetensors").exists());
    }

    #[test]
    fn hostile_json_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep.json");
        std::fs::write(&path, "[".repeat(100_000)).unwrap();
        let message = read_json(&path).unwrap_err().to_string();
        assert!(message.contains("deep.json") && message.contains("recursion"), "{message}");
        std::fs::write(&path, b"{\"a\": \"\xff\"}").unwrap();
        let message = read_json(&path).unwrap_err().to_string();
        assert!(message.contains("offset 7"), "{message}");
    }
}
