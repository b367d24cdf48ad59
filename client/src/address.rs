//! An address, and what one attempt to reach somebody there comes to.

use std::time::Duration;

use distill::handshake::{Agreement, TeacherFacts};
use proto::causes::with_causes;
use proto::convert::{Reaction, facts_from_info};
use proto::limits::MAX_MESSAGE_BYTES;
use proto::v1::teacher_client::TeacherClient;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_types::StatusExt as _;

use crate::access::{Access, Probe, Token};
use crate::error::{Error, Failure};
use crate::exchange::Exchange;
use crate::{stranger, trust};

/// Bytes a teacher may send before this side has read them.
const FLOW_WINDOW_BYTES: u32 = 8 << 20;
/// Longest single attempt at a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for a `GetInfo`: it costs the teacher nothing.
const INFO_TIMEOUT: Duration = Duration::from_secs(10);

/// A client that shows its token with every call.
pub type Grpc = TeacherClient<InterceptedService<Channel, Bearer>>;

/// An address as it was given, and as the transport wants it.
#[derive(Clone, Debug)]
pub struct Address {
    url: String,
    endpoint: Endpoint,
    encrypted: bool,
    probe: Option<Probe>,
    access: Access,
}

impl Address {
    /// Reads `grpc://HOST:PORT` or `http://HOST:PORT`, encrypted `grpcs://` or `https://`; the
    /// scheme may be left out. `access` is for encrypted connections, and its token never goes
    /// over another one, unless within this machine.
    ///
    /// # Errors
    /// [`Error::Address`], [`Error::Access`].
    pub fn parse(url: &str, access: &Access) -> Result<Self, Error> {
        let (encrypted, endpoint) = endpoint(url)?;
        let unfit = |reason: String| Error::Access { url: url.to_owned(), reason };
        let endpoint = match encrypted {
            true => encrypt(endpoint, access).map_err(unfit)?,
            false => {
                let host = endpoint.uri().host().unwrap_or_default();
                plain(host, access, "grpcs://").map_err(unfit)?;
                endpoint
            }
        };
        let host = endpoint.uri().host().unwrap_or_default();
        let probe = access.probe(host).filter(|_| encrypted);
        Ok(Self { url: url.to_owned(), endpoint, encrypted, probe, access: access.clone() })
    }

    /// It, as it was given.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// `HOST:PORT`.
    fn authority(&self) -> &str {
        self.endpoint.uri().authority().map_or("", |authority| authority.as_str())
    }

    /// The error of something else that listens here; none where that could be a teacher.
    pub async fn stranger(&self) -> Option<Error> {
        if self.encrypted {
            let probe = self.probe.as_ref()?;
            let (reason, advice) = trust::probe(self.authority(), probe, &self.access).await?;
            return Some(Error::Untrusted { url: self.url.clone(), reason, advice });
        }
        let found = stranger::recognise(self.authority()).await?;
        Some(Error::NotATeacher { url: self.url.clone(), found })
    }

    /// A web server may speak HTTP/2 and know no such call: then it is named instead.
    pub async fn who_refuses(&self, error: Error) -> Error {
        if let Error::Refused { code: tonic::Code::Unimplemented, .. } = error {
            return self.stranger().await.unwrap_or(error);
        }
        error
    }

    /// A client for every call of the contract, on a new connection.
    ///
    /// # Errors
    /// [`Failure`], by what trying again would do.
    pub async fn client(&self) -> Result<Grpc, Failure> {
        let channel = self.endpoint.connect().await.map_err(|error| {
            self.untrusted(&error).unwrap_or_else(|| Failure::Passing(with_causes(&error)))
        })?;
        let client = TeacherClient::with_interceptor(channel, Bearer(self.access.token.clone()));
        Ok(client.max_decoding_message_size(MAX_MESSAGE_BYTES))
    }

    /// The failure of a connection that was not trusted.
    fn untrusted(&self, error: &(dyn std::error::Error + 'static)) -> Option<Failure> {
        let advice = trust::refusal(error, &self.access).filter(|_| self.encrypted)?;
        let (url, reason) = (self.url.clone(), with_causes(error));
        Some(Failure::Final(Error::Untrusted { url, reason, advice }))
    }

    /// Asks the teacher what it is, on a connection of its own.
    ///
    /// # Errors
    /// [`Failure`], by what trying again would do.
    pub async fn info(&self) -> Result<TeacherFacts, Failure> {
        let mut client = self.client().await?;
        let mut request = Request::new(proto::v1::GetInfoRequest {});
        request.set_timeout(INFO_TIMEOUT);
        let reply =
            client.get_info(request).await.map_err(|status| self.failure("GetInfo", &status))?;
        facts_from_info(reply.get_ref())
            .map_err(|source| Failure::Final(Error::Info { url: self.url.clone(), source }))
    }

    /// Opens a stream of scores on a connection of its own, if the teacher is still the one these
    /// terms were agreed with.
    ///
    /// # Errors
    /// [`Failure`], by what trying again would do; [`Error::Changed`] for another model or tokenizer.
    pub async fn open(&self, agreement: Agreement) -> Result<Exchange, Failure> {
        let facts = self.info().await?;
        for (what, found, wanted) in [
            ("model", facts.model_fingerprint, agreement.model_fingerprint),
            ("tokenizer", facts.tokenizer_fingerprint, agreement.tokenizer_fingerprint),
        ] {
            if found != wanted {
                let url = self.url.clone();
                return Err(Failure::Final(Error::Changed { url, what, found, wanted }));
            }
        }
        Exchange::open(self.clone(), agreement).await
    }

    /// What the status of a call means for the next attempt.
    pub fn failure(&self, call: &'static str, status: &Status) -> Failure {
        let (code, message) = (status.code(), status.message());
        match Reaction::to(code) {
            // A status that was not sent but made here, of what the transport met.
            Reaction::Retry if std::error::Error::source(status).is_some() => {
                self.untrusted(status).unwrap_or_else(|| Failure::Garbled(with_causes(status)))
            }
            Reaction::Retry => {
                let reason = format!("{code:?}: {message}");
                match status.get_details_retry_info().and_then(|retry| retry.retry_delay) {
                    Some(pause) => Failure::Busy { reason, pause },
                    None => Failure::Passing(reason),
                }
            }
            Reaction::Stop => {
                let (url, message) = (self.url.clone(), message.to_owned());
                Failure::Final(Error::Refused { url, call, code, message })
            }
        }
    }
}

/// Adds the token to every call.
#[derive(Clone, Debug)]
pub struct Bearer(Option<Token>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.value());
        }
        Ok(request)
    }
}

/// Whether an address wants encryption, and the transport's idea of it.
fn endpoint(url: &str) -> Result<(bool, Endpoint), Error> {
    let wrong = |reason: String| Error::Address { url: url.to_owned(), reason };
    let (encrypted, host) = match url.split_once("://") {
        None => (false, url),
        Some(("grpc" | "http", host)) => (false, host),
        Some(("grpcs" | "https", host)) => (true, host),
        Some((scheme, _)) => return Err(wrong(format!("unknown scheme {scheme}://"))),
    };
    let host = host.trim_end_matches('/');
    if host.is_empty() || host.starts_with(':') {
        return Err(wrong("it names no host".to_owned()));
    }
    if host.contains('/') {
        return Err(wrong("it has a / where a host and a port are expected".to_owned()));
    }
    let port = host.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(1..)) => {}
        Some(_) => return Err(wrong("the port is no number from 1 to 65535".to_owned())),
        None => return Err(wrong("it names no port".to_owned())),
    }
    // The transport encrypts where the scheme says so, and refuses to connect without whom to trust.
    let scheme = if encrypted { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{host}"))
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
    Ok((encrypted, endpoint))
}

/// The endpoint, encrypted.
fn encrypt(endpoint: Endpoint, access: &Access) -> Result<Endpoint, String> {
    let tls = access.encryption().ok_or_else(|| access.nobody_to_trust())?;
    endpoint.tls_config(tls).map_err(|e| {
        let [cert, key] = ["cert", "key"].map(|paper| access.named(paper));
        format!("{cert} and {key} cannot be used: {}", with_causes(&e))
    })
}

/// Whether nothing is lost by not encrypting what goes to `host`; `encrypted` is the scheme that
/// would.
pub(crate) fn plain(host: &str, access: &Access, encrypted: &str) -> Result<(), String> {
    let given = access.of_encryption();
    if !given.is_empty() {
        let given = given.join(", ");
        return Err(format!(
            "this address is not encrypted, so {given} would do nothing; write {encrypted}HOST:PORT"
        ));
    }
    if access.token.is_some() && !is_loopback(host) {
        let [file, ca] = ["token-file", "ca"].map(|paper| access.named(paper));
        return Err(format!(
            "the token of {file} would be readable by everybody on the way; write \
             {encrypted}HOST:PORT and give {ca}"
        ));
    }
    Ok(())
}

/// Whether a host is this machine.
fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let address = bare.parse::<std::net::IpAddr>();
    bare.eq_ignore_ascii_case("localhost") || address.is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::access::Papers;

    #[test]
    fn a_token_goes_over_encrypted_connections_and_within_this_machine_only() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "s3cret").unwrap();
        let token_file = Some(file.path().into());
        let papers = Papers { token_file, prefix: "--teacher-", ..Papers::default() };
        let access = Access::read(papers).unwrap();
        for near in ["grpc://127.0.0.1:1", "localhost:1", "http://[::1]:1"] {
            Address::parse(near, &access).unwrap();
        }
        let far = ["grpc://10.0.0.1:1", "teacher:1", "http://127.0.0.1@teacher:1", "localhost.x:1"];
        for url in far {
            let error = Address::parse(url, &access).unwrap_err().to_string();
            let named = error.starts_with(&format!("teacher {url}: the token"));
            assert!(named && error.contains("write grpcs://"), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn a_refusal_that_says_when_to_come_again_is_kept_with_its_pause() {
        let address = Address::parse("grpc://127.0.0.1:1", &Access::default()).unwrap();
        let pause = Duration::from_millis(2500);
        let details = tonic_types::ErrorDetails::with_retry_info(Some(pause));
        let full = Status::with_error_details(Code::ResourceExhausted, "full", details);
        let failure = address.failure("Score", &full);
        assert_eq!((failure.pause(), failure.to_string().contains("full")), (pause, true));
        let failure = address.failure("Score", &Status::unavailable("draining"));
        assert!(matches!(failure, Failure::Passing(_)) && failure.pause().is_zero());
        let details = tonic_types::ErrorDetails::with_retry_info(Some(pause));
        let wrong = Status::with_error_details(Code::InvalidArgument, "no", details);
        assert!(matches!(address.failure("Score", &wrong), Failure::Final(_)));
    }

    #[test]
    fn addresses_are_read_or_refused_with_the_reason() {
        for good in ["grpc://127.0.0.1:50051", "http://teacher:1/", "[::1]:50051"] {
            Address::parse(good, &Access::default()).unwrap();
        }
        let cases = [
            ("grpc://teacher", "no port"),
            ("grpc://", "no host"),
            ("grpc://:50051", "no host"),
            ("grpc://teacher:0", "port"),
            ("grpc://teacher:70000", "port"),
            ("grpcs://teacher:1", "give ca"),
            ("https://teacher:1", "give ca"),
            ("grpcs://teacher", "no port"),
            ("ftp://teacher:1", "unknown scheme ftp"),
            ("grpc:/127.0.0.1:1", "it has a /"),
            ("grpc//teacher:1", "it has a /"),
        ];
        for (url, word) in cases {
            let error = Address::parse(url, &Access::default()).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(url), "{error}");
        }
    }
}
