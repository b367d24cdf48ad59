//! An address, and what one attempt to reach somebody there comes to.

use std::time::Duration;

use distill::handshake::TeacherFacts;
use proto::convert::{Reaction, facts_from_info};
use proto::limits::MAX_MESSAGE_BYTES;
use proto::v1::teacher_client::TeacherClient;
use tonic::transport::{Channel, Endpoint};

use super::{TeacherError, stranger};

/// Bytes a teacher may send before this side has read them.
const FLOW_WINDOW_BYTES: u32 = 8 << 20;
/// Longest single attempt at a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for a `GetInfo`: it costs the teacher nothing.
const INFO_TIMEOUT: Duration = Duration::from_secs(10);

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
    pub(super) async fn stranger(&self) -> Option<TeacherError> {
        let found = stranger::recognise(self.authority()).await?;
        Some(TeacherError::NotATeacher { url: self.url.clone(), found })
    }

    /// A web server may speak HTTP/2 and know no such call: then it is named instead.
    pub(super) async fn who_refuses(&self, error: TeacherError) -> TeacherError {
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
