//! The programs against a stand-in of the hub, steered by the variables Python's library knows:
//! what they download, where they put it, and what they say when they may not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ::hub::testing::{Hosted, StandIn};
use serde_json::Value;
use tests::{Teacher, python, root, run, teacher, trainer};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_right";
const ROW: &str = "{\"text\": \"Two and two are four.\"}\n";
const TRAIN_FILE: &str = "hf://datasets/org/rows@v1/train";
/// Every variable the programs read, so that a test sees its own only.
const VARIABLES: [&str; 12] = [
    "HF_HOME",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "XDG_CACHE_HOME",
    "HF_ENDPOINT",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_TOKEN_PATH",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_HUB_DISABLE_PROGRESS_BARS",
    "RUST_LOG",
];

fn demo(name: &str) -> PathBuf {
    root().join("student-trainer/demo").join(name)
}

/// A hub with the demonstration's models, the student behind a token, and a few rows.
fn hub() -> StandIn {
    let hosted = |id: &str, dataset, files| Hosted {
        id: id.to_owned(),
        dataset,
        commit: COMMIT.to_owned(),
        tags: vec!["v1".to_owned()],
        files,
        gated: (id == "org/student").then(|| TOKEN.to_owned()),
    };
    let model = |name: &str| {
        let entries = std::fs::read_dir(demo(name)).expect("the demonstration's model");
        let file = |path: PathBuf| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, std::fs::read(&path).expect("a file"))
        };
        entries.map(|entry| file(entry.expect("an entry").path())).collect::<BTreeMap<_, _>>()
    };
    let rows = |rows: usize| ROW.repeat(rows).into_bytes();
    let splits = [("train.jsonl", rows(8)), ("test.jsonl", rows(2)), ("README.md", Vec::new())];
    StandIn::start(vec![
        hosted("org/teacher", false, model("teacher")),
        hosted("org/student", false, model("student")),
        hosted("org/rows", true, splits.map(|(name, rows)| (name.to_owned(), rows)).into()),
    ])
}

/// The command in an environment in which only these variables speak of the hub.
fn with(mut command: Command, variables: &[(&str, &str)]) -> Command {
    for name in VARIABLES {
        command.env_remove(name);
    }
    command.envs(variables.iter().copied());
    command
}

/// `student-trainer train` on these, at the teacher's `url`.
fn train(url: &str, student: &[&str], train_file: &str, out: &Path) -> Command {
    let out = out.display().to_string();
    let flags = ["train", "--teacher", url, "--train-file", train_file, "--output-dir", &out];
    trainer(&[&flags[..], &["--max-steps", "2"], student].concat())
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Runs it to a good end; returns what it said on stderr.
fn succeeds(mut command: Command) -> String {
    let output = run(&mut command);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?} ended with {}:\n{said}", output.status);
    said
}

/// Runs it to status 1 and a complaint with all of these words.
#[track_caller]
fn fails(mut command: Command, words: &[&str]) -> String {
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("started");
    // A server that does not refuse would serve for ever.
    let given_up = Instant::now() + Duration::from_secs(60);
    while child.try_wait().expect("a child").is_none() {
        if Instant::now() > given_up {
            drop(child.kill());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().expect("its output");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{command:?}: {said}");
    for word in words {
        assert!(said.contains(word), "no {word:?} in: {said}");
    }
    said
}

/// One repository as `huggingface_hub` lays it out: the tag's commit, and links to blobs.
fn check_layout(cache: &Path, folder: &str, files: &[&str]) {
    let repository = cache.join(folder);
    let tag = std::fs::read_to_string(repository.join("refs/v1"));
    assert_eq!(tag.expect("refs/v1"), COMMIT, "{folder}");
    let snapshot = repository.join("snapshots").join(COMMIT);
    let entries = std::fs::read_dir(&snapshot).expect("the snapshot");
    let names = entries.map(|entry| text(Path::new(&entry.expect("an entry").file_name())));
    let mut names: Vec<String> = names.collect();
    names.sort();
    assert_eq!(names, files, "{folder}");
    for name in files {
        let link = std::fs::read_link(snapshot.join(name)).expect("a link");
        let blob = link.strip_prefix("../../blobs").expect("a relative link to a blob");
        // The ETag: SHA-1 or, of large files, SHA-256 in hexadecimal digits.
        let length = if name.ends_with(".safetensors") { 64 } else { 40 };
        assert_eq!(text(blob).len(), length, "{folder}/{name} -> {}", link.display());
        assert!(snapshot.join(name).is_file(), "{folder}/{name} leads nowhere");
    }
    let blobs = std::fs::read_dir(repository.join("blobs")).expect("blobs");
    assert_eq!(blobs.count(), files.len(), "{folder}: a blob a file, and no incomplete one");
}

const MODEL_FILES: [&str; 5] = [
    "chat_template.jinja",
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
];

#[test]
fn both_programs_run_from_a_hub_and_again_from_the_cache_alone() {
    let hub = hub();
    let desk = tempfile::tempdir().expect("a folder");
    let (home, endpoint) = (text(&desk.path().join("home")), hub.endpoint());
    let online = [("HF_HOME", &*home), ("HF_ENDPOINT", &*endpoint), ("HF_TOKEN", TOKEN)];
    let log = desk.path().join("teacher.log");
    let stderr = std::fs::File::create(&log).expect("a log");
    let mut command = with(teacher("org/teacher"), &online);
    let server = Teacher::serve(command.args(["--revision", "v1"]).stderr(stderr));
    let student = ["--student", "org/student", "--student-revision", "v1"];
    let out = |name: &str| desk.path().join(name);
    let said = succeeds(with(train(&server.url(), &student, TRAIN_FILE, &out("hub")), &online));

    // Progress: a line at each file's begin and end where stderr is no terminal.
    let teacher_said = std::fs::read_to_string(&log).expect("the teacher's log");
    let files = [(&teacher_said, "model.safetensors"), (&said, "model.safetensors")];
    for (said, file) in files.into_iter().chain([(&said, "train.jsonl")]) {
        for line in [format!("downloading {file} ("), format!("downloaded {file}")] {
            assert!(said.contains(&line), "no {line:?} in: {said}");
        }
    }
    let cache = Path::new(&home).join("hub");
    check_layout(&cache, "models--org--teacher", &MODEL_FILES);
    check_layout(&cache, "models--org--student", &MODEL_FILES);
    check_layout(&cache, "datasets--org--rows", &["train.jsonl"]);
    let requests = hub.requests();
    let gated = |request: &&String| request.contains("/org/student/resolve/");
    assert!(requests.iter().filter(gated).count() >= MODEL_FILES.len(), "{requests:?}");
    assert!(requests.iter().filter(gated).all(|r| r.ends_with(" token")), "{requests:?}");

    // The same bits as from the files themselves.
    let rows = out("rows.jsonl");
    std::fs::write(&rows, ROW.repeat(8)).expect("rows");
    let local = ["--student", &text(&demo("student"))];
    succeeds(with(train(&server.url(), &local, &text(&rows), &out("local")), &[]));
    let weights = |name: &str| std::fs::read(out(name).join("model.safetensors")).expect(name);
    assert!(weights("hub") == weights("local"), "the hub's model or rows are others");

    // Forbidden to ask, nobody asks; with the hub gone, the cache serves and a word is said.
    let offline = [("HF_HOME", &*home), ("HF_ENDPOINT", &*endpoint), ("HF_HUB_OFFLINE", "1")];
    let gone = [("HF_HOME", &*home), ("HF_ENDPOINT", "http://127.0.0.1:9"), ("HF_TOKEN", TOKEN)];
    for (name, variables) in [("offline", offline), ("gone", gone)] {
        let mut command = with(teacher("org/teacher"), &variables);
        let server = Teacher::serve(command.args(["--revision", "v1"]));
        let again = train(&server.url(), &student, TRAIN_FILE, &out(name));
        let said = succeeds(with(again, &variables));
        assert!(!said.contains("downloading"), "{name}: {said}");
        assert_eq!(said.contains("127.0.0.1:9"), name == "gone", "{name}: {said}");
        assert!(weights(name) == weights("hub"), "{name}: another model");
    }
    assert!(hub.requests().is_empty(), "asked although HF_HUB_OFFLINE forbids it");
}

#[test]
fn a_wrong_token_a_wrong_revision_and_an_empty_cache_are_refused_by_name() {
    let hub = hub();
    let desk = tempfile::tempdir().expect("a folder");
    let (cache, endpoint) = (text(&desk.path().join("cache")), hub.endpoint());
    let home = text(&desk.path().join("home"));
    // HF_HUB_CACHE goes before HF_HOME.
    let place = [("HF_HUB_CACHE", &*cache), ("HF_HOME", &*home), ("HF_ENDPOINT", &*endpoint)];
    let and = |name, value| [&place[..], &[(name, value)]].concat();
    let out = desk.path().join("out");
    let programs = |student: &str, variables: &[(&str, &str)]| {
        let rows = desk.path().join("rows.jsonl");
        std::fs::write(&rows, ROW).expect("rows");
        let flags = ["--student", student, "--alpha", "0"];
        let train = train("grpc://127.0.0.1:9", &flags, &text(&rows), &out);
        [with(teacher(student), variables), with(train, variables)]
    };
    for program in programs("org/student", &and("HF_TOKEN", "hf_wrong")) {
        let said = fails(program, &["org/student", "gated", "HF_TOKEN", "does not give access"]);
        assert!(!said.contains("hf_wrong"), "the token is told: {said}");
    }
    for program in programs("org/student", &place) {
        fails(program, &["org/student", "no token was sent", "HF_TOKEN"]);
    }
    let [mut unpinned, _] = programs("org/teacher", &place);
    unpinned.args(["--revision", "v9"]);
    fails(unpinned, &["org/teacher", "no revision \"v9\"", &endpoint]);
    assert!(!Path::new(&home).exists(), "HF_HUB_CACHE was set, HF_HOME used");
    hub.requests();
    let missing = ["org/teacher", "HF_HUB_OFFLINE", &cache, "the whole repository"];
    for program in programs("org/teacher", &and("HF_HUB_OFFLINE", "1")) {
        fails(program, &missing);
    }
    let student = ["--student", &text(&demo("student")), "--alpha", "0"];
    let rows = train("grpc://127.0.0.1:9", &student, TRAIN_FILE, &out);
    fails(with(rows, &and("HF_HUB_OFFLINE", "1")), &["org/rows", "HF_HUB_OFFLINE", &cache]);
    assert!(hub.requests().is_empty(), "asked although HF_HUB_OFFLINE forbids it");
    assert!(!out.join("model.safetensors").exists(), "a model was left behind");
}

#[test]
fn pythons_hub_library_finds_what_the_trainer_fetched() {
    let test = "pythons_hub_library_finds_what_the_trainer_fetched";
    let Some(python) = python(&["huggingface_hub"], test) else { return };
    let hub = hub();
    let desk = tempfile::tempdir().expect("a folder");
    let (home, endpoint) = (text(&desk.path().join("home")), hub.endpoint());
    let online = [("HF_HOME", &*home), ("HF_ENDPOINT", &*endpoint), ("HF_TOKEN", TOKEN)];
    let rows = "hf://datasets/org/rows@v1/test";
    let flags = ["eval", "--model", "org/student", "--revision", "v1", "--eval-file", rows];
    succeeds(with(trainer(&flags), &online));
    // The library finds the cache by HF_HOME, as we did, and may not ask.
    let script = with(python.script("read_cache.py"), &[("HF_HOME", &home)]);
    let output = run(&mut { script });
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(found["warnings"], serde_json::json!([]), "{found}");
    let wanted = [
        ("model org/student", demo("student"), &MODEL_FILES[..]),
        ("dataset org/rows", desk.path().to_owned(), &["test.jsonl"]),
    ];
    std::fs::write(desk.path().join("test.jsonl"), ROW.repeat(2)).expect("rows");
    assert_eq!(found["repositories"].as_object().map(serde_json::Map::len), Some(wanted.len()));
    for (repository, source, files) in wanted {
        let repository = &found["repositories"][repository];
        assert_eq!(repository["revisions"], serde_json::json!({ COMMIT: ["v1"] }), "{found}");
        let paths = repository["files"].as_object().expect("files");
        assert_eq!(paths.keys().map(String::as_str).collect::<Vec<_>>(), files);
        for (name, path) in paths {
            let theirs = std::fs::read(path.as_str().expect("a path")).expect("a cached file");
            assert!(theirs == std::fs::read(source.join(name)).expect(name), "{name} differs");
        }
    }
}
