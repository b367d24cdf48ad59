//! A writer killed at random moments, by the system: every record that it said to be done is there, none
//! is wrong, and the cache comes to the same bytes in the end. (`cache build` itself is killed in the
//! tests of the programs.)
//!
//! `LIMBECK_KILLS` says how many times (20 when absent).

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::append::Writer;
use super::store::{Found, Store};
use crate::testing::manifest;

const RECORDS: u32 = 60_000;
const LIMIT: u32 = 1 << 19;
/// Names the directory to the program that is to be killed.
const PLACE: &str = "LIMBECK_KILL_PLACE";
/// Names the file in which it says how many records are done.
const TOLD: &str = "LIMBECK_KILL_TOLD";

fn payload(i: u32) -> Vec<u8> {
    (0..20 + i % 90).map(|byte| (byte * 7 + i) as u8).collect()
}

/// Goes on with a build, at most `pace` a record; `done` is told how many records there are.
fn go_on(dir: &Path, pace: Duration, done: &mut dyn FnMut(u32)) {
    let (mut writer, mut store) = Writer::open(dir, &manifest(), LIMIT, None).unwrap();
    let space = manifest().space();
    for i in 0..RECORDS {
        let key = space.key(&[i], &[]);
        if store.has(&key) {
            continue;
        }
        let begin = Instant::now();
        let place = writer.append(&key, &payload(i)).unwrap();
        store.added(&key, place);
        done(i + 1);
        while begin.elapsed() < pace {
            std::hint::spin_loop();
        }
    }
    writer.finish().unwrap();
}

/// The first record that is not there. Panics when one is wrong, or one before it is missing.
fn done(dir: &Path) -> u32 {
    let Some(mut store) = Store::open(dir).unwrap() else { return 0 };
    assert!(store.damage.is_empty(), "{:?}", store.damage);
    let (space, count) = (store.space, store.len() as u32);
    for i in 0..count {
        let found = store.read(&space.key(&[i], &[]));
        assert!(found == Found::Payload(payload(i)), "record {i} of {count}");
    }
    count
}

fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = paths.filter(|path| !path.ends_with("LOCK")).collect();
    paths.sort();
    let name = |path: &Path| PathBuf::from(path.file_name().unwrap());
    paths.into_iter().map(|path| (name(&path), fs::read(&path).unwrap())).collect()
}

/// Not a test: what is killed by the one below.
#[test]
fn a_build_to_be_killed() {
    if let (Some(dir), Some(told)) = (std::env::var_os(PLACE), std::env::var_os(TOLD)) {
        let told = fs::OpenOptions::new().create(true).write(true).truncate(false).open(told);
        let told = told.unwrap();
        // What a killed program wrote the system keeps, and four bytes are written whole.
        let mut done = |count: u32| told.write_all_at(&count.to_le_bytes(), 0).unwrap();
        go_on(Path::new(&dir), Duration::from_micros(60), &mut done);
    }
}

#[test]
fn a_build_killed_at_random_moments_comes_to_the_same_cache() {
    let kills = std::env::var("LIMBECK_KILLS").ok().and_then(|text| text.parse().ok());
    let kills: u32 = kills.unwrap_or(20);
    let root = tempfile::tempdir().unwrap();
    let (whole, killed) = (root.path().join("whole"), root.path().join("killed"));
    let silent = &mut |_| {};
    go_on(&whole, Duration::ZERO, silent);
    let told = root.path().join("told");
    let mut there = 0;
    for kill in 0..kills {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "cache::kill_tests::a_build_to_be_killed"])
            .env(PLACE, &killed)
            .env(TOLD, &told)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(u64::from(rand::random::<u16>()) * 3 / 2));
        child.kill().unwrap();
        child.wait().unwrap();
        let now = done(&killed);
        let said = fs::read(&told).unwrap_or_default();
        // Killed between making the file and telling anything: empty.
        let said = if said.is_empty() { 0 } else { u32::from_le_bytes(said.try_into().unwrap()) };
        assert!(now >= said.max(there), "kill {kill}: {said} said, {there} before, {now} there");
        // One may be done and not be said yet.
        assert!(
            now <= said.max(there) + 1,
            "kill {kill}: {said} said, {there} before, {now} there"
        );
        there = now;
    }
    assert!(there > 0, "killed before anything was written");
    go_on(&killed, Duration::ZERO, silent);
    assert!(files(&killed) == files(&whole), "other bytes than undisturbed");
}
