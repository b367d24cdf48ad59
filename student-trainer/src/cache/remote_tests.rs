//! What a cache makes of an object store: one that fails, stalls, lies, and does not answer.

use std::fs;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use object_store::{ObjectStoreExt as _, PutMode};

use super::CacheError;
use super::append::Writer;
use super::faulty::{
    RECORDS, block, bucket, fill, key, name, object, places, pull, readable, remote,
};
use super::manifest::Manifest;
use super::store::{Store, segment_name};
use crate::testing::manifest;

#[test]
fn another_machine_finds_everything_and_nobody_asks_for_a_listing() {
    let (store, _root, [here, there]) = places(["here", "there"]);
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
    let (store, _root, [dir, fresh, b]) = places(["a", "fresh", "b"]);
    store.fail.store(3, Relaxed);
    fill(&store, &dir, 0..RECORDS).unwrap();
    let (mut writer, _) = Writer::open(&dir, &manifest(), 500, Some(remote(&store))).unwrap();
    store.fail.store(usize::MAX, Relaxed);
    let error = pull(&store, &b).unwrap_err().to_string();
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

/// A list that was written and never answered is this program's own when it comes to write the next.
#[test]
fn a_list_whose_writing_was_never_answered_is_no_other_writers() {
    let (store, _root, [a, fresh]) = places(["a", "fresh"]);
    fs::create_dir(&a).unwrap();
    let mut remote = remote(&store);
    remote.pull(&a, false).unwrap();
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

/// Objects longer than a call's worth go and come in parts.
#[test]
fn long_objects_travel_in_parts() {
    let (store, _root, []) = places([]);
    let mut bucket = bucket(&store);
    bucket.part = 10;
    let bytes: Vec<u8> = (0..35).collect();
    for (length, calls) in [(10, 1), (35, 4)] {
        bucket.put("long", bytes[..length].to_vec(), PutMode::Overwrite).unwrap();
        let before = store.calls.load(Relaxed);
        let come = bucket.get_long("long", length as u64).unwrap();
        assert_eq!(come.as_deref(), Some(&bytes[..length]));
        assert_eq!(store.calls.load(Relaxed) - before, calls);
    }
    assert!(bucket.get_long("none", 35).unwrap().is_none());
    // Shorter than it was said to be: what is there comes, and its digest tells.
    assert_eq!(bucket.get_long("long", 40).unwrap().as_deref(), Some(&bytes[..]));
}

#[test]
fn a_bucket_that_is_not_there_is_named_and_no_empty_cache() {
    let (store, _root, [a, b]) = places(["a", "b"]);
    assert!(pull(&store, &a).unwrap().is_empty());
    store.no_bucket.store(1, Relaxed);
    let error = pull(&store, &b).unwrap_err().to_string();
    assert!(error.contains("NoSuchBucket") && !error.contains('\n'), "{error}");
    assert!(error.ends_with("make the bucket, or mend its name"), "{error}");
}

#[test]
fn a_store_that_stalls_is_given_up_in_bounded_time() {
    let (store, _root, [a, b]) = places(["a", "b"]);
    store.stall.store(1, Relaxed);
    fill(&store, &a, 0..RECORDS).unwrap();
    store.stall.store(usize::MAX, Relaxed);
    let begin = Instant::now();
    let error = pull(&store, &b).unwrap_err().to_string();
    assert!(error.contains("no answer within 0.2 s"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

#[test]
fn what_is_not_as_listed_counts_as_not_there_and_is_named() {
    let (store, _root, [dir, fresh, a]) = places(["b", "fresh", "a"]);
    fill(&store, &a, 0..RECORDS).unwrap();
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
    let lost = pull(&store, &dir).unwrap();
    assert_eq!(lost.len(), 3, "{lost:?}");
    assert!(lost[0].contains(&segment_name(0)) && lost[0].contains("not there"), "{lost:?}");
    assert!(lost[1].contains(&segment_name(1)) && lost[1].contains("digest"), "{lost:?}");
    let found = readable(&dir);
    assert!(found > 0 && found < RECORDS as usize, "{found}");
    // Made again under other numbers or the same, nothing is missing any more.
    fill(&store, &dir, 0..RECORDS).unwrap();
    assert_eq!(pull(&store, &fresh).unwrap(), Vec::<String>::new());
    assert_eq!(readable(&fresh), RECORDS as usize);
}

/// What was carried out and not answered is tried again, and is then no other program's work.
#[test]
fn an_answer_that_is_lost_on_its_way_stops_no_writer() {
    let (store, _root, [dir, fresh]) = places(["a", "fresh"]);
    for records in [0..3, 3..6, 6..9] {
        store.mute.store(1, Relaxed);
        fill(&store, &dir, records).unwrap();
        assert_eq!(store.mute.load(Relaxed), 0);
    }
    pull(&store, &fresh).unwrap();
    assert_eq!(Store::open(&fresh).unwrap().unwrap().len(), 9);
}

#[test]
fn a_list_that_leads_elsewhere_is_refused() {
    let (store, _root, [a, b]) = places(["a", "b"]);
    fill(&store, &a, 0..RECORDS).unwrap();
    for wrong in ["../../etc/passwd", "segment-1.seg", "cache.json", "segment-00000001.seg/x"] {
        let list =
            format!("{{\"files\": [{{\"name\": \"{wrong}\", \"bytes\": 1, \"digest\": \"00\"}}]}}");
        block(store.inner.put(&name("segments.json"), list.into())).unwrap();
        let error = pull(&store, &b).unwrap_err().to_string();
        assert!(error.contains(wrong), "{error}");
    }
}

/// A list without a description: whoever described it anew would make it unreadable for everybody.
#[test]
fn segments_that_nobody_describes_any_more_are_described_by_nobody() {
    let (store, _root, [a, fresh]) = places(["a", "fresh"]);
    fill(&store, &a, 0..RECORDS).unwrap();
    let description = name("cache.json");
    block(store.inner.delete(&description)).unwrap();
    let error = pull(&store, &fresh).unwrap_err().to_string();
    assert!(
        error.contains("segments.json and no cache.json") && error.contains("put it back"),
        "{error}"
    );
    let error = pull(&store, &a).unwrap_err().to_string();
    assert!(error.contains(a.join("cache.json").to_str().unwrap()), "{error}");
    assert!(fill(&store, &fresh, 0..3).is_err());
    assert!(block(store.inner.get(&description)).is_err());
    // Put back, all is as it was.
    let ours = std::fs::read(a.join("cache.json")).unwrap();
    block(store.inner.put(&description, ours.into())).unwrap();
    pull(&store, &fresh).unwrap();
    assert_eq!(readable(&fresh), RECORDS as usize);
}

/// What the store has lost and a copy has is found by who looks thoroughly, and sent again.
#[test]
fn what_a_store_has_lost_is_sent_again_by_who_has_it() {
    let (store, _root, [a, fresh]) = places(["a", "fresh"]);
    fill(&store, &a, 0..RECORDS).unwrap();
    let (gone, cut) = (object(&store, &segment_name(0)), object(&store, &segment_name(1)));
    block(store.inner.delete(&gone)).unwrap();
    block(store.inner.put(&cut, vec![0; 9].into())).unwrap();
    let mut of = remote(&store);
    assert!(of.pull(&a, true).unwrap().is_empty());
    let lacking = of.lacking();
    assert!(lacking.len() == 2 && lacking[1].contains(&segment_name(1)), "{lacking:?}");
    assert_eq!(of.push(&a).unwrap(), 2);
    assert!(pull(&store, &fresh).unwrap().is_empty());
    assert_eq!(readable(&fresh), RECORDS as usize);
}
