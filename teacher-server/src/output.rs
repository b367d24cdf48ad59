//! The lines programs read from stdout. Everything else goes to stderr through tracing.

use std::io::Write as _;

/// Prints one line and flushes it, so that whoever waits for it gets it now.
pub fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    // A closed stdout is nobody's fault: the server serves on.
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Prints one line to stderr, for errors that end the program before or after logging.
pub fn complain(text: &str) {
    // Nor is a closed stderr.
    let _ = writeln!(std::io::stderr(), "{text}");
}
