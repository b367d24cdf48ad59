//! Which files are a split.

use super::*;

fn spec(text: &str) -> (String, String, String) {
    let Spec { id, revision, split } = Spec::parse(text).unwrap();
    (id, revision, split)
}

fn chosen(split: &str, names: &[&str]) -> Vec<String> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    choose("o/n", split, &names).unwrap()
}

fn refused(split: &str, names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    choose("o/n", split, &names).unwrap_err().to_string()
}

#[test]
fn names_are_taken_apart() {
    let parts = |id: &str, revision: &str, split: &str| (id.into(), revision.into(), split.into());
    assert_eq!(spec("hf://datasets/o/n"), parts("o/n", "main", "train"));
    assert_eq!(spec("hf://datasets/o/n/"), parts("o/n", "main", "train"));
    assert_eq!(spec("hf://datasets/squad"), parts("squad", "main", "train"));
    assert_eq!(spec("hf://datasets/squad@v1/test"), parts("squad", "v1", "test"));
    assert_eq!(spec("hf://datasets/o/n@v1"), parts("o/n", "v1", "train"));
    assert_eq!(spec("hf://datasets/o/n/test"), parts("o/n", "main", "test"));
    assert_eq!(spec("hf://datasets/o/n@ab12/main/test"), parts("o/n", "ab12", "main/test"));
    let converted = spec("hf://datasets/o/n@refs/convert/parquet/train");
    assert_eq!(converted, parts("o/n", "refs/convert/parquet", "train"));
    for bad in ["hf://models/o/n", "hf://datasets/", "hf://datasets/o//n", "hf://datasets/a/b/c@v"]
    {
        assert!(Spec::parse(bad).unwrap_err().to_string().contains(bad), "{bad}");
    }
}

#[test]
fn shards_folders_and_single_files_tell_the_split() {
    let shards = [
        "data/train-00001-of-00002.parquet",
        "data/train-00000-of-00002.parquet",
        "data/test-00000-of-00001.parquet",
        "README.md",
    ];
    assert_eq!(
        chosen("train", &shards),
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]
    );
    assert_eq!(chosen("test", &shards), ["data/test-00000-of-00001.parquet"]);
    assert_eq!(chosen("dev", &["train.jsonl", "validation.jsonl.gz"]), ["validation.jsonl.gz"]);
    assert_eq!(chosen("train", &["train/a.jsonl", "test/a.jsonl"]), ["train/a.jsonl"]);
    assert_eq!(chosen("train", &["b.jsonl", "a.jsonl"]), ["a.jsonl", "b.jsonl"]);
    let sft = ["data/train_sft-0-of-1.parquet", "data/train_gen-0-of-1.parquet"];
    assert_eq!(chosen("train_sft", &sft), ["data/train_sft-0-of-1.parquet"]);
    let message = refused("train", &sft);
    assert!(message.contains("train_gen, train_sft"), "{message}");
    assert_eq!(chosen("train", &["train_data.jsonl", "test_data.jsonl"]), ["train_data.jsonl"]);
    assert_eq!(chosen("easy", &["data/easy-0.jsonl", "data/hard-0.jsonl"]), ["data/easy-0.jsonl"]);
    assert_eq!(chosen("extra/odd.json", &["extra/odd.json", "train.jsonl"]), ["extra/odd.json"]);
    assert_eq!(chosen("train", &["train.jsonl", "train.parquet"]), ["train.parquet"]);
    let described = ["train.json", "dataset_infos.json", ".train.jsonl"];
    assert_eq!(chosen("train", &described), ["train.json"]);
}

#[test]
fn subsets_are_asked_for_by_name() {
    let names = ["main/train-0.parquet", "main/test-0.parquet", "socratic/train-0.parquet"];
    assert_eq!(chosen("main/train", &names), ["main/train-0.parquet"]);
    assert_eq!(chosen("test", &names), ["main/test-0.parquet"]);
    let message = refused("train", &names);
    assert!(message.contains("main/train, socratic/train"), "{message}");
    let message = refused("main/validation", &names);
    assert!(message.contains("main/test, main/train, socratic/train"), "{message}");
}

#[test]
fn a_split_that_is_not_there_is_answered_with_what_is() {
    let message = refused("train", &["test.jsonl", "README.md"]);
    assert!(message.contains("\"train\", but test; its data files are test.jsonl"), "{message}");
    let message = refused("train", &["README.md"]);
    assert!(message.contains("its data files are none"), "{message}");
}
