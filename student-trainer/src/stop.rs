//! A wish to stop: set by a signal, looked at between steps.

use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// The exit status where the wish came from no signal.
const FAILED: u8 = 1;

/// Whether the run should end after the step in hand. Clones share the wish.
#[derive(Clone, Debug)]
pub struct Stop(Arc<watch::Sender<Option<u8>>>);

impl Default for Stop {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl Stop {
    /// Asks for the end.
    pub fn request(&self) {
        self.0.send_replace(Some(FAILED));
    }

    /// Whether the end was asked for.
    pub fn requested(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// The exit status of a run that was stopped before it was done: never 0, so that what waits
    /// for its result does not begin. 128 and the signal's number, as shells have it.
    pub fn exit_code(&self) -> u8 {
        self.0.borrow().unwrap_or(FAILED)
    }

    /// Waits until the end is asked for.
    pub async fn wait(&self) {
        let mut changes = self.0.subscribe();
        // The sender lives as long as `self`, so there is no error to see.
        let _ = changes.wait_for(Option::is_some).await;
    }

    /// Turns SIGTERM, ctrl-c and the end of the terminal (SIGHUP) into this wish, from a thread of
    /// its own. The second one ends the process at once, since somebody who asks twice does not want
    /// to wait for the step. `tell` is given what to say of each. SIGHUP stays ignored where it was
    /// (`nohup`).
    ///
    /// # Errors
    /// When the system refuses to tell of signals or gives no thread.
    pub fn on_signals(&self, tell: impl Fn(&str) + Send + 'static) -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (mut terminate, mut interrupt, mut hang_up) = {
            let _inside = runtime.enter();
            let hang_up = if hang_up_is_ignored() { None } else { Some(SignalKind::hangup()) };
            let hang_up = hang_up.map(signal).transpose()?;
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, hang_up)
        };
        let stop = self.clone();
        let listen = move || loop {
            let code = runtime.block_on(async {
                tokio::select! {
                    _ = terminate.recv() => 143,
                    _ = interrupt.recv() => 130,
                    () = received(hang_up.as_mut()) => 129,
                }
            });
            if stop.requested() {
                tell("stopped at once: steps that are in no checkpoint are lost");
                std::process::exit(code.into());
            }
            tell(
                "told to stop: finishing what would be lost otherwise (tell again to stop at once)",
            );
            stop.0.send_replace(Some(code));
        };
        std::thread::Builder::new().name("signals".to_owned()).spawn(listen)?;
        Ok(())
    }
}

async fn received(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Whether whoever started this program wanted it to outlive the terminal.
fn hang_up_is_ignored() -> bool {
    // The mask of ignored signals; SIGHUP is number 1, the lowest bit. Elsewhere than on Linux the
    // file is absent, and the signal is listened to.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & 1 == 1)
}
