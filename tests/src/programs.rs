//! Starting the real programs.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use crate::root;

/// Path of a program of the workspace, built at the first call if it is not up to date.
///
/// # Panics
/// When it cannot be built.
pub fn binary(name: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(build);
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root().join("target"), |dir| root().join(dir));
    target.join("release").join(name)
}

fn build() {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        // All of them at once: the features of shared dependencies, and so their builds, stay one.
        .args(["build", "--quiet", "--release", "--workspace", "--bins", "--examples"])
        .current_dir(root());
    // What is said of this package is seen by build scripts (ring's), which would run once more.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&name);
        }
    }
    let status = cargo.status().expect("cargo can be started");
    assert!(status.success(), "the programs do not build");
}

/// `student-trainer` with these arguments, and an environment without settings of its own.
pub fn trainer(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("student-trainer"));
    command.args(arguments).env("CANDLE_NUM_THREADS", "1").stdin(Stdio::null());
    command
}

/// `teacher-server` with this model, on loopback ports of its own.
pub fn teacher(model: &str) -> Command {
    let mut command = Command::new(binary("teacher-server"));
    command
        .args(["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--model", model])
        .env("CANDLE_NUM_THREADS", "1")
        .stdin(Stdio::null());
    command
}

/// Runs a command to its end and returns what it said.
///
/// # Panics
/// When it cannot be started.
pub fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"))
}

/// A running `teacher-server` on loopback ports of its own; ends with the value.
pub struct Teacher {
    child: Child,
    /// Address of its gRPC service, `HOST:PORT`.
    pub grpc: String,
    /// Address of its HTTP side, `HOST:PORT`.
    pub http: String,
}

impl Teacher {
    /// Starts a teacher with a model and further arguments, and waits until it serves.
    ///
    /// # Panics
    /// When it ends before it serves.
    pub fn start(model: &Path, arguments: &[&str]) -> Self {
        Self::serve(teacher(&model.display().to_string()).args(arguments))
    }

    /// Runs a command of [`teacher`] and waits until it serves.
    ///
    /// # Panics
    /// When it ends before it serves.
    pub fn serve(command: &mut Command) -> Self {
        let mut child =
            command.stdout(Stdio::piped()).spawn().expect("teacher-server can be started");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("stdout is piped");
        BufReader::new(stdout).read_line(&mut line).expect("the teacher says where it listens");
        let (grpc, http) = line
            .trim()
            .strip_prefix("listening grpc=")
            .and_then(|rest| rest.split_once(" http="))
            .unwrap_or_else(|| panic!("the teacher's first line was {line:?}"));
        Self { grpc: grpc.to_owned(), http: http.to_owned(), child }
    }

    /// The URL a trainer is given.
    pub fn url(&self) -> String {
        format!("grpc://{}", self.grpc)
    }

    /// The server's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Teacher {
    fn drop(&mut self) {
        // It may have ended already, which is no fault of the test's.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
