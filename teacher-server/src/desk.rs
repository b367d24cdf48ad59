//! Where a call is let in, on whichever port it came: only while the server serves, and counted, so
//! that a drain waits for it.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use distill::handshake::Limits;
use futures::FutureExt as _;
use proto::convert::ScoreJob;
use tokio::sync::watch;

use crate::client::Client;
use crate::engine::{Answer, Engine};
use crate::error::{TeacherError, panic_text};
use crate::held::Held;
use crate::metrics::Metrics;
use crate::shutdown::{Call, Calls};
use crate::state::{Serving, State};
use crate::text::Encoders;

/// What both ports' handlers work with; clones share it.
#[derive(Clone)]
pub struct Desk {
    /// The queue and the device.
    pub engine: Engine,
    /// What the server is doing.
    pub state: watch::Receiver<State>,
    /// The threads for encoding texts.
    pub encoders: Encoders,
    /// Room for answers.
    pub held: Held,
    /// What is counted.
    pub metrics: Metrics,
    calls: Calls,
}

impl Desk {
    /// Before an engine; calls are let in while `state` says so.
    pub fn new(
        engine: Engine,
        state: watch::Receiver<State>,
        calls: Calls,
        limits: &Limits,
        metrics: Metrics,
    ) -> Self {
        let encoders = Encoders::new(limits.max_encoding_texts);
        let held = Held::new(limits.max_held_bytes);
        Self { engine, state, encoders, held, metrics, calls }
    }

    /// Lets a call in: what it needs to be served, and its mark among the running calls.
    ///
    /// # Errors
    /// [`TeacherError::Loading`] or [`TeacherError::Draining`].
    pub fn enter(&self) -> Result<(Arc<Serving>, Call), TeacherError> {
        // In this order: a drain first changes the state, then waits for the calls.
        let call = self.calls.begin().ok_or(TeacherError::Draining)?;
        let serving = self.state.borrow().serving()?;
        Ok((serving, call))
    }

    /// Queues a job and waits for its scores.
    ///
    /// # Errors
    /// A full queue, or a fault of the device.
    pub async fn score(&self, client: &Client, job: ScoreJob) -> Result<Answer, TeacherError> {
        self.engine.submit(client, job)?.await.unwrap_or(Err(TeacherError::Stopped))
    }
}

/// A handler's future whose panic is an error of this one call.
///
/// # Errors
/// [`TeacherError::Panicked`].
pub async fn without_panic<T>(
    metrics: &Metrics,
    future: impl Future<Output = T>,
) -> Result<T, TeacherError> {
    AssertUnwindSafe(future).catch_unwind().await.map_err(|panic| {
        metrics.panics.inc();
        let text = panic_text(panic.as_ref());
        tracing::error!(text, "a handler panicked");
        TeacherError::Panicked(text)
    })
}
