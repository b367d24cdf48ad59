//! The lines programs read from stdout. Everything else goes to stderr through tracing.

/// Prints one line and flushes it, so that whoever waits for it gets it now.
#[expect(clippy::print_stdout, reason = "the one place where the program prints")]
pub fn line(text: &str) {
    use std::io::Write as _;
    println!("{text}");
    // A closed stdout is nobody's fault: the server serves on.
    let _ = std::io::stdout().flush();
}

/// Prints one line to stderr, for errors that end the program before or after logging.
#[expect(clippy::print_stderr, reason = "the one place where the program prints")]
pub fn complain(text: &str) {
    eprintln!("{text}");
}
