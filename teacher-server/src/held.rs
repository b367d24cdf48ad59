//! Answers that are still to be computed, or wait for somebody to read them: bounded in bytes, shared
//! between clients.
//!
//! What one stream may have held is bounded too (`max_held_bytes_per_stream`); but a client may open
//! many.

use std::time::Duration;

use distill::codec::Layout;
use distill::signal::Entries;
use proto::convert::ScoreJob;

use crate::client::Client;
use crate::error::TeacherError;
use crate::room::{Room, Taken};

/// When somebody whom the bound kept out should come again.
const PAUSE: Duration = Duration::from_secs(1);

/// The bound; clones share it.
#[derive(Clone, Debug)]
pub struct Held {
    room: Room,
    limit: usize,
}

impl Held {
    /// For so many bytes.
    pub fn new(limit: usize) -> Self {
        Self { room: Room::new(limit), limit }
    }

    /// Room for an answer of a client's, until it is dropped. One that is larger than the bound
    /// takes all of it.
    ///
    /// # Errors
    /// [`TeacherError::Held`].
    pub fn take(&self, client: &Client, bytes: usize) -> Result<Taken, TeacherError> {
        let full = TeacherError::Held { limit: self.limit, pause: PAUSE };
        self.room.take(client, bytes.min(self.limit)).ok_or(full)
    }
}

/// What the answer to a job takes, in bytes; `hidden_size` is the model's.
pub fn answer_bytes(job: &ScoreJob, hidden_size: usize) -> usize {
    let row = match job.entries {
        Entries::Top | Entries::Named(_) => Layout::PLAIN.row_bytes(job.k),
        Entries::Drawn { draws, .. } => 8 * (job.k + draws as usize) + 16,
        // The states and, of coded ones, as many numbers.
        Entries::Hidden(_) => 8 * hidden_size,
    };
    job.rows() * row
}
