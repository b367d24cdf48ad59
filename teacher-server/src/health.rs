//! The probe for containers: asks a server by grpc.health.v1, so that an image needs no other tool.

use std::time::Duration;

use proto::causes::with_causes;
use proto::v1::teacher_server::SERVICE_NAME;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::http::HEALTH;

/// Longest wait for the word of something that does not speak gRPC.
const SECOND_LOOK: Duration = Duration::from_millis(500);

/// Why a server is not healthy.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The address is none.
    #[error("{address} is no address: {reason}")]
    Address {
        /// What was given.
        address: String,
        /// Why it is none.
        reason: String,
    },
    /// Nobody answered.
    #[error("{address} did not answer: {reason}")]
    Silent {
        /// Who was asked.
        address: String,
        /// What happened.
        reason: String,
    },
    /// Something else answers there.
    #[error(
        "{address} is {what}, not the gRPC port of a teacher-server; give the address that it \
         prints as grpc=HOST:PORT when it has started"
    )]
    OtherPort {
        /// Who was asked.
        address: String,
        /// What it is.
        what: &'static str,
    },
    /// It answered and does not serve.
    #[error("{address} answers {status}")]
    NotServing {
        /// Who was asked.
        address: String,
        /// Its answer.
        status: &'static str,
    },
}

/// How a server with a certificate is asked.
#[derive(Clone, Debug)]
pub struct ProbeTls {
    /// The authority its certificate must come from, PEM.
    pub authority: String,
    /// The name it must carry, where it is not the address's host.
    pub name: Option<String>,
}

/// Asks the server at `HOST:PORT` (a scheme before it says nothing) whether the teacher serves, over
/// TLS where that is given.
///
/// # Errors
/// [`ProbeError`] unless it does.
pub async fn probe(
    address: &str,
    tls: Option<ProbeTls>,
    patience: Duration,
) -> Result<(), ProbeError> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let host = address.split_once("://").map_or(address, |(_, host)| host);
    let wrong = |error: tonic::transport::Error| ProbeError::Address {
        address: address.to_owned(),
        reason: with_causes(&error),
    };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{host}")).map_err(wrong)?;
    if let Some(ProbeTls { authority, name }) = tls {
        let config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority));
        let config = match name {
            Some(name) => config.domain_name(name),
            None => config,
        };
        endpoint = endpoint.tls_config(config).map_err(wrong)?;
    }
    let silent = |reason: String| ProbeError::Silent { address: address.to_owned(), reason };
    let other = |what| ProbeError::OtherPort { address: address.to_owned(), what };
    let ask = async {
        let authority = endpoint.uri().authority().map_or("", |authority| authority.as_str());
        let channel = endpoint.connect().await.map_err(|error| silent(with_causes(&error)))?;
        let request = HealthCheckRequest { service: SERVICE_NAME.to_owned() };
        match HealthClient::new(channel).check(request).await {
            Ok(answer) => Ok(answer),
            Err(status) => Err(match (is_http_port(authority).await, status.code()) {
                (true, _) => other("the HTTP port of a teacher-server (printed as http=)"),
                // A teacher-server knows this call.
                (_, Code::Unimplemented) => {
                    other("something that does not tell its health by gRPC")
                }
                (_, _) => silent(status.to_string()),
            }),
        }
    };
    let late = |_| silent(format!("nothing within {} s", patience.as_secs_f32()));
    let status = tokio::time::timeout(patience, ask).await.map_err(late)??.into_inner().status();
    match status {
        ServingStatus::Serving => Ok(()),
        ServingStatus::Unknown | ServingStatus::NotServing | ServingStatus::ServiceUnknown => {
            let status = status.as_str_name();
            Err(ProbeError::NotServing { address: address.to_owned(), status })
        }
    }
}

/// Whether `/health` at `HOST:PORT` answers as a teacher-server's HTTP side does, and soon: who is silent
/// must not hide what was heard before.
async fn is_http_port(authority: &str) -> bool {
    let mut answer = Vec::new();
    let ask = async {
        let mut stream = TcpStream::connect(authority).await?;
        let request =
            format!("GET /health HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        stream.take(4096).read_to_end(&mut answer).await
    };
    // What has come by then is looked at, whatever ended it.
    let _ = tokio::time::timeout(SECOND_LOOK, ask).await;
    let says = |word: &&str| answer.ends_with(format!("\r\n\r\n{word}").as_bytes());
    answer.starts_with(b"HTTP/1") && HEALTH.iter().any(says)
}
