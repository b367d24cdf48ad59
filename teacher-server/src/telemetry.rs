//! Where the log and the spans go: lines to stderr, and, in a build that can, spans to an OpenTelemetry
//! collector.

use std::io::IsTerminal as _;
use std::time::Duration;

use axum::http::HeaderMap;
use tracing::Span;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

#[cfg(feature = "otel")]
mod otlp;
#[cfg(not(feature = "otel"))]
#[path = "telemetry/none.rs"]
mod otlp;

pub use otlp::Export;

/// What is logged unless `RUST_LOG` says otherwise. h2 warns of what its peers do wrong, a line for
/// every frame: whoever likes could fill the log.
pub(crate) const DEFAULT_LOG: &str = "info,h2=error";

/// The variables that switch the export on where no flag does, the first of them that is set.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// Told where an export is asked of a build without it.
const LACKING: &str = "this build of teacher-server cannot export spans to OpenTelemetry; build it with \
                       --features otel";

/// Why spans cannot be exported as was asked.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// An endpoint that is none.
    #[error("{origin} {endpoint}: {reason}")]
    Endpoint {
        /// The flag or the variable it came from.
        origin: &'static str,
        /// What it said.
        endpoint: String,
        /// Why that cannot be used.
        reason: String,
    },
    /// A file with certificates that cannot be used.
    #[error("{variable} {path}: {reason}")]
    Certificate {
        /// The variable it came from.
        variable: &'static str,
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
}

/// Checks the flag `--otlp-endpoint`. A variable that is set to nothing asks for nothing.
///
/// # Errors
/// What an endpoint looks like, or that this build knows none.
pub fn endpoint(text: &str) -> Result<String, String> {
    if text.is_empty() { Ok(String::new()) } else { otlp::endpoint(text) }
}

/// What was started, to be ended.
#[derive(Debug)]
pub struct Telemetry(Option<Export>);

/// Starts the log, and the export to a collector where the flag `--otlp-endpoint` or OpenTelemetry's
/// own variables name one. To be called once, on the runtime that the export is to use.
///
/// # Errors
/// [`TelemetryError`].
pub fn start(flag: Option<&str>) -> Result<Telemetry, TelemetryError> {
    let variable = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let asked = asked(flag, variable);
    let export = match &asked {
        Some((origin, endpoint)) => Export::open(origin, endpoint, variable),
        None => Ok(None),
    }?;
    let (filter, wrong) = match variable(EnvFilter::DEFAULT_ENV).map(EnvFilter::try_new) {
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (EnvFilter::new(DEFAULT_LOG), Some(error)),
        None => (EnvFilter::new(DEFAULT_LOG), None),
    };
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    let log = log.with_ansi(std::io::stderr().is_terminal()).with_filter(filter);
    tracing_subscriber::registry().with(log).with(export.as_ref().map(Export::layer)).init();
    if let Some(error) = wrong {
        tracing::warn!("RUST_LOG cannot be used ({error}); the log is as without it");
    }
    match (&export, asked) {
        (Some(_), Some((origin, endpoint))) => tracing::info!(origin, endpoint, "exporting spans"),
        (None, Some((origin, _))) => tracing::warn!("{origin} is set: {LACKING}"),
        (_, None) => {}
    }
    Ok(Telemetry(export))
}

/// Where spans shall go, and who said so.
fn asked(
    flag: Option<&str>,
    variable: impl Fn(&str) -> Option<String>,
) -> Option<(&'static str, String)> {
    let is_off = |name: &str, value: &str| {
        variable(name).is_some_and(|text| text.eq_ignore_ascii_case(value))
    };
    if let Some(endpoint) = flag.filter(|text| !text.is_empty()) {
        return Some(("--otlp-endpoint", endpoint.to_owned()));
    }
    if is_off("OTEL_SDK_DISABLED", "true") || is_off("OTEL_TRACES_EXPORTER", "none") {
        return None;
    }
    ENDPOINTS.into_iter().find_map(|name| Some((name, variable(name)?)))
}

impl Telemetry {
    /// Sends what is left, as far as that can be done in this time; blocks meanwhile.
    pub fn end(self, within: Duration) {
        if let Some(export) = self.0 {
            export.end(within);
        }
    }
}

/// Makes a call's span part of the trace its caller speaks of (W3C `traceparent`), and says what it is,
/// where spans are exported.
pub fn adopt(span: &Span, headers: &HeaderMap, method: &str) {
    otlp::adopt(span, headers, method);
}

/// Marks a span as one of a fault of the server, where spans are exported.
pub fn failed(span: &Span, reason: &'static str) {
    otlp::failed(span, reason);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(flag: Option<&str>, variables: &[(&str, &str)]) -> Option<&'static str> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        asked(flag, variable).map(|(origin, _)| origin)
    }

    #[test]
    fn the_flag_then_the_variable_for_traces_then_the_one_for_all_names_the_collector() {
        let both = [(ENDPOINTS[1], "http://b:1"), (ENDPOINTS[0], "http://a:1")];
        assert_eq!(origin(Some("http://c:1"), &both), Some("--otlp-endpoint"));
        assert_eq!(origin(None, &both), Some(ENDPOINTS[0]));
        assert_eq!(origin(None, &both[..1]), Some(ENDPOINTS[1]));
        assert_eq!(origin(None, &[]), None);
        for off in [("OTEL_SDK_DISABLED", "TRUE"), ("OTEL_TRACES_EXPORTER", "none")] {
            assert_eq!(origin(None, &[both[0], off]), None);
        }
        assert_eq!(origin(None, &[both[0], ("OTEL_SDK_DISABLED", "false")]), Some(ENDPOINTS[1]));
    }
}
