//! Models and datasets from folders and from a stand-in of the hub.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

#[path = "source_dataset_tests.rs"]
mod dataset;

use super::*;
use crate::testing::{Fault, Hosted, StandIn, write_tiny_tokenizer};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const NEXT: &str = "89abcdef0123456789abcdef0123456789abcdef";

fn weights() -> Vec<u8> {
    (0..300_000u32).map(|i| (i % 251) as u8).collect()
}

fn files(names: &[(&str, &[u8])]) -> BTreeMap<String, Vec<u8>> {
    names.iter().map(|(name, content)| ((*name).to_owned(), content.to_vec())).collect()
}

fn model() -> Hosted {
    Hosted {
        id: "org/tiny".to_owned(),
        commit: COMMIT.to_owned(),
        tags: vec!["v1".to_owned()],
        files: files(&[
            ("config.json", b"{}"),
            ("tokenizer.json", b"{\"version\": \"1.0\"}"),
            ("model.safetensors", &weights()),
            ("pytorch_model.bin", b"pickled"),
            ("README.md", b"read me"),
            ("onnx/model.onnx", b"other"),
        ]),
        ..Hosted::default()
    }
}

fn sharded() -> Hosted {
    let index = serde_json::json!({ "weight_map": {
        "a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors" } });
    let mut repo = model();
    repo.files.remove("model.safetensors");
    repo.files.extend(files(&[
        ("model.safetensors.index.json", index.to_string().as_bytes()),
        ("model-00001-of-00002.safetensors", b"one"),
        ("model-00002-of-00002.safetensors", b"two"),
        ("consolidated.safetensors", b"another copy"),
    ]));
    repo
}

fn error_of(spec: &str, revision: Option<&str>, settings: &HubSettings) -> String {
    resolve_model(spec, revision, settings).unwrap_err().to_string()
}

fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "\"{message}\" does not say \"{part}\"");
    }
}

fn has_incomplete(cache: &Path) -> bool {
    let blobs = cache.join("models--org--tiny/blobs");
    std::fs::read_dir(blobs)
        .unwrap()
        .any(|entry| entry.unwrap().file_name().to_string_lossy().ends_with(".incomplete"))
}

#[test]
fn a_directory_is_used_as_it_stands() {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_tokenizer(dir.path());
    let spec = dir.path().to_str().unwrap();
    let settings = HubSettings::from_vars(|_| None);
    assert_says(&error_of(spec, None, &settings), &["config.json", "tokenizer.json", spec]);
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    let found = resolve_model(spec, None, &settings).unwrap();
    let place = || dir.path().into();
    let wanted = ResolvedModel { dir: place(), weights: place(), id: spec.into(), revision: None };
    assert_eq!(found, wanted);
    assert_says(&error_of(spec, Some("v1"), &settings), &["v1", "directory"]);
    std::fs::write(dir.path().join("pytorch_model.bin"), "x").unwrap();
    assert_says(&error_of(spec, None, &settings), &["pytorch_model.bin", "safetensors"]);
    std::fs::write(dir.path().join("model.safetensors"), "x").unwrap();
    assert!(resolve_model(spec, None, &settings).is_ok());
}

#[test]
fn a_gguf_file_is_used_with_what_lies_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let settings = HubSettings::from_vars(|_| None);
    let file = |name: &str| dir.path().join(name);
    std::fs::write(file("a.gguf"), "x").unwrap();
    let (path, spec) = (file("a.gguf"), dir.path().to_str().unwrap());
    let named = path.to_str().unwrap();
    // Whether the file is named or the directory.
    for spec in [spec, named] {
        let said = error_of(spec, None, &settings);
        assert_says(&said, &["a.gguf", "config.json and tokenizer.json is missing", "unquantised"]);
    }
    std::fs::write(file("config.json"), "{}").unwrap();
    assert_says(&error_of(named, None, &settings), &["a.gguf", "and tokenizer.json is missing"]);
    write_tiny_tokenizer(dir.path());
    for spec in [spec, named] {
        let found = resolve_model(spec, None, &settings).unwrap();
        assert_eq!((found.dir, found.weights), (dir.path().into(), path.clone()));
        assert_eq!((found.id.as_str(), found.revision), (spec, None));
    }
    assert_says(&error_of(named, Some("v1"), &settings), &["v1", "leave it out"]);
    std::fs::write(file("b.gguf"), "x").unwrap();
    assert_says(&error_of(spec, None, &settings), &["name the one", "a.gguf, b.gguf"]);
    assert_eq!(resolve_model(named, None, &settings).unwrap().weights, path);
    std::fs::rename(file("b.gguf"), file("B.GGUF")).unwrap();
    assert_says(&error_of(spec, None, &settings), &["name the one", "B.GGUF, a.gguf"]);
    let capitals = file("B.GGUF");
    let found = resolve_model(capitals.to_str().unwrap(), None, &settings).unwrap();
    assert_eq!(found.weights, capitals);
    // Safetensors beside them are what a directory means.
    std::fs::write(file("model.safetensors"), "x").unwrap();
    assert_eq!(resolve_model(spec, None, &settings).unwrap().weights, dir.path());
    let absent = file("c.gguf");
    assert_says(
        &error_of(absent.to_str().unwrap(), None, &settings),
        &["c.gguf", "not a directory"],
    );
}

#[test]
fn a_path_that_is_not_there_is_never_asked_of_the_hub() {
    let hub = StandIn::start(vec![]);
    let cache = tempfile::tempdir().unwrap();
    let settings = hub.settings(cache.path(), None);
    let paths = ["./models/x", "/models/x", "../x", "a/b/c", "a//b", "", "org/na me", "org/.x"];
    for path in paths {
        let message = error_of(path, None, &settings);
        assert_says(&message, &[&format!("\"{path}\""), "not a directory", "hub id"]);
    }
    assert!(hub.requests().is_empty());
}

#[test]
fn a_download_has_pythons_layout_and_only_what_is_needed() {
    let hub = StandIn::start(vec![model()]);
    let cache = tempfile::tempdir().unwrap();
    let settings = hub.settings(cache.path(), None);
    let found = resolve_model("org/tiny", None, &settings).unwrap();
    let root = cache.path().join("models--org--tiny");
    assert_eq!(found.revision.as_deref(), Some(COMMIT));
    assert_eq!(found.dir, root.join("snapshots").join(COMMIT));
    assert_eq!(std::fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(std::fs::read(found.dir.join("model.safetensors")).unwrap(), weights());
    let link = std::fs::read_link(found.dir.join("model.safetensors")).unwrap();
    let sha = link.file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(sha.len(), 64);
    assert_eq!(link, Path::new("../../blobs").join(&sha));
    let mut names: Vec<String> = std::fs::read_dir(&found.dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
    assert!(!has_incomplete(cache.path()));
    assert!(hub.requests().iter().all(|request| !request.contains("bin")));

    // Again: one question about the commit, none about a file.
    assert_eq!(resolve_model("org/tiny", None, &settings).unwrap(), found);
    assert_eq!(hub.requests(), ["GET /api/models/org/tiny/revision/main"]);
}

#[test]
fn revisions_are_pinned_and_share_blobs() {
    let hub = StandIn::start(vec![model()]);
    let cache = tempfile::tempdir().unwrap();
    let settings = hub.settings(cache.path(), None);
    let of = |revision| resolve_model("org/tiny", Some(revision), &settings);
    assert_eq!(of("v1").unwrap().revision.as_deref(), Some(COMMIT));
    let refs = cache.path().join("models--org--tiny/refs");
    assert_eq!(std::fs::read_to_string(refs.join("v1")).unwrap(), COMMIT);
    assert_eq!(of(COMMIT).unwrap().revision.as_deref(), Some(COMMIT));
    assert!(!refs.join(COMMIT).exists());
    assert_says(&of("v9").unwrap_err().to_string(), &["org/tiny", "\"v9\""]);
    assert_says(&of("../../x").unwrap_err().to_string(), &["../../x"]);

    let mut moved = model();
    moved.commit = NEXT.to_owned();
    moved.files.insert("config.json".to_owned(), b"{\"new\": 1}".to_vec());
    hub.host(vec![moved]);
    hub.requests();
    let new = resolve_model("org/tiny", None, &settings).unwrap();
    assert_eq!(new.revision.as_deref(), Some(NEXT));
    assert_eq!(std::fs::read(new.dir.join("config.json")).unwrap(), b"{\"new\": 1}");
    // The weights did not change: asked about, not sent again.
    assert!(!hub.requests().iter().any(|request| request.contains("storage")));
}

#[test]
fn shards_come_through_their_index() {
    let hub = StandIn::start(vec![sharded()]);
    let cache = tempfile::tempdir().unwrap();
    let settings = hub.settings(cache.path(), None);
    let found = resolve_model("org/tiny", None, &settings).unwrap();
    assert!(found.dir.join("model-00002-of-00002.safetensors").exists());
    assert!(!found.dir.join("consolidated.safetensors").exists());

    let targets = ["../../etc/passwd", "/etc/x.safetensors", "model.bin", "lost.safetensors"];
    for (i, target) in targets.into_iter().enumerate() {
        let mut bad = sharded();
        bad.commit = format!("{i}{}", &NEXT[1..]);
        let index = serde_json::json!({ "weight_map": { "a": target } }).to_string();
        bad.files.insert("model.safetensors.index.json".to_owned(), index.into_bytes());
        hub.host(vec![bad]);
        let message = error_of("org/tiny", None, &settings);
        assert_says(&message, &["model.safetensors.index.json", target]);
    }
}

#[test]
fn weights_that_run_code_are_refused_by_name() {
    let mut pickled = model();
    pickled.files.remove("model.safetensors");
    let hub = StandIn::start(vec![pickled]);
    let cache = tempfile::tempdir().unwrap();
    let message = error_of("org/tiny", None, &hub.settings(cache.path(), None));
    assert_says(&message, &["org/tiny", "pytorch_model.bin", "pickle", "safetensors"]);
    assert_eq!(hub.requests().len(), 1);
}

#[test]
fn offline_reads_the_cache_only_and_names_the_variable_and_what_is_missing() {
    let hub = StandIn::start(vec![model()]);
    let cache = tempfile::tempdir().unwrap();
    let online = hub.settings(cache.path(), None);
    let offline = HubSettings { offline: Some("TRANSFORMERS_OFFLINE"), ..online.clone() };
    let message = error_of("org/tiny", None, &offline);
    assert_says(&message, &["org/tiny", "main", "TRANSFORMERS_OFFLINE", "whole repository"]);
    let found = resolve_model("org/tiny", None, &online).unwrap();
    hub.requests();
    assert_eq!(resolve_model("org/tiny", None, &offline).unwrap(), found);
    assert_eq!(resolve_model("org/tiny", Some(COMMIT), &offline).unwrap(), found);
    assert_says(&error_of("org/tiny", Some("v1"), &offline), &["v1"]);
    std::fs::remove_file(found.dir.join("model.safetensors")).unwrap();
    assert_says(&error_of("org/tiny", None, &offline), &["model.safetensors is missing"]);
    assert!(hub.requests().is_empty());
}

#[test]
fn a_hub_that_does_not_answer_leaves_the_cache_or_a_clear_error() {
    let hub = StandIn::start(vec![model()]);
    let cache = tempfile::tempdir().unwrap();
    let mut settings = hub.settings(cache.path(), None);
    let found = resolve_model("org/tiny", None, &settings).unwrap();

    settings.endpoint = "http://127.0.0.1:9".to_owned();
    assert_eq!(resolve_model("org/tiny", None, &settings).unwrap(), found);
    assert_says(&error_of("org/none", None, &settings), &["http://127.0.0.1:9", "HF_ENDPOINT"]);
    settings.endpoint = "http://no-such-host.invalid".to_owned();
    assert_says(&error_of("org/none", None, &settings), &["no-such-host.invalid"]);
    settings.endpoint = "not an address".to_owned();
    assert_says(&error_of("org/none", None, &settings), &["not an address", "HF_ENDPOINT"]);

    settings.endpoint = hub.endpoint();
    settings.answer_timeout = Duration::from_millis(200);
    hub.set_fault(Some(Fault::Silent));
    let message = error_of("org/none", None, &settings);
    assert_says(&message, &["0.2 s", "HF_HUB_ETAG_TIMEOUT", &hub.endpoint()]);
}

#[test]
fn refusals_say_what_to_do_and_never_the_token() {
    let gated = Hosted { gated: Some("hf_right".to_owned()), ..model() };
    let hub = StandIn::start(vec![gated]);
    let cache = tempfile::tempdir().unwrap();
    let page = format!("{}/org/tiny", hub.endpoint());
    let without = hub.settings(cache.path(), None);
    assert_says(&error_of("org/tiny", None, &without), &["gated", &page, "HF_TOKEN"]);
    assert_says(&error_of("org/none", None, &without), &["org/none", "private", "HF_TOKEN"]);
    let wrong = hub.settings(cache.path(), Some("hf_wrong"));
    let error = resolve_model("org/tiny", None, &wrong).unwrap_err();
    assert_says(&error.to_string(), &["403", &page, "does not give access"]);
    assert!(!format!("{error} {error:?} {wrong:?}").contains("hf_wrong"));
    assert_says(&error_of("org/none", None, &wrong), &["404", "org/none"]);

    hub.requests();
    let right = hub.settings(cache.path(), Some("hf_right"));
    resolve_model("org/tiny", None, &right).unwrap();
    let (storage, own): (Vec<_>, Vec<_>) =
        hub.requests().into_iter().partition(|request| request.contains("/storage/"));
    assert!(own.iter().all(|request| request.ends_with(" token")), "{own:?}");
    assert_eq!(storage.len(), 1);
    assert!(!storage[0].contains("token"), "{storage:?}");
}

#[test]
fn a_broken_download_goes_on_where_it_broke_off() {
    let hub = StandIn::start(vec![model()]);
    let cache = tempfile::tempdir().unwrap();
    let settings = hub.settings(cache.path(), None);
    hub.set_fault(Some(Fault::Cut { times: 2, after: 100_000 }));
    let found = resolve_model("org/tiny", None, &settings).unwrap();
    assert_eq!(std::fs::read(found.dir.join("model.safetensors")).unwrap(), weights());
    let storage: Vec<String> =
        hub.requests().into_iter().filter(|request| request.contains("storage")).collect();
    let ranges: Vec<&str> = storage.iter().filter_map(|r| r.split(" range=").nth(1)).collect();
    assert!(ranges.contains(&"100000"), "{storage:?}");
}

#[test]
fn a_download_given_up_leaves_no_file_under_its_name_and_resumes_in_the_next_run() {
    let hub = StandIn::start(vec![model()]);
    let cache = tempfile::tempdir().unwrap();
    let settings = hub.settings(cache.path(), None);
    hub.set_fault(Some(Fault::Cut { times: u32::MAX, after: 0 }));
    assert_says(&error_of("org/tiny", None, &settings), &["broke off at 0 of", "again"]);
    hub.set_fault(None);
    resolve_model("org/tiny", None, &settings).unwrap();

    // A part a killed run left, of the real beginning.
    let blobs = cache.path().join("models--org--tiny/blobs");
    let weights_blob = std::fs::read_dir(&blobs)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.file_name().unwrap().len() == 64)
        .unwrap();
    std::fs::remove_file(&weights_blob).unwrap();
    let part = blobs.join(format!("{}.incomplete", weights_blob.file_name().unwrap().display()));
    std::fs::write(&part, &weights()[..123_456]).unwrap();
    hub.requests();
    let found = resolve_model("org/tiny", None, &settings).unwrap();
    assert_eq!(std::fs::read(found.dir.join("model.safetensors")).unwrap(), weights());
    assert!(hub.requests().iter().any(|request| request.contains("range=123456")));
    assert!(!has_incomplete(cache.path()));
}

#[test]
fn a_mirror_without_ranges_sends_everything_again() {
    let hub = StandIn::start(vec![model()]);
    let cache = tempfile::tempdir().unwrap();
    let settings = hub.settings(cache.path(), None);
    let blobs = cache.path().join("models--org--tiny/blobs");
    resolve_model("org/tiny", None, &settings).unwrap();
    let blob = std::fs::canonicalize(
        cache.path().join("models--org--tiny/snapshots").join(COMMIT).join("model.safetensors"),
    );
    let blob = blob.unwrap();
    std::fs::rename(&blob, blobs.join("old")).unwrap();
    let part = blob.with_extension("incomplete");
    std::fs::write(&part, b"something else").unwrap();
    hub.set_fault(Some(Fault::NoRanges));
    let found = resolve_model("org/tiny", None, &settings).unwrap();
    assert_eq!(std::fs::read(found.dir.join("model.safetensors")).unwrap(), weights());
}

#[test]
fn damaged_content_is_thrown_away() {
    let hub = StandIn::start(vec![model()]);
    let cache = tempfile::tempdir().unwrap();
    let settings = hub.settings(cache.path(), None);
    hub.set_fault(Some(Fault::Flip));
    let message = error_of("org/tiny", None, &settings);
    assert_says(&message, &["model.safetensors", "SHA-256", "damaged"]);
    assert!(!has_incomplete(cache.path()));
    hub.set_fault(None);
    let found = resolve_model("org/tiny", None, &settings).unwrap();
    assert_eq!(std::fs::read(found.dir.join("model.safetensors")).unwrap(), weights());
}

#[test]
fn an_overloaded_hub_is_asked_again() {
    let hub = StandIn::start(vec![model()]);
    let cache = tempfile::tempdir().unwrap();
    let settings = hub.settings(cache.path(), None);
    hub.set_fault(Some(Fault::Status { times: 2, status: 503 }));
    assert!(resolve_model("org/tiny", None, &settings).is_ok());
    hub.set_fault(Some(Fault::Status { times: u32::MAX, status: 503 }));
    assert_says(&error_of("org/other", None, &settings), &["503", "/api/models/org/other"]);
    hub.set_fault(Some(Fault::Status { times: u32::MAX, status: 418 }));
    assert_says(&error_of("org/other", None, &settings), &["418"]);
}

#[test]
fn hostile_names_never_leave_the_cache() {
    for name in ["../../../evil.safetensors", "/evil.safetensors", "a/../../evil.safetensors"] {
        let mut hostile = model();
        hostile.files.insert(name.to_owned(), b"x".to_vec());
        let hub = StandIn::start(vec![hostile]);
        let cache = tempfile::tempdir().unwrap();
        let message = error_of("org/tiny", None, &hub.settings(cache.path(), None));
        assert_says(&message, &[name, "not answer as a hub"]);
    }
}
