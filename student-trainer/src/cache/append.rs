//! The directory of a cache, written: one writer, whose lock the system takes off however it ends.
//!
//! A record is one write, so a killed program leaves at most one that is not whole, at the end of the
//! last segment; the next writer cuts it off. A segment is synced to the disk when it is sealed, and
//! the last one when the writer ends: what a power failure can take is what was written since.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use distill::cache::{
    HEADER_BYTES, Key, Place, SEGMENT_HEADER_BYTES, Space, scan, segment_header, write_index,
    write_record,
};

use super::error::{CacheError, at};
use super::manifest::{FILE, Manifest};
use super::remote::Remote;
use super::sender::Sender;
use super::store::{Store, index_name, orphans_in, segment_name};
use crate::files;
use crate::stop::Stop;

/// Bytes of a segment after which the next is begun.
pub(crate) const SEGMENT_BYTES: u32 = 64 << 20;

/// The file whose lock says that a program writes.
const LOCK: &str = "LOCK";
/// The file whose lock says that a program brings here what a store has. It is taken before [`LOCK`], which
/// nobody else can get meanwhile.
const PULL: &str = "PULL";
/// How the names of segments end whose place is another's: what they hold waits to be written anew.
const UNSENT: &str = ".unsent";
/// Between two looks at [`PULL`].
const PULL_LOOK: Duration = Duration::from_millis(100);

/// The one writer of a cache.
#[derive(Debug)]
pub(crate) struct Writer {
    dir: PathBuf,
    space: Space,
    limit: u32,
    active: Option<Active>,
    next: u32,
    /// A record's bytes on the way to the file.
    buffer: Vec<u8>,
    /// What sends sealed segments to a store.
    sender: Option<Sender>,
    _lock: Arc<File>,
}

/// The segment that is being appended to.
#[derive(Debug)]
struct Active {
    file: File,
    number: u32,
    bytes: u32,
    records: Vec<(u64, u32)>,
}

impl Writer {
    /// Opens the cache in `dir` for writing, and makes one of this description where there is none.
    /// Segments are sealed at `limit` bytes, and sent where `dir` is the copy of a store's cache.
    ///
    /// # Errors
    /// [`CacheError::InUse`] when another writer is at work; those of [`Store::open`].
    pub(crate) fn open(
        dir: &Path,
        manifest: &Manifest,
        limit: u32,
        mut remote: Option<Remote>,
    ) -> Result<(Self, Store), CacheError> {
        at("create", dir, std::fs::create_dir_all(dir))?;
        refuse_foreign(dir)?;
        let pulling = remote.as_ref().map(|remote| pulling(dir, remote.stop())).transpose()?;
        let lock = Arc::new(lock(dir)?);
        // Nobody can have the segments renumbered that are written from now on.
        match remote.as_mut().map(|remote| remote.pull(dir, false)) {
            // What is there now is not known, so nothing can be sent; but it can be kept here.
            Some(Err(error @ CacheError::Remote { .. })) if Manifest::read(dir)?.is_some() => {
                tracing::warn!("{error}: what comes is kept here, and sent by the next run");
            }
            pulled => drop(pulled.transpose()?),
        }
        drop(pulling);
        let mut store = match Store::open(dir)? {
            Some(store) => store,
            None => {
                manifest.write(dir)?;
                let absent = || CacheError::Absent { place: dir.display().to_string() };
                Store::open(dir)?.ok_or_else(absent)?
            }
        };
        let mut writer = Self {
            dir: dir.to_owned(),
            space: store.space,
            limit,
            active: None,
            next: store.segments.last().map_or(0, |last| last.number + 1),
            buffer: Vec::new(),
            sender: None,
            _lock: Arc::clone(&lock),
        };
        writer.take_up(&store)?;
        writer.take_in(&mut store)?;
        if let Some(remote) = remote {
            writer.sender = Some(Sender::start(remote, dir.to_owned(), lock)?);
        }
        Ok((writer, store))
    }

    /// Appends what segments hold that were set aside, and removes these once it is on the disk. One that
    /// cannot be read stays.
    fn take_in(&mut self, store: &mut Store) -> Result<(), CacheError> {
        for entry in at("list", &self.dir, std::fs::read_dir(&self.dir))? {
            let path = at("list", &self.dir, entry)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let number = name.strip_prefix("segment-").filter(|_| name.ends_with(UNSENT));
            let Some(number) = number.and_then(|rest| rest.get(..8)?.parse().ok()) else {
                continue;
            };
            let bytes = at("read", &path, std::fs::read(&path))?;
            let Ok(found) = scan(&bytes, number, &self.space) else { continue };
            for record in &found.records {
                let start = record.offset as usize + HEADER_BYTES;
                let payload = bytes.get(start..start + record.length as usize);
                if let (Some(payload), false) = (payload, store.has(&record.key)) {
                    let place = self.append(&record.key, payload)?;
                    store.added(&record.key, place);
                }
            }
            if let Some(active) = &self.active {
                at("sync", &self.dir.join(segment_name(active.number)), active.file.sync_all())?;
            }
            at("remove", &path, std::fs::remove_file(&path))?;
        }
        Ok(())
    }

    /// Seals what was left unsealed, and goes on with the last segment. What nobody can read is set aside.
    fn take_up(&mut self, store: &Store) -> Result<(), CacheError> {
        let numbers: Vec<u32> = store.segments.iter().map(|segment| segment.number).collect();
        for gone in orphans_in(&self.dir, &numbers)? {
            let path = self.dir.join(index_name(gone));
            at("remove", &path, std::fs::remove_file(&path))?;
        }
        let last = store.segments.len().saturating_sub(1);
        for (i, segment) in store.segments.iter().enumerate() {
            let Some(scanned) = &segment.scanned else { continue };
            if !scanned.usable {
                // Its rows are asked for again; whoever can read more of it has it still.
                let path = self.dir.join(segment_name(segment.number));
                let aside = path.with_extension("damaged");
                tracing::warn!("{} cannot be read: it is {} now", path.display(), aside.display());
                at("set aside", &path, std::fs::rename(&path, &aside))?;
                drop(std::fs::remove_file(self.dir.join(index_name(segment.number))));
                continue;
            }
            let torn = scanned.end < segment.bytes;
            if scanned.damaged || (torn && i < last) {
                // What of it is whole is written anew, and what is not is told of no more.
                let path = self.dir.join(segment_name(segment.number));
                set_aside(&path, &at("read", &path, files::read(&path))?)?;
                drop(std::fs::remove_file(self.dir.join(index_name(segment.number))));
                continue;
            }
            if i < last {
                self.write_index(segment.number, segment.bytes, &scanned.records)?;
                continue;
            }
            if let Ok(end) = u32::try_from(scanned.end) {
                self.active = Some(self.reopen(segment.number, end, &scanned.records)?);
            }
        }
        Ok(())
    }

    /// Goes on with a segment behind its last whole record.
    fn reopen(&self, number: u32, end: u32, records: &[(u64, u32)]) -> Result<Active, CacheError> {
        let path = self.dir.join(segment_name(number));
        let mut file = at("open", &path, OpenOptions::new().append(true).open(&path))?;
        at("cut", &path, file.set_len(u64::from(end)))?;
        // Of one that was sealed once and has lost its end.
        drop(std::fs::remove_file(self.dir.join(index_name(number))));
        let mut bytes = end;
        if end == 0 {
            let header = segment_header(number, &self.space);
            at("write", &path, file.write_all(&header))?;
            bytes = SEGMENT_HEADER_BYTES as u32;
        }
        Ok(Active { file, number, bytes, records: records.to_vec() })
    }

    /// Appends a record; says where it is.
    ///
    /// # Errors
    /// [`CacheError::Io`] when the disk refuses. What was begun is taken back, as far as the disk
    /// allows; the cache stays whole in any case.
    pub(crate) fn append(&mut self, key: &Key, payload: &[u8]) -> Result<Place, CacheError> {
        let record = HEADER_BYTES.saturating_add(payload.len());
        let full = |active: &Active| {
            let end = (active.bytes as usize).saturating_add(record);
            end > self.limit as usize && !active.records.is_empty()
        };
        if self.active.as_ref().is_some_and(full) {
            self.seal()?;
        }
        if self.active.is_none() {
            self.active = Some(self.begin()?);
        }
        let Some(active) = &mut self.active else { return Err(self.gone()) };
        let place = Place { segment: active.number, offset: active.bytes };
        self.buffer.clear();
        let path = || self.dir.join(segment_name(place.segment));
        if !write_record(&mut self.buffer, key, payload, place) {
            let reason = format!("an answer of {} bytes is too long for a record", payload.len());
            return Err(CacheError::Payload { record: format!("record {key}"), reason });
        }
        if let Err(error) = active.file.write_all(&self.buffer) {
            // If not even this can be done the next writer will do it.
            let _ = active.file.set_len(u64::from(active.bytes));
            return at("write to", &path(), Err(error));
        }
        active.bytes += self.buffer.len() as u32;
        active.records.push((key.prefix(), place.offset));
        Ok(place)
    }

    /// Begins the next segment.
    fn begin(&mut self) -> Result<Active, CacheError> {
        let number = self.next;
        let path = self.dir.join(segment_name(number));
        let created = OpenOptions::new().append(true).create_new(true).open(&path);
        let mut file = at("create", &path, created)?;
        if let Err(error) = file.write_all(&segment_header(number, &self.space)) {
            drop(std::fs::remove_file(&path));
            return at("write to", &path, Err(error));
        }
        self.next += 1;
        let bytes = SEGMENT_HEADER_BYTES as u32;
        Ok(Active { file, number, bytes, records: Vec::new() })
    }

    /// Seals the segment that is being written: synced, and its index beside it.
    pub(crate) fn seal(&mut self) -> Result<(), CacheError> {
        let Some(active) = self.active.take() else { return Ok(()) };
        let path = self.dir.join(segment_name(active.number));
        at("sync", &path, active.file.sync_all())?;
        self.write_index(active.number, u64::from(active.bytes), &active.records)?;
        if let Some(sender) = &self.sender {
            sender.more();
        }
        Ok(())
    }

    /// Leaves the last segment as it is, on the disk; where segments are sent, it is sealed and sent.
    ///
    /// # Errors
    /// [`CacheError::Io`] when the disk refuses, [`CacheError::Remote`] when the store does.
    pub(crate) fn finish(mut self) -> Result<(), CacheError> {
        if self.sender.is_some() {
            self.seal()?;
        }
        let sent = self.sender.take().map_or(Ok(()), Sender::finish);
        if let Some(active) = &self.active {
            at("sync", &self.dir.join(segment_name(active.number)), active.file.sync_all())?;
        }
        at("sync", &self.dir, File::open(&self.dir).and_then(|dir| dir.sync_all()))?;
        sent
    }

    fn write_index(
        &self,
        number: u32,
        bytes: u64,
        records: &[(u64, u32)],
    ) -> Result<(), CacheError> {
        let index = write_index(number, &self.space, bytes, records.iter().copied());
        let path = self.dir.join(index_name(number));
        at("write", &path, files::write(&path, &index))
    }

    fn gone(&self) -> CacheError {
        let source = io::ErrorKind::NotFound.into();
        CacheError::Io { action: "write to", path: self.dir.clone(), source }
    }
}

/// Gives a segment of these bytes a name of its own, under which the next writer takes in what it holds.
pub(super) fn set_aside(path: &Path, bytes: &[u8]) -> Result<(), CacheError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let digest = blake3::hash(bytes).to_hex();
    let aside = path.with_file_name(format!("{name}.{}{UNSENT}", &digest[..16]));
    at("set aside", path, std::fs::rename(path, aside))
}

/// Whether answers of another turn of this copy wait to be taken in.
pub(super) fn has_unsent(dir: &Path) -> Result<bool, CacheError> {
    for entry in at("list", dir, std::fs::read_dir(dir))? {
        if at("list", dir, entry)?.file_name().to_string_lossy().ends_with(UNSENT) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Refuses a directory that holds files, and no cache.
fn refuse_foreign(dir: &Path) -> Result<(), CacheError> {
    if dir.join(FILE).exists() {
        return Ok(());
    }
    for entry in at("list", dir, std::fs::read_dir(dir))? {
        let found = at("list", dir, entry)?.file_name().to_string_lossy().into_owned();
        // What a writer leaves that was killed before it had described the cache.
        if ![LOCK, PULL].contains(&&*found) && found != format!("{FILE}{}", files::BEGUN) {
            return Err(CacheError::Foreign { dir: dir.to_owned(), found });
        }
    }
    Ok(())
}

/// Waits until no other program brings files here, and keeps others from it until it is dropped.
///
/// # Errors
/// [`CacheError::Stopped`] when a stop was asked for meanwhile.
pub(super) fn pulling(dir: &Path, stop: Option<&Stop>) -> Result<File, CacheError> {
    let file = lock_file(dir, PULL)?;
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if stop.is_some_and(Stop::requested) => {
                return Err(CacheError::Stopped { place: dir.display().to_string() });
            }
            Err(TryLockError::WouldBlock) => {
                if !std::mem::replace(&mut told, true) {
                    let dir = dir.display();
                    tracing::warn!("another program fetches the cache {dir}: waiting for it");
                }
                std::thread::sleep(PULL_LOOK);
            }
            Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {
                return Ok(file);
            }
            Err(TryLockError::Error(e)) => at("lock", &dir.join(PULL), Err(e))?,
        }
    }
}

/// Whether a program writes here. To be asked by who holds [`pulling`], so that no writer is taken for
/// another by being asked.
pub(super) fn is_written(dir: &Path) -> Result<bool, CacheError> {
    let file = lock_file(dir, LOCK)?;
    Ok(matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

fn lock_file(dir: &Path, name: &str) -> Result<File, CacheError> {
    let mut options = OpenOptions::new();
    let opened = options.read(true).write(true).create(true).truncate(false).open(dir.join(name));
    at("write to", dir, opened)
}

fn lock(dir: &Path) -> Result<File, CacheError> {
    let path = dir.join(LOCK);
    let mut file = lock_file(dir, LOCK)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let holder = std::fs::read_to_string(&path).ok().and_then(|p| p.trim().parse().ok());
            return Err(CacheError::InUse { place: dir.display().to_string(), holder });
        }
        // Some network file systems know no locks; there the runs' owner has to keep them apart.
        Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {}
        Err(TryLockError::Error(e)) => at("lock", &path, Err(e))?,
    }
    let pid = format!("{}\n", std::process::id());
    at("write to", dir, file.set_len(0).and_then(|()| file.write_all(pid.as_bytes())))?;
    Ok(file)
}
