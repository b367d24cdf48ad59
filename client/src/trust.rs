//! Why an encrypted connection was not trusted, by this side or by the other: trying again would
//! not mend that.

use std::error::Error;
use std::time::Duration;

use rustls::{AlertDescription, CertificateError, Error as Tls};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::access::{Access, Probe};

/// Longest wait for what the other side says.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a server says of this client, and what to do; none where it does not refuse it. A server
/// speaks of client certificates after the handshake, when HTTP/2 may only find the pipe broken.
pub(crate) async fn probe(
    authority: &str,
    probe: &Probe,
    access: &Access,
) -> Option<(String, String)> {
    let talk = async {
        let stream = TcpStream::connect(authority).await?;
        let connector = TlsConnector::from(probe.config());
        connector.connect(probe.name.clone(), stream).await?.read_u8().await
    };
    let error = tokio::time::timeout(PATIENCE, talk).await.ok()?.err()?;
    Some((error.to_string(), refusal(&error, access)?))
}

/// What to do about a refusal; none where `error` has another cause.
pub(crate) fn refusal(error: &(dyn Error + 'static), access: &Access) -> Option<String> {
    let chain = std::iter::successors(Some(error), |e| cause(*e));
    for error in chain {
        if let Some(advice) = error.downcast_ref::<Tls>().and_then(|error| advice(error, access)) {
            return Some(advice);
        }
        // HTTP/2 keeps no more than the words of what the other side said after the handshake.
        let words = error.to_string();
        let said = |&alert| words.contains(&Tls::AlertReceived(alert).to_string());
        if OF_CLIENTS.iter().any(said) {
            return Some(ours(access));
        }
    }
    None
}

/// What an error wraps. The input and output errors hide it: their `source` is the wrapped one's.
fn cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    match inner {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}

fn ours(access: &Access) -> String {
    let [cert, key] = ["cert", "key"].map(|paper| access.named(paper));
    format!("the teacher wants a client certificate it trusts: give {cert} and {key}")
}

/// What a server says of the certificate of a client, or of its absence.
const OF_CLIENTS: [AlertDescription; 10] = [
    AlertDescription::CertificateRequired,
    AlertDescription::BadCertificate,
    AlertDescription::UnsupportedCertificate,
    AlertDescription::CertificateRevoked,
    AlertDescription::CertificateExpired,
    AlertDescription::CertificateUnknown,
    AlertDescription::UnknownCA,
    AlertDescription::AccessDenied,
    AlertDescription::NoCertificate,
    // A signature that does not verify: signed by another authority of the same name.
    AlertDescription::DecryptError,
];

#[expect(clippy::wildcard_enum_match_arm, reason = "the enum is open, and the others may pass")]
fn advice(error: &Tls, access: &Access) -> Option<String> {
    match error {
        Tls::InvalidCertificate(reason) => Some(of_certificate(reason, access)),
        Tls::AlertReceived(alert) if OF_CLIENTS.contains(alert) => Some(ours(access)),
        Tls::AlertReceived(
            AlertDescription::HandshakeFailure
            | AlertDescription::ProtocolVersion
            | AlertDescription::NoApplicationProtocol
            | AlertDescription::UnrecognisedName,
        )
        | Tls::NoApplicationProtocol
        | Tls::PeerIncompatible(_) => {
            Some("is this the port of a teacher-server (TLS 1.2 or 1.3, HTTP/2)?".to_owned())
        }
        Tls::InvalidMessage(_) => Some(
            "does the teacher speak without encryption there? Then write grpc:// (vllm+http:// for \
             a vLLM server)"
                .to_owned(),
        ),
        _ => None,
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the enum is open, and the others have one remedy"
)]
fn of_certificate(reason: &CertificateError, access: &Access) -> String {
    match reason {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
            "{} must hold the certificate of the authority that signed the server's",
            access.named("ca")
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!(
                "give the name that stands in the certificate as host of the address, or with {}",
                access.named("name")
            )
        }
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => {
            "the server needs a certificate that is valid now (or a clock is wrong)".to_owned()
        }
        _ => {
            "the server needs a certificate made for a server (not one of an authority)".to_owned()
        }
    }
}
