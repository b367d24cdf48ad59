//! Runs with a cache: a teacher over loopback that counts, and what it is not asked any more.

use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

use distill::fingerprint::Fingerprint;

use super::append::Writer;
use super::build::{Watcher, fill};
use super::store::{Store, segment_name};
use super::*;
use crate::config::{CacheBuildConfig, CacheConfig, Command, Layers};
use crate::data::RowSet;
use crate::error::TrainError;
use crate::outputs::{self, Reuse};
use crate::run::Run;
use crate::stop::Stop;
use crate::teacher::TeacherError;
use crate::testing::{FakeTeacher, Recorder, Served, config, material, tiny_source};
use crate::train::carry_out;

/// Training rows of [`material`], held-out ones, and requests of the alignment proof.
const ROWS: [usize; 3] = [10, 4, 4];

struct Bench {
    root: tempfile::TempDir,
    served: Served,
    told: Recorder,
}

impl Bench {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let served = FakeTeacher::of(&tiny_source(&root.path().join("model"))).serve();
        Self { root, served, told: Recorder::default() }
    }

    fn path(&self, name: &str) -> String {
        self.root.path().join(name).to_str().unwrap().to_owned()
    }

    fn answered(&self) -> usize {
        self.served.teacher.mischief.answered.load(Relaxed)
    }

    /// Two epochs that keep no answer in memory, in a directory of their own.
    fn run(&mut self, out: &str, options: &[(&'static str, &str)]) -> Result<Vec<u8>, TrainError> {
        let url = self.served.url.clone();
        let mut all = vec![("teacher", url.as_str()), ("num-train-epochs", "2")];
        all.push(("teacher-memory", "0"));
        all.extend_from_slice(options);
        let config = config(Path::new(&self.path(out)), &all);
        let claim = outputs::claim(&config.output_dir, Reuse::Anything)?;
        let material = material(&self.root.path().join("model"));
        self.told = Recorder::default();
        let run = Run::assemble(&config, claim, material, &mut self.told, &Stop::default())?;
        carry_out(run, &mut self.told, &Stop::default())?;
        Ok(std::fs::read(self.root.path().join(out).join("model.safetensors")).unwrap())
    }
}

#[test]
fn each_row_is_asked_once_and_a_later_run_asks_for_nothing_and_computes_the_same() {
    let mut bench = Bench::new();
    let cache = bench.path("cache");
    let with = [("cache", cache.as_str())];
    let plain = bench.run("plain", &[]).unwrap();
    let evaluations = 3;
    assert_eq!(bench.answered(), 2 * ROWS[0] + evaluations * ROWS[1] + ROWS[2]);
    let before = bench.answered();
    let first = bench.run("first", &with).unwrap();
    assert_eq!(bench.answered() - before, ROWS.iter().sum::<usize>());
    assert!(bench.told.steps[4..].iter().all(|step| step.wire_bytes == 0), "epoch 2");
    let before = bench.answered();
    let second = bench.run("second", &with).unwrap();
    assert_eq!(bench.answered(), before, "the second run asked");
    // Nor does it need a teacher that is there, or one at all.
    bench.served.end();
    let alone = bench.run("alone", &with).unwrap();
    let said = bench.told.notes.join("\n");
    assert!(said.contains("was not reached") && said.contains("answers of all 14 rows"), "{said}");
    let without = bench.run("without", &[with[0], ("teacher", "")]).unwrap();
    assert!(!bench.told.notes.join("\n").contains("was not reached"));
    for (name, weights) in
        [("first", first), ("second", second), ("alone", alone), ("none", without)]
    {
        assert!(weights == plain, "{name}: other weights than without a cache");
    }
}

#[test]
fn what_a_cache_is_not_of_is_refused_with_both_values_and_before_anything_is_asked() {
    let mut bench = Bench::new();
    let cache = bench.path("cache");
    let with = ("cache", cache.as_str());
    bench.run("first", &[with]).unwrap();
    let before = bench.answered();
    for (option, value, pieces) in [
        ("temperature", "5", ["--temperature 2,", "for 5:", "--temperature to"]),
        ("top-k", "7", ["top-k k=6", "top-k k=7", "--top-k"]),
    ] {
        let refused = bench.run("other", &[with, (option, value)]).unwrap_err().to_string();
        for piece in pieces.into_iter().chain([cache.as_str()]) {
            assert!(refused.contains(piece), "no {piece:?} in {refused}");
        }
    }
    // Another model at the same address, with every answer in the cache and without.
    let (found, wanted) = (Fingerprint([7; 32]), Fingerprint([8; 32]));
    bench.served.teacher.facts.lock().unwrap().model_fingerprint = wanted;
    let both = |error: TrainError| {
        let error = error.to_string();
        assert!(
            error.contains(&found.to_string()) && error.contains(&wanted.to_string()),
            "{error}"
        );
    };
    both(bench.run("other", &[with]).unwrap_err());
    assert_eq!(bench.answered(), before);
    std::fs::remove_file(Path::new(&cache).join(segment_name(0))).unwrap();
    both(bench.run("other", &[with]).unwrap_err());
    // Another tokenizer.
    let path = Path::new(&cache).join(manifest::FILE);
    let text = std::fs::read_to_string(&path).unwrap();
    let ours = Manifest::read(Path::new(&cache)).unwrap().unwrap().tokenizer_fingerprint;
    std::fs::write(&path, text.replace(&ours, &"ab".repeat(32))).unwrap();
    let error = bench.run("other", &[with]).unwrap_err().to_string();
    assert!(error.contains(&ours) && error.contains(&"ab".repeat(32)), "{error}");
}

#[test]
fn a_damaged_record_is_asked_for_anew_or_ends_the_run_where_nobody_can_be_asked() {
    let mut bench = Bench::new();
    let cache = bench.path("cache");
    let with = ("cache", cache.as_str());
    let first = bench.run("first", &[with]).unwrap();
    // Sealed, so that the damage is not seen when the cache is opened.
    let dir = Path::new(&cache);
    let manifest = Manifest::read(dir).unwrap().unwrap();
    let (mut writer, _) = Writer::open(dir, &manifest, 1 << 20, None).unwrap();
    writer.seal().unwrap();
    writer.finish().unwrap();
    let segment = dir.join(segment_name(0));
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[64 + 56 + 40] ^= 1;
    std::fs::write(&segment, &bytes).unwrap();
    let found = build::verify(&CacheConfig { cache: cache.clone(), json: false }).unwrap();
    assert_eq!((found.records, found.damaged.len()), (ROWS[0] + ROWS[1] - 1, 1), "{found:?}");
    let error = bench.run("alone", &[with, ("teacher", "")]).unwrap_err();
    let said = error.to_string();
    let TrainError::AtRow { source, .. } = error else { panic!("{said}") };
    assert!(matches!(*source, TeacherError::NotKept { .. }), "{said}");
    for piece in [cache.as_str(), "checksum", "segment-00000000.seg", "jsonl", "--teacher"] {
        assert!(said.contains(piece), "no {piece:?} in {said}");
    }
    let before = bench.answered();
    assert!(bench.run("again", &[with]).unwrap() == first, "other weights");
    assert_eq!(bench.answered() - before, 1, "the damaged row alone is asked for");
    // And is there from then on.
    assert!(bench.run("later", &[with, ("teacher", "")]).unwrap() == first);
    assert_eq!(bench.answered() - before, 1);
    let verify = || build::verify(&CacheConfig { cache: cache.clone(), json: false }).unwrap();
    assert_eq!(verify().damaged, Vec::<String>::new(), "mended, and told no more");
    // A build finds another such record itself.
    bytes[64 + 56 + 40] ^= 1;
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&segment, &bytes).unwrap();
    assert_eq!(verify().damaged.len(), 1);
    let (material, before) = (material(&bench.root.path().join("model")), bench.answered());
    let sets = [&material.rows, &material.held_out];
    let config = build_config(&bench, &cache);
    fill(&config, &material.source, sets, &mut Quiet, &Stop::default()).unwrap();
    assert_eq!(bench.answered() - before, 1 + ROWS[2], "the row, and the proof");
    assert_eq!(verify().damaged, Vec::<String>::new());
    // And puts in order what no row needs.
    std::fs::copy(&segment, dir.join(segment_name(7))).unwrap();
    assert_eq!(verify().damaged.len(), 1);
    fill(&config, &material.source, sets, &mut Quiet, &Stop::default()).unwrap();
    assert_eq!(verify().damaged, Vec::<String>::new());
}

#[test]
fn without_a_teacher_every_row_must_be_there() {
    let mut bench = Bench::new();
    let cache = bench.path("cache");
    let alone = [("cache", cache.as_str()), ("teacher", "")];
    let error = bench.run("none", &alone).unwrap_err();
    assert!(matches!(error, TrainError::Cache(CacheError::Absent { .. })), "{error}");
    let build = build_config(&bench, &cache);
    let source = tiny_source(&bench.root.path().join("model"));
    let rows = material(&bench.root.path().join("model")).rows;
    let none = RowSet::default();
    fill(&build, &source, [&rows, &none], &mut Quiet, &Stop::default()).unwrap();
    let error = bench.run("half", &alone).unwrap_err().to_string();
    for piece in ["4 of 4 held-out rows", "eval.jsonl, line 1", "--teacher"] {
        assert!(error.contains(piece), "no {piece:?} in {error}");
    }
}

struct Quiet;

impl Watcher for Quiet {
    fn note(&mut self, _: &str) {}
    fn rows(&mut self, _: usize, _: usize) {}
}

fn build_config(bench: &Bench, cache: &str) -> CacheBuildConfig {
    let flags = [
        ("cache", cache),
        ("teacher", &bench.served.url),
        ("student", "tiny"),
        ("train-file", "none"),
        ("top-k", "6"),
        ("temperature", "2"),
        ("teacher-timeout", "5"),
        ("teacher-window", "4"),
    ];
    let flags = flags.map(|(name, value)| (name, value.to_owned())).into_iter().collect();
    let layers = Layers::new(Command::CacheBuild, flags, |_| None, None).unwrap();
    CacheBuildConfig::from_layers(&layers).unwrap()
}

/// Asks for a stop after some rows.
struct Stopper(usize, Stop);

impl Watcher for Stopper {
    fn note(&mut self, _: &str) {}
    fn rows(&mut self, there: usize, _: usize) {
        if there == self.0 {
            self.1.request();
        }
    }
}

#[test]
fn a_build_goes_on_where_it_stopped_and_comes_to_the_same_bytes() {
    let bench = Bench::new();
    let source = tiny_source(&bench.root.path().join("model"));
    let material = material(&bench.root.path().join("model"));
    let sets = [&material.rows, &material.held_out];
    let (whole, parts) = (bench.path("whole"), bench.path("parts"));
    fill(&build_config(&bench, &whole), &source, sets, &mut Quiet, &Stop::default()).unwrap();
    let asked = bench.answered();
    let mut stopper = Stopper(6, Stop::default());
    let stop = stopper.1.clone();
    let stopped = fill(&build_config(&bench, &parts), &source, sets, &mut stopper, &stop);
    assert!(matches!(stopped, Err(TrainError::Stopped)));
    let there = Store::open(Path::new(&parts)).unwrap().unwrap().len();
    assert_eq!(there, 6);
    fill(&build_config(&bench, &parts), &source, sets, &mut Quiet, &Stop::default()).unwrap();
    let bytes = |dir: &str| std::fs::read(Path::new(dir).join(segment_name(0))).unwrap();
    assert!(bytes(&whole) == bytes(&parts));
    // Once more changes nothing and asks for nothing.
    let before = bench.answered();
    assert!(before >= 2 * asked);
    fill(&build_config(&bench, &parts), &source, sets, &mut Quiet, &Stop::default()).unwrap();
    assert_eq!(bench.answered(), before);
    // A run finds all of it.
    let mut bench = bench;
    bench.run("out", &[("cache", &parts), ("teacher", "")]).unwrap();
}

#[test]
fn a_cache_that_is_being_written_serves_those_who_need_no_more_of_it() {
    let mut bench = Bench::new();
    let cache = bench.path("cache");
    let with = ("cache", cache.as_str());
    bench.run("first", &[with]).unwrap();
    let manifest = Manifest::read(Path::new(&cache)).unwrap().unwrap();
    let (writer, _) = Writer::open(Path::new(&cache), &manifest, 1 << 20, None).unwrap();
    bench.run("second", &[with]).unwrap();
    std::fs::remove_file(Path::new(&cache).join(segment_name(0))).unwrap();
    let error = bench.run("third", &[with]).unwrap_err();
    assert!(matches!(error, TrainError::Cache(CacheError::InUse { .. })), "{error}");
    drop(writer);
    bench.run("third", &[with]).unwrap();
}

/// A file system of a few kilobytes; taken off in the end.
struct Small(std::path::PathBuf);

impl Small {
    fn mount(at: &Path) -> Option<Self> {
        std::fs::create_dir(at).unwrap();
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=12k", "none"])
            .arg(at)
            .output();
        mount.is_ok_and(|output| output.status.success()).then(|| Self(at.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        drop(std::process::Command::new("umount").arg(&self.0).status());
    }
}

#[test]
fn a_full_disk_costs_the_cache_and_not_the_run() {
    let test = "a_full_disk_costs_the_cache_and_not_the_run";
    let mut bench = Bench::new();
    let plain = bench.run("plain", &[]).unwrap();
    let Some(disk) = Small::mount(&bench.root.path().join("disk")) else {
        return test_support::skip(test, "mount", "only root may make a small file system");
    };
    let cache = disk.0.join("cache").to_str().unwrap().to_owned();
    let before = bench.answered();
    let full = bench.run("full", &[("cache", cache.as_str())]).unwrap();
    assert!(full == plain, "other weights");
    let asked = bench.answered() - before;
    assert!(asked > ROWS.iter().sum(), "{asked}: everything found room");
    let kept = Store::open(Path::new(&cache)).unwrap().unwrap().len();
    assert!(kept < ROWS[0] + ROWS[1], "{kept}");
    // What found room is whole.
    let config = CacheConfig { cache, json: false };
    let found = build::verify(&config).unwrap();
    assert_eq!((found.records, found.damaged), (kept, Vec::new()));
}
