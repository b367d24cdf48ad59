//! A wish to stop: set by a signal, looked at between steps.

use std::sync::Arc;

use tokio::sync::watch;

/// Whether the run should end after the step in hand. Clones share the wish.
#[derive(Clone, Debug)]
pub struct Stop(Arc<watch::Sender<bool>>);

impl Default for Stop {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Stop {
    /// Asks for the end.
    pub fn request(&self) {
        self.0.send_replace(true);
    }

    /// Whether the end was asked for.
    pub fn requested(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until the end is asked for.
    pub async fn wait(&self) {
        let mut changes = self.0.subscribe();
        // The sender lives as long as `self`, so there is no error to see.
        let _ = changes.wait_for(|stop| *stop).await;
    }

    /// Turns SIGTERM and ctrl-c into this wish, from a thread of its own. The second one ends the
    /// process at once, since somebody who asks twice does not want to wait for the step.
    ///
    /// # Errors
    /// When the system refuses to tell of signals or gives no thread.
    pub fn on_signals(&self) -> std::io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (mut terminate, mut interrupt) = {
            let _inside = runtime.enter();
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
        };
        let stop = self.clone();
        let listen = move || loop {
            let code = runtime.block_on(async {
                tokio::select! {
                    _ = terminate.recv() => 143,
                    _ = interrupt.recv() => 130,
                }
            });
            if stop.requested() {
                std::process::exit(code);
            }
            stop.request();
        };
        std::thread::Builder::new().name("signals".to_owned()).spawn(listen)?;
        Ok(())
    }
}
