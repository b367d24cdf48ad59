//! A wish to stop: set by a signal, looked at between steps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the run should end after the step in hand. Clones share the wish.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks for the end.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the end was asked for.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Waits for SIGTERM or ctrl-c and asks for the end; a second one ends the process at once,
    /// since somebody who asks twice does not want to wait for the step.
    ///
    /// # Errors
    /// When the system refuses to tell of signals.
    pub async fn on_signals(self) -> std::io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        for seen_before in [false, true] {
            let code = tokio::select! {
                _ = terminate.recv() => 143,
                _ = interrupt.recv() => 130,
            };
            if seen_before {
                std::process::exit(code);
            }
            self.request();
        }
        Ok(())
    }
}
