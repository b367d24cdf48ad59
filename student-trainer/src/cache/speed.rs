//! What a cache costs on this machine: the measurements behind `cargo xtask bench cache`.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use distill::batch::Sequence;
use distill::cache::{segment_header, write_index};
use distill::codec::Codec;
use distill::signal::TopK;
use serde::Serialize;

use super::append::{SEGMENT_BYTES, Writer};
use super::error::{CacheError, at};
use super::handle::{Cache, Lookup};
use super::manifest::{Manifest, top_k};
use super::place::Located;
use super::store::{Store, index_name, segment_name};
use crate::feed::Scored;

/// How fast answers go in and come out.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Throughput {
    /// Scored positions a second through a reader, random order, one thread.
    pub read_tokens_per_second: f64,
    /// The same into the cache, to the last write; not to the disk itself.
    pub write_tokens_per_second: f64,
    /// Seconds of it that the training thread spent, a scored position.
    pub write_seconds_per_token: f64,
    /// Bytes a scored position, everything counted.
    pub bytes_per_token: f64,
}

/// How fast a cache opens.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Opening {
    /// Records in it.
    pub records: usize,
    /// Seconds until it can be read.
    pub seconds: f64,
    /// Memory of its index, a record.
    pub index_bytes_per_record: f64,
}

fn manifest(k: usize) -> Manifest {
    Manifest {
        format: distill::cache::FORMAT_VERSION,
        model: "bench".to_owned(),
        revision: String::new(),
        model_fingerprint: "07".repeat(32),
        tokenizer_fingerprint: "09".repeat(32),
        tokenizer_size: 151_936,
        vocab_size: 151_936,
        classes: 151_936,
        signal: top_k(k, Codec::Packed),
        decoder: None,
        temperature: Some(2.0),
        knows_mass: true,
        parameters: 0,
        dtype: "f32".to_owned(),
    }
}

/// An answer of `positions` rows as it comes over the wire: values in 65,536 steps.
fn answer(row: usize, positions: usize, k: usize) -> Scored {
    let mut signal = TopK::new(k);
    for position in 0..positions {
        let mixed = (row * 7_919 + position * 104_729) as u32;
        signal.ids.extend((0..k as u32).map(|i| (mixed % 1_000 + i * 2_203) % 151_936));
        let value = |i: usize| 20.0 - (i * i % 60_000) as f32 * 2.5e-4 - (mixed % 17) as f32 * 0.1;
        let start = signal.scaled.len();
        signal.scaled.extend((0..k).map(value));
        signal.scaled[start..].sort_by(|a, b| b.total_cmp(a));
        signal.log_z.push(21.0);
        signal.log_rest.push(-1.5);
    }
    let packed = distill::codec::Layout { codec: Codec::Packed, classes: Some(151_936) };
    let bytes = distill::codec::encode(&signal, 0..positions, packed).unwrap_or_default();
    let ids = distill::codec::Ids::Sent { classes: 151_936 };
    let signal = distill::codec::decode(&bytes, positions, k, Codec::Packed, ids).unwrap_or(signal);
    Scored { signal: signal.into(), next_logprob: vec![-2.0; positions], wire_bytes: 0 }
}

/// Writes `rows` answers of `positions` positions into an empty directory and reads them.
///
/// # Errors
/// Those of the cache.
pub fn throughput(
    dir: &Path,
    rows: usize,
    positions: usize,
    k: usize,
) -> Result<Throughput, CacheError> {
    let row =
        |r: usize| (0..=positions as u32).map(|t| (r as u32 * 31 + t * 7) % 151_936).collect();
    let sequences = (0..rows).filter_map(|r| Sequence::all_scored(row(r)).ok());
    let set: Arc<[Sequence]> = sequences.collect();
    let answers: Vec<Scored> = (0..16).map(|r| answer(r, positions, k)).collect();
    let place = dir.display().to_string();
    let cache = Cache::writing(Located::of(&place)?, &manifest(k))?;
    let begin = Instant::now();
    let mut spent = Duration::ZERO;
    for r in 0..set.len() {
        let kept = Instant::now();
        cache.keep(&set, r, &answers[r % 16]);
        spent += kept.elapsed();
    }
    cache.flush();
    let written = begin.elapsed();
    drop(cache);
    let mut located = Located::of(&place)?;
    let absent = || CacheError::Absent { place: place.clone() };
    let store = located.open(false)?.ok_or_else(absent)?;
    let bytes: u64 = store.segments.iter().map(|segment| segment.bytes).sum();
    let cache = Cache::reading(located, store);
    let begin = Instant::now();
    let mut read = 0;
    for i in 0..set.len() {
        // Steps through all rows, far from one to the next.
        let r = i * 7_919 % set.len();
        if let Lookup::Answer(scored) = cache.read(&set[r]) {
            read += scored.signal.rows();
        }
    }
    let tokens = (set.len() * positions) as f64;
    Ok(Throughput {
        read_tokens_per_second: read as f64 / begin.elapsed().as_secs_f64(),
        write_tokens_per_second: tokens / written.as_secs_f64(),
        write_seconds_per_token: spent.as_secs_f64() / tokens,
        bytes_per_token: bytes as f64 / tokens,
    })
}

/// Opens a cache of `records` records in an empty directory: the indices of a real one and segments of
/// a header alone, since nothing else is read.
///
/// # Errors
/// Those of the cache.
pub fn opening(dir: &Path, records: usize) -> Result<Opening, CacheError> {
    let manifest = manifest(64);
    let (writer, store) = Writer::open(dir, &manifest, SEGMENT_BYTES, None)?;
    let space = store.space;
    drop((writer, store));
    // Of answers of 150 positions, a segment holds so many.
    let of_segment = SEGMENT_BYTES as usize / (150 * 530);
    for (number, first) in (0..records).step_by(of_segment).enumerate() {
        let number = number as u32;
        let count = of_segment.min(records - first);
        let offset = |i: usize| 64 + (i * 150 * 530) as u32;
        let prefix = |i: usize| space.key(&[(first + i) as u32], &[]).prefix();
        let bytes = u64::from(offset(count));
        let entries: Vec<_> = (0..count).map(|i| (prefix(i), offset(i))).collect();
        let index = write_index(number, &space, bytes, entries.into_iter());
        let path = dir.join(index_name(number));
        at("write", &path, std::fs::write(&path, index))?;
        let path = dir.join(segment_name(number));
        let header = segment_header(number, &space);
        let grown = std::fs::write(&path, header)
            .and_then(|()| std::fs::OpenOptions::new().write(true).open(&path))
            .and_then(|file| file.set_len(bytes));
        at("write", &path, grown)?;
    }
    let begin = Instant::now();
    let absent = || CacheError::Absent { place: dir.display().to_string() };
    let store = Store::open(dir)?.ok_or_else(absent)?;
    let seconds = begin.elapsed().as_secs_f64();
    Ok(Opening {
        records: store.len(),
        seconds,
        index_bytes_per_record: store.index_bytes() as f64 / store.len().max(1) as f64,
    })
}
