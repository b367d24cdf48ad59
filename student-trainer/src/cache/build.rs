//! `student-trainer cache build`, `verify` and `info`: a cache filled before anybody trains, read from
//! end to end, and described.

use std::sync::Arc;

use distill::cache::{HEADER_BYTES, Key, Place, Space, scan};
use distill::hidden::HiddenForm;
use serde::Serialize;

use super::error::{CacheError, at};
use super::handle::Cache;
use super::join::Asker;
use super::manifest::{DecoderNames, Manifest, blob_name};
use super::payload;
use super::place::Located;
use super::remote::Remote;
use super::store::{Store, describe, numbers_in, segment_name};
use crate::asking::{Ask, Terms};
use crate::config::{CacheBuildConfig, CacheConfig};
use crate::data::{RowSet, TokenizeOptions};
use crate::error::{TrainError, at_row};
use crate::reading::{read, read_code};
use crate::setup::Source;
use crate::signals::Signals;
use crate::stop::Stop;
use crate::teacher::{Network, Teacher};

/// What a build tells of itself.
pub trait Watcher {
    /// Something a person should read.
    fn note(&mut self, text: &str);
    /// This many of so many rows are there.
    fn rows(&mut self, there: usize, of: usize);
}

/// Asks a teacher for every row that is not in the cache. Stopped or killed, it goes on there the next
/// time.
///
/// # Errors
/// [`TrainError`]; what was answered by then is in the cache.
pub fn build(
    config: &CacheBuildConfig,
    watcher: &mut dyn Watcher,
    stop: &Stop,
) -> Result<(), TrainError> {
    let source = Source::open(&config.student, config.student_revision.as_deref())?;
    let options = TokenizeOptions {
        loss_on: config.loss_on,
        chat_template: config.chat_template,
        max_length: config.max_length,
    };
    let mut read = |what: &str, files: &str, limit: Option<usize>| {
        source.rows(what, files, limit, options, &mut |text| watcher.note(text))
    };
    let rows = read("training", &config.train_file, config.max_train_samples)?;
    let held_out = match &config.eval_file {
        Some(files) => read("held-out", files, config.max_eval_samples)?,
        None => RowSet::default(),
    };
    fill(config, &source, [&rows, &held_out], watcher, stop)
}

/// The same for rows already at hand.
pub(crate) fn fill(
    config: &CacheBuildConfig,
    source: &Source,
    [rows, held_out]: [&RowSet; 2],
    watcher: &mut dyn Watcher,
    stop: &Stop,
) -> Result<(), TrainError> {
    let network = Network::start()?;
    let facts = source.student_facts([&rows.sequences, &held_out.sequences], &config.signal);
    let terms = Terms::new(config.temperature, config.teacher_window, config.teacher_timeout);
    let reach = (&config.teacher[..], &config.access);
    let who = (&source.tokenizer, &facts);
    let note = &mut |text: &str| watcher.note(text);
    let (network, signal) = (&network, &config.signal);
    let thorough = true;
    let mut asker = Asker { network, reach, who, signal, terms, thorough, rows, note, stop };
    let sets = [("training", rows), ("held-out", held_out)];
    let joined = asker.join(Some(&config.cache), sets)?;
    let Some((teacher, ask)) = joined else { return Ok(()) };
    for (_, set) in sets {
        ask_all(&teacher, ask, set, network, watcher, stop)?;
    }
    Ok(teacher.cache().map_or(Ok(()), |cache| cache.complete())?)
}

/// Asks for the rows of a set that are not there, in their order.
fn ask_all(
    teacher: &Teacher,
    ask: Ask,
    set: &RowSet,
    network: &Network,
    watcher: &mut dyn Watcher,
    stop: &Stop,
) -> Result<(), TrainError> {
    let Some(cache) = teacher.cache() else { return Ok(()) };
    let lacks = |row: &usize| !cache.has(&set.sequences[*row]);
    let missing: Vec<usize> = (0..set.len()).filter(lacks).collect();
    let there = set.len() - missing.len();
    let mut signals = Signals::new(teacher.clone(), ask, Arc::clone(&set.sequences), 0);
    signals.follow(network, missing.clone().into_iter());
    for (done, row) in missing.into_iter().enumerate() {
        watcher.rows(there + done, set.len());
        let answer = signals.take(&[row], stop).map_err(|error| at_row(error, set))?;
        refused(cache)?;
        if answer.is_none() {
            return Err(TrainError::Stopped);
        }
    }
    cache.flush();
    refused(cache)?;
    if !set.is_empty() {
        watcher.rows(set.len(), set.len());
    }
    Ok(())
}

/// A build that can keep nothing has nothing to do.
fn refused(cache: &Cache) -> Result<(), CacheError> {
    match cache.failure() {
        Some(reason) => Err(CacheError::Refused { reason: reason.to_owned() }),
        None => Ok(()),
    }
}

/// What `cache verify` found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Whole records.
    pub records: usize,
    /// What is damaged, in words, each with its file and place.
    pub damaged: Vec<String>,
    /// What is unfinished and costs nothing: the end a killed writer left.
    pub unfinished: Vec<String>,
}

/// Reads every record of a cache: its checksum, its payload, and whether it is about what its name
/// says; and what hidden states are read with. What is damaged and was asked for again is no damage any more,
/// nor what a store has whole: that is brought here again.
///
/// # Errors
/// [`CacheError`] when there is no cache, or files cannot be read. Damage is no error.
pub fn verify(config: &CacheConfig) -> Result<Verified, CacheError> {
    verify_store(&mut open(&config.cache, true)?)
}

/// The same of one that is open.
pub(super) fn verify_store(store: &mut Store) -> Result<Verified, CacheError> {
    let mut found = Verified::default();
    found.damaged.extend(store.damage.iter().filter(|what| what.starts_with("all of")).cloned());
    for name in store.manifest.decoder.iter().flat_map(DecoderNames::all) {
        let path = store.dir.join(blob_name(name));
        match name.parse().map(|digest| read(&path, digest)) {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => found.damaged.push(error.to_string()),
            Err(_) => found.damaged.push(format!("cache.json names {name:?}, which is no digest")),
        }
    }
    for number in numbers_in(&store.dir)? {
        verify_segment(number, store, &mut found)?;
    }
    Ok(found)
}

fn verify_segment(number: u32, store: &mut Store, found: &mut Verified) -> Result<(), CacheError> {
    let dir = &store.dir.clone();
    let path = dir.join(segment_name(number));
    let bytes = at("read", &path, std::fs::read(&path))?;
    // One whose header cannot be read was named when the cache was opened.
    let Ok(scan) = scan(&bytes, number, &store.space) else { return Ok(()) };
    let at = |offset| Place { segment: number, offset };
    for lost in &scan.damaged {
        let replaced = match &lost.key {
            Some(key) => store.has(key),
            None => store.is_replaced(at(lost.offset)),
        };
        if replaced {
            continue;
        }
        let reason = "its bytes do not match their checksum";
        found.damaged.push(describe(dir, at(lost.offset), lost.key.as_ref(), reason));
    }
    if let Some(torn) = scan.torn {
        let what = describe(dir, at(torn.offset), torn.key.as_ref(), "the file ends in it");
        match store.is_sealed(number) {
            true => found.damaged.push(what),
            false => found.unfinished.push(what),
        }
    }
    for record in &scan.records {
        let start = record.offset as usize + HEADER_BYTES;
        let payload = bytes.get(start..start + record.length as usize).unwrap_or_default();
        match check(&store.space, &store.manifest, &record.key, payload) {
            Ok(()) => found.records += 1,
            Err(reason) => {
                found.damaged.push(describe(dir, at(record.offset), Some(&record.key), &reason));
            }
        }
    }
    Ok(())
}

/// Whether a payload can be read and is about what its name says.
fn check(space: &Space, manifest: &Manifest, key: &Key, payload: &[u8]) -> Result<(), String> {
    let said = payload::read_said(payload, manifest.about()).map_err(|e| e.to_string())?;
    let named = space.key(&said.tokens, &said.ranges) == *key;
    let found = said.scored.signal.top_k().map(|signal| signal.k);
    let of_k = manifest.k() == found;
    match named && of_k {
        true => Ok(()),
        false => Err("it is about other tokens or another signal than its name".to_owned()),
    }
}

/// What `cache info` tells.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Info {
    /// Where it is.
    pub cache: String,
    /// What all its answers have in common.
    #[serde(flatten)]
    pub manifest: Manifest,
    /// Records.
    pub records: usize,
    /// Segments.
    pub segments: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// What its step of a code takes and costs; absent where hidden states are not coded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<Step>,
    /// Files that hidden states are read with.
    pub blobs: usize,
    /// Bytes of them.
    pub blob_bytes: u64,
    /// Memory that its index takes, in bytes.
    pub index_bytes: usize,
}

/// What a step of a code takes and costs, as it was measured when the code was made.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Step {
    /// Bytes a position.
    pub bytes: f32,
    /// Mean KL divergence of what is decoded from what the teacher says, at temperature 1, in nats.
    pub divergence: f32,
}

impl Step {
    /// That of a cache of coded hidden states; none where the code cannot be read.
    fn of(store: &Store) -> Option<Self> {
        let HiddenForm::Coded { code, rung } = store.manifest.form()? else { return None };
        let path = store.dir.join(blob_name(&code.to_string()));
        let [model, _] = store.manifest.fingerprints();
        let code = read_code(&path, code, model).ok()?;
        let rate = code.rates().iter().find(|rate| rate.rung == rung)?;
        Some(Self { bytes: rate.bytes, divergence: rate.divergence })
    }
}

/// Describes a cache. Its records are not read.
///
/// # Errors
/// [`CacheError`] when there is none, or it cannot be read.
pub fn info(config: &CacheConfig) -> Result<Info, CacheError> {
    let store = open(&config.cache, false)?;
    let blobs = store.manifest.decoder.iter().flat_map(DecoderNames::all);
    let blobs: Vec<u64> = blobs
        .filter_map(|name| std::fs::metadata(store.dir.join(blob_name(name))).ok())
        .map(|meta| meta.len())
        .collect();
    Ok(Info {
        step: Step::of(&store),
        blobs: blobs.len(),
        blob_bytes: blobs.iter().sum(),
        cache: config.cache.clone(),
        records: store.len(),
        segments: store.segments.len(),
        bytes: store.segments.iter().map(|segment| segment.bytes).sum(),
        index_bytes: store.index_bytes(),
        manifest: store.manifest,
    })
}

/// The cache of this name, for reading; `thorough` as [`Located::open`] has it.
pub(super) fn open(place: &str, thorough: bool) -> Result<Store, CacheError> {
    let absent = || CacheError::Absent { place: place.to_owned() };
    let mut located = Located::existing(place)?;
    let mut store = located.open(thorough)?.ok_or_else(absent)?;
    store.damage.extend(located.remote.iter().flat_map(Remote::lacking));
    Ok(store)
}

/// Every newest whole record: its tokens and its answer.
pub(super) fn each(
    store: &mut Store,
    take: &mut dyn FnMut(payload::Said) -> Result<(), CacheError>,
) -> Result<(), CacheError> {
    for number in numbers_in(&store.dir)? {
        let path = store.dir.join(segment_name(number));
        let bytes = at("read", &path, std::fs::read(&path))?;
        let Ok(scan) = scan(&bytes, number, &store.space) else { continue };
        for record in scan.records {
            let place = Place { segment: number, offset: record.offset };
            if !store.is_newest(&record.key, place) {
                continue;
            }
            let start = record.offset as usize + HEADER_BYTES;
            let payload = bytes.get(start..start + record.length as usize).unwrap_or_default();
            let said = payload::read_said(payload, store.manifest.about()).map_err(|e| {
                let record = describe(&store.dir, place, Some(&record.key), "its payload");
                CacheError::Payload { record, reason: e.to_string() }
            })?;
            take(said)?;
        }
    }
    Ok(())
}
