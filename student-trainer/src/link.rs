//! One stream to one teacher, as a task: jobs go in, what is heard comes out.

use std::time::Duration;

use client::vllm::Server;
use client::{Address, Error, Exchange, Failure, Fault, Heard};
use distill::handshake::Agreement;
use proto::convert::{ScoreJob, Scored};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use crate::teacher::{Teacher, Voice, fingerprint, nobody};

/// How often a link says that calls are under way which nothing comes of yet.
const ALIVE: Duration = Duration::from_secs(10);

/// What a link says.
#[derive(Debug)]
pub(crate) enum Said {
    /// The stream is open; jobs may be sent.
    Open,
    /// Part of an answer.
    Part,
    /// An answer, and the bytes of its request.
    Answer(Box<Scored>, usize),
    /// What came for one job is no answer.
    Fault(u64, Fault),
    /// The stream ended, or could not be opened; trying again may help, after a pause where the teacher
    /// asks for one.
    Ended(String, Duration),
    /// Trying again will not help.
    Broken(Error),
}

/// A word of a link, with the link's number: words of links given up are ignored by it.
pub(crate) type Word = (u64, Said);

/// The near end of a link. Dropping it ends the stream.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) number: u64,
    jobs: mpsc::Sender<ScoreJob>,
    task: AbortHandle,
}

/// Where a link's words go.
struct Mouth {
    number: u64,
    words: mpsc::Sender<Word>,
}

impl Link {
    /// Opens a stream to `teacher` in a task of its own; its words go to `words`. At most
    /// `agreement.max_in_flight` jobs may be unanswered.
    pub(crate) fn open(number: u64, teacher: &Teacher, words: mpsc::Sender<Word>) -> Self {
        let agreement = teacher.agreement;
        let (jobs, outgoing) = mpsc::channel(agreement.max_in_flight.max(1));
        let voice = teacher.voice.clone();
        let task = tokio::spawn(async move {
            let mouth = Mouth { number, words };
            let end = match voice {
                Voice::Grpc(address) => talk(&address, agreement, outgoing, &mouth).await,
                Voice::Vllm(server) => talk_vllm(&server, agreement, outgoing, &mouth).await,
                Voice::Kept { place, .. } => Failure::Final(nobody(&place)),
            };
            // Nobody listens any more when this fails.
            let _ = mouth.say(end.into()).await;
        });
        Self { number, jobs, task: task.abort_handle() }
    }

    /// Sends a job.
    ///
    /// # Errors
    /// When the stream has ended, or has not yet taken what it was given before.
    pub(crate) fn send(&self, job: ScoreJob) -> Result<(), String> {
        self.jobs.try_send(job).map_err(|e| e.to_string())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Mouth {
    async fn say(&self, said: Said) -> Result<(), Failure> {
        let gone = |_| Failure::Passing("nobody listens".to_owned());
        self.words.send((self.number, said)).await.map_err(gone)
    }
}

/// Carries one stream to its end and returns how it ended.
async fn talk(
    address: &Address,
    agreement: Agreement,
    mut outgoing: mpsc::Receiver<ScoreJob>,
    mouth: &Mouth,
) -> Failure {
    let mut run = async || -> Result<(), Failure> {
        let mut exchange = address.open(agreement).await?;
        mouth.say(Said::Open).await?;
        loop {
            tokio::select! {
                job = outgoing.recv() => ask(&mut exchange, job)?,
                heard = exchange.next() => match heard? {
                    Heard::Part { .. } => mouth.say(Said::Part).await?,
                    Heard::Answer { scored, request_bytes } => {
                        mouth.say(Said::Answer(scored, request_bytes)).await?;
                    }
                    Heard::Fault { id, fault } => mouth.say(Said::Fault(id, fault)).await?,
                    // Of a job given up meanwhile.
                    Heard::Stray { .. } => {}
                },
            }
        }
    };
    ended(run().await)
}

/// Sends a job; without one the near end is gone.
fn ask(exchange: &mut Exchange, job: Option<ScoreJob>) -> Result<(), Failure> {
    let job = job.ok_or_else(|| Failure::Passing("nobody asks".to_owned()))?;
    exchange.send(job).map_err(|full| Failure::Passing(full.to_string()))
}

/// The same with a vLLM server, which has no streams: each job is a call of its own.
async fn talk_vllm(
    server: &Server,
    agreement: Agreement,
    mut outgoing: mpsc::Receiver<ScoreJob>,
    mouth: &Mouth,
) -> Failure {
    let mut run = async || -> Result<(), Failure> {
        let found = server.describe().await?;
        let (now, wanted) = (fingerprint(&found), agreement.model_fingerprint);
        if now != wanted {
            let (url, what) = (server.url().to_owned(), "model");
            return Err(Error::Changed { url, what, found: now, wanted }.into());
        }
        mouth.say(Said::Open).await?;
        // Dropped with this function, it ends the calls.
        let mut calls = JoinSet::new();
        let mut alive = tokio::time::interval(ALIVE);
        loop {
            tokio::select! {
                job = outgoing.recv() => {
                    let job = job.ok_or_else(|| Failure::Passing("nobody asks".to_owned()))?;
                    let (server, model) = (server.clone(), found.model.clone());
                    calls.spawn(async move { (job.id, server.score(&model, &job).await) });
                }
                // A call may wait in the server's queue without a byte; how long is the client's to bound.
                _ = alive.tick(), if !calls.is_empty() => mouth.say(Said::Part).await?,
                Some(call) = calls.join_next() => {
                    let (id, answer) = call.map_err(|e| Failure::Passing(e.to_string()))?;
                    mouth.say(match answer? {
                        Ok((scored, request_bytes)) => Said::Answer(Box::new(scored), request_bytes),
                        Err(fault) => Said::Fault(id, fault),
                    }).await?;
                }
            }
        }
    };
    ended(run().await)
}

/// How a stream ended: never well, since only its near end closes it.
fn ended(end: Result<(), Failure>) -> Failure {
    end.err().unwrap_or_else(|| Failure::Passing("the stream ended".to_owned()))
}

impl From<Failure> for Said {
    fn from(failure: Failure) -> Self {
        let pause = failure.pause();
        match failure {
            Failure::Passing(error)
            | Failure::Garbled(error)
            | Failure::Busy { reason: error, .. } => Self::Ended(error, pause),
            Failure::Final(error) => Self::Broken(error),
        }
    }
}
