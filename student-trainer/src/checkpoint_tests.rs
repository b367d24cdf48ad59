//! Checkpoints under damage and interruption.

use super::*;

fn save(root: &Path, step: u64, text: &str) -> PathBuf {
    write::<CheckpointError>(root, step, |dir| {
        at("write", dir, fs::write(dir.join("weights"), text))?;
        at("write", dir, fs::write(dir.join("state"), format!("state {step}")))
    })
    .unwrap()
}

#[test]
fn a_checkpoint_lists_its_files_with_their_hashes() {
    let root = tempfile::tempdir().unwrap();
    let dir = save(root.path(), 7, "abc");
    assert!(dir.ends_with("step-000007"));
    let manifest = verify(&dir).unwrap();
    assert_eq!(manifest.step, 7);
    let names: Vec<_> = manifest.files.iter().map(|f| (f.name.as_str(), f.bytes)).collect();
    assert_eq!(names, [("state", 7), ("weights", 3)]);
    // BLAKE3 of "abc", from the test vectors of its authors.
    let wanted = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
    assert_eq!(manifest.files[1].blake3, wanted);
}

#[test]
fn damage_of_every_kind_is_noticed_and_the_checkpoint_before_it_is_used() {
    type Harm = fn(&Path);
    let harms: [(Harm, &str); 5] = [
        (|d| fs::write(d.join("weights"), "abX").unwrap(), "BLAKE3"),
        (|d| fs::write(d.join("weights"), "ab").unwrap(), "length"),
        (|d| fs::remove_file(d.join("state")).unwrap(), "state"),
        (|d| fs::remove_file(d.join(MANIFEST)).unwrap(), "no manifest.json"),
        (|d| fs::write(d.join(MANIFEST), "{\"step\":").unwrap(), "damaged"),
    ];
    for (harm, word) in harms {
        let root = tempfile::tempdir().unwrap();
        save(root.path(), 5, "abc");
        let newer = save(root.path(), 10, "abc");
        harm(&newer);
        let (found, notes) = newest_valid(root.path()).unwrap();
        assert_eq!(found.unwrap().1.step, 5);
        assert!(notes.len() == 1 && notes[0].contains(word), "{notes:?} lacks {word}");
        assert!(notes[0].contains("step-000010"), "{notes:?}");
    }
}

#[test]
fn a_manifest_cannot_point_outside_its_directory() {
    let root = tempfile::tempdir().unwrap();
    let dir = save(root.path(), 1, "abc");
    let text = fs::read_to_string(dir.join(MANIFEST)).unwrap();
    fs::write(dir.join(MANIFEST), text.replace("\"weights\"", "\"../weights\"")).unwrap();
    assert!(matches!(verify(&dir), Err(CheckpointError::Unreadable { .. })));
}

#[test]
fn a_failed_save_leaves_nothing_visible_and_replaces_nothing() {
    let root = tempfile::tempdir().unwrap();
    save(root.path(), 3, "good");
    let failed = write::<CheckpointError>(root.path(), 3, |dir| {
        at("write", dir, fs::write(dir.join("weights"), "half"))?;
        at("write", dir, Err(io::Error::other("disk full")))
    });
    assert!(failed.unwrap_err().to_string().contains("disk full"));
    let (found, notes) = newest_valid(root.path()).unwrap();
    let weights = fs::read_to_string(found.unwrap().0.join("weights")).unwrap();
    assert_eq!((weights.as_str(), notes.len()), ("good", 0));
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
}

#[test]
fn pruning_keeps_the_newest_and_clears_what_was_interrupted() {
    let root = tempfile::tempdir().unwrap();
    for step in [1, 2, 30, 4] {
        save(root.path(), step, "abc");
    }
    fs::create_dir(root.path().join(".tmp-step-000031-99")).unwrap();
    prune(root.path(), 2).unwrap();
    let mut left: Vec<_> = fs::read_dir(root.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["step-000004", "step-000030"]);
    prune(root.path(), 0).unwrap();
    assert_eq!(list(root.path()).unwrap().len(), 1);
}

#[test]
fn a_folder_without_checkpoints_has_none() {
    let root = tempfile::tempdir().unwrap();
    assert_eq!(newest_valid(&root.path().join("absent")).unwrap(), (None, vec![]));
}
