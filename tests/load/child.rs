//! A server in a process of its own, and what it takes of the machine.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};

/// A running server; ends with the value.
pub(crate) struct Served {
    child: Child,
    /// `HOST:PORT`.
    pub(crate) address: String,
}

/// This program again, in another part; on one core where one is named.
pub(crate) fn again(core: Option<usize>, words: &[&str]) -> Result<Command> {
    let program = std::env::current_exe()?;
    let mut command = match core {
        None => Command::new(program),
        Some(core) => {
            let mut command = Command::new("taskset");
            command.args(["-c", &core.to_string()]).arg(program);
            command
        }
    };
    command.args(words).stdin(Stdio::null()).stdout(Stdio::piped());
    Ok(command)
}

impl Served {
    /// Starts `serve` with these words.
    pub(crate) fn start(core: Option<usize>, words: &[&str]) -> Result<Self> {
        let words: Vec<&str> = ["serve"].iter().chain(words).copied().collect();
        let mut child = again(core, &words)?.spawn().context("the server cannot be started")?;
        let mut address = String::new();
        let out = child.stdout.take().context("no output of the server")?;
        BufReader::new(out).read_line(&mut address)?;
        Ok(Self { child, address: address.trim().to_owned() })
    }

    /// The address as the client wants it.
    pub(crate) fn url(&self) -> String {
        format!("grpc://{}", self.address)
    }

    /// Resident memory now, in bytes.
    pub(crate) fn memory(&self) -> Result<u64> {
        self.status("VmRSS:")
    }

    /// The most it has been.
    pub(crate) fn peak(&self) -> Result<u64> {
        self.status("VmHWM:")
    }

    fn status(&self, name: &str) -> Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let text = std::fs::read_to_string(&path).context("the server is gone")?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)).context("no such line")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib << 10)
    }
}

/// This program in a part that measures a rate each time it is asked to.
pub(crate) struct InTurn {
    child: Child,
    rates: BufReader<ChildStdout>,
}

impl InTurn {
    /// Starts it on a core, to measure for so long each time.
    pub(crate) fn start(core: usize, words: &[&str], time: Duration) -> Result<Self> {
        let seconds = time.as_secs().to_string();
        let words: Vec<&str> = words.iter().copied().chain(["--seconds", &seconds]).collect();
        let mut command = again(Some(core), &words)?;
        let mut child = command.stdin(Stdio::piped()).spawn().context("it cannot be started")?;
        let rates = BufReader::new(child.stdout.take().context("no output of it")?);
        Ok(Self { child, rates })
    }

    /// Its rate, measured now.
    pub(crate) fn turn(&mut self) -> Result<f64> {
        let mut rate = String::new();
        self.child.stdin.as_mut().context("no input of it")?.write_all(b"\n")?;
        self.rates.read_line(&mut rate)?;
        rate.trim().parse().context("it ended")
    }
}

impl Drop for InTurn {
    fn drop(&mut self) {
        // It ends by itself with its input, but nobody should wait for that.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
