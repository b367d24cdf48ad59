//! A cache in an object store: `s3://BUCKET/PREFIX` and whatever else `object_store` speaks to.
//!
//! The store holds `cache.json`, sealed segments and their indices, and `segments.json`, which lists
//! them with their digests. Only that list is believed: the store is never asked what it holds. Objects
//! are named by their digests too, so nobody writes over another's. A run
//! works on a copy in a directory of this machine: what is listed and not here is fetched before it
//! begins, what it seals is sent. Every call is bounded and tried a few times; a segment that is not
//! what the list says counts as not there.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::path::Path as Name;
use object_store::{
    Error as StoreError, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, UpdateVersion,
};
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};

use super::error::{CacheError, at};
use distill::fingerprint::Fingerprint;

use super::manifest::{BLOB, FILE, Manifest, blob_name};
use super::store::{index_name, numbers_in, segment_name};

/// How the names of segments end that were to be sent and whose place another machine took.
pub(super) const UNSENT: &str = ".unsent";
/// The list of what is in the store.
const LIST: &str = "segments.json";
/// Files of 64 MiB over a slow line take minutes.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often a call is tried.
const ATTEMPTS: u32 = 4;
/// Before the second attempt; doubled before each further one.
const PAUSE: Duration = Duration::from_millis(200);

/// A file in the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Listed {
    name: String,
    bytes: u64,
    /// BLAKE3, 64 hexadecimal digits.
    digest: String,
}

impl Listed {
    fn of(name: String, bytes: &[u8]) -> Self {
        let digest = blake3::hash(bytes).to_hex().to_string();
        Self { name, bytes: bytes.len() as u64, digest }
    }

    /// What it is called in the store.
    fn object(&self) -> String {
        format!("{}-{}", self.digest, self.name)
    }

    /// Whether a file is this one; `known` are those that were compared before.
    fn is_at(&self, path: &Path, known: &List) -> bool {
        let same_length = fs::metadata(path).is_ok_and(|meta| meta.len() == self.bytes);
        let same = || fs::read(path).is_ok_and(|b| Self::of(self.name.clone(), &b) == *self);
        same_length && (known.files.contains(self) || same())
    }
}

/// `segments.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct List {
    files: Vec<Listed>,
}

impl List {
    /// Notes in a directory which files of it are those of the store.
    fn write(&self, dir: &Path) -> Result<(), CacheError> {
        let text = serde_json::to_vec_pretty(self).unwrap_or_default();
        write(&dir.join(LIST), &text)
    }
}

/// An object store that holds a cache.
#[derive(Debug)]
pub(crate) struct Remote {
    store: Arc<dyn ObjectStore>,
    prefix: Name,
    place: String,
    runtime: Runtime,
    patience: Duration,
    list: List,
    /// Names of the list that the store does not have as they are listed: what is made in their place is
    /// sent.
    lost: Vec<String>,
    /// Which `segments.json` is known; none where there is none yet.
    version: Option<UpdateVersion>,
}

impl Remote {
    /// A cache called `place` at `prefix` of a store. A call may take `patience`, if that is given.
    pub(crate) fn new(
        store: Arc<dyn ObjectStore>,
        prefix: Name,
        place: &str,
        patience: Option<Duration>,
    ) -> Result<Self, CacheError> {
        let place = place.to_owned();
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| remote(&place, e.to_string()))?;
        let (list, lost, version) = (List::default(), Vec::new(), None);
        let patience = patience.unwrap_or(PATIENCE);
        Ok(Self { store, prefix, place, runtime, patience, list, lost, version })
    }

    /// Brings what the store lists and `dir` lacks into `dir`. Says what of it could not be had as it is
    /// listed: it counts as not there.
    ///
    /// # Errors
    /// [`CacheError::Remote`] when the store does not answer, [`CacheError::Io`] when `dir` refuses.
    pub(crate) fn pull(&mut self, dir: &Path) -> Result<Vec<String>, CacheError> {
        at("create", dir, fs::create_dir_all(dir))?;
        let Some((manifest, _)) = self.get(FILE)? else { return Ok(Vec::new()) };
        let manifest = Manifest::parse(&manifest, &PathBuf::from(&self.place).join(FILE))?;
        match Manifest::read(dir)? {
            Some(here) => here.same(&self.place, &manifest)?,
            None => manifest.write(dir)?,
        }
        let mut lost = Vec::new();
        let Some((text, version)) = self.get(LIST)? else { return Ok(lost) };
        let wrong = |e: serde_json::Error| remote(&self.place, format!("{LIST}: {e}"));
        let list: List = serde_json::from_slice(&text).map_err(wrong)?;
        self.version = Some(version);
        let known = fs::read(dir.join(LIST)).ok();
        let known: List =
            known.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        let mut here = List::default();
        for file in &list.files {
            // A name of anything else would lead out of the directory.
            if !is_ours(&file.name) {
                return Err(remote(&self.place, format!("{LIST} lists {:?}", file.name)));
            }
            let path = dir.join(&file.name);
            if !file.is_at(&path, &known) {
                match self.fetch(file)? {
                    Ok(bytes) => {
                        set_aside(&path, &file.name, &known)?;
                        write(&path, &bytes)?;
                    }
                    Err(reason) => {
                        self.lost.push(file.name.clone());
                        // One that is made anew has another index.
                        self.lost
                            .extend(file.name.strip_suffix(".seg").map(|n| format!("{n}.idx")));
                        lost.push(format!("{} of {}: {reason}", file.name, self.place));
                        continue;
                    }
                }
            }
            here.files.push(file.clone());
        }
        here.write(dir)?;
        self.list = list;
        Ok(lost)
    }

    /// A file as it is listed; the inner error is why the store does not have it so.
    fn fetch(&self, file: &Listed) -> Result<Result<Vec<u8>, String>, CacheError> {
        let mut reason = String::new();
        // What arrives damaged may arrive whole the next time.
        for _ in 0..2 {
            let Some((bytes, _)) = self.get(&file.object())? else {
                return Ok(Err("it is listed and not there".to_owned()));
            };
            let found = Listed::of(file.name.clone(), &bytes);
            if found == *file {
                return Ok(Ok(bytes));
            }
            reason = format!("its digest is {}, listed is {}", found.digest, file.digest);
        }
        Ok(Err(reason))
    }

    /// Sends what is sealed in `dir` and not listed, then the new list. Says how many files.
    ///
    /// # Errors
    /// [`CacheError::Remote`] when the store refuses, or somebody else has written the list meanwhile.
    pub(crate) fn push(&mut self, dir: &Path) -> Result<usize, CacheError> {
        let mut list = self.list.clone();
        let mut sent = 0;
        for name in whole_files(dir)? {
            let path = dir.join(&name);
            let length = at("look at", &path, fs::metadata(&path))?.len();
            // One that was sent and has grown since is sent again.
            let same = |file: &Listed| file.name == name && file.bytes == length;
            if list.files.iter().any(same) && !self.lost.contains(&name) {
                continue;
            }
            list.files.retain(|file| file.name != name);
            let bytes = at("read", &path, fs::read(&path))?;
            let file = Listed::of(name, &bytes);
            self.put(&file.object(), bytes, PutMode::Overwrite)?;
            list.files.push(file);
            sent += 1;
        }
        if sent == 0 {
            return Ok(0);
        }
        // What nobody can have, and nothing here stands for, is not there.
        list.files.retain(|file| !self.lost.contains(&file.name) || dir.join(&file.name).exists());
        let manifest = dir.join(FILE);
        let manifest = at("read", &manifest, fs::read(&manifest))?;
        self.put(FILE, manifest, PutMode::Overwrite)?;
        let text = serde_json::to_vec_pretty(&list).unwrap_or_default();
        let mode = self.version.clone().map_or(PutMode::Create, PutMode::Update);
        self.version = Some(self.put(LIST, text, mode)?);
        list.write(dir)?;
        self.lost.clear();
        self.list = list;
        Ok(sent)
    }

    /// An object; none where there is none.
    fn get(&self, name: &str) -> Result<Option<(Vec<u8>, UpdateVersion)>, CacheError> {
        let path = self.prefix.clone().join(name);
        let got = self.attempt(&format!("get {name}"), || async {
            let found = self.store.get(&path).await?;
            let meta = found.meta.clone();
            let version = UpdateVersion { e_tag: meta.e_tag, version: meta.version };
            Ok((found.bytes().await?.to_vec(), version))
        });
        match got {
            Ok(found) => Ok(Some(found)),
            // A bucket that is not there is a name mistyped, and no empty cache.
            Err(Refusal::Store(StoreError::NotFound { source, .. }))
                if !source.to_string().contains("NoSuchBucket") =>
            {
                Ok(None)
            }
            Err(refusal) => Err(self.wrong(&format!("get {name}"), refusal)),
        }
    }

    fn put(&self, name: &str, bytes: Vec<u8>, mode: PutMode) -> Result<UpdateVersion, CacheError> {
        let path = self.prefix.clone().join(name);
        let bytes = bytes::Bytes::from(bytes);
        let sent = bytes.clone();
        let conditional = !matches!(mode, PutMode::Overwrite);
        let send = |mode: PutMode| {
            self.attempt(&format!("put {name}"), || {
                let options = PutOptions { mode: mode.clone(), ..PutOptions::default() };
                let (bytes, path) = (bytes.clone(), path.clone());
                async move { self.store.put_opts(&path, bytes.into(), options).await }
            })
        };
        let put = match send(mode) {
            // Stores that know no conditions: there their owner has to keep writers apart.
            Err(Refusal::Store(
                StoreError::NotImplemented { .. } | StoreError::NotSupported { .. },
            )) if conditional => send(PutMode::Overwrite),
            put => put,
        };
        match put {
            Ok(put) => Ok(UpdateVersion { e_tag: put.e_tag, version: put.version }),
            Err(Refusal::Store(
                StoreError::Precondition { .. } | StoreError::AlreadyExists { .. },
            )) => match self.get(name)? {
                // An answer that was lost on its way: what is there is what was to be.
                Some((found, version)) if found == sent => Ok(version),
                _ => Err(CacheError::InUse { place: self.place.clone(), holder: None }),
            },
            Err(refusal) => Err(self.wrong(&format!("put {name}"), refusal)),
        }
    }

    /// Makes a call, again where that may help.
    fn attempt<T, F>(&self, what: &str, call: impl Fn() -> F) -> Result<T, Refusal>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        self.runtime.block_on(async {
            let mut tried = 1;
            loop {
                let refusal = match tokio::time::timeout(self.patience, call()).await {
                    Ok(Ok(done)) => return Ok(done),
                    Ok(Err(error)) => Refusal::Store(error),
                    Err(_) => Refusal::Silent,
                };
                if tried >= ATTEMPTS || refusal.is_final() {
                    return Err(refusal);
                }
                tracing::info!(place = self.place, what, tried, %refusal, "trying again");
                tokio::time::sleep(PAUSE * 2u32.pow(tried - 1)).await;
                tried += 1;
            }
        })
    }

    fn wrong(&self, what: &str, refusal: Refusal) -> CacheError {
        let reason = match refusal {
            Refusal::Silent => {
                let seconds = self.patience.as_secs_f64();
                format!("{what}: no answer within {seconds} s, {ATTEMPTS} times")
            }
            // A store answers with pages of XML.
            Refusal::Store(error) => {
                let text = error.to_string();
                let lines: Vec<&str> = text.lines().map(str::trim).collect();
                format!("{what}: {}", lines.join(" "))
            }
        };
        remote(&self.place, reason)
    }
}

/// Why a call came to nothing.
#[derive(Debug)]
enum Refusal {
    Store(StoreError),
    Silent,
}

impl Refusal {
    /// Whether asking again cannot help.
    fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Store(
                StoreError::NotFound { .. }
                    | StoreError::AlreadyExists { .. }
                    | StoreError::Precondition { .. }
                    | StoreError::NotImplemented { .. }
                    | StoreError::NotSupported { .. }
                    | StoreError::PermissionDenied { .. }
                    | StoreError::Unauthenticated { .. }
            )
        )
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Store(error) => error.fmt(f),
            Self::Silent => f.write_str("no answer"),
        }
    }
}

fn remote(place: &str, reason: String) -> CacheError {
    CacheError::Remote { place: place.to_owned(), reason }
}

/// The files of a cache that change no more: what hidden states are read with, and segments that are
/// sealed with their indexes.
fn whole_files(dir: &Path) -> Result<Vec<String>, CacheError> {
    let blobs = Manifest::read(dir)?.and_then(|manifest| manifest.decoder);
    let blobs = blobs.iter().flat_map(|decoder| decoder.all()).map(blob_name);
    let mut names: Vec<String> = blobs.filter(|name| dir.join(name).exists()).collect();
    for number in numbers_in(dir)? {
        if dir.join(index_name(number)).exists() {
            names.extend([segment_name(number), index_name(number)]);
        }
    }
    Ok(names)
}

/// Whether a name is that of a segment, its index, or what hidden states are read with.
fn is_ours(name: &str) -> bool {
    if name.strip_suffix(BLOB).is_some_and(|digest| digest.parse::<Fingerprint>().is_ok()) {
        return true;
    }
    let number = |end| name.strip_prefix("segment-")?.strip_suffix(end)?.parse::<u32>().ok();
    [".seg", ".idx"]
        .into_iter()
        .find_map(number)
        .is_some_and(|number| name == segment_name(number) || name == index_name(number))
}

/// Before the store's segment takes the place of one of this machine that the store never had: that one
/// stays beside it, and the next writer takes its records up.
fn set_aside(path: &Path, name: &str, known: &List) -> Result<(), CacheError> {
    let Ok(bytes) = fs::read(path) else { return Ok(()) };
    let here = Listed::of(name.to_owned(), &bytes);
    if !name.ends_with(".seg") || known.files.contains(&here) {
        return Ok(());
    }
    let aside = path.with_file_name(format!("{name}.{}{UNSENT}", &here.digest[..16]));
    at("set aside", path, fs::rename(path, aside))
}

/// Writes a file so that it is there whole or not at all.
fn write(path: &Path, bytes: &[u8]) -> Result<(), CacheError> {
    let begun = path.with_extension(format!("part-{}", std::process::id()));
    let written = fs::File::create(&begun)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    at("write", &begun, written)?;
    at("write", path, fs::rename(&begun, path))
}
