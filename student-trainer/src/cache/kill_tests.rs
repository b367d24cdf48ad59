//! A writer killed at random moments, by the system: every record that was done is there, none is
//! wrong, and the cache comes to the same bytes in the end.
//!
//! `LIMBECK_KILLS` says how many times (20 when absent).

use std::fs;
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

fn payload(i: u32) -> Vec<u8> {
    (0..20 + i % 90).map(|byte| (byte * 7 + i) as u8).collect()
}

/// Goes on with a build, at most `pace` a record.
fn go_on(dir: &Path, pace: Duration) {
    let (mut writer, mut store) = Writer::open(dir, &manifest(), LIMIT).unwrap();
    let space = manifest().space();
    for i in 0..RECORDS {
        let key = space.key(&[i], &[]);
        if store.has(&key) {
            continue;
        }
        let begin = Instant::now();
        let place = writer.append(&key, &payload(i)).unwrap();
        store.added(&key, place);
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
    if let Some(dir) = std::env::var_os(PLACE) {
        go_on(Path::new(&dir), Duration::from_micros(60));
    }
}

#[test]
fn a_build_killed_at_random_moments_comes_to_the_same_cache() {
    let kills = std::env::var("LIMBECK_KILLS").ok().and_then(|text| text.parse().ok());
    let kills: u32 = kills.unwrap_or(20);
    let root = tempfile::tempdir().unwrap();
    let (whole, killed) = (root.path().join("whole"), root.path().join("killed"));
    go_on(&whole, Duration::ZERO);
    let mut there = 0;
    for kill in 0..kills {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "cache::kill_tests::a_build_to_be_killed"])
            .env(PLACE, &killed)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(u64::from(rand::random::<u16>()) * 3 / 2));
        child.kill().unwrap();
        child.wait().unwrap();
        let now = done(&killed);
        assert!(now >= there, "kill {kill}: {there} records, then {now}");
        there = now;
    }
    assert!(there > 0, "killed before anything was written");
    go_on(&killed, Duration::ZERO);
    assert!(files(&killed) == files(&whole), "other bytes than undisturbed");
}
