//! What the thread that owns the model does next, and how long it waits for that.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::{Errand, Inner, Shared, Work};

/// How often a device that computes by itself is looked at while there is nothing else to do.
const LOOKED_AT: Duration = Duration::from_micros(300);
/// How often the waiting of an idle device is counted.
const WAIT_IS_COUNTED: Duration = Duration::from_secs(1);

/// What the thread does next.
pub(super) enum Next {
    Batch(Vec<Work>),
    /// Reads the batch that is under way.
    Finish,
    Errand(Errand),
}

/// What the device does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Device {
    /// Nothing was started that is not read.
    Idle,
    Computes,
    /// It has computed what was started, which is not read yet.
    Done,
}

impl Shared {
    /// Waits for something to do; none when the engine is closed. Behind a batch that computes a full one is started at
    /// once, and what there is as soon as the device would be idle.
    pub(super) fn next(&self, mut device: impl FnMut() -> Device) -> Option<Next> {
        let mut inner = self.lock();
        loop {
            self.drop_abandoned(&mut inner);
            self.gauge(&inner);
            let is = device();
            let is_idle = is == Device::Idle;
            if !inner.errands.is_empty() || (inner.closed && inner.queue.is_empty()) {
                return match is_idle {
                    true => inner.errands.pop_front().map(Next::Errand),
                    false => Some(Next::Finish),
                };
            }
            let now = Instant::now();
            let is_full = inner.queue.tokens() >= self.batching.max_tokens;
            let wait = match (inner.queue.oldest(), is) {
                (None, Device::Idle) => WAIT_IS_COUNTED,
                (Some(_), Device::Computes) if is_full => Duration::ZERO,
                (_, Device::Computes) => LOOKED_AT,
                (None, Device::Done) => return Some(Next::Finish),
                (Some(oldest), Device::Idle | Device::Done) => {
                    self.company_wait(&inner, oldest.since, now)
                }
            };
            if wait.is_zero() {
                let batch = inner.queue.take_batch(self.batching.max_tokens);
                self.gauge(&inner);
                return Some(Next::Batch(batch));
            }
            if is == Device::Done {
                return Some(Next::Finish);
            }
            let waited = self.changed.wait_timeout(inner, wait);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
            if is_idle {
                self.metrics.waiting_seconds.inc_by(now.elapsed().as_secs_f64());
            }
        }
    }
    /// How long a batch whose first sequence waits since then should still wait for others: not
    /// when it would be full, and not when the server ends.
    fn company_wait(&self, inner: &Inner, since: Instant, now: Instant) -> Duration {
        match inner.closed || inner.queue.tokens() >= self.batching.max_tokens {
            true => Duration::ZERO,
            false => (since + self.batching.wait).saturating_duration_since(now),
        }
    }
}
