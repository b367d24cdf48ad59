//! The teacher as a child process: found or built, started on free ports, stopped at the end.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};

use crate::progress::Console;

/// How long the server may take until it listens.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to stop before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// A running teacher server; dropped, it is stopped.
#[derive(Debug)]
pub(super) struct TeacherServer {
    child: Child,
    url: String,
}

impl TeacherServer {
    /// Starts a server of `model` on free loopback ports; its log goes to `dir/teacher-server.log`.
    pub(super) fn start(model: &Path, dir: &Path, console: &Console) -> anyhow::Result<Self> {
        let program = find_or_build(console)?;
        let log = dir.join("teacher-server.log");
        let file = File::create(&log).with_context(|| format!("writing {}", log.display()))?;
        let mut child = Command::new(&program)
            .arg("--model")
            .arg(model)
            .args(["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--calibration-dir"])
            .arg(dir.join("data"))
            // The pipe closes with this process, however it ends, and the server with the pipe.
            .arg("--until-stdin-ends")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let stdout = child.stdout.take();
        // From here on the child is stopped on every way out.
        let mut server = Self { child, url: String::new() };
        let line = stdout.and_then(|stdout| first_line(stdout, START_LIMIT)).unwrap_or_default();
        match address(&line) {
            Some(address) => server.url = format!("grpc://{address}"),
            None => {
                drop(server);
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                let last: Vec<_> = said.lines().rev().take(5).collect();
                let last: Vec<_> = last.into_iter().rev().collect();
                bail!("teacher-server did not start; its log ends with:\n{}", last.join("\n"));
            }
        }
        Ok(server)
    }

    /// Where it answers.
    pub(super) fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for TeacherServer {
    fn drop(&mut self) {
        // The end of its standard input asks it to close its connections.
        drop(self.child.stdin.take());
        let begin = Instant::now();
        while begin.elapsed() < STOP_LIMIT {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The first line a process prints; None when it ends or takes too long before that.
fn first_line(out: impl std::io::Read + Send + 'static, limit: Duration) -> Option<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(out);
        let mut line = String::new();
        let _ = reader.read_line(&mut line);
        let _ = sender.send(line);
        // Read on, so that the process never waits for a reader.
        let _ = std::io::copy(&mut reader, &mut std::io::sink());
    });
    receiver.recv_timeout(limit).ok()
}

/// The gRPC address of `listening grpc=HOST:PORT http=HOST:PORT`.
fn address(line: &str) -> Option<&str> {
    let fields = line.trim().strip_prefix("listening ")?;
    fields.split(' ').find_map(|field| field.strip_prefix("grpc="))
}

/// The server's program: beside this one. Run by cargo, it is first built, so that both are of
/// the same source.
fn find_or_build(console: &Console) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("finding this program")?;
    let dir = own.parent().context("finding this program's directory")?;
    let program = dir.join(format!("teacher-server{}", std::env::consts::EXE_SUFFIX));
    let by_cargo = std::env::var_os("CARGO").zip(std::env::var_os("CARGO_MANIFEST_DIR"));
    if let Some((cargo, manifest_dir)) = by_cargo {
        console.tell("building teacher-server ...");
        let profile = dir.file_name().and_then(|name| name.to_str()).unwrap_or("release");
        let profile = if profile == "debug" { "dev" } else { profile };
        let mut cargo = Command::new(cargo);
        cargo
            .args(["build", "--quiet", "--profile", profile, "--bin", "teacher-server"])
            // Both named: alone it would be given fewer features of its dependencies, and most of them compiled once more.
            .args(["--package", "teacher-server", "--package", "student-trainer"])
            .current_dir(manifest_dir);
        // So would those whose build scripts (ring's) see what cargo says of this package.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
                cargo.env_remove(&name);
            }
        }
        if !cargo.status().context("running cargo")?.success() {
            bail!("cargo build --bin teacher-server failed");
        }
    }
    if program.is_file() {
        return Ok(program);
    }
    Err(anyhow!(
        "{} is missing; install teacher-server beside student-trainer, or run `cargo run --release \
         --package student-trainer -- demo` in the source tree",
        program.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_read_from_the_first_line() {
        let line = "listening grpc=127.0.0.1:41231 http=127.0.0.1:9464\n";
        assert_eq!(address(line), Some("127.0.0.1:41231"));
        assert_eq!(address("error: model not found"), None);
        assert_eq!(address(""), None);
    }

    #[test]
    fn a_line_is_waited_for_and_not_for_ever() {
        let reader = std::io::Cursor::new(b"listening grpc=a:1\nmore\n".to_vec());
        let line = first_line(reader, Duration::from_secs(10)).unwrap();
        assert_eq!(line, "listening grpc=a:1\n");
        let (reader, writer) = std::io::pipe().unwrap();
        assert_eq!(first_line(reader, Duration::from_millis(50)), None);
        drop(writer);
    }
}
