//! A run that is told to stop: its steps are kept, its exit status says that it is not done, and no
//! model stands there that could be taken for its result.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tests::{root, run, trainer};

/// A run of thousands of short steps in `out`.
fn long_run(rows: &Path, out: &Path, more: &[&str]) -> Command {
    let text = |path: &Path| path.display().to_string();
    let student = text(&root().join("student-trainer/demo/student"));
    let (rows, out) = (text(rows), text(out));
    let flags = ["train", "--alpha", "0", "--student", &student, "--train-file", &rows];
    let train = trainer(&[&flags[..], &["--output-dir", &out], more].concat());
    // Tests may run where SIGHUP is ignored (`nohup`), which a child would inherit.
    let mut command = Command::new("env");
    command.arg("--default-signal=HUP").arg(train.get_program()).args(train.get_args());
    command.args(["--max-steps", "100000", "--progress", "plain"]);
    command.env("CANDLE_NUM_THREADS", "1").stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

#[test]
fn a_signal_keeps_the_steps_and_gives_a_status_that_is_not_success() {
    let folder = tempfile::tempdir().expect("a folder");
    let rows = folder.path().join("rows.jsonl");
    std::fs::write(&rows, "{\"text\": \"Two and two are four.\"}\n".repeat(8)).expect("rows");
    let out = folder.path().join("out");
    // What an earlier run left would be taken for this one's result.
    std::fs::create_dir(&out).expect("a folder");
    for name in ["model.safetensors", "summary.json"] {
        std::fs::write(out.join(name), "of an earlier run").expect("a file");
    }
    for (signal, status, more) in [
        ("-TERM", 143, &["--overwrite-output-dir"][..]),
        ("-HUP", 129, &["--resume-from-checkpoint", "auto"]),
        ("-INT", 130, &["--resume-from-checkpoint", "auto"]),
    ] {
        let steps = || {
            std::fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default().lines().count()
        };
        let before = if signal == "-TERM" { 0 } else { steps() };
        let child = long_run(&rows, &out, more).spawn().expect("the trainer starts");
        let begin = Instant::now();
        while steps() <= before || !out.join("metrics.jsonl").exists() {
            assert!(begin.elapsed() < Duration::from_secs(120), "no step was taken");
            std::thread::sleep(Duration::from_millis(20));
        }
        let pid = child.id().to_string();
        assert!(run(Command::new("kill").args([signal, &pid])).status.success());
        let ended = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(status), "{signal}: {said}");
        assert!(said.contains("told to stop: finishing"), "{said}");
        assert!(said.contains("--resume-from-checkpoint auto"), "{said}");
        assert!(!out.join("model.safetensors").exists(), "a model that is not the result");
        let kept = std::fs::read_dir(out.join("checkpoints")).expect("checkpoints").count();
        assert!(kept >= 1, "no step was kept");
    }
}
