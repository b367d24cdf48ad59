//! Making sense of bodies, away from the network's threads: 16 MB of JSON take hundreds of
//! milliseconds, in which those threads have others to serve.

use std::panic::resume_unwind;
use std::sync::Arc;

use axum::body::Bytes;
use tokio::sync::Semaphore;

use super::Problem;
use crate::client::Client;
use crate::error::TeacherError;
use crate::room::Taken;
use crate::state::Serving;

/// Bodies read side by side.
const READERS: usize = 2;

/// The threads for reading; clones share them.
#[derive(Clone)]
pub struct Readers(Arc<Semaphore>);

/// A request that is there whole.
pub struct Received {
    /// Its body.
    pub body: Bytes,
    /// Where sense is made of it.
    pub reading: Reading,
    /// Whose it is.
    pub client: Client,
    /// What it is asked of.
    pub serving: Arc<Serving>,
}

/// The reading of one body, which keeps its room until what is asked is known.
pub struct Reading {
    running: Arc<Semaphore>,
    room: Arc<Taken>,
}

impl Default for Readers {
    /// All of them idle.
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(READERS)))
    }
}

impl Readers {
    /// For a body that takes this room.
    pub fn reading(&self, room: Taken) -> Reading {
        Reading { running: Arc::clone(&self.0), room: Arc::new(room) }
    }
}

impl Reading {
    /// Does this on one of the threads, when it is its turn.
    ///
    /// # Errors
    /// Those of `work`.
    ///
    /// # Panics
    /// When `work` does.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        // Never closed, so never an error.
        let turn = Arc::clone(&self.running).acquire_owned().await;
        let room = Arc::clone(&self.room);
        let read = tokio::task::spawn_blocking(move || {
            // A thread goes on when its caller has left, and so does what it takes.
            let _taken = (room, turn);
            work()
        });
        match read.await {
            Ok(read) => read,
            Err(ended) => match ended.try_into_panic() {
                // Counted where those of the handler itself are.
                Ok(panic) => resume_unwind(panic),
                Err(_) => Err(TeacherError::Stopped.into()),
            },
        }
    }
}
