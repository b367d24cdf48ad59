//! Data: from a file's name to token sequences.
//!
//! Reading order: [`files`] (a name becomes files), [`jsonl`] and [`parquet`] (a file becomes
//! records), [`rows`] (a record becomes a row: which columns mean what), [`turns`] (which part of
//! a conversation is the answer), [`mod@tokenize`] (rows become [`distill::batch::Sequence`]s),
//! [`row_set`] (sequences that know where they stand).
//!
//! ```text
//! load(spec, max_samples) -> Vec<Row>
//! tokenize(&rows, &tokenizer, chat template, &options) -> Tokenized { sequences, report }
//! ```

pub mod error;
pub mod files;
pub mod jsonl;
pub mod parquet;
pub mod row_set;
pub mod rows;
pub mod tokenize;
pub mod turns;

pub use error::{DataError, Place};
pub use row_set::RowSet;
pub use rows::{Row, RowContent};
pub use tokenize::{TokenizeOptions, TokenizeReport, Tokenized, tokenize};

use hub::settings::HubSettings;

/// Longest line (or JSON array element) accepted unless told otherwise, in bytes.
pub const MAX_LINE_BYTES: usize = 64 << 20;

/// How much to read, and from where.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Stop after this many rows; what follows is not read.
    pub max_samples: Option<usize>,
    /// Longest line accepted, in bytes.
    pub max_line_bytes: usize,
    /// For `hf://datasets/…`.
    pub hub: HubSettings,
}

/// Reads rows from a path, a glob or `hf://datasets/ORG/NAME[@REV][/SPLIT]`, in order: the files
/// sorted by name, the rows as they stand.
///
/// # Errors
/// [`DataError`], which names the file and line; no rows at all is an error too.
pub fn load(spec: &str, max_samples: Option<usize>) -> Result<Vec<Row>, DataError> {
    let hub = HubSettings::from_env();
    load_with(spec, &LoadOptions { max_samples, max_line_bytes: MAX_LINE_BYTES, hub })
}

/// [`load`], with every setting given.
///
/// # Errors
/// As [`load`].
pub fn load_with(spec: &str, options: &LoadOptions) -> Result<Vec<Row>, DataError> {
    let mut rows = Vec::new();
    let paths = files::find(spec, &options.hub)?;
    for path in &paths {
        let left = options.max_samples.map_or(usize::MAX, |max| max - rows.len());
        if left == 0 {
            break;
        }
        files::read(path, left, options.max_line_bytes, &mut rows)?;
    }
    if rows.is_empty() {
        return Err(DataError::NoRows { spec: spec.to_owned(), files: paths.len() });
    }
    Ok(rows)
}

#[cfg(test)]
mod load_tests;
#[cfg(test)]
mod tokenize_tests;
