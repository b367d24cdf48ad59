//! Datasets of the hub: which files are which split's.

use super::*;

fn guanaco() -> Hosted {
    Hosted {
        id: "timdettmers/openassistant-guanaco".to_owned(),
        dataset: true,
        commit: COMMIT.to_owned(),
        files: files(&[
            (".gitattributes", b"x"),
            ("README.md", b"x"),
            ("openassistant_best_replies_train.jsonl", b"{\"text\": \"a\"}\n"),
            ("openassistant_best_replies_eval.jsonl", b"{\"text\": \"b\"}\n"),
        ]),
        ..Hosted::default()
    }
}

#[test]
fn a_dataset_of_the_hub_is_its_splits_files() {
    let hub = StandIn::start(vec![guanaco()]);
    let cache = tempfile::tempdir().unwrap();
    let settings = hub.settings(cache.path(), None);
    let spec = "hf://datasets/timdettmers/openassistant-guanaco";
    let train = resolve_dataset(spec, &settings).unwrap();
    assert_eq!(std::fs::read(&train[0]).unwrap(), b"{\"text\": \"a\"}\n");
    let root = cache.path().join("datasets--timdettmers--openassistant-guanaco/snapshots");
    assert_eq!(train, [root.join(COMMIT).join("openassistant_best_replies_train.jsonl")]);
    let eval = resolve_dataset(&format!("{spec}@{COMMIT}/test"), &settings).unwrap();
    assert_eq!(std::fs::read(&eval[0]).unwrap(), b"{\"text\": \"b\"}\n");
    let message = resolve_dataset(&format!("{spec}/dev"), &settings).unwrap_err().to_string();
    assert_says(&message, &["\"dev\"", "eval, train", "openassistant_best_replies_eval.jsonl"]);

    let offline = HubSettings { offline: Some("HF_HUB_OFFLINE"), ..settings };
    hub.requests();
    assert_eq!(resolve_dataset(spec, &offline).unwrap(), train);
    let message = resolve_dataset("hf://datasets/a/b", &offline).unwrap_err().to_string();
    assert_says(&message, &["a/b", "HF_HUB_OFFLINE"]);
    assert!(hub.requests().is_empty());
}
