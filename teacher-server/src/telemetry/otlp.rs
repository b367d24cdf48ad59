//! The export of spans to an OpenTelemetry collector, by OTLP over gRPC.
//!
//! It never holds up a call: a thread of its own sends what has ended, in batches, from a queue of
//! bounded length (`OTEL_BSP_MAX_QUEUE_SIZE`); what does not fit, or cannot be sent, is lost.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, Uri};
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{Status, TracerProvider as _};
use opentelemetry_otlp::{WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use tonic::transport::{Certificate, ClientTlsConfig};
use tracing::level_filters::LevelFilter;
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

use super::TelemetryError;
use crate::seldom::Seldom;

/// Who speaks, unless OpenTelemetry's variables say otherwise.
const SERVICE: &str = "teacher-server";
/// Between two lines of the log about spans that could not be sent.
const FAILURES_TOLD_EVERY: Duration = Duration::from_secs(60);
/// The variables that name a file with the authority of the collector's certificate.
const CERTIFICATES: [&str; 2] =
    ["OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE"];

/// A running export.
#[derive(Debug)]
pub struct Export(SdkTracerProvider);

/// Checks the flag.
///
/// # Errors
/// What an endpoint looks like.
pub(super) fn endpoint(text: &str) -> Result<String, String> {
    let uri: Uri = text.parse().map_err(|error| format!("{error}"))?;
    match (uri.scheme_str(), uri.authority()) {
        (Some("http" | "https"), Some(_)) => Ok(text.to_owned()),
        (_, _) => {
            Err("wanted http://HOST:PORT or https://HOST:PORT of a collector that speaks OTLP \
                       over gRPC (as a rule port 4317)"
                .to_owned())
        }
    }
}

impl Export {
    /// Sends to this endpoint, which `origin` named; `variable` reads the environment.
    ///
    /// # Errors
    /// [`TelemetryError`].
    pub(crate) fn open(
        origin: &'static str,
        endpoint: &str,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, TelemetryError> {
        let wrong = |reason: String| TelemetryError::Endpoint {
            origin,
            endpoint: endpoint.to_owned(),
            reason,
        };
        let checked = self::endpoint(endpoint).map_err(wrong)?;
        let mut exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic();
        if checked.starts_with("https") {
            exporter = exporter.with_tls_config(trusted(&variable)?);
        }
        let exporter = exporter.with_endpoint(checked).build();
        let exporter = exporter.map_err(|error| wrong(error.to_string()))?;
        let failures = Mutex::new(Seldom::every(FAILURES_TOLD_EVERY));
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(Telling { exporter, failures })
            .with_resource(resource(variable))
            .build();
        Ok(Some(Self(provider)))
    }

    /// The layer that hands spans on, those for each sequence included, whatever is logged. What
    /// other crates do, the export itself among them, is not told.
    pub(crate) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        let ours = Targets::new().with_target("teacher_server", LevelFilter::DEBUG);
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer(SERVICE))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(ours)
    }

    /// Sends what is left, as far as that can be done in this time.
    pub(crate) fn end(self, within: Duration) {
        if let Err(error) = self.0.shutdown_with_timeout(within) {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

/// Whom the collector's certificate may come from: the authority that a variable names, or those that
/// everybody trusts.
fn trusted(variable: impl Fn(&str) -> Option<String>) -> Result<ClientTlsConfig, TelemetryError> {
    let config = ClientTlsConfig::new();
    let named = CERTIFICATES.into_iter().find_map(|name| Some((name, variable(name)?)));
    let Some((variable, path)) = named else { return Ok(config.with_webpki_roots()) };
    match std::fs::read_to_string(&path) {
        Ok(pem) => Ok(config.ca_certificate(Certificate::from_pem(pem))),
        Err(error) => {
            Err(TelemetryError::Certificate { variable, path, reason: error.to_string() })
        }
    }
}

fn resource(variable: impl Fn(&str) -> Option<String>) -> Resource {
    let attributes = variable("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let is_named = variable("OTEL_SERVICE_NAME").is_some() || attributes.contains("service.name=");
    let version = opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let resource = Resource::builder().with_attribute(version);
    if is_named { resource } else { resource.with_service_name(SERVICE) }.build()
}

/// An exporter that says when it fails, now and then: its failures are nobody's but the log's.
#[derive(Debug)]
struct Telling<E> {
    exporter: E,
    failures: Mutex<Seldom>,
}

impl<E: SpanExporter> SpanExporter for Telling<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let exported = self.exporter.export(batch).await;
        if let Err(error) = &exported {
            let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(batches) = failures.count(Instant::now()) {
                tracing::warn!(%error, batches, "spans could not be exported");
            }
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// The headers of a request, as the propagator reads them.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

pub(super) fn adopt(span: &Span, headers: &HeaderMap, method: &str) {
    let context = TraceContextPropagator::new().extract(&Headers(headers));
    // An error means that nothing is exported.
    if span.set_parent(context).is_ok() {
        let name = method.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or(method);
        span.record("otel.name", name).record("otel.kind", "server");
    }
}

pub(super) fn failed(span: &Span, reason: &'static str) {
    span.set_status(Status::error(reason));
}
