//! Both images built and the compose file run to a trained model, wherever a Docker engine answers.
//!
//! Nothing is pulled: the base images come from `deploy/base-images.sh`, the sources of the
//! dependencies in them too: after a change of dependencies run it again.

use std::process::Command;

use tests::{root, run, skip};

const TEST: &str = "compose_trains_a_student_in_two_containers";

#[test]
fn compose_trains_a_student_in_two_containers() {
    let Some(compose) = compose() else { return };
    let project = Project { compose, name: format!("limbeck-test-{}", std::process::id()) };
    project.run(&["build"]);
    project.run(&["up", "--abort-on-container-exit", "--exit-code-from", "student"]);
    let kept = format!("{}_output:/output:ro", project.name);
    let listed = docker(&[
        "run",
        "--rm",
        "--volume",
        &kept,
        "--entrypoint",
        "cat",
        "limbeck/trainer",
        "/output/student/summary.json",
    ]);
    let summary: serde_json::Value = serde_json::from_str(&listed).expect("summary.json is JSON");
    let perplexity = |name: &str| summary[name].as_f64().unwrap_or_else(|| panic!("no {name}"));
    assert!(
        perplexity("student_perplexity_after") < perplexity("student_perplexity_before"),
        "the student did not improve: {listed}"
    );
    let model = docker(&[
        "run",
        "--rm",
        "--volume",
        &kept,
        "--entrypoint",
        "sh",
        "limbeck/trainer",
        "-c",
        "id -u; stat -c %s /output/student/model.safetensors",
    ]);
    let lines: Vec<&str> = model.lines().collect();
    assert_eq!(lines[0], "10001", "the trainer must not run as root");
    assert!(lines[1].parse::<u64>().expect("a size") > 100_000, "model.safetensors is too small");
}

/// The compose program, where the engine answers and the base images exist.
fn compose() -> Option<Vec<&'static str>> {
    let works = |words: &[&str]| {
        let output = Command::new(words[0]).args(&words[1..]).output();
        output.is_ok_and(|output| output.status.success())
    };
    if !works(&["docker", "info"]) {
        skip(TEST, "docker", "no Docker engine answers");
        return None;
    }
    for image in ["limbeck/base:local", "limbeck/rust:local"] {
        if !works(&["docker", "image", "inspect", image]) {
            let why = format!("there is no image {image}: run deploy/base-images.sh");
            skip(TEST, "docker", &why);
            return None;
        }
    }
    let programs = [vec!["docker", "compose"], vec!["docker-compose"]];
    let found = programs.into_iter().find(|words| works(&[words, &["version"][..]].concat()));
    if found.is_none() {
        skip(TEST, "docker", "neither `docker compose` nor `docker-compose` is installed");
    }
    found
}

fn docker(arguments: &[&str]) -> String {
    let output = run(Command::new("docker").args(arguments));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "docker {arguments:?}: {complaint}");
    String::from_utf8(output.stdout).expect("docker prints UTF-8")
}

/// A compose project of this test's own, taken down at the end whatever happens.
struct Project {
    compose: Vec<&'static str>,
    name: String,
}

impl Project {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.compose[0]);
        command
            .args(&self.compose[1..])
            .args(["--file", "deploy/compose.yaml", "--project-name", &self.name])
            .args(arguments)
            .current_dir(root())
            .env("BUILD_IMAGE", "limbeck/rust:local")
            .env("RUNTIME_IMAGE", "limbeck/base:local")
            .env("PROFILE", "quick");
        command
    }

    fn run(&self, arguments: &[&str]) {
        let output = run(&mut self.command(arguments));
        let said = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        let tail: Vec<&str> = said.lines().rev().take(60).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        assert!(output.status.success(), "compose {arguments:?} failed:\n{}", tail.join("\n"));
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        drop(self.command(&["down", "--volumes", "--timeout", "5"]).output());
    }
}
