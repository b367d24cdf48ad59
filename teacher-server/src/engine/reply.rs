//! What a caller waits for, and how many no longer do.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use super::Answer;
use crate::error::TeacherError;

/// What a caller waits for; an error where the engine has ended.
#[derive(Debug)]
pub struct Reply {
    pub(super) receiver: oneshot::Receiver<Result<Answer, TeacherError>>,
    /// Dropped after it, so that who sees the count finds the caller gone.
    _waits: Waits,
}

impl Reply {
    pub(super) fn new(
        receiver: oneshot::Receiver<Result<Answer, TeacherError>>,
        departures: &Departures,
    ) -> Self {
        Self { receiver, _waits: Waits(departures.clone()) }
    }
}

impl Future for Reply {
    type Output = Result<Result<Answer, TeacherError>, oneshot::error::RecvError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.receiver).poll(cx)
    }
}

/// How many callers no longer wait, answered or not; clones share the count.
#[derive(Clone, Debug, Default)]
pub(super) struct Departures(Arc<AtomicUsize>);

impl Departures {
    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }
}

/// One that waits.
#[derive(Debug)]
struct Waits(Departures);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::Release);
    }
}
