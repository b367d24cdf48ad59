//! Properties of the repository itself: floors, file and function sizes, opening words, comments
//! in the contract. Each rule prints every place that breaks it, with the remedy.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::run::{cargo, read, root, say};

const FILE_LINES: usize = 400;
const FUNCTION_LINES: usize = 70;

/// What each crate of the workspace may import of the workspace (docs/architecture.md, Floors).
const FLOORS: &[(&str, &[&str])] = &[
    ("distill", &[]),
    // Its own tests turn its emulation on.
    ("kernels", &["kernels"]),
    ("proto", &["distill"]),
    ("model", &["distill", "kernels"]),
    ("hub", &["distill"]),
    ("client", &["distill", "proto"]),
    ("teacher-server", &["distill", "proto", "model", "hub"]),
    ("student-trainer", &["distill", "proto", "model", "hub", "client"]),
    ("tests", &["distill", "proto", "model", "hub", "client", "teacher-server", "student-trainer"]),
    ("fuzz", &["distill", "proto", "teacher-server"]),
    ("test-support", &[]),
    ("xtask", &[]),
];

/// Imported by the tests of every crate (and by `tests`, which is nothing else), by no program.
const FOR_TESTS: &str = "test-support";

/// Packages that must not stand anywhere below `distill`.
const FORBIDDEN_IN_DISTILL: &[&str] = &["tokio", "tonic", "candle-core"];

/// Words that must not stand in its sources, tests apart.
const MACHINE: &[&str] = &[
    "std::fs",
    "std::net",
    "std::env",
    "std::process",
    "Instant::now",
    "SystemTime",
    "rand::rng",
    "rand::random",
    "from_os_rng",
];

/// Runs every rule; an error that counts the findings.
pub(crate) fn check() -> Result<()> {
    let mut findings = Vec::new();
    floors(&mut findings)?;
    one_build(&mut findings)?;
    let sources = sources()?;
    for (path, text) in &sources {
        opening(path, text, &mut findings);
        if !is_test(path) {
            sizes(path, text, &mut findings);
            if path.starts_with("distill/src/") {
                machine(path, text, &mut findings);
            }
        }
    }
    contract(&mut findings)?;
    for finding in &findings {
        say(format!("tidy: {finding}"));
    }
    ensure!(findings.is_empty(), "tidy found {} faults", findings.len());
    say(format!("tidy: {} source files in order", sources.len()));
    Ok(())
}

/// Workspace imports point down only, and floor 0 stays free of the machine.
fn floors(findings: &mut Vec<String>) -> Result<()> {
    let text = read(cargo().args(["metadata", "--format-version", "1", "--no-deps", "--locked"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&text)?;
    let allowed: BTreeMap<_, _> = FLOORS.iter().copied().collect();
    for package in metadata["packages"].as_array().context("no packages in cargo metadata")? {
        let name = package["name"].as_str().context("a package without a name")?;
        let Some(allowed) = allowed.get(name) else {
            findings.push(format!("{name}: a new crate needs its floor in xtask/src/tidy.rs"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let import = dependency["name"].as_str().unwrap_or_default();
            if import == FOR_TESTS && (dependency["kind"] == "dev" || name == "tests") {
                continue;
            }
            let ours = FLOORS.iter().any(|(name, _)| *name == import);
            if ours && !allowed.contains(&import) {
                findings.push(format!("{name} imports {import}: imports point down a floor only"));
            }
        }
    }
    let tree = read(cargo().args(["tree", "--locked", "-p", "distill", "-e", "normal"]))?;
    for forbidden in FORBIDDEN_IN_DISTILL {
        if tree.contains(&format!("{forbidden} v")) {
            findings.push(format!("distill depends on {forbidden}: floor 0 knows no machine"));
        }
    }
    Ok(())
}

/// Dependencies are compiled once for the trainer (which a newcomer builds first), for all programs and for their tests:
/// none is given more features by one of these than by another.
fn one_build(findings: &mut Vec<String>) -> Result<()> {
    let built = |words: &[&str]| -> Result<BTreeSet<String>> {
        let tree = ["tree", "--locked", "--prefix", "none", "--format", "{p} {f}"];
        let tree = read(cargo().args(tree).args(words))?;
        let lines = tree.lines().map(|line| line.trim_end_matches(" (*)"));
        // What stands behind its own folder is ours.
        Ok(lines.filter(|line| !line.contains("(/")).map(str::to_owned).collect())
    };
    let trainer = built(&["--package", "student-trainer", "--edges", "normal"])?;
    let programs = built(&["--workspace", "--edges", "normal"])?;
    let tests = built(&["--workspace", "--edges", "normal,dev"])?;
    for (few, all, whose) in
        [(&trainer, &programs, "all programs"), (&programs, &tests, "the tests")]
    {
        for other in few.difference(all) {
            findings.push(format!(
                "{other}: {whose} have it with more features, and compile it again: give them to it in one place"
            ));
        }
    }
    Ok(())
}

/// The Rust files git tracks or would track, with their text.
fn sources() -> Result<Vec<(String, String)>> {
    let mut git = Command::new("git");
    let args = ["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"];
    let listed = read(git.current_dir(root()).args(args))?;
    let mut files = Vec::new();
    for path in listed.lines().filter(|path| Path::new(&root().join(path)).exists()) {
        let text = std::fs::read_to_string(root().join(path)).with_context(|| path.to_owned())?;
        files.push((path.to_owned(), text));
    }
    ensure!(files.len() > 20, "git lists {} Rust files: run in the repository", files.len());
    Ok(files)
}

fn is_test(path: &str) -> bool {
    let tested =
        path.starts_with("tests/") || path.contains("/tests/") || path.contains("/benches/");
    tested || path.ends_with("_tests.rs") || path.ends_with("/tests.rs")
}

fn opening(path: &str, text: &str, findings: &mut Vec<String>) {
    if !text.starts_with("//!") {
        findings.push(format!("{path}: open the file by saying what it is for (//!)"));
    }
}

/// Length of the file without its inline tests, and of each function.
fn sizes(path: &str, text: &str, findings: &mut Vec<String>) {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    let lines: Vec<&str> = code.lines().collect();
    if lines.len() > FILE_LINES {
        findings.push(format!("{path}: {} lines; over {FILE_LINES} it is two things", lines.len()));
    }
    for (name, start, length) in functions(&lines) {
        if length > FUNCTION_LINES {
            findings.push(format!(
                "{path}:{}: fn {name} has {length} lines; {FUNCTION_LINES} fit a screen",
                start + 1
            ));
        }
    }
}

/// Functions of several lines as (name, first line, number of lines), found by their indentation: rustfmt closes a
/// function with a brace in the column it opened in.
fn functions(lines: &[&str]) -> Vec<(String, usize, usize)> {
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let body = line.trim_start();
        let Some(rest) = declared(body).filter(|_| !body.ends_with(['}', ';'])) else { continue };
        let close = format!("{}}}", &line[..line.len() - body.len()]);
        let Some(length) = lines[start..].iter().position(|line| *line == close) else { continue };
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        found.push((name, start, length + 1));
    }
    found
}

/// What follows `fn ` where a line declares a function, whatever stands before it.
fn declared(line: &str) -> Option<&str> {
    let mut rest = line;
    if let Some(after) = rest.strip_prefix("pub") {
        rest = match after.strip_prefix('(') {
            Some(scope) => scope.split_once(") ")?.1,
            None => after.strip_prefix(' ')?,
        };
    }
    for word in ["const ", "async ", "unsafe "] {
        rest = rest.strip_prefix(word).unwrap_or(rest);
    }
    rest.strip_prefix("fn ")
}

/// Floor 0 asks the machine for nothing: time, files and random numbers are arguments.
fn machine(path: &str, text: &str, findings: &mut Vec<String>) {
    for (number, line) in text.lines().enumerate() {
        if let Some(word) = MACHINE.iter().find(|word| line.contains(*word)) {
            let number = number + 1;
            findings.push(format!("{path}:{number}: {word}: floor 0 knows no machine"));
        }
    }
}

/// Every message, field, call and enum value of the contract has a comment above it.
fn contract(findings: &mut Vec<String>) -> Result<()> {
    let path = "proto/distill/v1/teacher.proto";
    let text = std::fs::read_to_string(root().join(path)).with_context(|| path.to_owned())?;
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    for (index, line) in lines.iter().enumerate() {
        let declares = line.ends_with(';') && line.contains('=') && !line.starts_with("syntax")
            || line.starts_with("rpc ");
        if declares && !lines[index.saturating_sub(1)].starts_with("//") {
            findings.push(format!("{path}:{}: no comment above `{line}`", index + 1));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn function_lengths_are_counted_to_the_closing_brace() {
        let lines = ["impl A {", "    fn one() {}", "    fn short() {", "        1", "    }", "}"];
        assert_eq!(functions(&lines), [("short".to_owned(), 2, 3)]);
    }

    #[test]
    fn functions_are_found_whatever_stands_before_them() {
        for line in ["fn f()", "pub fn f()", "pub(super) const fn f()", "pub(in a::b) async fn f()"]
        {
            assert_eq!(declared(line), Some("f()"), "{line}");
        }
        assert_eq!(declared("pub(crate) async unsafe fn f()"), Some("f()"));
        for line in ["public fn f()", "let fn_count = 1;", "// fn f()", "pub struct A;"] {
            assert_eq!(declared(line), None, "{line}");
        }
    }

    #[test]
    fn floor_0_may_not_look_at_the_clock() {
        let mut findings = Vec::new();
        machine("distill/src/a.rs", "fn f(now: Duration) {}\n", &mut findings);
        assert!(findings.is_empty());
        machine("distill/src/a.rs", "fn f() {\n    Instant::now();\n}\n", &mut findings);
        assert_eq!(findings.len(), 1, "{findings:?}");
    }

    #[test]
    fn long_files_and_functions_and_missing_openings_are_found() {
        let mut findings = Vec::new();
        let long = format!("fn f() {{\n{}}}\n", "    x();\n".repeat(450));
        sizes("a.rs", &long, &mut findings);
        opening("a.rs", &long, &mut findings);
        assert_eq!(findings.len(), 3, "{findings:?}");
    }
}
