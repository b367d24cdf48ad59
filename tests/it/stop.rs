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

/// Who waits for a teacher or a store that is silent has no step to keep, and was stopped all the same.
#[test]
fn a_signal_before_the_first_step_gives_its_status() {
    let folder = tempfile::tempdir().expect("a folder");
    let rows = folder.path().join("rows.jsonl");
    std::fs::write(&rows, "{\"text\": \"Two and two are four.\"}\n".repeat(8)).expect("rows");
    let student = root().join("student-trainer/demo/student").display().to_string();
    let (rows, out) = (rows.display().to_string(), folder.path().join("out").display().to_string());
    let flags = ["train", "--student", &student, "--train-file", &rows, "--output-dir", &out];
    for more in [&[][..], &["--cache", "s3://bucket/place"]] {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let host = silent.local_addr().expect("an address").to_string();
        let teacher = ["--teacher", &format!("grpc://{host}")];
        let mut train = trainer(&[&flags[..], &teacher, more].concat());
        train.env("AWS_ENDPOINT", format!("http://{host}")).env("AWS_ALLOW_HTTP", "true");
        train.envs(["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].map(|name| (name, "any")));
        train.env("XDG_CACHE_HOME", folder.path()).stderr(Stdio::piped());
        let mut child = train.spawn().expect("the trainer starts");
        // Somebody has knocked: what comes before it is done.
        let (_held, _) = silent.accept().expect("a connection");
        let pid = child.id().to_string();
        assert!(run(Command::new("kill").args(["-INT", &pid])).status.success());
        let begin = Instant::now();
        while child.try_wait().expect("a child").is_none() {
            if begin.elapsed() > Duration::from_secs(60) {
                child.kill().expect("it can be killed");
                panic!("{more:?}: it waits on");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let ended = child.wait_with_output().expect("it has ended");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(130), "{more:?}: {said}");
    }
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
