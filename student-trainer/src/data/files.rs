//! A name becomes files, and a file's ending its format.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use hub::settings::HubSettings;

use super::error::DataError;
use super::rows::Row;
use super::{jsonl, parquet};

/// Read buffer, in bytes.
const BUFFER: usize = 1 << 20;

/// The files a name stands for: one path, the matches of a glob sorted by name, or the files of a
/// hub dataset's split.
///
/// # Errors
/// When there is none.
pub fn find(spec: &str, hub: &HubSettings) -> Result<Vec<PathBuf>, DataError> {
    if spec.starts_with("hf://") {
        return Ok(hub::source::resolve_dataset(spec, hub)?);
    }
    let path = Path::new(spec);
    // A file whose name holds a bracket is that file, not a pattern.
    if path.is_dir() {
        return Err(DataError::Directory { path: path.to_owned() });
    }
    if path.exists() {
        return Ok(vec![path.to_owned()]);
    }
    if !spec.contains(['*', '?', '[']) {
        return Err(DataError::NotFound { spec: spec.to_owned() });
    }
    let bad = |reason: String| DataError::BadGlob { spec: spec.to_owned(), reason };
    let mut found = Vec::new();
    for entry in glob::glob(spec).map_err(|e| bad(e.to_string()))? {
        let path = entry.map_err(|e| DataError::Read {
            path: e.path().to_owned(),
            after: String::new(),
            source: e.into(),
        })?;
        if path.is_file() {
            found.push(path);
        }
    }
    if found.is_empty() {
        return Err(DataError::NoMatch { spec: spec.to_owned() });
    }
    found.sort();
    Ok(found)
}

/// Appends at most `limit` rows of a file.
pub(super) fn read(
    path: &Path,
    limit: usize,
    max_line_bytes: usize,
    rows: &mut Vec<Row>,
) -> Result<(), DataError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    if name.ends_with(".parquet") {
        return parquet::read(path, limit, rows);
    }
    let (plain, packing) = match name.rsplit_once('.') {
        Some((rest, "gz")) => (rest, Packing::Gzip),
        Some((rest, "zst" | "zstd")) => (rest, Packing::Zstd),
        _ => (name.as_str(), Packing::None),
    };
    let reader = || open(path, packing);
    match plain.rsplit_once('.').map(|(_, ending)| ending) {
        Some("jsonl" | "ndjson") => jsonl::read_lines(path, reader()?, limit, max_line_bytes, rows),
        Some("json") => jsonl::read_json(path, reader()?, limit, max_line_bytes, rows),
        _ => Err(DataError::Format { path: path.to_owned() }),
    }
}

#[derive(Clone, Copy)]
enum Packing {
    None,
    Gzip,
    Zstd,
}

fn open(path: &Path, packing: Packing) -> Result<BufReader<Box<dyn Read>>, DataError> {
    let fail = |source| DataError::Read { path: path.to_owned(), after: String::new(), source };
    let file = File::open(path).map_err(fail)?;
    let reader: Box<dyn Read> = match packing {
        Packing::None => Box::new(file),
        Packing::Gzip => Box::new(flate2::read::MultiGzDecoder::new(BufReader::new(file))),
        Packing::Zstd => Box::new(zstd::stream::read::Decoder::new(file).map_err(fail)?),
    };
    Ok(BufReader::with_capacity(BUFFER, reader))
}
