//! `teacher-server calibrate`: the code of a model's hidden states, made from a text, kept and shown.

use std::path::Path;
use std::process::Command;
use std::str::FromStr as _;

use distill::coded::Rung;
use distill::fingerprint::Fingerprint;
use hub::tokenizer::Tokenizer;
use model::coding::Encoder;
use tests::{binary, root, run};

/// Runs `calibrate` on the demonstration's teacher; gives status, output and complaint.
fn calibrate(dir: &Path, data: &Path, more: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(binary("teacher-server"));
    command.arg("calibrate").arg("--model").arg(root().join("student-trainer/demo/teacher"));
    command.arg("--data").arg(data).arg("--calibration-dir").arg(dir).args(more);
    let output = run(&mut command);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let status = output.status.code().expect("no signal");
    (status, text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_code_is_made_kept_under_the_models_fingerprint_and_shown() {
    let dir = tempfile::tempdir().expect("a folder");
    let kept = dir.path().join("codes");
    let (status, shown, complaint) = calibrate(&kept, &root().join("docs/wire.md"), &[]);
    assert_eq!(status, 0, "{complaint}");
    let path = shown.lines().last().and_then(|line| line.rsplit(' ').next()).expect("a path");
    let name = Path::new(path).file_stem().and_then(|name| name.to_str()).expect("a name");
    let model = Fingerprint::from_str(name).expect("a fingerprint");
    let tokenizer = Tokenizer::load(&root().join("student-trainer/demo/teacher"));
    let tokenizer = Fingerprint(tokenizer.expect("a tokenizer").fingerprint());
    let encoder = Encoder::load(Path::new(path), [model, tokenizer]);
    let encoder = encoder.expect("a file").expect("a code");
    let code = encoder.code();
    assert_eq!((code.width(), code.directions(), code.model()), (128, 128, model));
    // Each line of the table is a step the code knows, at that price.
    let lines: Vec<&str> = shown.lines().skip(1).filter(|line| line.contains("2^(")).collect();
    assert!(lines.len() > 5, "{shown}");
    for line in lines {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let rung = fields[2].trim_start_matches("2^(").trim_end_matches("/16)");
        let rung = Rung(rung.parse().expect("a step"));
        let rate = code.rates().iter().find(|rate| rate.rung == rung).expect("a known step");
        assert_eq!(format!("{:.1}", rate.bytes), fields[0]);
    }
    // The same text makes the same code.
    let again = dir.path().join("again");
    assert_eq!(calibrate(&again, &root().join("docs/wire.md"), &[]).0, 0);
    let bytes =
        |dir: &Path| std::fs::read(dir.join(format!("{name}.calibration"))).expect("a file");
    assert!(bytes(&kept) == bytes(&again));

    // Another one takes its place, and it can be put back.
    let first = bytes(&kept);
    let (status, _, said) = calibrate(&kept, &root().join("docs/wire.md"), &["--tokens", "1536"]);
    assert_eq!(status, 0, "{said}");
    assert!(bytes(&kept) != first);
    let before = said.split_whitespace().find(|word| word.contains(".before")).expect("a path");
    assert!(std::fs::read(before.trim_end_matches(':')).expect("a file") == first);
}

#[test]
fn text_that_makes_no_code_is_refused_and_nothing_is_left() {
    let dir = tempfile::tempdir().expect("a folder");
    let kept = dir.path().join("codes");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path
    };
    let cases = [
        (file("short.txt", "Two and two are four. "), "at least 1536: give more text"),
        (file("same.txt", &"the ".repeat(20_000)), "different tokens"),
        (file("empty.jsonl", "{\"n\": 4}\n"), "the text has no token"),
        (file("broken.jsonl", "{\"a\": \"b\"}\n{\n{}\n"), "broken.jsonl line 2"),
        (dir.path().join("nowhere.txt"), "nowhere.txt"),
    ];
    for (data, piece) in cases {
        let (status, shown, complaint) = calibrate(&kept, &data, &[]);
        assert_eq!((status, shown.as_str()), (1, ""), "{complaint}");
        assert!(complaint.contains(piece) && !complaint.contains("panicked"), "{complaint}");
    }
    let (status, _, complaint) =
        calibrate(&kept, &root().join("docs/wire.md"), &["--tokens", "1535"]);
    assert!(status == 1 && complaint.contains("--tokens 1535: "), "{complaint}");
    assert!(!kept.exists());
}
