//! The probe for containers: asks a server by grpc.health.v1, so that an image needs no other tool.

use std::time::Duration;

use proto::v1::teacher_server::SERVICE_NAME;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

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
    /// It answered and does not serve.
    #[error("{address} answers {status}")]
    NotServing {
        /// Who was asked.
        address: String,
        /// Its answer.
        status: &'static str,
    },
}

/// Asks the server at `HOST:PORT` (or `http://HOST:PORT`) whether the teacher serves.
///
/// # Errors
/// [`ProbeError`] unless it does.
pub async fn probe(address: &str, patience: Duration) -> Result<(), ProbeError> {
    let uri =
        if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    let endpoint = Endpoint::from_shared(uri).map_err(|error| ProbeError::Address {
        address: address.to_owned(),
        reason: error.to_string(),
    })?;
    let silent = |reason: String| ProbeError::Silent { address: address.to_owned(), reason };
    let ask = async {
        let channel = endpoint.connect().await.map_err(|error| silent(chain(&error)))?;
        let request = HealthCheckRequest { service: SERVICE_NAME.to_owned() };
        let answer = HealthClient::new(channel).check(request).await;
        answer.map_err(|status| silent(status.to_string()))
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

/// An error and what caused it, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    text
}
