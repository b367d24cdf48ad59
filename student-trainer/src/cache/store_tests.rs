//! A cache's directory: killed writers, damaged files, two writers, files of others.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use distill::cache::{Key, SegmentError, Space};

use super::append::Writer;
use super::manifest::{FILE, Manifest};
use super::place::Located;
use super::store::{Found, Store, index_name, numbers_in, segment_name};
use super::*;
use crate::testing::manifest;

/// Small segments, so that a few records fill several.
const LIMIT: u32 = 700;

fn key(i: u32) -> Key {
    manifest().space().key(&[i], &[])
}

fn payload(i: u32) -> Vec<u8> {
    (0..30 + i % 90).map(|byte| (byte * 7 + i) as u8).collect()
}

const RECORDS: u32 = 23;

/// Appends what is not there yet, in order, as a build does.
fn fill(dir: &Path) -> usize {
    let (mut writer, mut store) = Writer::open(dir, &manifest(), LIMIT, None).unwrap();
    let mut appended = 0;
    for i in (0..RECORDS).filter(|&i| !store.has(&key(i))).collect::<Vec<_>>() {
        let place = writer.append(&key(i), &payload(i)).unwrap();
        store.added(&key(i), place);
        appended += 1;
    }
    writer.finish().unwrap();
    appended
}

/// The records that can be read; panics when one is wrong.
fn readable(dir: &Path) -> Vec<u32> {
    let mut store = Store::open(dir).unwrap().unwrap();
    let whole = |i: &u32| match store.read(&key(*i)) {
        Found::Payload(bytes) => {
            assert_eq!(bytes, payload(*i), "record {i} is wrong");
            true
        }
        Found::Nothing | Found::Damaged(..) => false,
    };
    (0..RECORDS).filter(whole).collect()
}

/// Every file but the lock, by name.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
    let mut names: Vec<String> = fs::read_dir(dir).unwrap().map(|e| name(e.unwrap())).collect();
    names.sort();
    names.retain(|name| name != "LOCK");
    names.into_iter().map(|name| (name.clone(), fs::read(dir.join(name)).unwrap())).collect()
}

fn copy(files: &[(String, Vec<u8>)], to: &Path) {
    fs::create_dir_all(to).unwrap();
    files.iter().for_each(|(name, bytes)| fs::write(to.join(name), bytes).unwrap());
}

fn filled() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(fill(dir.path()), RECORDS as usize);
    dir
}

#[test]
fn records_lie_in_bounded_segments_and_are_found_again() {
    let dir = filled();
    assert_eq!(readable(dir.path()), (0..RECORDS).collect::<Vec<_>>());
    let numbers = numbers_in(dir.path()).unwrap();
    assert!(numbers.len() > 3, "{numbers:?}");
    for &number in &numbers {
        let bytes = fs::metadata(dir.path().join(segment_name(number))).unwrap().len();
        assert!(bytes <= u64::from(LIMIT), "{number}: {bytes}");
        let sealed = dir.path().join(index_name(number)).exists();
        assert_eq!(sealed, Some(&number) != numbers.last(), "all but the last are sealed");
    }
    // Nothing is missing, so nothing is added.
    let before = files(dir.path());
    assert_eq!(fill(dir.path()), 0);
    assert_eq!(files(dir.path()), before);
}

/// The states a killed build can leave: every prefix of what it writes, in the order it writes it.
#[test]
fn a_build_killed_at_any_byte_loses_one_record_at_most_and_comes_to_the_same_cache() {
    let whole = filled();
    let finished = files(whole.path());
    let dir = tempfile::tempdir().unwrap();
    let numbers = numbers_in(whole.path()).unwrap();
    let bytes_of = |name: &str| finished.iter().find(|file| file.0 == name).unwrap().1.clone();
    for &number in &numbers {
        let segment = bytes_of(&segment_name(number));
        let is_earlier = |name: &str| {
            name == FILE || numbers.iter().any(|&n| n < number && name.contains(&format!("{n:08}")))
        };
        let earlier: Vec<_> = finished.iter().filter(|f| is_earlier(&f.0)).cloned().collect();
        // Every byte of the first and the last, and some of the others.
        let edge = number == numbers[0] || Some(&number) == numbers.last();
        for cut in (0..=segment.len()).step_by(if edge { 1 } else { 13 }) {
            let at = dir.path().join(format!("{number}-{cut}"));
            copy(&earlier, &at);
            fs::write(at.join(segment_name(number)), &segment[..cut]).unwrap();
            // What was whole before the cut is there, and nothing else.
            let found = readable(&at);
            assert_eq!(found, (0..found.len() as u32).collect::<Vec<_>>());
            let end = distill::cache::scan(&segment, number, &manifest().space()).unwrap();
            let ends = end.records.iter().map(|r| r.offset as usize + 56 + r.length as usize);
            let before: usize = numbers_before(&earlier, number);
            assert_eq!(found.len(), before + ends.filter(|&end| end <= cut).count(), "cut {cut}");
            assert_eq!(fill(&at), RECORDS as usize - found.len());
            assert_eq!(files(&at), finished, "segment {number} cut at {cut}");
            fs::remove_dir_all(&at).unwrap();
        }
    }
}

fn numbers_before(earlier: &[(String, Vec<u8>)], number: u32) -> usize {
    let segments = (0..number).map(|n| (n, segment_name(n)));
    let count = |(n, name): (u32, String)| {
        let bytes = &earlier.iter().find(|file| file.0 == name).unwrap().1;
        distill::cache::scan(bytes, n, &manifest().space()).unwrap().records.len()
    };
    segments.map(count).sum()
}

#[test]
fn a_lost_or_damaged_index_file_is_made_again() {
    let dir = filled();
    let before = files(dir.path());
    fs::remove_file(dir.path().join(index_name(0))).unwrap();
    let mut index = fs::read(dir.path().join(index_name(1))).unwrap();
    index[70] ^= 1;
    fs::write(dir.path().join(index_name(1)), &index).unwrap();
    assert_eq!(readable(dir.path()).len(), RECORDS as usize);
    assert_eq!(fill(dir.path()), 0);
    assert_eq!(files(dir.path()), before);
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

#[test]
fn a_flipped_bit_is_named_with_its_record_and_mended_by_the_next_writer() {
    let dir = filled();
    let first = dir.path().join(segment_name(0));
    // In the payload of the first record, and in the header of the second.
    for (at, i) in [(64 + 56 + 3, 0u32), (64 + 56 + 30 + 9, 1)] {
        flip(&first, at);
        let mut store = Store::open(dir.path()).unwrap().unwrap();
        let Found::Damaged(_, what) = store.read(&key(i)) else { panic!("record {i} was taken") };
        for piece in [key(i).to_string(), segment_name(0), "damaged".to_owned()] {
            // The header says nothing any more; the name is the one asked for.
            assert!(what.contains(&piece) || what.contains("checksum"), "no {piece:?} in {what}");
        }
    }
    let others: Vec<u32> = (2..RECORDS).collect();
    assert_eq!(readable(dir.path()), others);
    assert_eq!(fill(dir.path()), 2);
    assert_eq!(readable(dir.path()), (0..RECORDS).collect::<Vec<_>>());
    // Without the index the damage is found by reading the segment.
    fs::remove_file(dir.path().join(index_name(0))).unwrap();
    let store = Store::open(dir.path()).unwrap().unwrap();
    assert_eq!(store.damage.len(), 2, "{:?}", store.damage);
    assert!(store.damage[0].contains(&key(0).to_string()), "{:?}", store.damage);
}

#[test]
fn a_segment_that_lost_its_end_loses_the_records_there() {
    let dir = filled();
    let first = dir.path().join(segment_name(0));
    let file = OpenOptions::new().write(true).open(&first).unwrap();
    file.set_len(64 + 56 + 30 + 20).unwrap();
    let found = readable(dir.path());
    assert_eq!(found[0], 0);
    assert!(found.len() > 1 && found[1] > 1, "{found:?}");
    let lost = RECORDS as usize - found.len();
    assert_eq!(fill(dir.path()), lost);
    assert_eq!(readable(dir.path()).len(), RECORDS as usize);
}

#[test]
fn a_segment_whose_header_is_damaged_is_passed_over_and_set_aside_by_a_writer() {
    let dir = filled();
    let last = *numbers_in(dir.path()).unwrap().last().unwrap();
    let path = dir.path().join(segment_name(last));
    flip(&path, 3);
    let broken = fs::read(&path).unwrap();
    let lost = RECORDS as usize - readable(dir.path()).len();
    assert!(lost > 0);
    let store = Store::open(dir.path()).unwrap().unwrap();
    assert!(store.damage[0].starts_with("all of "), "{:?}", store.damage);
    assert_eq!(fill(dir.path()), lost);
    assert_eq!(readable(dir.path()).len(), RECORDS as usize);
    assert_eq!(fs::read(path.with_extension("damaged")).unwrap(), broken);
}

#[test]
fn a_second_writer_is_refused_and_readers_are_not() {
    let dir = filled();
    let (writer, _) = Writer::open(dir.path(), &manifest(), LIMIT, None).unwrap();
    let refused = Writer::open(dir.path(), &manifest(), LIMIT, None).unwrap_err();
    let CacheError::InUse { holder, .. } = &refused else { panic!("{refused}") };
    assert_eq!(*holder, Some(std::process::id()));
    let place = dir.path().display().to_string();
    for piece in [&place, "being written", &std::process::id().to_string()] {
        assert!(refused.to_string().contains(piece), "{refused}");
    }
    assert_eq!(readable(dir.path()).len(), RECORDS as usize);
    writer.finish().unwrap();
    Writer::open(dir.path(), &manifest(), LIMIT, None).unwrap();
}

#[test]
fn what_is_no_cache_of_this_format_is_refused_with_both_values() {
    let dir = filled();
    let path = dir.path().join(FILE);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"format\": 1", "\"format\": 7")).unwrap();
    let refused = Store::open(dir.path()).unwrap_err();
    assert!(matches!(refused, CacheError::Format { found: 7, wanted: 1, .. }), "{refused}");
    // A segment of a cache of another temperature, put in by hand.
    fs::write(&path, text.replace("\"temperature\": 2.0", "\"temperature\": 3.0")).unwrap();
    fs::remove_file(dir.path().join(index_name(0))).unwrap();
    let refused = Store::open(dir.path()).unwrap_err();
    let CacheError::Segment { source: SegmentError::Space { found, wanted }, .. } = refused else {
        panic!("{refused}")
    };
    let hot: Space = Manifest { temperature: Some(3.0), ..manifest() }.space();
    assert_eq!((found, wanted), (manifest().space(), hot));
    for text in ["", "{}", "{\"format\": 1}", "[1]", "\u{0}"] {
        fs::write(&path, text).unwrap();
        let refused = Store::open(dir.path()).unwrap_err();
        assert!(refused.to_string().contains(FILE), "{refused}");
    }
}

#[test]
fn a_directory_of_something_else_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.txt"), "words").unwrap();
    let refused = Writer::open(dir.path(), &manifest(), LIMIT, None).unwrap_err();
    assert!(matches!(&refused, CacheError::Foreign { found, .. } if found == "thesis.txt"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    assert!(Store::open(dir.path()).unwrap().is_none());
    assert!(Store::open(&dir.path().join("nowhere")).unwrap().is_none());
}

/// A sealed segment that is gone, empty or not to be recognised is damage, until a writer comes: what it
/// held is asked for again, and what can still be read of it is kept aside.
#[test]
fn a_segment_that_was_lost_is_told_of_until_there_is_a_writer() {
    type Spoil = fn(&Path);
    let spoils: [(Spoil, &str); 3] = [
        (|path| fs::remove_file(path).unwrap(), "it is gone"),
        (|path| fs::write(path, "").unwrap(), "segment-00000000.seg"),
        (
            |path| {
                let mut bytes = fs::read(path).unwrap();
                bytes[10] ^= 1;
                fs::write(path, bytes).unwrap();
            },
            "segment-00000000.seg",
        ),
    ];
    for (spoil, piece) in spoils {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        fill(dir);
        let whole = Store::open(dir).unwrap().unwrap().len();
        assert!(dir.join(index_name(0)).exists());
        spoil(&dir.join(segment_name(0)));
        let store = Store::open(dir).unwrap().unwrap();
        assert!(store.len() < whole);
        assert!(store.damage.iter().any(|what| what.contains(piece)), "{:?}", store.damage);
        fill(dir);
        let store = Store::open(dir).unwrap().unwrap();
        assert_eq!((store.len(), &store.damage), (whole, &Vec::new()));
    }
}

/// What is no file is not waited for.
#[test]
fn a_pipe_among_its_files_is_refused() {
    for name in ["cache.json", &segment_name(0), &index_name(0)] {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path());
        let path = dir.path().join(name);
        fs::remove_file(&path).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let opened = Store::open(dir.path());
        match name.ends_with(".idx") {
            // An index is made again of its segment.
            true => assert!(opened.unwrap().is_some()),
            false => assert!(opened.unwrap_err().to_string().contains("it is no file")),
        }
    }
}

#[test]
fn a_place_is_a_directory_or_a_whole_address() {
    for wrong in [
        "file:/there",
        "file://there/is",
        "s3:bucket",
        "s3:///prefix",
        "s4://bucket",
        "gs:b",
        "az://",
        "s3//b/p",
        "file:///",
    ] {
        let refused = Located::of(wrong).unwrap_err().to_string();
        assert!(refused.contains(wrong) && refused.contains("s3://BUCKET/PREFIX"), "{refused}");
    }
    assert!(Located::of("there/is").unwrap().remote.is_none());
    for wrong in
        ["s3://B u/p", "s3://b?x/p", "s3://b#/p", "s3://../p", "gs://b:9/p", "s3://b%20u/p"]
    {
        let refused = Located::of(wrong).unwrap_err().to_string();
        assert!(refused.contains("is no name of a bucket"), "{refused}");
    }
    // Whose account it is in has to be said beside it.
    let refused = Located::of("az://container/prefix").unwrap_err().to_string();
    for piece in ["az://container/prefix", "Account", "AZURE_STORAGE_"] {
        assert!(refused.contains(piece), "no {piece:?} in {refused}");
    }
}
