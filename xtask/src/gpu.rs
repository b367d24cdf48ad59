//! `cargo xtask gpu`: what a machine with a card is asked, given prebuilt binaries: every test that the emulation runs,
//! the golden values, a tiny distillation over gRPC with both services on the card, and the figures beside PyTorch's.
//!
//! Such machines are lent by the minute: there is one deadline, the lines are in the order of their weight, and those
//! that were not reached are named.

mod figures;
pub(crate) mod job;
mod pack;
mod settings;

use std::fmt::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::run::say;
use settings::{PARTS, Settings};

/// Programs of a pack, and what they are called there.
pub(crate) const PROGRAMS: [&str; 4] =
    ["teacher-server", "student-trainer", "card_bench", "oracle"];
/// Tests of a pack: the crate, and what they are called there.
pub(crate) const TESTS: [(&str, &str); 4] = [
    ("model", "model-tests"),
    ("kernels", "kernels-tests"),
    ("teacher-server", "teacher-tests"),
    ("student-trainer", "trainer-tests"),
];
/// What is asked of them: what it is called, whose test it is, and its name there.
pub(crate) const CHECKS: [(&str, &str, &str); 5] = [
    ("the card itself", "kernels-tests", "card::"),
    ("every kernel against f64", "model-tests", "ops::emulated_tests"),
    ("the engine against the processor's", "model-tests", "card::tests"),
    ("the teacher's batches started ahead", "teacher-tests", "qwen3_scorer::tests::ahead"),
    ("the trainer's steps started ahead", "trainer-tests", "train::ahead_tests"),
];
/// The peer's script in a pack.
pub(crate) const PEER: &str = "gpu_peer.py";

/// What became of a line.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    Passed,
    Failed(String),
    /// What it needs is not there.
    Absent(String),
    NotReached,
}

/// A line of the report.
pub(crate) struct Line {
    name: String,
    outcome: Outcome,
    seconds: f64,
}

/// The run so far.
pub(crate) struct Run {
    settings: Settings,
    deadline: Instant,
    lines: Vec<Line>,
    pub(crate) figures: Vec<Value>,
    /// Whether PyTorch and transformers are at hand, once that was asked.
    peer: Option<bool>,
}

/// `pack DIR`, or the run itself.
pub(crate) fn gpu(arguments: &[&str]) -> Result<()> {
    if let ["--pack", dir] = arguments {
        return pack::pack(Path::new(dir));
    }
    let settings = Settings::read(arguments)?;
    settings.has_pack()?;
    std::fs::create_dir_all(&settings.out)?;
    let deadline = Instant::now() + Duration::from_secs_f64(60.0 * settings.minutes);
    let mut run = Run { settings, deadline, lines: Vec::new(), figures: Vec::new(), peer: None };
    for part in PARTS {
        if !run.settings.wants(part) {
            continue;
        }
        match part {
            "checks" => run.checks(),
            "figures" => figures::measure(&mut run),
            "job" => run.real_job(),
            _ => run.sanitise(),
        }
    }
    run.report()
}

impl Run {
    /// The tests, the golden values, the tiny job.
    fn checks(&mut self) {
        for (name, tests, filter) in CHECKS {
            if tests == "kernels-tests" && !self.has_card() {
                self.note(name, Outcome::Absent("no card in a rehearsal".to_owned()), 0.0);
                continue;
            }
            let mut command = self.program(tests);
            // One card, one test at a time.
            command.args([filter, "--test-threads", "1"]);
            self.on_device(&mut command);
            self.line(name, 90, &mut command);
        }
        let golden = self.settings.shared.join("oracle");
        for case in ["a", "b", "c"] {
            let (name, dir) = (format!("golden values, {case}"), golden.join(case));
            if !dir.exists() {
                self.note(&name, Outcome::Absent(format!("{} is not there", dir.display())), 0.0);
                continue;
            }
            let mut command = self.program("oracle");
            command.arg(&dir).arg(&self.settings.device);
            self.line(&name, 30, &mut command);
        }
        let begin = Instant::now();
        let by = self.deadline.min(begin + Duration::from_secs(90));
        let outcome = match self.left() {
            None => Outcome::NotReached,
            Some(_) => match job::tiny(&self.place(by), &job::SECONDS_OF_A_CARD) {
                Ok(apart) => {
                    say(format!("    losses at most {apart:.1e} from the processor's"));
                    Outcome::Passed
                }
                Err(error) => self.ended_by(&error),
            },
        };
        self.note("a tiny distillation over gRPC", outcome, begin.elapsed().as_secs_f64());
    }

    /// Where jobs run that must be done by then.
    fn place(&self, by: Instant) -> job::Where<'_> {
        let Settings { programs, device, .. } = &self.settings;
        job::Where { programs, device, libraries: None, by }
    }

    /// The job at real shapes.
    fn real_job(&mut self) {
        let name = "the notebook's job at real shapes, both services on the card";
        if !self.has_card() {
            self.note(name, Outcome::Absent("no card in a rehearsal".to_owned()), 0.0);
            return;
        }
        if self.left().is_none() {
            self.note(name, Outcome::NotReached, 0.0);
            return;
        }
        if !self.has_peer() {
            self.note(name, Outcome::Absent("no PyTorch to write its models".to_owned()), 0.0);
            return;
        }
        let begin = Instant::now();
        let outcome = match job::real(&self.place(self.deadline), &self.settings.python) {
            Ok(figure) => {
                self.figures.push(figure);
                Outcome::Passed
            }
            Err(error) => self.ended_by(&error),
        };
        self.note(name, outcome, begin.elapsed().as_secs_f64());
    }

    /// NVIDIA's checker over the small shapes, where it is installed.
    fn sanitise(&mut self) {
        let program = ["compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer"]
            .into_iter()
            .find(|program| Command::new(program).arg("--version").output().is_ok());
        for tool in ["memcheck", "racecheck", "synccheck"] {
            let name = format!("compute-sanitizer, {tool}");
            let Some(program) = program else {
                self.note(&name, Outcome::Absent("it is not installed".to_owned()), 0.0);
                continue;
            };
            let mut command = Command::new(program);
            command
                .args(["--tool", tool, "--error-exitcode", "9"])
                // Libraries ask for functions that there are not; what our own calls say is looked at.
                .args(["--report-api-errors", "no"])
                .arg(self.settings.programs.join("model-tests"))
                .args(["ops::emulated_tests", "--skip", "a_real_vocabulary"])
                .args(["--test-threads", "1"]);
            self.on_device(&mut command);
            self.line(&name, 300, &mut command);
        }
    }

    /// Whether this is no rehearsal.
    pub(crate) fn has_card(&self) -> bool {
        self.settings.device.starts_with("cuda:")
    }

    pub(crate) fn device(&self) -> &str {
        &self.settings.device
    }

    /// Tests run on the card; in a rehearsal in the emulation.
    fn on_device(&self, command: &mut Command) {
        if self.has_card() {
            // No test may be skipped for want of it.
            let required =
                [("LIMBECK_TEST_DEVICE", &self.settings.device[..]), ("LIMBECK_REQUIRE", "cuda")];
            command.envs(required);
        }
    }

    pub(crate) fn program(&self, name: &str) -> Command {
        Command::new(self.settings.programs.join(name))
    }

    pub(crate) fn peer(&self) -> Command {
        let mut command = Command::new(&self.settings.python);
        command.arg(self.settings.programs.join(PEER));
        command
    }

    /// Whether PyTorch and transformers are at hand; says so when they are not.
    pub(crate) fn has_peer(&mut self) -> bool {
        if let Some(known) = self.peer {
            return known;
        }
        let mut python = Command::new(&self.settings.python);
        python.args(["-c", "import torch, transformers"]);
        let limit = self.left().unwrap_or_default().min(Duration::from_secs(120));
        let found = within(&mut python, limit);
        if let Err(error) = &found {
            self.note("PyTorch", Outcome::Absent(format!("{error:#}")), 0.0);
        }
        *self.peer.insert(found.is_ok())
    }

    /// Time that is left, if any.
    pub(crate) fn left(&self) -> Option<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        (left > Duration::from_secs(3)).then_some(left)
    }

    /// What is known so far, in case the machine goes away.
    fn keep(&self) -> Result<()> {
        let line = |line: &Line| {
            let (word, why) = line.outcome.words();
            json!({"name": line.name, "outcome": word, "why": why, "seconds": line.seconds})
        };
        let lines: Vec<Value> = self.lines.iter().map(line).collect();
        let all = json!({"lines": lines, "figures": self.figures});
        let text = serde_json::to_string_pretty(&all)?;
        Ok(std::fs::write(self.settings.out.join("gpu.json"), text)?)
    }

    pub(crate) fn note(&mut self, name: &str, outcome: Outcome, seconds: f64) {
        let (word, why) = outcome.words();
        let why = if why.is_empty() { why } else { format!(": {why}") };
        say(format!("{word:<12} {seconds:>6.1} s  {name}{why}"));
        self.lines.push(Line { name: name.to_owned(), outcome, seconds });
        if let Err(error) = self.keep() {
            say(format!("{}: {error:#}", self.settings.out.display()));
        }
    }

    /// What is said of a line that ended so: it was not reached where time had run out.
    fn ended_by(&self, error: &anyhow::Error) -> Outcome {
        if error.is::<NotDone>() && self.left().is_none() {
            return Outcome::NotReached;
        }
        Outcome::Failed(format!("{error:#}"))
    }

    /// Runs a command as a line; gives its standard output where it passed.
    pub(crate) fn line(&mut self, name: &str, limit: u64, command: &mut Command) -> Option<String> {
        let Some(left) = self.left() else {
            self.note(name, Outcome::NotReached, 0.0);
            return None;
        };
        let begin = Instant::now();
        let (outcome, output) = match within(command, left.min(Duration::from_secs(limit))) {
            Ok(output) => (Outcome::Passed, Some(output)),
            Err(error) => (self.ended_by(&error), None),
        };
        self.note(name, outcome, begin.elapsed().as_secs_f64());
        output
    }

    /// One table, and the same as JSON; an error where something failed.
    fn report(&self) -> Result<()> {
        let mut table = figures::table(&self.figures);
        let reached = |line: &&Line| line.outcome == Outcome::NotReached;
        let missed: Vec<&str> =
            self.lines.iter().filter(reached).map(|line| line.name.as_str()).collect();
        if !missed.is_empty() {
            write!(
                table,
                "\nnot reached in {} minutes: {}\n",
                self.settings.minutes,
                missed.join(", ")
            )?;
        }
        say(format!("\n{table}"));
        std::fs::write(self.settings.out.join("gpu.txt"), &table)?;
        let failed = self.lines.iter().filter(|line| matches!(line.outcome, Outcome::Failed(_)));
        let failed = failed.count();
        ensure!(failed == 0, "{failed} of {} lines failed", self.lines.len());
        Ok(())
    }
}

impl Outcome {
    /// A word, and why.
    fn words(&self) -> (&'static str, String) {
        match self {
            Self::Passed => ("passed", String::new()),
            Self::Failed(why) => ("FAILED", why.clone()),
            Self::Absent(why) => ("absent", why.clone()),
            Self::NotReached => ("not reached", String::new()),
        }
    }
}

/// A command that was stopped, and the last of what it said.
#[derive(Debug)]
struct NotDone {
    seconds: f64,
    last: String,
}

impl std::fmt::Display for NotDone {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "not done within {:.0} s\n    {}", self.seconds, self.last)
    }
}

impl std::error::Error for NotDone {}

/// Runs a command to its end or for so long; its standard output, or the last of what it said where it failed.
pub(crate) fn within(command: &mut Command, limit: Duration) -> Result<String> {
    let [out, complaints] = ["out", "err"].map(|name| {
        let file = format!("limbeck-gpu-{}-{name}", std::process::id());
        std::env::temp_dir().join(file)
    });
    command.stdin(Stdio::null());
    command.stdout(std::fs::File::create(&out)?).stderr(std::fs::File::create(&complaints)?);
    let shown = command.get_program().to_string_lossy().into_owned();
    // With a group of its own: what it starts ends with it.
    command.process_group(0);
    let mut child = command.spawn().with_context(|| format!("cannot start {shown}"))?;
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if begin.elapsed() > limit {
            // What it has started too, where there is a `kill`.
            let group = format!("-{}", child.id());
            let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
            child.kill()?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let [said, complained] = [&out, &complaints].map(|file| {
        let text = std::fs::read(file).unwrap_or_default();
        let _ = std::fs::remove_file(file);
        String::from_utf8_lossy(&text).into_owned()
    });
    let last = || {
        let all = format!("{said}\n{complained}");
        let lines: Vec<&str> = all.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(12)..].join("\n    ")
    };
    match status {
        None => bail!(NotDone { seconds: limit.as_secs_f64(), last: last() }),
        Some(status) => {
            ensure!(status.success(), "{status}\n    {}", last());
            Ok(said)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_heard_or_stopped() {
        let mut said = Command::new("sh");
        said.args(["-c", "echo one; echo two >&2"]);
        assert_eq!(within(&mut said, Duration::from_secs(5)).unwrap(), "one\n");
        let mut failed = Command::new("sh");
        failed.args(["-c", "echo what >&2; exit 3"]);
        let error = within(&mut failed, Duration::from_secs(5)).unwrap_err().to_string();
        assert!(error.contains('3') && error.contains("what"), "{error}");
        let mut slow = Command::new("sleep");
        let error = within(slow.arg("60"), Duration::from_millis(50)).unwrap_err().to_string();
        assert!(error.contains("not done"), "{error}");
    }

    #[test]
    fn lines_past_the_deadline_are_named() {
        let settings = Settings::read(&["--minutes", "0.01", "--bin-dir", "/nowhere"]).unwrap();
        let (lines, figures) = (Vec::new(), Vec::new());
        let mut run = Run { settings, deadline: Instant::now(), lines, figures, peer: None };
        assert_eq!(run.line("some", 5, &mut Command::new("true")), None);
        assert_eq!(run.lines[0].outcome, Outcome::NotReached);
        // One that time ran out on was not reached; one that failed by itself has failed, however late.
        let late = || Instant::now() + Duration::from_millis(3200);
        run.deadline = late();
        assert_eq!(
            run.line("fails", 5, Command::new("sh").args(["-c", "sleep 0.4; exit 3"])),
            None
        );
        run.deadline = late();
        assert_eq!(run.line("slow", 5, Command::new("sleep").arg("60")), None);
        assert!(matches!(run.lines[1].outcome, Outcome::Failed(_)), "{:?}", run.lines[1].outcome);
        assert_eq!(run.lines[2].outcome, Outcome::NotReached);
        assert!(Settings::read(&["--minute", "1"]).is_err());
        let parts = |named: &str| Settings::read(&["--parts", named]);
        let two = parts("job,checks").unwrap();
        assert_eq!(PARTS.map(|part| two.wants(part)), [true, false, true, false]);
        assert!(parts("jobs").err().unwrap().to_string().contains("jobs is none of checks"));
    }
}
