//! One stream of scores: requests go in, whole and checked answers come out.

use std::collections::HashMap;
use std::time::Duration;

use distill::handshake::Agreement;
use prost::Message as _;
use proto::convert::{ReplyAssembler, ScoreJob, Scored, score_request};
use proto::v1::{ScoreReply, ScoreRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::address::Address;
use crate::error::{Failure, Fault};

/// Longest wait for the teacher to accept a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// An open stream to one teacher. Dropping it ends the stream, and what it owes is computed no more.
#[derive(Debug)]
pub struct Exchange {
    address: Address,
    agreement: Agreement,
    requests: mpsc::Sender<ScoreRequest>,
    replies: Streaming<ScoreReply>,
    owed: HashMap<u64, Owed>,
}

/// A request that was sent.
#[derive(Debug)]
struct Owed {
    assembler: ReplyAssembler,
    request_bytes: usize,
}

/// What came on a stream.
#[derive(Debug)]
pub enum Heard {
    /// Part of the answer to a request; more follows.
    Part {
        /// The request.
        id: u64,
    },
    /// The whole answer to a request.
    Answer {
        /// It, checked.
        scored: Box<Scored>,
        /// Encoded bytes of the request.
        request_bytes: usize,
    },
    /// A refusal of a request, or an answer that is none. The stream goes on.
    Fault {
        /// The request.
        id: u64,
        /// What is wrong.
        fault: Fault,
    },
    /// An answer to nothing that is asked here.
    Stray {
        /// Of which it speaks.
        id: u64,
    },
}

/// The stream takes no request.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// As many as the teacher reads ahead are under way: take answers first.
    #[error("{0} requests wait to be read by the teacher: take answers before you ask on")]
    Waiting(usize),
    /// A request of this id is under way.
    #[error("request {0} is under way already: ids are told apart until they are answered")]
    Duplicate(u64),
    /// It has ended.
    #[error("the stream has ended")]
    Ended,
}

impl Exchange {
    /// Opens a stream to a teacher that is known to be the one agreed with.
    pub(crate) async fn open(address: Address, agreement: Agreement) -> Result<Self, Failure> {
        let (requests, outgoing) = mpsc::channel(agreement.max_in_flight.max(1));
        let mut client = address.client().await?;
        let opened = client.score(ReceiverStream::new(outgoing));
        let replies = match tokio::time::timeout(OPEN_TIMEOUT, opened).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Err(address.failure("Score", &status)),
            Err(_) => {
                let seconds = OPEN_TIMEOUT.as_secs();
                return Err(Failure::Passing(format!("no stream within {seconds} s")));
            }
        };
        Ok(Self { address, agreement, requests, replies, owed: HashMap::new() })
    }

    /// Asks for one sequence, under an id that is not under way.
    ///
    /// # Errors
    /// [`Full`]; the request was not sent.
    pub fn send(&mut self, job: ScoreJob) -> Result<(), Full> {
        if self.owed.contains_key(&job.id) {
            return Err(Full::Duplicate(job.id));
        }
        let request = score_request(&job);
        let (id, request_bytes) = (job.id, request.encoded_len());
        self.requests.try_send(request).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Full::Waiting(self.requests.max_capacity()),
            mpsc::error::TrySendError::Closed(_) => Full::Ended,
        })?;
        let assembler = ReplyAssembler::new(job, &self.agreement);
        self.owed.insert(id, Owed { assembler, request_bytes });
        Ok(())
    }

    /// Requests sent and not answered.
    pub fn unanswered(&self) -> usize {
        self.owed.len()
    }

    /// Waits for what comes next. May be given up at any time without losing anything.
    ///
    /// # Errors
    /// [`Failure`] when the stream has ended: what it owed is lost and has to be asked again.
    pub async fn next(&mut self) -> Result<Heard, Failure> {
        match self.replies.message().await {
            Ok(Some(reply)) => Ok(self.take(&reply)),
            Ok(None) => Err(Failure::Passing("the teacher closed the stream".to_owned())),
            Err(status) => Err(self.address.failure("Score", &status)),
        }
    }

    fn take(&mut self, reply: &ScoreReply) -> Heard {
        let id = reply.id;
        let Some(owed) = self.owed.get_mut(&id) else { return Heard::Stray { id } };
        let request_bytes = owed.request_bytes;
        let heard = match owed.assembler.push(reply) {
            Ok(None) => return Heard::Part { id },
            Ok(Some(scored)) => Heard::Answer { scored: Box::new(scored), request_bytes },
            Err(error) => Heard::Fault { id, fault: error.into() },
        };
        self.owed.remove(&id);
        heard
    }
}
