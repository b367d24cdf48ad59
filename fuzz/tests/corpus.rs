//! The inputs that fuzzing kept, and those it begins with, tried again without libFuzzer.

use std::path::Path;

use fuzz::{TARGETS, Target};

/// The kept inputs of a target, with their names.
fn kept(target: &Target) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let read = |path: &Path| (path.display().to_string(), std::fs::read(path).expect("a file"));
    files.map(|file| read(&file.expect("an entry").path())).collect()
}

fn no_law_is_broken(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target");
    for (number, seed) in (target.seeds)().iter().enumerate() {
        assert!((target.run)(seed), "{name}: seed {number} is not accepted: {seed:?}");
    }
    let kept = kept(target);
    let accepted = kept.iter().filter(|(file, input)| {
        let tried = std::panic::catch_unwind(|| (target.run)(input));
        tried.unwrap_or_else(|_| panic!("{file} breaks a law (above)"))
    });
    let (accepted, all) = (accepted.count(), kept.len());
    // A corpus that is refused at the first byte shows nothing.
    assert!(all >= 30 && accepted >= 15, "{name}: {accepted} of {all} inputs are accepted");
}

#[test]
fn requests() {
    no_law_is_broken("request");
}

#[test]
fn replies() {
    no_law_is_broken("reply");
}

#[test]
fn packed_arrays() {
    no_law_is_broken("packed");
}

#[test]
fn compact_arrays() {
    no_law_is_broken("compact");
}

#[test]
fn states() {
    no_law_is_broken("states");
}

#[test]
fn bodies() {
    no_law_is_broken("bodies");
}

#[test]
fn every_target_has_its_program_and_its_corpus() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names = |inside: &str| {
        let files = std::fs::read_dir(folder.join(inside)).expect("a folder");
        let name = |path: &Path| path.file_stem().expect("a name").to_string_lossy().into_owned();
        let mut names: Vec<String> =
            files.map(|file| name(&file.expect("an entry").path())).collect();
        names.sort();
        names
    };
    let mut targets = TARGETS.map(|target| target.name);
    targets.sort();
    assert_eq!(names("targets"), targets);
    assert_eq!(names("corpus"), targets);
}
