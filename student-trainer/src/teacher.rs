//! The gRPC client: where a teacher is, what it says of itself, a stream to it.
//!
//! Whether teacher and student fit is decided by `distill::handshake`; what bytes mean is decided
//! by `proto::convert`. This file reaches the other side and names it in every error.

use std::sync::Arc;
use std::time::{Duration, Instant};

use distill::backoff::Backoff;
use distill::fingerprint::Fingerprint;
use distill::handshake::{Agreement, Mismatch, StudentFacts, TeacherFacts, check};
use distill::window::GiveUp;
use proto::convert::{InfoError, Reaction, ReplyError, facts_from_info};
use proto::limits::MAX_MESSAGE_BYTES;
use proto::v1::teacher_client::TeacherClient;
use tokio::runtime::{Builder, Runtime};
use tonic::transport::{Channel, Endpoint};

use crate::observer::TeacherLine;
use crate::stop::Stop;
use crate::stranger;

/// Bytes a teacher may send before this side has read them.
const FLOW_WINDOW_BYTES: u32 = 8 << 20;
/// Longest single attempt at a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for a `GetInfo`: it costs the teacher nothing.
const INFO_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a teacher cannot be used, or can no longer.
#[derive(Debug, thiserror::Error)]
pub enum TeacherError {
    /// Not an address.
    #[error("--teacher {url}: {reason}; wanted: an address such as grpc://127.0.0.1:50051")]
    Address {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody answered in the time allowed.
    #[error(
        "teacher {url} could not be reached: {attempts} attempts in {:.1} s, the last error: \
         {last_error}. Is teacher-server running there? --teacher-timeout ({} s) bounds the wait",
        tried_for.as_secs_f64(), limit.as_secs_f64()
    )]
    Unreachable {
        /// The address.
        url: String,
        /// Connections tried.
        attempts: u32,
        /// For how long.
        tried_for: Duration,
        /// The time allowed.
        limit: Duration,
        /// The last thing that went wrong.
        last_error: String,
    },
    /// Something else listens there.
    #[error(
        "--teacher {url}: {found}; give the address that teacher-server prints as grpc=HOST:PORT \
         when it has started"
    )]
    NotATeacher {
        /// The address.
        url: String,
        /// What listens there.
        found: String,
    },
    /// Stopped by a signal while waiting for a teacher.
    #[error("stopped while waiting for teacher {url}")]
    Stopped {
        /// The address.
        url: String,
    },
    /// A call that trying again would not mend.
    #[error("teacher {url} refused {call}: {code:?}: {message}")]
    Refused {
        /// The address.
        url: String,
        /// The call.
        call: &'static str,
        /// The status.
        code: tonic::Code,
        /// The teacher's own words.
        message: String,
    },
    /// Teacher and student do not fit.
    #[error("teacher {url} and the student do not fit: {source}")]
    Mismatch {
        /// The address.
        url: String,
        /// What differs, both values.
        source: Mismatch,
    },
    /// An account of itself that is none.
    #[error("teacher {url} cannot be used: {source}")]
    Info {
        /// The address.
        url: String,
        /// What is wrong with it.
        source: InfoError,
    },
    /// An answer that is not one to what was asked.
    #[error("teacher {url}, row {row}: {source}")]
    Reply {
        /// The address.
        url: String,
        /// Index of the row in its set.
        row: usize,
        /// What is wrong with it, both values.
        source: ReplyError,
    },
    /// Another model or tokenizer answers at an address.
    #[error(
        "teacher {url} now serves another {what}: fingerprint {found}, the run began with \
         {wanted}; a run learns from one teacher: restore it, or start a new run"
    )]
    Changed {
        /// The address.
        url: String,
        /// `model` or `tokenizer`.
        what: &'static str,
        /// The fingerprint now.
        found: Fingerprint,
        /// The fingerprint of the run.
        wanted: Fingerprint,
    },
    /// What comes through the wire is not about the positions asked.
    #[error("teacher {url} failed the alignment proof on row {row}, position {position}: {reason}")]
    Alignment {
        /// The address.
        url: String,
        /// Row of the training set.
        row: usize,
        /// Position in it.
        position: usize,
        /// What was found and what was expected.
        reason: String,
    },
    /// Lost on the way, and not found again in the time allowed.
    #[error("teacher {urls}{}: {reason}", row.map(|r| format!(" (row {r})")).unwrap_or_default())]
    Lost {
        /// The addresses, a comma between them.
        urls: String,
        /// Index of the row in its set, when one row is the cause.
        row: Option<usize>,
        /// What was tried, and for how long.
        reason: GiveUp,
    },
    /// The network side of this program ended.
    #[error("the network thread ended unexpectedly; this is a fault of this program")]
    Ended,
    /// No network runtime.
    #[error("cannot start the network thread: {0}")]
    Runtime(std::io::Error),
}

/// The network side of the trainer: one worker thread for all connections.
#[derive(Debug)]
pub struct Network(Runtime);

impl Network {
    /// Starts it.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start() -> Result<Self, TeacherError> {
        let built = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("network")
            .enable_all()
            .build();
        built.map(Self).map_err(TeacherError::Runtime)
    }

    /// Where tasks are started.
    pub(crate) fn handle(&self) -> &tokio::runtime::Handle {
        self.0.handle()
    }
}

/// A teacher that was reached and fits.
#[derive(Clone, Debug)]
pub struct Teacher {
    pub(crate) address: Address,
    pub(crate) agreement: Agreement,
    facts: Arc<TeacherFacts>,
}

impl Teacher {
    /// Reaches the teacher at `url`, trying again for at most `limit`, and checks that it fits the
    /// student.
    ///
    /// # Errors
    /// [`TeacherError`], with the address.
    pub fn connect(
        network: &Network,
        url: &str,
        student: &StudentFacts,
        limit: Duration,
        stop: &Stop,
    ) -> Result<Self, TeacherError> {
        let address = Address::parse(url)?;
        let facts = network.0.block_on(reach(&address, limit, stop))?;
        let agreement = check(&facts, student)
            .map_err(|source| TeacherError::Mismatch { url: url.to_owned(), source })?;
        Ok(Self { address, agreement, facts: Arc::new(facts) })
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.address.url
    }

    /// What it said of itself.
    pub fn facts(&self) -> &TeacherFacts {
        &self.facts
    }

    /// The terms of the work.
    pub fn agreement(&self) -> &Agreement {
        &self.agreement
    }

    /// It, in the words of the reports.
    pub fn line(&self) -> TeacherLine {
        TeacherLine {
            url: self.address.url.clone(),
            model: self.facts.model.clone(),
            revision: self.facts.revision.clone(),
            fingerprint: self.facts.model_fingerprint.to_string(),
            parameters: self.facts.parameters,
            dtype: self.facts.dtype.clone(),
            device: self.facts.device.clone(),
        }
    }
}

/// An address as it was given, and as the transport wants it.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    pub(crate) url: String,
    endpoint: Endpoint,
}

impl Address {
    /// Reads `grpc://HOST:PORT` or `http://HOST:PORT`; the scheme may be left out.
    ///
    /// # Errors
    /// [`TeacherError::Address`].
    pub(crate) fn parse(url: &str) -> Result<Self, TeacherError> {
        let wrong = |reason: String| TeacherError::Address { url: url.to_owned(), reason };
        let host = match url.split_once("://") {
            None => url,
            Some(("grpc" | "http", host)) => host,
            Some(("grpcs" | "https", _)) => {
                return Err(wrong("encrypted connections are not offered yet".to_owned()));
            }
            Some((scheme, _)) => return Err(wrong(format!("unknown scheme {scheme}://"))),
        };
        let host = host.trim_end_matches('/');
        if host.is_empty() || host.starts_with(':') {
            return Err(wrong("it names no host".to_owned()));
        }
        let port = host.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
        match port {
            Some(Ok(1..)) => {}
            Some(_) => return Err(wrong("the port is no number from 1 to 65535".to_owned())),
            None => return Err(wrong("it names no port".to_owned())),
        }
        let endpoint = Endpoint::from_shared(format!("http://{host}"))
            .map_err(|e| wrong(e.to_string()))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(20))
            .keep_alive_while_idle(true)
            .initial_stream_window_size(FLOW_WINDOW_BYTES)
            .initial_connection_window_size(FLOW_WINDOW_BYTES)
            // Twice the throughput of the default 16 KiB on loopback.
            .max_frame_size((1 << 20) - 1);
        Ok(Self { url: url.to_owned(), endpoint })
    }

    /// `HOST:PORT`.
    fn authority(&self) -> &str {
        self.endpoint.uri().authority().map_or("", |authority| authority.as_str())
    }

    /// The error of something else that listens here.
    async fn stranger(&self) -> Option<TeacherError> {
        let found = stranger::recognise(self.authority()).await?;
        Some(TeacherError::NotATeacher { url: self.url.clone(), found })
    }

    /// A web server may speak HTTP/2 and know no such call: then it is named instead.
    async fn who_refuses(&self, error: TeacherError) -> TeacherError {
        if let TeacherError::Refused { code: tonic::Code::Unimplemented, .. } = error {
            return self.stranger().await.unwrap_or(error);
        }
        error
    }

    /// A client on a new connection.
    pub(crate) async fn client(&self) -> Result<TeacherClient<Channel>, String> {
        let channel = self.endpoint.connect().await.map_err(|e| with_causes(&e))?;
        Ok(TeacherClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES))
    }

    /// Asks the teacher what it is, on a connection of its own.
    pub(crate) async fn info(&self) -> Result<TeacherFacts, Failure> {
        let mut client = self.client().await.map_err(Failure::Passing)?;
        let mut request = tonic::Request::new(proto::v1::GetInfoRequest {});
        request.set_timeout(INFO_TIMEOUT);
        let reply =
            client.get_info(request).await.map_err(|status| self.failure("GetInfo", &status))?;
        facts_from_info(reply.get_ref())
            .map_err(|source| Failure::Final(TeacherError::Info { url: self.url.clone(), source }))
    }

    /// What the status of a call means for the next attempt.
    pub(crate) fn failure(&self, call: &'static str, status: &tonic::Status) -> Failure {
        let (code, message) = (status.code(), status.message());
        match Reaction::to(code) {
            // A status that was not sent but made here, of what the transport met.
            Reaction::Retry if std::error::Error::source(status).is_some() => {
                Failure::Garbled(with_causes(status))
            }
            Reaction::Retry => Failure::Passing(format!("{code:?}: {message}")),
            Reaction::Stop => {
                let (url, message) = (self.url.clone(), message.to_owned());
                Failure::Final(TeacherError::Refused { url, call, code, message })
            }
        }
    }
}

/// How an attempt failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Trying again may help.
    Passing(String),
    /// The same, and no teacher has answered: the connection broke, or something else listens.
    Garbled(String),
    /// It will not.
    Final(TeacherError),
}

/// Asks for the facts until they come or the time is over.
async fn reach(
    address: &Address,
    limit: Duration,
    stop: &Stop,
) -> Result<TeacherFacts, TeacherError> {
    let begin = Instant::now();
    let mut attempts = 0;
    loop {
        attempts += 1;
        let last_error = match address.info().await {
            Ok(facts) => return Ok(facts),
            Err(Failure::Final(error)) => return Err(address.who_refuses(error).await),
            Err(Failure::Passing(error)) => error,
            Err(Failure::Garbled(error)) => match address.stranger().await {
                Some(error) => return Err(error),
                None => error,
            },
        };
        let url = address.url.clone();
        let tried_for = begin.elapsed();
        if tried_for >= limit {
            let error = TeacherError::Unreachable { url, attempts, tried_for, limit, last_error };
            return Err(error);
        }
        tracing::info!(teacher = url, attempts, last_error, "teacher not reached yet");
        let wait = Backoff::default().delay(attempts, rand::random()).min(limit - tried_for);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.wait() => return Err(TeacherError::Stopped { url }),
        }
    }
}

/// An error and what caused it: the transport's own text says only "transport error".
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |e| e.source());
    let mut texts: Vec<String> = vec![error.to_string()];
    for cause in causes.map(ToString::to_string) {
        if texts.last() != Some(&cause) {
            texts.push(cause);
        }
    }
    texts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_or_refused_with_the_reason() {
        for good in ["grpc://127.0.0.1:50051", "http://teacher:1/", "[::1]:50051"] {
            Address::parse(good).unwrap();
        }
        let cases = [
            ("grpc://teacher", "no port"),
            ("grpc://", "no host"),
            ("grpc://:50051", "no host"),
            ("grpc://teacher:0", "port"),
            ("grpc://teacher:70000", "port"),
            ("grpcs://teacher:1", "encrypted"),
            ("ftp://teacher:1", "unknown scheme ftp"),
        ];
        for (url, word) in cases {
            let error = Address::parse(url).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(url), "{error}");
        }
    }
}
