//! The demonstration, as a newcomer runs it.

use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::{binary, run, trainer};

#[test]
fn distillation_wins_in_the_demonstration_and_the_report_stands_alone() {
    // Beside the trainer, where the demonstration looks for it when cargo does not run it.
    binary("teacher-server");
    let folder = tempfile::tempdir().expect("a folder");
    let output_dir = folder.path().display().to_string();
    let mut demo = trainer(&["demo", "--output-dir", &output_dir]);
    let output = run(demo.env_remove("CARGO").env_remove("CARGO_MANIFEST_DIR"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "demo ended with {}:\n{complaint}", output.status);
    let printed = String::from_utf8(output.stdout).expect("UTF-8");
    for word in ["teacher", "student before", "plain", "distilled"] {
        assert!(printed.to_lowercase().contains(word), "no {word:?} in the table:\n{printed}");
    }
    let summary = std::fs::read_to_string(folder.path().join("summary.json")).expect("summary");
    let summary: Value = serde_json::from_str(&summary).expect("JSON");
    assert_eq!(summary["seeds"], 3);
    assert_eq!((&summary["perplexity_wins"], &summary["agreement_wins"]), (&3.into(), &3.into()));
    let report = std::fs::read_to_string(folder.path().join("report.html")).expect("report.html");
    assert!(report.contains("<svg"), "no curves in the report");
    for outside in ["<script", "src=", "href=\"http", "url("] {
        assert!(!report.contains(outside), "the report reaches outside: {outside}");
    }
}

#[test]
fn the_teacher_of_a_demonstration_that_was_killed_ends_too() {
    binary("teacher-server");
    let folder = tempfile::tempdir().expect("a folder");
    let output_dir = folder.path().display().to_string();
    let mut demo = trainer(&["demo", "--progress", "plain", "--output-dir", &output_dir]);
    let demo = demo.env_remove("CARGO").env_remove("CARGO_MANIFEST_DIR").stderr(Stdio::piped());
    let mut child = demo.stdout(Stdio::null()).spawn().expect("the demonstration starts");
    let said = BufReader::new(child.stderr.take().expect("stderr is piped"));
    let address = said.lines().map_while(Result::ok).find_map(|line| {
        Some(line.split_once("teacher-server answers at grpc://")?.1.trim().to_owned())
    });
    let address = address.expect("the demonstration says where its teacher answers");
    TcpStream::connect(&address).expect("the teacher listens");
    // SIGKILL: nothing of the demonstration's own runs any more.
    child.kill().expect("killed");
    child.wait().expect("ended");
    let begin = Instant::now();
    while TcpStream::connect(&address).is_ok() {
        assert!(begin.elapsed() < Duration::from_secs(30), "{address} still answers");
        std::thread::sleep(Duration::from_millis(50));
    }
}
