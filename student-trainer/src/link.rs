//! One stream to one teacher, as a task: requests go in, what is heard comes out.

use std::time::Duration;

use distill::handshake::Agreement;
use proto::v1::{ScoreReply, ScoreRequest};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_stream::wrappers::ReceiverStream;

use crate::teacher::{Address, Client, Failure, TeacherError};

/// Longest wait for the teacher to accept a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// What a link says.
#[derive(Debug)]
pub(crate) enum Said {
    /// The stream is open; requests may be sent.
    Open,
    /// Part of an answer.
    Reply(ScoreReply),
    /// The stream ended, or could not be opened; trying again may help.
    Ended(String),
    /// Trying again will not help.
    Broken(TeacherError),
}

/// A word of a link, with the link's number: words of links given up are ignored by it.
pub(crate) type Word = (u64, Said);

/// The near end of a link. Dropping it ends the stream.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) number: u64,
    requests: mpsc::Sender<ScoreRequest>,
    task: AbortHandle,
}

impl Link {
    /// Opens a stream in a task of its own; its words go to `words`. At most
    /// `agreement.max_in_flight` requests may be unanswered.
    pub(crate) fn open(
        number: u64,
        address: Address,
        agreement: Agreement,
        words: mpsc::Sender<Word>,
    ) -> Self {
        let (requests, outgoing) = mpsc::channel(agreement.max_in_flight.max(1));
        let task = tokio::spawn(async move {
            let last = talk(number, &address, &agreement, outgoing, &words).await;
            // Nobody listens any more when this fails.
            let _ = words.send((number, last)).await;
        });
        Self { number, requests, task: task.abort_handle() }
    }

    /// Sends a request.
    ///
    /// # Errors
    /// When the stream has ended, or has not yet taken what it was given before.
    pub(crate) fn send(&self, request: ScoreRequest) -> Result<(), String> {
        self.requests.try_send(request).map_err(|e| e.to_string())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Carries one stream to its end and returns the last word.
async fn talk(
    number: u64,
    address: &Address,
    agreement: &Agreement,
    outgoing: mpsc::Receiver<ScoreRequest>,
    words: &mpsc::Sender<Word>,
) -> Said {
    let mut client = match open(address, agreement).await {
        Ok(client) => client,
        Err(failure) => return failure.into(),
    };
    let opened = client.score(ReceiverStream::new(outgoing));
    let mut replies = match tokio::time::timeout(OPEN_TIMEOUT, opened).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return address.failure("Score", &status).into(),
        Err(_) => return Said::Ended(format!("no stream within {} s", OPEN_TIMEOUT.as_secs())),
    };
    if words.send((number, Said::Open)).await.is_err() {
        return Said::Ended("nobody listens".to_owned());
    }
    loop {
        let said = match replies.message().await {
            Ok(Some(reply)) => Said::Reply(reply),
            Ok(None) => return Said::Ended("the teacher closed the stream".to_owned()),
            Err(status) => return address.failure("Score", &status).into(),
        };
        if words.send((number, said)).await.is_err() {
            return Said::Ended("nobody listens".to_owned());
        }
    }
}

/// A connection to the model and tokenizer the run began with.
async fn open(address: &Address, agreement: &Agreement) -> Result<Client, Failure> {
    let facts = address.info().await?;
    for (what, found, wanted) in [
        ("model", facts.model_fingerprint, agreement.model_fingerprint),
        ("tokenizer", facts.tokenizer_fingerprint, agreement.tokenizer_fingerprint),
    ] {
        if found != wanted {
            let url = address.url.clone();
            return Err(Failure::Final(TeacherError::Changed { url, what, found, wanted }));
        }
    }
    address.client().await
}

impl From<Failure> for Said {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Passing(error) | Failure::Garbled(error) => Self::Ended(error),
            Failure::Final(error) => Self::Broken(error),
        }
    }
}
