//! A long run takes no more memory at its end than at its beginning, on either side.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use tests::{Teacher, root, trainer};

/// Steps after which all that is kept is there: answers, pages, pools.
const SETTLED: usize = 300;
/// Steps over which nothing may be added.
const STEPS: usize = 1000;
/// Of processes of 20 MB a hundredth is some fifty pages, which the allocator's arenas alone may take; a
/// single row's answer left behind at each step would be some MB.
const SLACK_KB: f64 = 512.0;
/// An arena that is opened late, as on a busy machine, is there once; a leak is there every time.
const WINDOWS: usize = 3;

/// The trainer, which ends with the value whatever becomes of the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Resident memory of a process, kB: the least of some moments, since a checkpoint on its way to the
/// disk takes some for a while.
fn resident_kb(pid: u32) -> f64 {
    let moment = |_| {
        std::thread::sleep(Duration::from_millis(20));
        resident_now_kb(pid)
    };
    (0..25).map(moment).fold(f64::INFINITY, f64::min)
}

fn resident_now_kb(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Waits until the run has done so many steps.
fn wait_for(steps: usize, metrics: &Path) {
    let begin = Instant::now();
    let done = || std::fs::read_to_string(metrics).unwrap_or_default().lines().count();
    while done() < steps {
        assert!(begin.elapsed() < Duration::from_secs(300), "{} of {steps} steps", done());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn memory_does_not_grow_over_a_thousand_steps() {
    let folder = tempfile::tempdir().expect("a folder");
    let models = root().join("student-trainer/demo");
    let rows = folder.path().join("rows.jsonl");
    let row =
        |n: usize| format!("{{\"text\": \"{n} and {n} are {}, or so it is said.\"}}\n", 2 * n);
    std::fs::write(&rows, (0..64).map(row).collect::<String>()).expect("rows");
    let teacher = Teacher::start(&models.join("teacher"), &[]);
    let text = |path: &Path| path.display().to_string();
    let out = folder.path().join("out");
    // Nothing is kept of the teacher's answers, so that it works to the end; no step is the last.
    let child = trainer(&[
        "train",
        "--teacher",
        &teacher.url(),
        "--student",
        &text(&models.join("student")),
        "--train-file",
        &text(&rows),
        "--output-dir",
        &text(&out),
        "--max-steps",
        "1000000",
        "--save-steps",
        "100",
        "--teacher-memory",
        "0",
        "--progress",
        "none",
    ])
    .stderr(Stdio::null())
    .spawn()
    .map(Running)
    .expect("the trainer starts");
    let metrics = out.join("metrics.jsonl");
    let resident = || [resident_kb(child.0.id()), resident_kb(teacher.pid())];
    wait_for(SETTLED, &metrics);
    let mut seen = vec![resident()];
    for window in 1..=WINDOWS {
        wait_for(SETTLED + window * STEPS, &metrics);
        seen.push(resident());
        let level = |who: usize| seen[window][who] <= 1.01 * seen[window - 1][who] + SLACK_KB;
        if level(0) && level(1) {
            return;
        }
    }
    panic!("trainer and teacher grow over every {STEPS} steps, kB: {seen:?}");
}
