//! A cache as a run holds it: lookups on the thread that trains, writing on a thread of its own.
//!
//! A disk that refuses costs the cache and never the run: the first refusal is said, and no more is
//! written.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use distill::batch::Sequence;
use distill::cache::{Key, Space};

use super::append::{SEGMENT_BYTES, Writer};
use super::error::CacheError;
use super::manifest::Manifest;
use super::payload;
use super::place::Located;
use super::remote::Remote;
use super::store::{Found, Store, segment_name};
use crate::feed::Scored;

/// Answers on their way to the disk, at most; a slower disk than that slows the training.
const QUEUE: usize = 64;

/// A cache in use.
#[derive(Debug)]
pub(crate) struct Cache {
    place: String,
    dir: PathBuf,
    manifest: Manifest,
    space: Space,
    store: Arc<Mutex<Store>>,
    writer: Mutex<Writing>,
    /// Why nothing more is kept, where the disk refused.
    failed: Arc<OnceLock<String>>,
}

/// What a lookup finds.
#[derive(Debug)]
pub(crate) enum Lookup {
    /// The answer.
    Answer(Scored),
    /// None of that row.
    Nothing,
    /// One that cannot be used, in words.
    Damaged(String),
}

/// The writing side.
#[derive(Debug)]
enum Writing {
    /// Not begun: the first answer to keep begins it.
    Idle(Option<Box<Remote>>),
    /// A thread at work.
    Busy { jobs: SyncSender<Job>, thread: JoinHandle<()> },
    /// Over, or refused.
    Ended,
}

/// What the writing thread is given.
enum Job {
    Keep {
        key: Key,
        set: Arc<[Sequence]>,
        row: usize,
        scored: Box<Scored>,
    },
    /// Answered when everything before is written.
    Flush(SyncSender<()>),
}

impl Cache {
    /// A cache that is read; the first answer to keep makes this the writer, if no other is.
    pub(crate) fn reading(located: Located, store: Store) -> Self {
        let Located { place, dir, remote } = located;
        let (manifest, space) = (store.manifest.clone(), store.space);
        let store = Arc::new(Mutex::new(store));
        let (writer, failed) = (Mutex::new(Writing::Idle(remote.map(Box::new))), Arc::default());
        Self { place, dir, manifest, space, store, writer, failed }
    }

    /// A cache that is written to from now on; of one that this program may only read, what is there is
    /// used and nothing is kept.
    ///
    /// # Errors
    /// Those of [`Writer::open`].
    pub(crate) fn writing(mut located: Located, manifest: &Manifest) -> Result<Self, CacheError> {
        let remote = located.remote.take();
        match Writer::open(&located.dir, manifest, SEGMENT_BYTES, remote) {
            Ok((writer, store)) => {
                let cache = Self::reading(located, store);
                cache.start(writer)?;
                Ok(cache)
            }
            Err(error) if error.is_read_only() => {
                let Some(store) = Store::open(&located.dir)? else { return Err(error) };
                let cache = Self::reading(located, store);
                cache.refuse(&error);
                Ok(cache)
            }
            Err(CacheError::InUse { holder, .. }) => {
                Err(CacheError::InUse { place: located.place, holder })
            }
            Err(error) => Err(error),
        }
    }

    fn start(&self, writer: Writer) -> Result<(), CacheError> {
        let (jobs, incoming) = sync_channel(QUEUE);
        let shared = Arc::clone(&self.store);
        let (failed, classes) = (Arc::clone(&self.failed), self.manifest.classes);
        let work = move || write_all(writer, &incoming, &shared, &failed, classes);
        let started = std::thread::Builder::new().name("cache".to_owned()).spawn(work);
        let thread = super::error::at("write to", &self.dir, started)?;
        *lock(&self.writer) = Writing::Busy { jobs, thread };
        Ok(())
    }

    /// Its name.
    pub(crate) fn place(&self) -> String {
        self.place.clone()
    }

    /// What its answers have in common.
    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Whether what is kept from now on will be found later.
    pub(crate) fn writes(&self) -> bool {
        self.failure().is_none() && matches!(*lock(&self.writer), Writing::Busy { .. })
    }

    /// From now on nothing is kept, for this reason.
    pub(crate) fn refuse(&self, error: &CacheError) {
        refuse(&self.failed, error);
    }

    /// Whether there is an answer about a row, as far as the index tells.
    pub(crate) fn holds(&self, row: &Sequence) -> bool {
        let key = self.key(row);
        lock(&self.store).holds(&key)
    }

    /// Whether there is a whole record about a row.
    pub(crate) fn has(&self, row: &Sequence) -> bool {
        let key = self.key(row);
        lock(&self.store).has(&key)
    }

    /// The answer about a row.
    pub(crate) fn read(&self, row: &Sequence) -> Lookup {
        let key = self.key(row);
        let mut found = lock(&self.store).read(&key);
        // It, or what was asked for in its place, may still be on its way to the disk, or be whole in the
        // store.
        let again = match &found {
            Found::Nothing => self.flush(),
            Found::Damaged(segment, what) => self.flush() || self.restore(*segment, what),
            Found::Payload(_) => false,
        };
        if again {
            found = lock(&self.store).read(&key);
        }
        match found {
            Found::Nothing => Lookup::Nothing,
            Found::Damaged(_, what) => Lookup::Damaged(what),
            Found::Payload(payload) => match payload::read(&payload, row, self.manifest.about()) {
                Ok(scored) => Lookup::Answer(scored),
                Err(reason) => Lookup::Damaged(format!("record {key}: {reason}")),
            },
        }
    }

    /// Brings a segment of a store's cache again, of which a record is damaged here; false where that
    /// changes nothing.
    fn restore(&self, segment: u32, what: &str) -> bool {
        let writing = lock(&self.writer);
        let Writing::Idle(Some(remote)) = &*writing else { return false };
        match remote.restore(&self.dir, &segment_name(segment)) {
            Ok(restored) => {
                if restored {
                    tracing::warn!("--cache: damaged: {what}; its segment was fetched again");
                    lock(&self.store).replaced(segment);
                }
                restored
            }
            Err(error) => {
                tracing::warn!("--cache: damaged: {what}; {error}");
                false
            }
        }
    }

    /// Keeps an answer about row `row` of `set`. Waits where the disk is behind; a disk that refuses is
    /// told of once, in the log.
    pub(crate) fn keep(&self, set: &Arc<[Sequence]>, row: usize, scored: &Scored) {
        if self.failure().is_some() {
            return;
        }
        self.become_writer();
        let writing = lock(&self.writer);
        let Writing::Busy { jobs, .. } = &*writing else { return };
        let key = self.key(&set[row]);
        let (set, scored) = (Arc::clone(set), Box::new(scored.clone()));
        // The thread ends with this cache and not before; its panic has been printed.
        let _ = jobs.send(Job::Keep { key, set, row, scored });
    }

    /// Begins to write, where that was not begun.
    fn become_writer(&self) {
        let remote = {
            let mut writing = lock(&self.writer);
            let Writing::Idle(remote) = &mut *writing else { return };
            remote.take().map(|remote| *remote)
        };
        let opened = Writer::open(&self.dir, &self.manifest, SEGMENT_BYTES, remote);
        let started = opened.and_then(|(writer, store)| {
            *lock(&self.store) = store;
            self.start(writer)
        });
        if let Err(error) = started {
            *lock(&self.writer) = Writing::Ended;
            refuse(&self.failed, &error);
        }
    }

    /// Waits until everything kept so far is written; false when nobody writes.
    pub(crate) fn flush(&self) -> bool {
        let (done, written) = sync_channel(1);
        if let Writing::Busy { jobs, .. } = &*lock(&self.writer)
            && jobs.send(Job::Flush(done)).is_ok()
        {
            return written.recv().is_ok();
        }
        false
    }

    /// Why nothing more is kept, where the disk has refused.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failed.get().map(String::as_str)
    }

    /// Ends the writing when all is in order and where it is to be, what an earlier run could not send
    /// included.
    ///
    /// # Errors
    /// [`CacheError::Refused`] when the disk or the store refused any of it.
    pub(crate) fn complete(&self) -> Result<(), CacheError> {
        let unsent = matches!(*lock(&self.writer), Writing::Idle(Some(_)));
        // Damage that no row needed is put in order all the same.
        if unsent || !lock(&self.store).damage.is_empty() {
            self.become_writer();
        }
        self.end();
        match self.failure() {
            Some(reason) => Err(CacheError::Refused { reason: reason.to_owned() }),
            None => Ok(()),
        }
    }

    /// Waits for what is on its way to the disk, and to the store.
    fn end(&self) {
        let writing = std::mem::replace(&mut *lock(&self.writer), Writing::Ended);
        if let Writing::Busy { jobs, thread } = writing {
            drop(jobs);
            // A panic there has been printed.
            let _ = thread.join();
        }
    }

    fn key(&self, row: &Sequence) -> Key {
        self.space.key(&row.ids, &row.scored_ranges())
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.end();
    }
}

/// The writing thread.
fn write_all(
    mut writer: Writer,
    jobs: &Receiver<Job>,
    store: &Mutex<Store>,
    failed: &OnceLock<String>,
    classes: usize,
) {
    while let Ok(job) = jobs.recv() {
        match job {
            // Nobody waits any more when this fails.
            Job::Flush(done) => drop(done.send(())),
            Job::Keep { .. } if failed.get().is_some() => {}
            // The same tokens in another row.
            Job::Keep { key, .. } if lock(store).has(&key) => {}
            Job::Keep { key, set, row, scored } => {
                let record = || format!("record {key}");
                let written = payload::write(&set[row], &scored, classes)
                    .map_err(|e| CacheError::Payload { record: record(), reason: e.to_string() })
                    .and_then(|payload| writer.append(&key, &payload));
                match written {
                    Ok(place) => lock(store).added(&key, place),
                    Err(error) => refuse(failed, &error),
                }
            }
        }
    }
    if let Err(error) = writer.finish()
        && failed.set(error.to_string()).is_ok()
    {
        let later = match matches!(error, CacheError::Begun { .. }) {
            true => "",
            false => ": what was not sent is kept here, and the next run with this cache sends it",
        };
        tracing::warn!("{error}{later}");
    }
}

fn refuse(failed: &OnceLock<String>, error: &CacheError) {
    if failed.set(error.to_string()).is_ok() {
        tracing::warn!("{error}: no more answers are kept in the cache; what is there stays");
    }
}

/// What a panicked thread left is whole: each change is one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
