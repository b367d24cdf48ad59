//! `student-trainer cache export` and `import`: a cache as a Parquet file with the columns that other
//! trainers read.
//!
//! A row is a sequence: `input_ids` list of i32, `teacher_topk_ids` and `teacher_topk_logprobs` lists (a
//! position each) of lists (an entry each) of i32 and f32, log-probabilities at the cache's temperature.
//! Beside them, ours: `teacher_positions` (which positions the lists are about; without it they begin
//! at 0), `teacher_log_rest` (log of the mass outside the entries; without it what the entries leave) and
//! `teacher_next_logprobs` (of the token that follows, at T = 1). The file's metadata under
//! `limbeck.cache` is the cache's description.

mod columns;
mod rows;

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use distill::fingerprint::Fingerprint;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;

use super::append::{SEGMENT_BYTES, Writer};
use super::build::{each, open, verify_store};
use super::error::CacheError;
use super::manifest::{Manifest, top_k};
use super::payload;
use super::place::Located;
use super::store::Store;
use crate::config::{CacheExportConfig, CacheImportConfig};
use crate::error::TrainError;
use crate::setup::Source;
use columns::Columns;

/// Name of the cache's description in a file's metadata.
const METADATA: &str = "limbeck.cache";
/// Sequences of a batch on the way to or from a file.
const BATCH: usize = 64;

/// What went into a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Rows of it.
    pub rows: usize,
    /// Damage that left others out, in words.
    pub damaged: Vec<String>,
}

/// Writes every whole record of a cache to a Parquet file, after a look at all as
/// [`super::build::verify`] has it.
///
/// # Errors
/// [`CacheError`] when there is no cache, or the file cannot be written. Damage is no error.
pub fn export(config: &CacheExportConfig) -> Result<Exported, CacheError> {
    let mut store = open(&config.cache, true)?;
    // A link stays one.
    let path = &std::fs::canonicalize(&config.parquet).unwrap_or_else(|_| config.parquet.clone());
    let wrong = |reason: String| CacheError::Table { path: path.clone(), reason };
    if store.manifest.k().is_none() {
        let signal = &store.manifest.signal;
        return Err(wrong(format!(
            "the cache keeps `{signal}`: such a table holds top-k answers only"
        )));
    }
    if std::fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        return Err(wrong("it is there, and is no file".to_owned()));
    }
    let damaged = verify_store(&mut store)?.damaged;
    // What stands there stays until the new one is whole.
    let mut begun = path.clone().into_os_string();
    begun.push(".part");
    let begun = PathBuf::from(begun);
    let written = write(&mut store, &begun, &wrong).and_then(|rows| {
        let named = std::fs::rename(&begun, path);
        named.map_err(|e| wrong(unwritten(&e))).map(|()| rows)
    });
    if written.is_err() {
        // What is half written is of no use to anybody.
        drop(std::fs::remove_file(&begun));
    }
    Ok(Exported { rows: written?, damaged })
}

fn unwritten(error: &std::io::Error) -> String {
    format!("cannot be written: {error}")
}

/// Writes the rows of a cache; says how many.
fn write(
    store: &mut Store,
    path: &Path,
    wrong: &dyn Fn(String) -> CacheError,
) -> Result<usize, CacheError> {
    let file = File::create(path).map_err(|e| wrong(unwritten(&e)))?;
    let described = KeyValue::new(METADATA.to_owned(), store.manifest.text());
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_key_value_metadata(Some(vec![described]))
        .build();
    let mut columns = Columns::default();
    let mut writer = ArrowWriter::try_new(file, columns::schema(), Some(properties))
        .map_err(|e| wrong(e.to_string()))?;
    let mut count: usize = 0;
    let mut put = |columns: &mut Columns| {
        let batch = columns.finish().map_err(|e| wrong(e.to_string()))?;
        writer.write(&batch).map_err(|e| wrong(e.to_string()))
    };
    each(store, &mut |said| {
        let Some(signal) = said.scored.signal.top_k() else { return Ok(()) };
        columns.push(&said, signal);
        count += 1;
        if count.is_multiple_of(BATCH) { put(&mut columns) } else { Ok(()) }
    })?;
    put(&mut columns)?;
    writer.close().map_err(|e| wrong(e.to_string()))?;
    Ok(count)
}

/// Puts the rows of a Parquet file into a cache; says how many there were.
///
/// # Errors
/// [`TrainError`] when the file cannot be read or a row makes no sense, with its number; when the cache
/// is of something else.
pub fn import(config: &CacheImportConfig) -> Result<usize, TrainError> {
    // The reader itself may panic on a damaged file.
    catch_unwind(AssertUnwindSafe(|| import_file(config))).unwrap_or_else(|_| {
        let (path, reason) = (config.parquet.clone(), "its data is damaged".to_owned());
        Err(CacheError::Table { path, reason }.into())
    })
}

fn import_file(config: &CacheImportConfig) -> Result<usize, TrainError> {
    let path = &config.parquet;
    let wrong = |reason: String| CacheError::Table { path: path.clone(), reason };
    let file = File::open(path).map_err(|e| wrong(format!("cannot be read: {e}")))?;
    let reader =
        ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| wrong(e.to_string()))?;
    let described = reader
        .metadata()
        .file_metadata()
        .key_value_metadata()
        .into_iter()
        .flatten()
        .find(|entry| entry.key == METADATA)
        .and_then(|entry| entry.value.clone());
    let manifest = match described {
        Some(text) => Some(Manifest::parse(text.as_bytes(), path)?),
        None => None,
    };
    let reader = reader.with_batch_size(BATCH).build().map_err(|e| wrong(e.to_string()))?;
    let temperature = manifest.as_ref().map_or(Some(config.temperature as f32), |m| m.temperature);
    let mut filled: Option<Filled> = None;
    let mut number = 0;
    for batch in reader {
        let batch = batch.map_err(|e| wrong(e.to_string()))?;
        for said in rows::read(&batch, temperature == Some(1.0)) {
            number += 1;
            let row = |reason: String| wrong(format!("row {number}: {reason}"));
            let said = said.map_err(row)?;
            let filled = match &mut filled {
                Some(filled) => filled,
                None => {
                    let manifest = match &manifest {
                        Some(manifest) => manifest.clone(),
                        None => foreign(config, k_of(&said))?,
                    };
                    filled.insert(Filled::open(&config.cache, &manifest)?)
                }
            };
            filled.put(&said).map_err(row)??;
        }
    }
    let Some(filled) = filled else { return Err(wrong("it has no rows".to_owned()).into()) };
    filled.writer.finish()?;
    Ok(number)
}

/// The description of the answers in a file that does not describe them.
fn foreign(config: &CacheImportConfig, k: usize) -> Result<Manifest, TrainError> {
    let wrong = |reason: &str| CacheError::Table {
        path: config.parquet.clone(),
        reason: reason.to_owned(),
    };
    let Some(student) = &config.student else {
        let reason = "it does not say whose answers it holds (no `limbeck.cache` in its metadata): \
                      give --student, whose tokenizer its ids are of, --teacher-model, a name for \
                      the teacher, and --temperature";
        return Err(wrong(reason).into());
    };
    let Some(model) = &config.teacher_model else {
        return Err(
            wrong("give --teacher-model, a name for the teacher whose answers it holds").into()
        );
    };
    let source = Source::open(student, None)?;
    let tokenizer = Fingerprint(source.tokenizer.fingerprint());
    let digest = blake3::hash(format!("imported answers of {model}").as_bytes());
    Ok(Manifest {
        format: distill::cache::FORMAT_VERSION,
        model: model.clone(),
        revision: String::new(),
        model_fingerprint: digest.to_hex().to_string(),
        tokenizer_fingerprint: tokenizer.to_string(),
        tokenizer_size: source.tokenizer.size(),
        vocab_size: source.config.vocab_size,
        classes: source.config.vocab_size,
        signal: top_k(k, distill::codec::Codec::Raw),
        decoder: None,
        temperature: Some(config.temperature as f32),
        knows_mass: true,
        parameters: 0,
        dtype: String::new(),
    })
}

/// Entries a position of an answer that lists tokens.
fn k_of(said: &payload::Said) -> usize {
    said.scored.signal.top_k().map_or(0, |signal| signal.k)
}

/// A cache that is being filled from a file.
struct Filled {
    writer: Writer,
    store: super::store::Store,
}

impl Filled {
    fn open(place: &str, manifest: &Manifest) -> Result<Self, CacheError> {
        let mut located = Located::of(place)?;
        located.open(false)?;
        let (writer, store) = Writer::open(&located.dir, manifest, SEGMENT_BYTES, located.remote)?;
        // Another cache may have been there.
        store.manifest.same(place, manifest)?;
        Ok(Self { writer, store })
    }

    /// Puts an answer into the cache, if it is not there; the outer error is what is wrong with it.
    fn put(&mut self, said: &payload::Said) -> Result<Result<(), CacheError>, String> {
        let manifest = &self.store.manifest;
        let (k, classes) = (k_of(said), manifest.classes);
        if manifest.k() != Some(k) {
            return Err(format!(
                "it has {k} entries a position, wanted those of {}",
                manifest.signal
            ));
        }
        let payload = payload::write_said(&said.tokens, &said.ranges, &said.scored, classes)
            .map_err(|e| e.to_string())?;
        // What will be read must be readable: ids in range and none twice, numbers finite.
        payload::read_said(&payload, manifest.about()).map_err(|e| e.to_string())?;
        let key = self.store.space.key(&said.tokens, &said.ranges);
        if self.store.has(&key) {
            return Ok(Ok(()));
        }
        let place = self.writer.append(&key, &payload);
        Ok(place.map(|place| self.store.added(&key, place)))
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
