//! A cache in an object store: `s3://BUCKET/PREFIX` and whatever else `object_store` speaks to.
//!
//! The store holds `cache.json`, sealed segments and their indices, and `segments.json`, which lists
//! them with their digests. Only that list is believed: the store is never asked what it holds. Objects
//! are named by their digests too, so nobody writes over another's. A run works on a copy in a directory
//! of this machine: what is listed and not here is fetched before it begins, what it seals is sent. A
//! segment that is not what the list says counts as not there.

use std::fs;
use std::path::{Path, PathBuf};

use object_store::{PutMode, UpdateVersion};

use super::append::{is_written, pulling, set_aside};
use super::bucket::{Bucket, remote};
use super::error::{CacheError, at};
use super::listing::{LIST, List, Listed};
use super::manifest::{FILE, Manifest, blob_name};
use super::store::{index_name, numbers_in, segment_name};
use crate::files;
use crate::stop::Stop;

/// What was found in a store.
#[derive(Default)]
struct Brought {
    /// Whether the store says what it holds.
    described: bool,
    list: List,
    version: Option<UpdateVersion>,
    /// What could not be had, by name.
    lost: Vec<String>,
    /// The same in words.
    told: Vec<String>,
    /// What the store does not have as it is listed, and this machine has.
    lacking: Vec<String>,
}

/// An object store that holds a cache.
#[derive(Debug)]
pub(crate) struct Remote {
    bucket: Bucket,
    list: List,
    /// Names of the list that the store does not have as they are listed: what is made in their place is
    /// sent.
    lost: Vec<String>,
    /// Which `segments.json` is known; none where there is none yet.
    version: Option<UpdateVersion>,
    /// Whether there is a `cache.json`, and this machine's copy is of it.
    described: bool,
    /// Whether all of that was read to the end: who does not know what is there can send nothing, since
    /// what others have sent would be in the list no more.
    known: bool,
    /// A `segments.json` whose writing was not answered.
    unanswered: Option<Vec<u8>>,
    /// What of the list was found here alone.
    lacking: Vec<String>,
    /// Why the store could not be read: it is not waited for again in this run.
    away: Option<String>,
}

impl Remote {
    /// The cache at a place of a store. Nothing is known of it before it is pulled.
    pub(crate) fn at(bucket: Bucket) -> Self {
        let (list, lost, lacking) = (List::default(), Vec::new(), Vec::new());
        let (version, described, known, unanswered, away) = (None, false, false, None, None);
        Self { bucket, list, lost, version, described, known, unanswered, lacking, away }
    }

    /// The same where it is known already why it cannot be read.
    pub(crate) fn away(self, reason: Option<String>) -> Self {
        Self { away: reason, ..self }
    }

    /// From now on this may ask that it is waited for no more.
    pub(super) fn stopped_by(&mut self, stop: &Stop) {
        self.bucket.stop = Some(stop.clone());
    }

    /// Who that is.
    pub(super) fn stop(&self) -> Option<&Stop> {
        self.bucket.stop.as_ref()
    }

    /// Brings what the store lists and `dir` lacks into `dir`. Says what of it could not be had as it is
    /// listed: it counts as not there. What came before is believed to be as it was, unless this is
    /// `thorough`. Only one program at a time may do this, and none while another writes there.
    ///
    /// # Errors
    /// [`CacheError::Remote`] when the store does not answer, [`CacheError::Io`] when `dir` refuses,
    /// [`CacheError::Differs`] when `dir` is a copy of something else, [`CacheError::Stopped`] when a stop was
    /// asked for meanwhile.
    pub(crate) fn pull(&mut self, dir: &Path, thorough: bool) -> Result<Vec<String>, CacheError> {
        self.known = false;
        if let Some(reason) = &self.away {
            return Err(remote(&self.bucket.place, reason.clone()));
        }
        let brought = self.bring(dir, thorough);
        if let Err(CacheError::Remote { reason, .. }) = &brought {
            self.away = Some(reason.clone());
        }
        let Brought { described, list, version, lost, told, lacking } = brought?;
        if list.files.is_empty() && !List::of_copy(dir).files.is_empty() {
            let (place, copy) = (&self.bucket.place, dir.display());
            tracing::warn!(
                "{place} holds nothing any more; {copy} has what it held, and a run that writes sends it"
            );
        }
        (self.list, self.version, self.lost) = (list, version, lost);
        self.lost.extend_from_slice(&lacking);
        self.lacking = lacking;
        (self.described, self.known) = (described, true);
        Ok(told)
    }

    /// Does what [`Self::pull`] is for.
    fn bring(&self, dir: &Path, thorough: bool) -> Result<Brought, CacheError> {
        let mut brought = Brought::default();
        let Some((manifest, _)) = self.bucket.get(FILE)? else {
            let empty = |list: List| list.files.is_empty();
            return match self.bucket.get(LIST)? {
                // Who described it anew would make what is listed unreadable for everybody.
                Some((text, _)) if !List::parse(&text).is_ok_and(empty) => {
                    Err(remote(&self.bucket.place, undescribed(dir)))
                }
                _ => Ok(brought),
            };
        };
        let manifest = Manifest::parse(&manifest, &PathBuf::from(&self.bucket.place).join(FILE))?;
        match Manifest::read(dir)? {
            Some(here) => {
                here.same(&self.bucket.place, &manifest).map_err(|error| stale(error, dir))?
            }
            None => manifest.write(dir)?,
        }
        brought.described = true;
        let Some((text, version)) = self.bucket.get(LIST)? else { return Ok(brought) };
        brought.version = Some(version);
        let list = List::parse(&text).map_err(|e| remote(&self.bucket.place, e))?;
        let known = List::of_copy(dir);
        let mut here = List::default();
        for file in &list.files {
            // An index of nothing.
            if brought.lost.contains(&file.name) {
                continue;
            }
            let path = dir.join(&file.name);
            let believed = if thorough { &List::default() } else { &known };
            if !file.is_at(&path, believed) {
                match self.fetch(file)? {
                    Ok(bytes) => {
                        let begun = at("write", &path, files::begin(&path, &bytes))?;
                        make_way(&path, &file.name, &known)?;
                        at("write", &path, fs::rename(&begun, &path))?;
                    }
                    Err(reason) => {
                        let index = file.name.strip_suffix(".seg").map(|n| format!("{n}.idx"));
                        brought.lost.push(file.name.clone());
                        // One that is made anew has another index.
                        brought.lost.extend(index);
                        brought
                            .told
                            .push(format!("{} of {}: {reason}", file.name, self.bucket.place));
                        continue;
                    }
                }
            } else if thorough && self.bucket.length(&file.object())? != Some(file.bytes) {
                brought.lacking.push(file.name.clone());
            }
            here.files.push(file.clone());
        }
        here.write(dir)?;
        brought.list = list;
        Ok(brought)
    }

    /// What a thorough [`Self::pull`] found that the store does not have as it is listed, and this machine has.
    pub(super) fn lacking(&self) -> Vec<String> {
        let place = &self.bucket.place;
        let said = |name| {
            format!(
                "{name} in {place}: it is not there as it is listed; this machine's copy is whole, and \
                 `student-trainer cache build` sends it"
            )
        };
        self.lacking.iter().map(said).collect()
    }

    /// Whether there is anything in `dir` that the store does not list.
    pub(super) fn lists_less(&self, dir: &Path) -> Result<bool, CacheError> {
        let listed = |name: &String| {
            let length = fs::metadata(dir.join(name)).map(|meta| meta.len()).ok();
            self.list.files.iter().any(|file| file.name == *name && Some(file.bytes) == length)
        };
        let unsealed = |number| !dir.join(index_name(number)).exists();
        Ok(!whole_files(dir)?.iter().all(listed) || numbers_in(dir)?.into_iter().any(unsealed))
    }

    /// Brings one of the files again, if what is in `dir` of it is not as it is listed; says whether it
    /// was. Where another program writes nothing is done.
    ///
    /// # Errors
    /// Those of [`Self::pull`].
    pub(crate) fn restore(&self, dir: &Path, name: &str) -> Result<bool, CacheError> {
        let Some(file) = self.list.files.iter().find(|file| file.name == name) else {
            return Ok(false);
        };
        let _pulling = pulling(dir, self.stop())?;
        let path = dir.join(name);
        if is_written(dir)? || file.is_at(&path, &List::default()) {
            return Ok(false);
        }
        match self.fetch(file)? {
            Ok(bytes) => at("write", &path, files::write(&path, &bytes)).map(|()| true),
            Err(_) => Ok(false),
        }
    }

    /// A file as it is listed; the inner error is why the store does not have it so.
    fn fetch(&self, file: &Listed) -> Result<Result<Vec<u8>, String>, CacheError> {
        let mut reason = String::new();
        // What arrives damaged may arrive whole the next time.
        for _ in 0..2 {
            let Some(bytes) = self.bucket.get_long(&file.object(), file.bytes)? else {
                return Ok(Err("it is listed and not there".to_owned()));
            };
            let found = Listed::of(file.name.clone(), &bytes);
            if found == *file {
                return Ok(Ok(bytes));
            }
            reason = format!(
                "it has {} bytes of the digest {}, listed are {} of {}",
                found.bytes, found.digest, file.bytes, file.digest
            );
        }
        Ok(Err(reason))
    }

    /// Sends what is sealed in `dir` and not listed, then the new list. Says how many files.
    ///
    /// # Errors
    /// [`CacheError::Remote`] when the store refuses, [`CacheError::InUse`] when somebody else has written
    /// the list meanwhile, [`CacheError::Differs`] when somebody else has begun another cache there.
    pub(crate) fn push(&mut self, dir: &Path) -> Result<usize, CacheError> {
        if !self.known {
            let reason = "what it holds could not be read when this run began to write";
            return Err(remote(&self.bucket.place, reason.to_owned()));
        }
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
            self.describe(dir)?;
            list.files.retain(|file| file.name != name);
            let bytes = at("read", &path, fs::read(&path))?;
            let file = Listed::of(name, &bytes);
            self.bucket.put(&file.object(), bytes, PutMode::Overwrite)?;
            list.files.push(file);
            sent += 1;
        }
        if sent == 0 {
            return Ok(0);
        }
        // What nobody can have, and nothing here stands for, is not there.
        list.files.retain(|file| !self.lost.contains(&file.name) || dir.join(&file.name).exists());
        let text = serde_json::to_vec_pretty(&list).unwrap_or_default();
        let mode = self.version.clone().map_or(PutMode::Create, PutMode::Update);
        self.version = Some(self.put_list(text, mode)?);
        list.write(dir)?;
        self.lost.clear();
        self.list = list;
        Ok(sent)
    }

    /// Says in the store what it will hold, where nothing does yet. It is never said anew: what is there may
    /// be of another.
    fn describe(&mut self, dir: &Path) -> Result<(), CacheError> {
        if self.described {
            return Ok(());
        }
        let path = dir.join(FILE);
        let ours = at("read", &path, fs::read(&path))?;
        match self.bucket.put(FILE, ours.clone(), PutMode::Create) {
            Err(CacheError::InUse { .. }) => {
                // Another machine was first: with answers of the same kind, the list decides.
                let place = &self.bucket.place;
                let theirs = self.bucket.look_at(FILE)?.map_or_else(Vec::new, |(text, _)| text);
                let theirs = Manifest::parse(&theirs, &PathBuf::from(place).join(FILE))?;
                let differs = theirs.same(place, &Manifest::parse(&ours, &path)?);
                differs.map_err(|error| begun_by_another(error, dir))?;
            }
            put => drop(put?),
        }
        self.described = true;
        Ok(())
    }

    /// Writes the list. One that was written before and not answered is this program's own.
    fn put_list(&mut self, text: Vec<u8>, mode: PutMode) -> Result<UpdateVersion, CacheError> {
        let mut put = self.bucket.put(LIST, text.clone(), mode);
        if let (Err(CacheError::InUse { .. }), Some(ours)) = (&put, &self.unanswered)
            && let Some((found, version)) = self.bucket.look_at(LIST)?
            && found == *ours
        {
            put = self.bucket.put(LIST, text.clone(), PutMode::Update(version));
        }
        self.unanswered = match put {
            Err(CacheError::Remote { .. }) => Some(text),
            _ => None,
        };
        put
    }
}

/// Whether a directory had anything of a store, or of its own, before.
pub(super) fn is_copy(dir: &Path) -> bool {
    dir.join(LIST).exists() || numbers_in(dir).is_ok_and(|numbers| !numbers.is_empty())
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

/// What is said of a store that lists segments and does not say what they are of.
fn undescribed(dir: &Path) -> String {
    let mut said =
        format!("it has {LIST} and no {FILE}, which says what its answers are of: put it back");
    let ours = dir.join(FILE);
    if ours.exists() {
        said += &format!(" ({} is this machine's)", ours.display());
    }
    said + ", or name another place"
}

/// What is said of a copy that is not of what the store holds.
fn stale(error: CacheError, dir: &Path) -> CacheError {
    let CacheError::Differs { place, what, found, wanted, .. } = error else { return error };
    CacheError::Differs {
        place: format!("{} (this machine's copy of {place})", dir.display()),
        what,
        found,
        wanted,
        remedy: "the store holds another cache than that; `--cache` with that directory uses what is in it, \
                 and where it is moved away the store's is fetched",
    }
}

/// What is said where another machine has begun another cache while this one began its own.
fn begun_by_another(error: CacheError, dir: &Path) -> CacheError {
    let CacheError::Differs { place, what, found, wanted, .. } = error else { return error };
    CacheError::Begun { place, what, found, wanted, dir: dir.to_owned() }
}

/// Before the store's segment takes the place of one of this machine that the store never had: that one
/// stays beside it, and the next writer takes its records up. So does one that came from the store and that
/// the store has no more; one that came from it and was damaged here does not.
fn make_way(path: &Path, name: &str, known: &List) -> Result<(), CacheError> {
    let Ok(bytes) = files::read(path) else { return Ok(()) };
    let here = Listed::of(name.to_owned(), &bytes);
    let was = known.files.iter().find(|file| file.name == here.name);
    let damaged = was.is_some_and(|was| was.bytes == here.bytes && was.digest != here.digest);
    if !name.ends_with(".seg") || damaged {
        return Ok(());
    }
    set_aside(path, &bytes)
}
