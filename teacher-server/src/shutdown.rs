//! When to stop, and in which order.
//!
//! Health goes to NOT_SERVING and new work is refused; what was admitted is finished; a moment
//! later, or at the drain deadline whatever happens, the connections are cut.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Completes when standard input ends, in whatever way the process at its other end does. Never
/// completes if the system gives no thread to read it.
pub async fn stdin_ends() {
    let (told, ended) = tokio::sync::oneshot::channel();
    // A thread of its own: a read that blocks would keep the runtime from ending.
    let read = move || {
        // An error ends it too.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = told.send(());
    };
    match std::thread::Builder::new().name("stdin".into()).spawn(read) {
        Ok(_) => drop(ended.await),
        Err(_) => std::future::pending().await,
    }
    tracing::info!("standard input ended: draining");
}

/// Completes at the first SIGTERM or ctrl-c. The second one ends the process at once with status
/// 1, for the person who will not wait for the drain.
///
/// # Errors
/// The operating system refused a signal handler.
pub fn signals() -> std::io::Result<impl Future<Output = ()>> {
    let first = Arc::new(Notify::new());
    let told = Arc::clone(&first);
    let mut next = signal_stream()?;
    tokio::spawn(async move {
        next.recv().await;
        tracing::info!("told to stop: draining (tell again to stop at once)");
        told.notify_one();
        next.recv().await;
        tracing::warn!("told to stop again: not waiting for the drain");
        std::process::exit(1);
    });
    Ok(async move { first.notified().await })
}

/// Calls `reload` at every SIGHUP.
///
/// # Errors
/// The operating system refused a signal handler.
#[cfg(unix)]
pub fn on_hangup(reload: impl Fn() + Send + 'static) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            reload();
        }
    });
    Ok(())
}

#[cfg(unix)]
fn signal_stream() -> std::io::Result<Signals> {
    use tokio::signal::unix::{SignalKind, signal};
    let (terminate, interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(Signals { terminate, interrupt })
}

#[cfg(unix)]
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Counts the calls that are being answered, so that a drain knows when they are done.
#[derive(Clone, Debug)]
pub struct Calls(Arc<Semaphore>);

/// One call; it counts until this is dropped.
pub type Call = OwnedSemaphorePermit;

impl Default for Calls {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(Self::MOST as usize)))
    }
}

impl Calls {
    /// More than connections and streams can ever be open.
    const MOST: u32 = 1 << 28;

    /// A call begins. None only when more run than can.
    pub fn begin(&self) -> Option<Call> {
        Arc::clone(&self.0).try_acquire_owned().ok()
    }

    /// Waits until no call runs, at most `limit`; says whether none did.
    pub async fn all_done(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.0.acquire_many(Self::MOST)).await.is_ok()
    }
}
