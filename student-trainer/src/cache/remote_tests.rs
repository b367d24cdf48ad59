//! Caches in object stores: in memory, and one that fails, stalls and lies.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures::stream::{BoxStream, StreamExt as _};
use object_store::memory::InMemory;
use object_store::path::Path as Name;
use object_store::{
    CopyOptions, Error as StoreError, GetOptions, GetResult, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, PutMultipartOptions, PutOptions,
    PutPayload, PutResult, Result as StoreResult,
};

use super::append::Writer;
use super::bucket::Bucket;
use super::manifest::Manifest;
use super::place::Located;
use super::remote::Remote;
use super::store::{Found, Store, index_name, segment_name};
use super::*;
use crate::testing::manifest;

/// A store in memory that misbehaves. All numbers may be changed while it is used.
#[derive(Debug, Default)]
struct Faulty {
    inner: InMemory,
    /// Calls that work before others fail.
    good: AtomicUsize,
    /// Calls that fail before one works.
    fail: AtomicUsize,
    /// Writes of the list that are carried out and whose answer fails.
    mute: AtomicUsize,
    /// Calls that never end.
    stall: AtomicUsize,
    /// Calls so far.
    calls: AtomicUsize,
    /// Listings asked for.
    lists: AtomicUsize,
    /// Above 0 where there is no such bucket.
    no_bucket: AtomicUsize,
}

impl Faulty {
    async fn misbehave(&self) -> StoreResult<()> {
        self.calls.fetch_add(1, Relaxed);
        let take =
            |of: &AtomicUsize| of.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_ok();
        if take(&self.good) {
            return Ok(());
        }
        if take(&self.stall) {
            std::future::pending::<()>().await;
        }
        match take(&self.fail) {
            true => Err(StoreError::Generic { store: "faulty", source: "503 Slow Down".into() }),
            false => Ok(()),
        }
    }
}

impl std::fmt::Display for Faulty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("faulty")
    }
}

#[tonic::async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        location: &Name,
        payload: PutPayload,
        options: PutOptions,
    ) -> StoreResult<PutResult> {
        self.misbehave().await?;
        let put = self.inner.put_opts(location, payload, options).await;
        let is_list = location.filename() == Some("segments.json");
        if is_list && self.mute.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_ok() {
            put?;
            return Err(StoreError::Generic { store: "faulty", source: "502 Bad Gateway".into() });
        }
        put
    }

    async fn put_multipart_opts(
        &self,
        location: &Name,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Name, options: GetOptions) -> StoreResult<GetResult> {
        self.misbehave().await?;
        if self.no_bucket.load(Relaxed) > 0 {
            let source = "404 Not Found: <Error>\n<Code>NoSuchBucket</Code></Error>".into();
            return Err(StoreError::NotFound { path: location.to_string(), source });
        }
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, StoreResult<Name>>,
    ) -> BoxStream<'static, StoreResult<Name>> {
        self.inner.delete_stream(locations)
    }

    /// Nothing, whatever is there.
    fn list(&self, _: Option<&Name>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.lists.fetch_add(1, Relaxed);
        futures::stream::empty().boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Name>) -> StoreResult<ListResult> {
        self.lists.fetch_add(1, Relaxed);
        Err(StoreError::NotImplemented { operation: "list".into(), implementer: "faulty".into() })
    }

    async fn copy_opts(&self, from: &Name, to: &Name, options: CopyOptions) -> StoreResult<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

const RECORDS: u32 = 20;

fn key(i: u32) -> distill::cache::Key {
    manifest().space().key(&[i], &[])
}

fn remote(store: &Arc<Faulty>) -> Remote {
    let store: Arc<dyn ObjectStore> = Arc::clone(store) as _;
    Remote::new(
        store,
        Name::from("runs/one"),
        "s3://bucket/runs/one",
        Some(Duration::from_millis(200)),
    )
    .unwrap()
}

/// Writes the records that are not in the copy in `dir`, and sends them.
fn fill(store: &Arc<Faulty>, dir: &Path, records: std::ops::Range<u32>) -> Result<(), CacheError> {
    let (mut writer, mut opened) = Writer::open(dir, &manifest(), 500, Some(remote(store)))?;
    for i in records {
        if !opened.has(&key(i)) {
            let place = writer.append(&key(i), &[i as u8; 50])?;
            opened.added(&key(i), place);
        }
    }
    writer.finish()
}

/// Brings what the store has to `dir`, for reading.
fn pull(store: &Arc<Faulty>, dir: &Path) -> Result<Vec<String>, CacheError> {
    fs::create_dir_all(dir).unwrap();
    remote(store).pull(dir, false, None)
}

fn readable(dir: &Path) -> usize {
    let mut store = Store::open(dir).unwrap().unwrap();
    let whole = |i: &u32| match store.read(&key(*i)) {
        Found::Payload(bytes) => {
            assert_eq!(bytes, [*i as u8; 50]);
            true
        }
        Found::Nothing | Found::Damaged(..) => false,
    };
    (0..RECORDS).filter(whole).count()
}

fn name(of: &str) -> Name {
    Name::from("runs/one").join(of)
}

/// The object that a file is.
fn object(store: &Faulty, file: &str) -> Name {
    let found = block(store.inner.list(None).collect::<Vec<_>>());
    let names = found.into_iter().map(|meta| meta.unwrap().location);
    names.into_iter().find(|name| name.as_ref().ends_with(file)).unwrap()
}

fn block<T>(call: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(call)
}

#[test]
fn another_machine_finds_everything_and_nobody_asks_for_a_listing() {
    let store = Arc::new(Faulty::default());
    let root = tempfile::tempdir().unwrap();
    let [here, there] = ["here", "there"].map(|name| root.path().join(name));
    fill(&store, &here, 0..RECORDS).unwrap();
    assert!(pull(&store, &there).unwrap().is_empty());
    assert_eq!(readable(&there), RECORDS as usize);
    assert_eq!(Manifest::read(&there).unwrap().unwrap(), manifest());
    // What is here already is not fetched again: the description, the list.
    let before = store.calls.load(Relaxed);
    pull(&store, &there).unwrap();
    assert_eq!(store.calls.load(Relaxed) - before, 2);
    // And goes on where the first ended.
    fill(&store, &there, 0..RECORDS + 3).unwrap();
    assert!(pull(&store, &here).unwrap().is_empty());
    assert_eq!(Store::open(&here).unwrap().unwrap().len(), RECORDS as usize + 3);
    assert_eq!(store.lists.load(Relaxed), 0);
}

#[test]
fn a_store_that_fails_is_tried_again_and_then_named() {
    let store = Arc::new(Faulty::default());
    let root = tempfile::tempdir().unwrap();
    store.fail.store(3, Relaxed);
    fill(&store, &root.path().join("a"), 0..RECORDS).unwrap();
    let dir = root.path().join("a");
    let (mut writer, _) = Writer::open(&dir, &manifest(), 500, Some(remote(&store))).unwrap();
    store.fail.store(usize::MAX, Relaxed);
    let error = pull(&store, &root.path().join("b")).unwrap_err().to_string();
    for piece in ["s3://bucket/runs/one", "cache.json", "503 Slow Down"] {
        assert!(error.contains(piece), "no {piece:?} in {error}");
    }
    // What could not be sent is kept here: the writer goes on, and its end says so.
    for i in 100..110 {
        writer.append(&key(i), &[9; 100]).unwrap();
    }
    assert!(matches!(writer.finish(), Err(CacheError::Remote { .. })));
    // So does one that begins while the store is away; the next one sends it all.
    let (mut writer, _) = Writer::open(&dir, &manifest(), 500, Some(remote(&store))).unwrap();
    writer.append(&key(99), &[9]).unwrap();
    assert!(writer.finish().is_err());
    store.fail.store(0, Relaxed);
    fill(&store, &dir, 0..0).unwrap();
    let fresh = root.path().join("fresh");
    pull(&store, &fresh).unwrap();
    assert_eq!(Store::open(&fresh).unwrap().unwrap().len(), RECORDS as usize + 11);
    // A store that is back in time costs nothing at all.
    let (mut writer, _) = Writer::open(&dir, &manifest(), 500, Some(remote(&store))).unwrap();
    store.fail.store(5, Relaxed);
    for i in 200..210 {
        writer.append(&key(i), &[9; 100]).unwrap();
    }
    writer.finish().unwrap();
    pull(&store, &fresh).unwrap();
    assert_eq!(Store::open(&fresh).unwrap().unwrap().len(), RECORDS as usize + 21);
}

/// A copy that has gone bad on this machine is the store's again, by segment and all of it.
#[test]
fn what_is_damaged_here_and_whole_in_the_store_is_brought_again() {
    let store = Arc::new(Faulty::default());
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("a");
    fill(&store, &dir, 0..RECORDS).unwrap();
    let spoil = || {
        let path = dir.join(segment_name(1));
        let mut bytes = fs::read(&path).unwrap();
        bytes[150] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(readable(&dir) < RECORDS as usize);
    };
    spoil();
    let mut known = remote(&store);
    // One look at names and lengths believes it.
    known.pull(&dir, false, None).unwrap();
    assert!(readable(&dir) < RECORDS as usize);
    for (name, brought) in [(segment_name(0), false), (segment_name(1), true)] {
        assert_eq!(known.restore(&dir, &name).unwrap(), brought, "{name}");
    }
    assert_eq!(readable(&dir), RECORDS as usize);
    spoil();
    assert!(known.pull(&dir, true, None).unwrap().is_empty());
    assert_eq!(readable(&dir), RECORDS as usize);
    // Nothing was taken for answers that the store never had.
    let names = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names.into_iter().all(|name| !name.to_string_lossy().contains("unsent")));
    // Where a writer is at work its files are let be.
    let (_writer, _) = Writer::open(&dir, &manifest(), 500, None).unwrap();
    spoil();
    assert!(!known.restore(&dir, &segment_name(1)).unwrap());
}

/// While a program brings files nobody becomes a writer there, and while one writes nothing is brought.
#[test]
fn programs_that_share_a_copy_wait_for_each_other() {
    let store = Arc::new(Faulty::default());
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("a");
    fill(&store, &dir, 0..4).unwrap();
    let pulling = super::append::pulling(&dir, None).unwrap();
    let (began, (place, of)) = (Instant::now(), (dir.clone(), Arc::clone(&store)));
    let writer = std::thread::spawn(move || {
        let opened = Writer::open(&place, &manifest(), 500, Some(remote(&of)));
        (Instant::now(), opened.unwrap().0)
    });
    std::thread::sleep(Duration::from_millis(300));
    assert!(!super::append::is_written(&dir).unwrap());
    // Who is told to stop does not wait.
    let stop = crate::stop::Stop::default();
    stop.request();
    let refused = super::append::pulling(&dir, Some(&stop)).unwrap_err();
    assert!(matches!(refused, CacheError::Stopped { .. }), "{refused}");
    drop(pulling);
    let (opened, writer) = writer.join().unwrap();
    assert!(opened - began >= Duration::from_millis(300), "it did not wait");
    assert!(super::append::is_written(&dir).unwrap());
    drop(writer);
    assert!(!super::append::is_written(&dir).unwrap());
}

/// Who cannot read to the end what a store holds sends nothing: the list would lack what others have sent.
#[test]
fn a_store_that_fails_between_its_list_and_a_segment_loses_nobodys_answers() {
    let store = Arc::new(Faulty::default());
    let root = tempfile::tempdir().unwrap();
    let [a, b, fresh] = ["a", "b", "fresh"].map(|name| root.path().join(name));
    fill(&store, &a, 0..4).unwrap();
    pull(&store, &b).unwrap();
    fill(&store, &a, 4..8).unwrap();
    // The description and the list, and then nothing more.
    store.good.store(2, Relaxed);
    store.fail.store(usize::MAX, Relaxed);
    let (mut writer, _) = Writer::open(&b, &manifest(), 500, Some(remote(&store))).unwrap();
    store.fail.store(0, Relaxed);
    writer.append(&key(8), &[8; 50]).unwrap();
    let refused = writer.finish().unwrap_err().to_string();
    assert!(refused.contains("could not be read"), "{refused}");
    pull(&store, &fresh).unwrap();
    assert_eq!(readable(&fresh), 8);
    fill(&store, &b, 0..0).unwrap();
    for place in [&a, &b, &fresh] {
        pull(&store, place).unwrap();
        assert_eq!(readable(place), 9);
    }
}

/// A list that was written and never answered is this program's own when it comes to write the next.
#[test]
fn a_list_whose_writing_was_never_answered_is_no_other_writers() {
    let store = Arc::new(Faulty::default());
    let root = tempfile::tempdir().unwrap();
    let [a, fresh] = ["a", "fresh"].map(|name| root.path().join(name));
    fs::create_dir(&a).unwrap();
    let mut remote = remote(&store);
    remote.pull(&a, false, None).unwrap();
    let (mut writer, _) = Writer::open(&a, &manifest(), 500, None).unwrap();
    let mut append = |i: u32| assert!(writer.append(&key(i), &[i as u8; 50]).is_ok());
    (0..5).for_each(&mut append);
    // A segment, its index, the description; and the list, of which no word comes back.
    store.good.store(4, Relaxed);
    store.mute.store(1, Relaxed);
    store.fail.store(3, Relaxed);
    assert!(matches!(remote.push(&a), Err(CacheError::Remote { .. })));
    assert_eq!([&store.good, &store.mute, &store.fail].map(|left| left.load(Relaxed)), [0; 3]);
    (5..9).for_each(&mut append);
    remote.push(&a).unwrap();
    pull(&store, &fresh).unwrap();
    assert_eq!(readable(&fresh), 8);
}

/// A store that never answers does not keep anybody who is told to stop, and what a killed program had
/// begun to fetch is in nobody's way.
#[test]
fn fetching_can_be_stopped_and_begun_anew() {
    let store = Arc::new(Faulty::default());
    let root = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| root.path().join(name));
    fill(&store, &a, 0..4).unwrap();
    fs::create_dir(&b).unwrap();
    fs::write(b.join("segment-00000000.part-77"), "half").unwrap();
    store.stall.store(usize::MAX, Relaxed);
    let stop = crate::stop::Stop::default();
    stop.request();
    let refused = remote(&store).pull(&b, false, Some(&stop)).unwrap_err();
    assert!(matches!(refused, CacheError::Stopped { .. }), "{refused}");
    store.stall.store(0, Relaxed);
    pull(&store, &b).unwrap();
    assert_eq!(readable(&b), 4);
    assert!(!b.join("segment-00000000.part-77").exists());
}

/// Objects longer than a call's worth go and come in parts.
#[test]
fn long_objects_travel_in_parts() {
    let store = Arc::new(Faulty::default());
    let shared: Arc<dyn ObjectStore> = Arc::clone(&store) as _;
    let patience = Some(Duration::from_millis(200));
    let mut bucket = Bucket::new(shared, Name::from("runs/one"), "s3://bucket", patience).unwrap();
    bucket.part = 10;
    let bytes: Vec<u8> = (0..35).collect();
    for (length, calls) in [(10, 1), (35, 4)] {
        bucket.put("long", bytes[..length].to_vec(), PutMode::Overwrite).unwrap();
        let before = store.calls.load(Relaxed);
        let come = bucket.get_long("long", length as u64, None).unwrap();
        assert_eq!(come.as_deref(), Some(&bytes[..length]));
        assert_eq!(store.calls.load(Relaxed) - before, calls);
    }
    assert!(bucket.get_long("none", 35, None).unwrap().is_none());
    // Shorter than it was said to be: what is there comes, and its digest tells.
    assert_eq!(bucket.get_long("long", 40, None).unwrap().as_deref(), Some(&bytes[..]));
}

/// A store that holds another cache than it did: the copy is named, not the store alone.
#[test]
fn a_copy_of_another_cache_is_named() {
    let store = Arc::new(Faulty::default());
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("a");
    fill(&store, &dir, 0..4).unwrap();
    let other = Manifest { model_fingerprint: "77".repeat(32), ..manifest() };
    block(store.inner.put(&name("cache.json"), other.text().into())).unwrap();
    let error = pull(&store, &dir).unwrap_err().to_string();
    for piece in [dir.to_str().unwrap(), "s3://bucket/runs/one", "7777", "remove that directory"] {
        assert!(error.contains(piece), "no {piece:?} in {error}");
    }
}

#[test]
fn a_bucket_that_is_not_there_is_named_and_no_empty_cache() {
    let store = Arc::new(Faulty::default());
    let root = tempfile::tempdir().unwrap();
    assert!(pull(&store, &root.path().join("a")).unwrap().is_empty());
    store.no_bucket.store(1, Relaxed);
    let error = pull(&store, &root.path().join("b")).unwrap_err().to_string();
    assert!(error.contains("NoSuchBucket") && !error.contains('\n'), "{error}");
}

#[test]
fn a_store_that_stalls_is_given_up_in_bounded_time() {
    let store = Arc::new(Faulty::default());
    let root = tempfile::tempdir().unwrap();
    store.stall.store(1, Relaxed);
    fill(&store, &root.path().join("a"), 0..RECORDS).unwrap();
    store.stall.store(usize::MAX, Relaxed);
    let begin = Instant::now();
    let error = pull(&store, &root.path().join("b")).unwrap_err().to_string();
    assert!(error.contains("no answer within 0.2 s"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

#[test]
fn what_is_not_as_listed_counts_as_not_there_and_is_named() {
    let store = Arc::new(Faulty::default());
    let root = tempfile::tempdir().unwrap();
    fill(&store, &root.path().join("a"), 0..RECORDS).unwrap();
    // One segment gone, the last one too, whose number will be taken again, and one of the same length
    // with other bytes.
    for gone in [0, 4] {
        block(store.inner.delete(&object(&store, &segment_name(gone)))).unwrap();
    }
    let second = object(&store, &segment_name(1));
    let bytes = block(async { store.inner.get(&second).await.unwrap().bytes().await.unwrap() });
    let mut spoilt = bytes.to_vec();
    spoilt[150] ^= 1;
    block(store.inner.put(&second, spoilt.into())).unwrap();
    let dir = root.path().join("b");
    let lost = pull(&store, &dir).unwrap();
    assert_eq!(lost.len(), 3, "{lost:?}");
    assert!(lost[0].contains(&segment_name(0)) && lost[0].contains("not there"), "{lost:?}");
    assert!(lost[1].contains(&segment_name(1)) && lost[1].contains("digest"), "{lost:?}");
    let found = readable(&dir);
    assert!(found > 0 && found < RECORDS as usize, "{found}");
    // Made again under other numbers or the same, nothing is missing any more.
    fill(&store, &dir, 0..RECORDS).unwrap();
    let fresh = root.path().join("fresh");
    assert_eq!(pull(&store, &fresh).unwrap(), Vec::<String>::new());
    assert_eq!(readable(&fresh), RECORDS as usize);
}

/// One whose index was lost here is gone on with, and the store has it as it has grown.
#[test]
fn a_segment_that_was_sent_and_has_grown_is_sent_again() {
    let store = Arc::new(Faulty::default());
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("a");
    fill(&store, &dir, 0..2).unwrap();
    let index = dir.join(index_name(0));
    let length = fs::metadata(&index).unwrap().len();
    fs::write(&index, vec![0; length as usize]).unwrap();
    fill(&store, &dir, 2..4).unwrap();
    assert_eq!(super::store::numbers_in(&dir).unwrap(), [0]);
    for place in ["fresh", "a"] {
        let place = root.path().join(place);
        assert!(pull(&store, &place).unwrap().is_empty());
        assert_eq!(readable(&place), 4);
    }
}

/// What was carried out and not answered is tried again, and is then no other program's work.
#[test]
fn an_answer_that_is_lost_on_its_way_stops_no_writer() {
    let store = Arc::new(Faulty::default());
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("a");
    for records in [0..3, 3..6, 6..9] {
        store.mute.store(1, Relaxed);
        fill(&store, &dir, records).unwrap();
        assert_eq!(store.mute.load(Relaxed), 0);
    }
    let fresh = root.path().join("fresh");
    pull(&store, &fresh).unwrap();
    assert_eq!(Store::open(&fresh).unwrap().unwrap().len(), 9);
}

#[test]
fn a_list_that_leads_elsewhere_is_refused() {
    let store = Arc::new(Faulty::default());
    let root = tempfile::tempdir().unwrap();
    fill(&store, &root.path().join("a"), 0..RECORDS).unwrap();
    for wrong in ["../../etc/passwd", "segment-1.seg", "cache.json", "segment-00000001.seg/x"] {
        let list =
            format!("{{\"files\": [{{\"name\": \"{wrong}\", \"bytes\": 1, \"digest\": \"00\"}}]}}");
        block(store.inner.put(&name("segments.json"), list.into())).unwrap();
        let error = pull(&store, &root.path().join("b")).unwrap_err().to_string();
        assert!(error.contains(wrong), "{error}");
    }
}

#[test]
fn of_two_machines_that_write_at_a_time_the_second_is_refused() {
    let store = Arc::new(Faulty::default());
    let root = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| root.path().join(name));
    fill(&store, &a, 0..4).unwrap();
    let open = |dir: &Path| Writer::open(dir, &manifest(), 500, Some(remote(&store))).unwrap().0;
    let (mut first, mut second) = (open(&a), open(&b));
    first.append(&key(10), &[10; 50]).unwrap();
    second.append(&key(11), &[11; 50]).unwrap();
    first.finish().unwrap();
    let refused = second.finish().unwrap_err();
    assert!(matches!(refused, CacheError::InUse { .. }), "{refused}");
    let fresh = root.path().join("fresh");
    assert!(fs::exists(a.join(index_name(1))).unwrap());
    assert!(pull(&store, &fresh).unwrap().is_empty());
    assert_eq!(Store::open(&fresh).unwrap().unwrap().len(), 5);
    // What the second could not send is there for who only reads.
    let (place, dir) = ("s3://bucket/runs/one".to_owned(), b.clone());
    let mut located = Located { place, dir, remote: Some(remote(&store)) };
    let mut opened = located.open(false, None).unwrap().unwrap();
    assert!([0, 1, 2, 3, 10, 11].iter().all(|&i| opened.has(&key(i))));
    // Tried again, the second goes on behind the first, and sends it.
    fill(&store, &b, 0..0).unwrap();
    let unsent = |entry: std::io::Result<fs::DirEntry>| {
        entry.unwrap().file_name().to_string_lossy().ends_with("unsent")
    };
    assert!(!fs::read_dir(&b).unwrap().any(unsent));
    assert!(pull(&store, &fresh).unwrap().is_empty());
    let mut opened = Store::open(&fresh).unwrap().unwrap();
    assert!([0, 1, 2, 3, 10, 11].iter().all(|&i| opened.has(&key(i))));
}
