//! `--cache` and the commands of the cache, by the programs themselves: in a directory, and in an object
//! store with a copy on this machine.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use tests::{Teacher, root, run, trainer};

/// Rows, and places for what is made of them.
pub(crate) struct Bench {
    folder: tempfile::TempDir,
    environment: Vec<(&'static str, String)>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let bench = Self { folder, environment: Vec::new() };
        let row =
            |n: usize| format!("{{\"text\": \"Row {n} says that {n} and {n} are {}.\"}}\n", 2 * n);
        fs::write(bench.path("rows.jsonl"), (0..12).map(row).collect::<String>()).expect("rows");
        bench
    }

    /// It, the trainer being told more by its environment.
    pub(crate) fn with(self, environment: Vec<(&'static str, String)>) -> Self {
        Self { environment, ..self }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// `student-trainer` in a home of its own.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = trainer(arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.env("XDG_CACHE_HOME", self.path("home"));
        command
    }

    /// Runs `student-trainer`; gives status, output and complaint.
    pub(crate) fn go(&self, arguments: &[&str]) -> (i32, String, String) {
        self.run(self.command(arguments))
    }

    fn run(&self, mut command: Command) -> (i32, String, String) {
        let output = run(&mut command);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let complaint = text(&output.stderr);
        assert!(!complaint.contains("panicked"), "{complaint}");
        (output.status.code().expect("no signal"), text(&output.stdout), complaint)
    }

    pub(crate) fn build(&self, teacher: &Teacher, cache: &str) -> (i32, String) {
        let (status, _, complaint) = self.run(self.building(teacher, cache));
        (status, complaint)
    }

    /// The command that fills a cache.
    fn building(&self, teacher: &Teacher, cache: &str) -> Command {
        let (url, student, rows) = (teacher.url(), student(), self.text("rows.jsonl"));
        self.command(&[
            "cache",
            "build",
            "--teacher",
            &url,
            "--student",
            &student,
            "--train-file",
            &rows,
            "--cache",
            cache,
            "--progress",
            "none",
        ])
    }

    /// Two epochs; without an address nobody is asked.
    pub(crate) fn train(&self, teacher: Option<&Teacher>, cache: &str, out: &str) -> (i32, String) {
        let (status, _, complaint) = self.run(self.training(teacher, cache, out));
        (status, complaint)
    }

    fn training(&self, teacher: Option<&Teacher>, cache: &str, out: &str) -> Command {
        let (student, rows, out) = (student(), self.text("rows.jsonl"), self.text(out));
        let mut flags = vec![
            "train",
            "--student",
            &student,
            "--train-file",
            &rows,
            "--output-dir",
            &out,
            "--num-train-epochs",
            "2",
            "--progress",
            "none",
            "--cache",
            cache,
        ];
        let url = teacher.map(Teacher::url).unwrap_or_default();
        if teacher.is_some() {
            flags.extend(["--teacher", &url]);
        }
        self.command(&flags)
    }
}

fn student() -> String {
    root().join("student-trainer/demo/student").display().to_string()
}

pub(crate) fn start() -> Teacher {
    Teacher::start(&root().join("student-trainer/demo/teacher"), &[])
}

/// Sequences the teacher has admitted.
pub(crate) fn admitted(teacher: &Teacher) -> u64 {
    let mut stream = TcpStream::connect(&teacher.http).expect("the HTTP port");
    let request = b"GET /metrics HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n";
    stream.write_all(request).expect("a request");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let count = text.lines().find_map(|line| line.strip_prefix("teacher_admitted_total "));
    count.and_then(|count| count.trim().parse().ok()).expect("a counter")
}

#[test]
fn what_was_asked_once_is_asked_no_more_and_a_run_needs_no_teacher() {
    let bench = Bench::new();
    let (teacher, cache) = (start(), bench.text("cache"));
    let (status, complaint) = bench.build(&teacher, &cache);
    assert_eq!(status, 0, "{complaint}");
    let asked = admitted(&teacher);
    assert!(asked >= 12, "{asked}");
    let (status, complaint) = bench.train(Some(&teacher), &cache, "with");
    assert_eq!((status, admitted(&teacher)), (0, asked), "{complaint}");
    drop(teacher);
    let (status, complaint) = bench.train(None, &cache, "without");
    assert_eq!(status, 0, "{complaint}");
    let weights = |out: &str| fs::read(bench.path(out).join("model.safetensors")).expect("weights");
    assert!(weights("with") == weights("without"));
    let (status, shown, _) = bench.go(&["cache", "info", "--cache", &cache]);
    assert!(status == 0 && shown.contains("top-k k=64") && shown.contains("12"), "{shown}");
    // Out and in again, and nothing is lost.
    let (table, copy) = (bench.text("answers.parquet"), bench.text("copy"));
    let (status, _, complaint) =
        bench.go(&["cache", "export", "--cache", &cache, "--parquet", &table]);
    assert_eq!(status, 0, "{complaint}");
    let (status, _, complaint) =
        bench.go(&["cache", "import", "--cache", &copy, "--parquet", &table]);
    assert_eq!(status, 0, "{complaint}");
    let (status, complaint) = bench.train(None, &copy, "copied");
    assert_eq!(status, 0, "{complaint}");
}

#[test]
fn a_flipped_bit_is_named_by_verify_and_that_row_alone_is_asked_again() {
    let bench = Bench::new();
    let (teacher, cache) = (start(), bench.text("cache"));
    assert_eq!(bench.build(&teacher, &cache).0, 0);
    let segment = segment(Path::new(&cache));
    let mut bytes = fs::read(&segment).expect("a segment");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&segment, bytes).expect("a segment");
    let (status, shown, complaint) = bench.go(&["cache", "verify", "--cache", &cache]);
    let said = format!("{shown}{complaint}");
    assert!(status == 1 && said.contains("damaged: record"), "{said}");
    let (status, complaint) = bench.train(None, &cache, "without");
    assert!(status == 1 && complaint.contains("lacks the answers of 1 of 12"), "{complaint}");
    let before = admitted(&teacher);
    assert_eq!(bench.build(&teacher, &cache).0, 0);
    // The row, and the two rows of the alignment's proof at two temperatures.
    let asked = admitted(&teacher) - before;
    assert!((1..=5).contains(&asked), "{asked}");
    assert_eq!(bench.train(None, &cache, "mended").0, 0);
}

fn segment(cache: &Path) -> PathBuf {
    let entries =
        fs::read_dir(cache).expect("a cache").map(|entry| entry.expect("an entry").path());
    let mut segments = entries.filter(|path| path.extension().is_some_and(|end| end == "seg"));
    segments.next().expect("a segment")
}

/// Rows of the build that is killed.
const ROWS: u32 = 2000;

/// A build killed at any moment leaves nothing that is wrong, and goes on to the very bytes of one that
/// was let be. `LIMBECK_KILLS` says how often (20 when absent).
#[test]
fn a_build_that_is_killed_goes_on_and_comes_to_the_same_cache() {
    let kills = std::env::var("LIMBECK_KILLS").ok().and_then(|text| text.parse().ok());
    let kills: u32 = kills.unwrap_or(20);
    let bench = Bench::new();
    let row = |n: u32| format!("{{\"text\": \"{n} and {n} are {}.\"}}\n", 2 * n);
    fs::write(bench.path("rows.jsonl"), (0..ROWS).map(row).collect::<String>()).expect("rows");
    let (teacher, whole, killed) = (start(), bench.text("whole"), bench.text("killed"));
    let begin = Instant::now();
    let (status, complaint) = bench.build(&teacher, &whole);
    assert_eq!(status, 0, "{complaint}");
    let takes = begin.elapsed();
    let records = || match Path::new(&killed).join("cache.json").exists() {
        false => 0,
        true => {
            let (status, shown, complaint) = bench.go(&["cache", "verify", "--cache", &killed]);
            assert_eq!(status, 0, "{shown}{complaint}");
            let line = shown.lines().last().and_then(|line| line.strip_suffix(" records whole"));
            line.and_then(|count| count.replace(',', "").parse().ok()).expect("a count")
        }
    };
    let segment = |cache: &str| fs::read(segment(Path::new(cache))).expect("a segment");
    let (mut there, mut in_the_middle) = (0, 0);
    for kill in 0..kills {
        // Each moment of it, the beginning too.
        let mut child = bench.building(&teacher, &killed).spawn().expect("the trainer starts");
        std::thread::sleep(takes.mul_f64(rand::random()));
        child.kill().expect("it is killed");
        child.wait().expect("it ends");
        let now = records();
        assert!(now >= there, "kill {kill}: {there} records, then {now}");
        in_the_middle += u32::from(now > there && now < ROWS);
        there = now;
        if there == ROWS {
            // It was whole, or is: the next begins anew.
            assert!(segment(&whole) == segment(&killed), "other bytes than undisturbed");
            fs::remove_dir_all(&killed).expect("the cache");
            there = 0;
        }
    }
    assert!(
        in_the_middle > kills / 20,
        "{in_the_middle} of {kills} came while it was being filled"
    );
    let (status, complaint) = bench.build(&teacher, &killed);
    assert_eq!((status, records()), (0, ROWS), "{complaint}");
    assert!(segment(&whole) == segment(&killed), "other bytes than undisturbed");
}

/// A cache that may only be read is read, and a teacher is asked for what it lacks; nothing is kept.
#[test]
fn a_cache_that_may_only_be_read_is_read_beside_a_teacher() {
    let bench = Bench::new();
    let (teacher, cache) = (start(), bench.text("cache"));
    let rows = fs::read_to_string(bench.path("rows.jsonl")).expect("rows");
    assert_eq!(bench.build(&teacher, &cache).0, 0);
    let more = "{\"text\": \"A row that is not there yet.\"}\n";
    fs::write(bench.path("rows.jsonl"), rows + more).expect("rows");
    let mode = |of: u32| fs::set_permissions(&cache, fs::Permissions::from_mode(of));
    for entry in fs::read_dir(&cache).expect("a cache") {
        let path = entry.expect("an entry").path();
        fs::set_permissions(path, fs::Permissions::from_mode(0o444)).expect("a mode");
    }
    mode(0o555).expect("a mode");
    let training = bench.training(Some(&teacher), &cache, "out");
    // The system's own administrator may write anywhere, unless that is given up.
    let mut bound = Command::new("setpriv");
    bound.arg("--bounding-set=-dac_override,-dac_read_search");
    bound.arg(training.get_program()).args(training.get_args());
    bound.envs(training.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let before = admitted(&teacher);
    let (status, _, complaint) = bench.run(bound);
    mode(0o755).expect("a mode");
    assert_eq!(status, 0, "{complaint}");
    assert!(complaint.contains("no more answers are kept in the cache"), "{complaint}");
    // The new row, in each of two epochs, and the rows of the alignment's proof.
    let asked = admitted(&teacher) - before;
    assert!((1..=7).contains(&asked), "{asked}");
    let (_, shown, _) = bench.go(&["cache", "verify", "--cache", &cache]);
    assert!(shown.contains("12 records whole"), "{shown}");
}

/// A copy that has gone bad on this machine costs nothing while the store has it whole.
#[test]
fn a_copy_that_is_damaged_is_fetched_again_from_its_store() {
    let bench = Bench::new();
    let (teacher, cache) = (start(), format!("file://{}", bench.text("store")));
    let (status, complaint) = bench.build(&teacher, &cache);
    assert_eq!(status, 0, "{complaint}");
    drop(teacher);
    let copies = fs::read_dir(bench.path("home/limbeck/answers")).expect("copies");
    let copy = copies.map(|entry| entry.expect("a copy").path()).next().expect("one");
    let spoil = || {
        let path = segment(&copy);
        let mut bytes = fs::read(&path).expect("a segment");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).expect("a segment");
    };
    spoil();
    let (status, complaint) = bench.train(None, &cache, "out");
    assert!(status == 0 && complaint.contains("its segment was fetched again"), "{complaint}");
    spoil();
    let (status, shown, complaint) = bench.go(&["cache", "verify", "--cache", &cache]);
    assert!(status == 0 && shown.contains("12 records whole"), "{shown}{complaint}");
    // A store that cannot be read, where the copy is whole.
    fs::write(bench.path("store/segments.json"), "").expect("a list");
    let (status, complaint) = bench.train(None, &cache, "away");
    assert!(status == 0 && complaint.contains("is used without it"), "{complaint}");
    let (status, _, complaint) = bench.go(&["cache", "verify", "--cache", &cache]);
    assert!(status == 1 && complaint.contains("segments.json"), "{complaint}");
    // One that is not there, and is not made by looking for it.
    fs::remove_dir_all(bench.path("store")).expect("a store");
    let (status, complaint) = bench.train(None, &cache, "gone");
    assert!(status == 0 && complaint.contains("is used without it"), "{complaint}");
    let (status, _, complaint) = bench.go(&["cache", "verify", "--cache", &cache]);
    assert!(status == 1 && complaint.contains("No such file"), "{complaint}");
    assert!(!bench.path("store").exists());
}

/// Nothing is made by looking for it, and what is no address is refused before anything is read.
#[test]
fn a_place_that_is_not_there_or_none_is_named() {
    let bench = Bench::new();
    let cache = format!("file://{}", bench.text("store"));
    let (status, _, complaint) = bench.go(&["cache", "info", "--cache", &cache]);
    assert!(status == 1 && complaint.contains(&cache), "{complaint}");
    assert!(!bench.path("store").exists() && !bench.path("home").exists());
    let (status, complaint) = bench.train(None, "s3:bucket", "out");
    assert!(status == 2 && complaint.contains("s3://BUCKET/PREFIX"), "{complaint}");
    assert!(!bench.path("out").exists());
}

/// What a store refuses makes a build fail, and is sent by the next one without asking anybody again.
#[test]
fn a_build_that_a_store_refuses_fails_and_the_next_one_sends_what_is_there() {
    let bench = Bench::new();
    let (teacher, store) = (start(), bench.path("store"));
    let cache = format!("file://{}", store.display());
    // Something else where the list is to be, as if another machine had been faster.
    fs::create_dir_all(store.join("segments.json/x")).expect("a folder");
    let (status, complaint) = bench.build(&teacher, &cache);
    assert_eq!(status, 1, "{complaint}");
    assert!(complaint.contains(&cache), "{complaint}");
    assert!(complaint.contains("run the same command again"), "{complaint}");
    fs::remove_dir_all(store.join("segments.json")).expect("a folder");
    let asked = admitted(&teacher);
    let (status, complaint) = bench.build(&teacher, &cache);
    assert_eq!((status, admitted(&teacher)), (0, asked), "{complaint}");
    drop(teacher);
    // Another machine has no copy yet.
    fs::remove_dir_all(bench.path("home")).expect("the copy");
    let (status, complaint) = bench.train(None, &cache, "elsewhere");
    assert_eq!(status, 0, "{complaint}");
}

/// Nor does that take a build: a run that finds every answer here sends what its store lacks.
#[test]
fn what_was_not_sent_is_sent_by_a_run_that_needs_nothing() {
    let bench = Bench::new();
    let (teacher, store) = (start(), bench.path("store"));
    let cache = format!("file://{}", store.display());
    fs::create_dir_all(store.join("segments.json/x")).expect("a folder");
    assert_eq!(bench.build(&teacher, &cache).0, 1);
    drop(teacher);
    fs::remove_dir_all(store.join("segments.json")).expect("a folder");
    let (status, complaint) = bench.train(None, &cache, "here");
    assert_eq!(status, 0, "{complaint}");
    fs::remove_dir_all(bench.path("home")).expect("the copy");
    let (status, complaint) = bench.train(None, &cache, "elsewhere");
    assert_eq!(status, 0, "{complaint}");
}
