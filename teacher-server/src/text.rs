//! `ScoreText`: the same way as `Score`, with text at both ends.

use std::sync::Arc;
use std::time::Duration;

use distill::codec::Codec;
use distill::handshake::SignalKind;
use distill::queue::Priority;
use distill::signal::Entries;
use proto::convert::{self, ScoreJob, SignalError, Times};
use proto::v1::{ScoreTextReply, ScoreTextRequest};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::Span;

use crate::client::Client;
use crate::desk::Desk;
use crate::error::TeacherError;
use crate::room::{Room, Taken};
use crate::scorer::all_positions;
use crate::spans;
use crate::state::Serving;

/// Candidates of one reply, over all positions: a reply stays below the 4 MiB that stock clients
/// accept.
const MAX_CANDIDATES: usize = 65_536;
/// About what each takes.
const CANDIDATE_BYTES: usize = 32;

/// Answers one request; the room that the answer takes is to be kept until it has been read.
///
/// # Errors
/// [`TeacherError`]: a bad request, a full queue, or a fault of the device.
pub async fn score_text(
    request: ScoreTextRequest,
    client: &Client,
    serving: &Arc<Serving>,
    desk: &Desk,
) -> Result<(ScoreTextReply, Taken), TeacherError> {
    let facts = &serving.facts;
    let job = convert::text_job(request, facts)?;
    // What no text has room for is refused before one is encoded.
    desk.engine.has_room(client, 1)?;
    let tokens = desk.encoders.encode(client, job.text.clone(), serving).await?;
    job.check_tokens(tokens.len(), facts)?;
    if tokens.len() * job.k > MAX_CANDIDATES {
        let (tokens, k, most) = (tokens.len(), job.k, MAX_CANDIDATES);
        return Err(TeacherError::TextReply { tokens, k, most });
    }
    let score = ScoreJob {
        id: 0,
        ranges: all_positions(tokens.len()),
        tokens: tokens.clone(),
        temperature: job.temperature,
        k: job.k,
        codec: Codec::Raw,
        classes: facts.vocab_size,
        entries: Entries::Top,
        priority: Priority::Normal,
    };
    let held = desk.held.take(client, tokens.len() * job.k * CANDIDATE_BYTES)?;
    spans::asks(&Span::current(), std::iter::once(&score));
    let answer = desk.score(client, score).await?;
    let times = Times { queued: answer.queued, computed: answer.computed };
    spans::took(&Span::current(), times);
    let other = SignalError::Kind { wanted: SignalKind::TopK };
    let listed = answer.scores.signal.top_k().ok_or(other)?;
    let scores = (listed, &answer.scores.next_logprob[..]);
    let _turn = desk.encoders.turn().await;
    let text_of = |id| serving.text.text_of(id);
    Ok((convert::text_reply(&job, &tokens, scores, times, facts, text_of), held))
}

/// Texts encoded side by side.
const ENCODERS: usize = 2;
/// When somebody whom the bound kept out should come again.
const PAUSE: Duration = Duration::from_millis(500);

/// The threads for encoding: a long text takes the tokenizer a while, and the network's threads have
/// others to serve.
#[derive(Clone)]
pub struct Encoders {
    /// For texts that are encoded or wait for it, shared between clients.
    room: Room,
    limit: usize,
    running: Arc<Semaphore>,
    writing: Arc<Semaphore>,
}

impl Encoders {
    /// For at most `limit` texts, those that wait included.
    pub fn new(limit: usize) -> Self {
        let running = Arc::new(Semaphore::new(ENCODERS));
        let writing = Arc::new(Semaphore::new(1));
        Self { room: Room::new(limit), limit, running, writing }
    }

    /// Waits for its turn to write an answer. A batch ends a hundred texts at once: written side by
    /// side they would keep the network's threads from everybody else for as long as all of them
    /// take, refusals too.
    async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        // Never closed, so never an error.
        Arc::clone(&self.writing).acquire_owned().await.ok()
    }

    /// The ids of a text.
    ///
    /// # Errors
    /// As many texts are being encoded as may, or the tokenizer could not.
    pub async fn encode(
        &self,
        client: &Client,
        text: String,
        serving: &Arc<Serving>,
    ) -> Result<Vec<u32>, TeacherError> {
        let full = TeacherError::Encoding { limit: self.limit, pause: PAUSE };
        let room = self.room.take(client, 1).ok_or(full)?;
        // Never closed, so never an error.
        let running = Arc::clone(&self.running).acquire_owned().await;
        let serving = Arc::clone(serving);
        let encoded = tokio::task::spawn_blocking(move || {
            // A thread goes on when its caller has left, and so does what it takes.
            let _taken = (room, running);
            serving.text.encode(&text)
        });
        match encoded.await {
            Ok(ids) => ids.map_err(|error| TeacherError::Text(error.to_string())),
            Err(panic) => Err(TeacherError::Panicked(panic.to_string())),
        }
    }
}
