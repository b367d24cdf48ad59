//! From the sequences of a request to their scores, through the queue that gRPC's go through.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use distill::codec::{Layout, token_bytes};
use distill::handshake::TeacherFacts;
use proto::convert::{ScoreJob, Times, score_job};
use proto::v1;
use tokio::time::sleep;

use super::{MAX_SEQUENCES, Problem};
use crate::client::Client;
use crate::desk::Desk;
use crate::engine::Reply;
use crate::error::TeacherError;
use crate::scorer::Scores;

/// Longest pause between two tries to queue the rest of a request.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What is asked of a number of sequences: none where no position of one is wanted.
#[derive(Debug, PartialEq)]
pub struct Asked(Vec<Option<ScoreJob>>);

/// What the sequences of a request are answered with.
pub struct Scored {
    /// A value for each sequence; none where no position was wanted.
    pub scores: Vec<Option<Scores>>,
    /// The longest that one of them waited, and the longest batch.
    pub times: Times,
}

impl Asked {
    /// Checks sequences and the positions wanted of each, as if each had come as a `ScoreRequest`.
    ///
    /// # Errors
    /// [`Problem`] naming the sequence: one that gRPC would refuse too, or an answer with more bytes
    /// than one stream may have the server hold.
    pub fn of(
        sequences: impl ExactSizeIterator<Item = (Vec<u32>, Range<usize>)>,
        temperature: f32,
        k: usize,
        facts: &TeacherFacts,
    ) -> Result<Self, Problem> {
        if sequences.len() > MAX_SEQUENCES {
            return Err(Problem::invalid(format!(
                "{} sequences are more than the {MAX_SEQUENCES} of one request; send several",
                sequences.len()
            )));
        }
        let (mut jobs, mut held) = (Vec::with_capacity(sequences.len()), 0usize);
        for (index, (tokens, rows)) in sequences.enumerate() {
            let wrong = |error| Problem::invalid(format!("sequence {index}: {error}"));
            let length = tokens.len();
            // A sequence of which nothing is wanted is checked as well.
            let wanted = if rows.is_empty() { 0..length } else { rows.clone() };
            let range = v1::PositionRange { first: wanted.start as u32, end: wanted.end as u32 };
            let request = v1::ScoreRequest {
                tokens: token_bytes(&tokens).into(),
                positions: if length == 0 { vec![] } else { vec![range] },
                temperature,
                signal: v1::SignalKind::TopK.into(),
                top_k: u32::try_from(k).unwrap_or(u32::MAX),
                codec: v1::Codec::Raw.into(),
                ..Default::default()
            };
            let job = score_job(&request, facts).map_err(|error| wrong(error.to_string()))?;
            held += rows.len() * Layout::PLAIN.row_bytes(k);
            jobs.push((!rows.is_empty()).then_some(job));
        }
        let limit = facts.limits.max_held_bytes_per_stream;
        if held > limit {
            return Err(Problem::invalid(format!(
                "the answer takes {held} bytes, more than the {limit} that one request may have \
                 held (--max-held-bytes-per-stream); send fewer sequences at a time or lower k"
            )));
        }
        Ok(Self(jobs))
    }

    /// What is asked of those of which something is.
    pub fn jobs(&self) -> impl Iterator<Item = &ScoreJob> {
        self.0.iter().flatten()
    }

    /// Queues the sequences one after another, at most `window` unanswered at a time, and waits for
    /// all scores. A full queue refuses a request of which nothing has been computed; later the rest
    /// waits for room.
    ///
    /// # Errors
    /// A full queue, or a fault of the device.
    pub async fn score(
        self,
        desk: &Desk,
        client: &Client,
        window: usize,
    ) -> Result<Scored, TeacherError> {
        let mut run = Run { waiting: VecDeque::new(), scores: vec![], times: Times::default() };
        let mut begun = false;
        for job in self.0 {
            let Some(job) = job else {
                run.waiting.push_back(None);
                continue;
            };
            while run.unanswered() >= window {
                run.next().await?;
            }
            loop {
                match desk.engine.submit(client, job.clone()) {
                    Ok(reply) => break run.waiting.push_back(Some(reply)),
                    Err(TeacherError::Full { .. }) if run.unanswered() > 0 => run.next().await?,
                    Err(TeacherError::Full { pause, .. }) if begun => {
                        sleep(pause.min(LONGEST_PAUSE)).await;
                    }
                    Err(error) => return Err(error),
                }
            }
            begun = true;
        }
        while !run.waiting.is_empty() {
            run.next().await?;
        }
        Ok(Scored { scores: run.scores, times: run.times })
    }
}

impl Asked {
    /// The same by `scores`, at once.
    pub(super) fn score_by(self, scores: impl Fn(&ScoreJob) -> Scores) -> Scored {
        let scores = self.0.iter().map(|job| job.as_ref().map(&scores)).collect();
        Scored { scores, times: Times::default() }
    }
}

/// A request under way.
struct Run {
    waiting: VecDeque<Option<Reply>>,
    scores: Vec<Option<Scores>>,
    times: Times,
}

impl Run {
    fn unanswered(&self) -> usize {
        self.waiting.iter().filter(|reply| reply.is_some()).count()
    }

    /// Waits for the first of those that wait.
    async fn next(&mut self) -> Result<(), TeacherError> {
        let scores = match self.waiting.pop_front() {
            Some(Some(reply)) => {
                let answer = reply.await.unwrap_or(Err(TeacherError::Stopped))?;
                self.times.queued = self.times.queued.max(answer.queued);
                self.times.computed = self.times.computed.max(answer.computed);
                Some(answer.scores)
            }
            Some(None) => None,
            None => return Ok(()),
        };
        self.scores.push(scores);
        Ok(())
    }
}
