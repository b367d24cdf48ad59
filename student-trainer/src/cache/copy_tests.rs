//! This machine's copy of a cache in an object store: damaged, shared, waited for, written by two.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use object_store::ObjectStoreExt as _;

use super::CacheError;
use super::append::{Writer, is_written, pulling};
use super::faulty::{RECORDS, block, bucket, fill, key, name, places, pull, readable, remote};
use super::manifest::Manifest;
use super::place::Located;
use super::store::{Store, index_name, numbers_in, segment_name};
use crate::stop::Stop;
use crate::testing::manifest;

/// A copy that has gone bad on this machine is the store's again, by segment and all of it.
#[test]
fn what_is_damaged_here_and_whole_in_the_store_is_brought_again() {
    let (store, _root, [dir]) = places(["a"]);
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
    known.pull(&dir, false).unwrap();
    assert!(readable(&dir) < RECORDS as usize);
    for (name, brought) in [(segment_name(0), false), (segment_name(1), true)] {
        assert_eq!(known.restore(&dir, &name).unwrap(), brought, "{name}");
    }
    assert_eq!(readable(&dir), RECORDS as usize);
    spoil();
    assert!(known.pull(&dir, true).unwrap().is_empty());
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
    let (store, _root, [dir]) = places(["a"]);
    fill(&store, &dir, 0..4).unwrap();
    let held = pulling(&dir, None).unwrap();
    let (began, (place, of)) = (Instant::now(), (dir.clone(), Arc::clone(&store)));
    let writer = std::thread::spawn(move || {
        let opened = Writer::open(&place, &manifest(), 500, Some(remote(&of)));
        (Instant::now(), opened.unwrap().0)
    });
    std::thread::sleep(Duration::from_millis(300));
    assert!(!is_written(&dir).unwrap());
    // Who is told to stop does not wait.
    let stop = Stop::default();
    stop.request();
    let refused = pulling(&dir, Some(&stop)).unwrap_err();
    assert!(matches!(refused, CacheError::Stopped { .. }), "{refused}");
    drop(held);
    let (opened, writer) = writer.join().unwrap();
    assert!(opened - began >= Duration::from_millis(300), "it did not wait");
    assert!(is_written(&dir).unwrap());
    drop(writer);
    assert!(!is_written(&dir).unwrap());
}

/// Who cannot read to the end what a store holds sends nothing: the list would lack what others have sent.
#[test]
fn a_store_that_fails_between_its_list_and_a_segment_loses_nobodys_answers() {
    let (store, _root, [a, b, fresh]) = places(["a", "b", "fresh"]);
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

/// A store that never answers does not keep anybody who is told to stop, and what a killed program had
/// begun to fetch is in nobody's way.
#[test]
fn fetching_can_be_stopped_and_begun_anew() {
    let (store, _root, [a, b]) = places(["a", "b"]);
    fill(&store, &a, 0..4).unwrap();
    fs::create_dir(&b).unwrap();
    fs::write(b.join("segment-00000000.seg.part"), "half").unwrap();
    store.stall.store(usize::MAX, Relaxed);
    let stop = Stop::default();
    stop.request();
    let mut of = remote(&store);
    of.stopped_by(&stop);
    let refused = of.pull(&b, false).unwrap_err();
    assert!(matches!(refused, CacheError::Stopped { .. }), "{refused}");
    store.stall.store(0, Relaxed);
    pull(&store, &b).unwrap();
    assert_eq!(readable(&b), 4);
    assert!(!b.join("segment-00000000.seg.part").exists());
}

/// The store, waited for long, and after a stop a moment.
fn stopped_by(stop: &Stop, store: &std::sync::Arc<super::faulty::Faulty>) -> super::remote::Remote {
    let mut bucket = bucket(store);
    bucket.patience = Duration::from_secs(600);
    bucket.grace = Duration::from_millis(50);
    let mut of = super::remote::Remote::at(bucket);
    of.stopped_by(stop);
    of
}

/// A store that takes nothing any more holds up nobody who is told to stop; the next run sends.
#[test]
fn sending_can_be_stopped_and_is_done_by_the_next() {
    let (store, _root, [dir, fresh]) = places(["a", "fresh"]);
    let stop = Stop::default();
    let of = stopped_by(&stop, &store);
    let (mut writer, _) = Writer::open(&dir, &manifest(), 500, Some(of)).unwrap();
    writer.append(&key(0), &[0; 50]).unwrap();
    store.stall.store(usize::MAX, Relaxed);
    let sending = std::thread::spawn(move || writer.finish());
    std::thread::sleep(Duration::from_millis(100));
    assert!(!sending.is_finished(), "it waits for the store");
    stop.request();
    let refused = sending.join().unwrap().unwrap_err();
    assert!(matches!(refused, CacheError::Stopped { .. }), "{refused}");
    store.stall.store(0, Relaxed);
    fill(&store, &dir, 0..0).unwrap();
    assert!(pull(&store, &fresh).unwrap().is_empty());
    assert_eq!(readable(&fresh), 1);
}

/// What was waited for once since the stop is not waited for again at the end.
#[test]
fn a_store_that_is_silent_is_waited_for_once_after_a_stop() {
    let (store, _root, [dir]) = places(["a"]);
    let stop = Stop::default();
    let of = stopped_by(&stop, &store);
    let (mut writer, _) = Writer::open(&dir, &manifest(), 500, Some(of)).unwrap();
    store.stall.store(usize::MAX, Relaxed);
    let before = store.calls.load(Relaxed);
    for i in 0..RECORDS {
        writer.append(&key(i), &[i as u8; 50]).unwrap();
    }
    while store.calls.load(Relaxed) == before {
        std::thread::sleep(Duration::from_millis(5));
    }
    stop.request();
    let refused = writer.finish().unwrap_err();
    assert!(matches!(refused, CacheError::Stopped { .. }), "{refused}");
    assert_eq!(store.calls.load(Relaxed), before + 1);
    assert_eq!(readable(&dir), RECORDS as usize);
}

/// A store that holds another cache than it did: the copy is named, not the store alone.
#[test]
fn a_copy_of_another_cache_is_named() {
    let (store, _root, [dir]) = places(["a"]);
    fill(&store, &dir, 0..4).unwrap();
    let other = Manifest { model_fingerprint: "77".repeat(32), ..manifest() };
    block(store.inner.put(&name("cache.json"), other.text().into())).unwrap();
    let error = pull(&store, &dir).unwrap_err().to_string();
    for piece in [dir.to_str().unwrap(), "s3://bucket/runs/one", "7777", "is moved away"] {
        assert!(error.contains(piece), "no {piece:?} in {error}");
    }
}

/// One whose index was lost here is gone on with, and the store has it as it has grown.
#[test]
fn a_segment_that_was_sent_and_has_grown_is_sent_again() {
    let (store, root, [dir]) = places(["a"]);
    fill(&store, &dir, 0..2).unwrap();
    let index = dir.join(index_name(0));
    let length = fs::metadata(&index).unwrap().len();
    fs::write(&index, vec![0; length as usize]).unwrap();
    fill(&store, &dir, 2..4).unwrap();
    assert_eq!(numbers_in(&dir).unwrap(), [0]);
    for place in ["fresh", "a"] {
        let place = root.path().join(place);
        assert!(pull(&store, &place).unwrap().is_empty());
        assert_eq!(readable(&place), 4);
    }
}

/// Two machines begin caches of different kinds in one place: the store stays the first one's.
#[test]
fn of_two_caches_that_are_begun_in_one_place_the_second_is_refused() {
    let (store, _root, [a, b, fresh]) = places(["a", "b", "fresh"]);
    let other = Manifest { temperature: Some(7.0), ..manifest() };
    let open =
        |dir: &Path, manifest| Writer::open(dir, manifest, 500, Some(remote(&store))).unwrap().0;
    let (mut first, mut second) = (open(&a, &manifest()), open(&b, &other));
    first.append(&key(0), &[0; 50]).unwrap();
    second.append(&other.space().key(&[1], &[]), &[2; 50]).unwrap();
    first.finish().unwrap();
    let refused = second.finish().unwrap_err().to_string();
    for piece in ["s3://bucket/runs/one", "temperature 2 and not 7", b.to_str().unwrap()] {
        assert!(refused.contains(piece), "no {piece:?} in {refused}");
    }
    assert!(pull(&store, &fresh).unwrap().is_empty());
    assert_eq!(readable(&fresh), 1);
    // What the second has stays with it, and is a cache.
    let mut kept = Store::open(&b).unwrap().unwrap();
    assert!(kept.has(&other.space().key(&[1], &[])));
}

#[test]
fn of_two_machines_that_write_at_a_time_the_second_is_refused() {
    let (store, _root, [a, b, fresh]) = places(["a", "b", "fresh"]);
    fill(&store, &a, 0..4).unwrap();
    let open = |dir: &Path| Writer::open(dir, &manifest(), 500, Some(remote(&store))).unwrap().0;
    let (mut first, mut second) = (open(&a), open(&b));
    first.append(&key(10), &[10; 50]).unwrap();
    second.append(&key(11), &[11; 50]).unwrap();
    first.finish().unwrap();
    let refused = second.finish().unwrap_err();
    assert!(matches!(refused, CacheError::InUse { .. }), "{refused}");
    assert!(fs::exists(a.join(index_name(1))).unwrap());
    assert!(pull(&store, &fresh).unwrap().is_empty());
    assert_eq!(Store::open(&fresh).unwrap().unwrap().len(), 5);
    // What the second could not send is there for who only reads.
    let (place, dir) = ("s3://bucket/runs/one".to_owned(), b.clone());
    let mut located = Located { place, dir, remote: Some(remote(&store)) };
    let mut opened = located.open(false).unwrap().unwrap();
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

/// A copy does for a run where the store is away; what the very fetch that failed has brought is none.
#[test]
fn a_copy_that_was_there_before_does_where_the_store_is_away() {
    let (store, _root, [a, fresh]) = places(["a", "fresh"]);
    fill(&store, &a, 0..RECORDS).unwrap();
    let located = |dir: &Path| Located {
        place: "s3://bucket/runs/one".to_owned(),
        dir: dir.to_owned(),
        remote: Some(remote(&store)),
    };
    let breaks_after = |calls| {
        store.good.store(calls, Relaxed);
        store.fail.store(usize::MAX, Relaxed);
    };
    breaks_after(2);
    assert!(matches!(located(&fresh).open_for_run(), Err(CacheError::Remote { .. })));
    breaks_after(1);
    let mut of = located(&a);
    let (found, away) = of.open_for_run().unwrap();
    assert_eq!(found.unwrap().len(), RECORDS as usize);
    assert!(matches!(away, Some(CacheError::Remote { .. })));
    // It is not waited for again, nor is anything sent that may not be known of.
    let before = store.calls.load(Relaxed);
    assert!(of.open_for_run().unwrap().1.is_some());
    assert_eq!(store.calls.load(Relaxed), before);
    breaks_after(0);
    assert!(matches!(located(&a).open(false), Err(CacheError::Remote { .. })));
}
