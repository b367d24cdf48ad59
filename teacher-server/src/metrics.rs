//! What the server counts, and the text Prometheus reads.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets, linear_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// Labels of a request that was answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// `GetInfo`, `Score` (one count a sequence) or `ScoreText`.
    pub method: &'static str,
    /// The canonical name of the gRPC status code.
    pub code: &'static str,
}

/// Labels of a refusal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RefusalLabels {
    /// What was over its bound or against a rule: [`crate::error::TeacherError::reason`].
    pub reason: &'static str,
}

/// Labels of a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PortLabels {
    /// `grpc` or `http`.
    pub port: &'static str,
}

/// Labels of the device's memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct MemoryLabels {
    /// `used` by this process, or `total`.
    pub kind: &'static str,
}

/// What is counted; cloning shares it. Every layer before a call holds it and is cloned for each: one
/// pointer, not one for each number.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Arc<Numbers>);

impl Deref for Metrics {
    type Target = Numbers;

    fn deref(&self) -> &Numbers {
        &self.0
    }
}

/// The numbers.
#[derive(Clone, Debug)]
pub struct Numbers {
    /// Requests answered, by method and status.
    pub requests: Family<RequestLabels, Counter>,
    /// Sequences that joined the queue.
    pub admitted: Counter,
    /// Tokens of the sequences scored.
    pub tokens: Counter,
    /// Positions sent to clients.
    pub positions: Counter,
    /// Bytes of packed arrays sent to clients.
    pub payload_bytes: Counter,
    /// From the admission of a request to its first reply.
    pub first_reply_seconds: Histogram,
    /// Time of a batch on the device, for each of its tokens.
    pub token_compute_seconds: Histogram,
    /// Bytes written to the connections of a port, before encryption.
    pub sent_bytes: Family<PortLabels, Counter>,
    /// Memory of the device.
    pub device_memory: Family<MemoryLabels, Gauge>,
    /// Batches computed.
    pub batches: Counter,
    /// Tokens of a batch.
    pub batch_tokens: Histogram,
    /// Time of a batch on the device.
    pub compute_seconds: Histogram,
    /// Seconds the device's thread spent handing out answers: neither computing nor waiting.
    pub handover_seconds: Counter<f64, AtomicU64>,
    /// Seconds it waited because nothing was queued, or for a batch to fill.
    pub waiting_seconds: Counter<f64, AtomicU64>,
    /// Time of a sequence before its batch began.
    pub queue_seconds: Histogram,
    /// Sequences waiting now.
    pub queued_sequences: Gauge,
    /// Tokens waiting now.
    pub queued_tokens: Gauge,
    /// `Score` streams open now.
    pub streams: Gauge,
    /// Connections open now.
    pub connections: Gauge,
    /// Connections refused because as many were open as may be.
    pub refused_connections: Counter,
    /// Sequences not computed because their caller had left.
    pub abandoned: Counter,
    /// Sequences whose scores held NaN or an infinity.
    pub non_finite: Counter,
    /// Batches that failed or panicked (each is tried again in halves).
    pub failed_batches: Counter,
    /// Batches too large for the device's memory.
    pub out_of_memory: Counter,
    /// Refusals, by the bound or rule that was broken.
    pub refusals: Family<RefusalLabels, Counter>,
    /// Share of the token budget a batch used.
    pub batch_fill: Histogram,
    /// Panics caught, on the device's thread and in handlers.
    pub panics: Counter,
    /// 1 while the server accepts work.
    pub serving: Gauge,
    /// Seconds loading the model took.
    pub load_seconds: Gauge<f64, AtomicU64>,
}

impl Default for Numbers {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            admitted: Counter::default(),
            tokens: Counter::default(),
            positions: Counter::default(),
            payload_bytes: Counter::default(),
            first_reply_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 17)),
            token_compute_seconds: Histogram::new(exponential_buckets(1e-7, 2.0, 20)),
            sent_bytes: Family::default(),
            device_memory: Family::default(),
            batches: Counter::default(),
            batch_tokens: Histogram::new(exponential_buckets(16.0, 2.0, 13)),
            compute_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 17)),
            handover_seconds: Counter::default(),
            waiting_seconds: Counter::default(),
            queue_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 17)),
            queued_sequences: Gauge::default(),
            queued_tokens: Gauge::default(),
            streams: Gauge::default(),
            connections: Gauge::default(),
            refused_connections: Counter::default(),
            abandoned: Counter::default(),
            non_finite: Counter::default(),
            failed_batches: Counter::default(),
            out_of_memory: Counter::default(),
            refusals: Family::default(),
            batch_fill: Histogram::new(linear_buckets(0.1, 0.1, 10)),
            panics: Counter::default(),
            serving: Gauge::default(),
            load_seconds: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Counts one refusal.
    pub fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&RefusalLabels { reason }).inc();
    }

    /// Counts one answered request.
    pub fn answered(&self, method: &'static str, code: tonic::Code) {
        self.requests.get_or_create(&RequestLabels { method, code: code_name(code) }).inc();
    }

    /// Notes one computed batch.
    pub fn computed(&self, tokens: usize, took: Duration, budget: usize) {
        self.batches.inc();
        self.batch_fill.observe(tokens as f64 / budget as f64);
        self.batch_tokens.observe(tokens as f64);
        self.compute_seconds.observe(took.as_secs_f64());
        self.token_compute_seconds.observe(took.as_secs_f64() / tokens.max(1) as f64);
    }

    /// Looks at the memory of the CPU, where Linux tells it.
    pub fn measure_memory(&self) {
        let read = |file: &str, field: &str| {
            let text = std::fs::read_to_string(file).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix(field))?;
            line.split_whitespace().next()?.parse::<i64>().ok()
        };
        let files =
            [("used", "/proc/self/status", "VmRSS:"), ("total", "/proc/meminfo", "MemTotal:")];
        for (kind, file, field) in files {
            if let Some(kib) = read(file, field) {
                self.device_memory.get_or_create(&MemoryLabels { kind }).set(kib * 1024);
            }
        }
    }

    /// All metrics under their public names, with the versions as labels of `teacher_build`.
    pub fn registry(&self) -> Registry {
        let mut all = Registry::with_prefix("teacher");
        let m = Numbers::clone(self);
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        all.register("build", "The server program", build);
        all.register("requests", "Requests answered, by method and gRPC status", m.requests);
        all.register("admitted", "Sequences that joined the queue", m.admitted);
        all.register("tokens", "Tokens of the sequences scored", m.tokens);
        all.register("positions", "Positions sent to clients", m.positions);
        all.register("payload_bytes", "Bytes of packed arrays sent", m.payload_bytes);
        all.register_with_unit(
            "first_reply",
            "From the admission of a request to its first reply",
            Unit::Seconds,
            m.first_reply_seconds,
        );
        all.register_with_unit(
            "token_compute",
            "A batch on the device, for each of its tokens",
            Unit::Seconds,
            m.token_compute_seconds,
        );
        all.register("sent_bytes", "Bytes written, before encryption, by port", m.sent_bytes);
        all.register("device_memory_bytes", "Memory of the device", m.device_memory);
        all.register("batches", "Batches computed", m.batches);
        all.register("batch_tokens", "Tokens of a batch", m.batch_tokens);
        let (compute, queue) = (m.compute_seconds, m.queue_seconds);
        all.register_with_unit("compute", "A batch on the device", Unit::Seconds, compute);
        all.register_with_unit("queue", "A sequence before its batch", Unit::Seconds, queue);
        let (handover, waiting) = (m.handover_seconds, m.waiting_seconds);
        all.register_with_unit(
            "device_handover",
            "The device's thread handing out answers",
            Unit::Seconds,
            handover,
        );
        all.register_with_unit(
            "device_waiting",
            "The device's thread with nothing queued, or waiting for a batch to fill",
            Unit::Seconds,
            waiting,
        );
        all.register("queued_sequences", "Sequences waiting now", m.queued_sequences);
        all.register("queued_tokens", "Tokens waiting now", m.queued_tokens);
        all.register("streams", "Score streams open now", m.streams);
        all.register("connections", "Connections open now", m.connections);
        all.register("refused_connections", "Connections over the limit", m.refused_connections);
        all.register("abandoned", "Sequences whose caller had left", m.abandoned);
        all.register("non_finite", "Sequences with NaN or infinite scores", m.non_finite);
        all.register("failed_batches", "Batches that failed or panicked", m.failed_batches);
        all.register("out_of_memory", "Batches too large for the device", m.out_of_memory);
        all.register("refusals", "Requests refused, by reason", m.refusals);
        all.register("batch_fill_ratio", "Share of the token budget used", m.batch_fill);
        all.register("panics", "Panics caught", m.panics);
        all.register("serving", "1 while the server accepts work", m.serving);
        all.register_with_unit("load", "Loading of the model", Unit::Seconds, m.load_seconds);
        all
    }
}

/// The OpenMetrics text of a registry.
pub fn render(registry: &Registry) -> String {
    let mut page = String::new();
    // Writing to a String does not fail; a metric that could not be encoded is left out.
    let _ = text::encode(&mut page, registry);
    page
}

/// The canonical name of a status code.
pub fn code_name(code: tonic::Code) -> &'static str {
    use tonic::Code;
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The metrics named in a text, without what Prometheus appends to histograms' names.
    fn names(text: &str) -> BTreeSet<String> {
        let is_part = |c: char| c.is_ascii_lowercase() || c == '_';
        let words = text.split(|c: char| !is_part(c)).filter(|word| word.starts_with("teacher_"));
        let plain = |word: &str| {
            let ends = ["_bucket", "_sum", "_count", "_total", "_info"];
            ends.iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word).to_owned()
        };
        words.map(plain).collect()
    }

    /// A page on which every family has a member.
    fn page() -> String {
        let metrics = Metrics::default();
        metrics.answered("Score", tonic::Code::Ok);
        metrics.refused("invalid");
        metrics.sent_bytes.get_or_create(&PortLabels { port: "grpc" }).inc();
        metrics.measure_memory();
        render(&metrics.registry())
    }

    #[test]
    fn the_dashboard_shows_every_metric_and_no_other() {
        let dashboard = include_str!("../../deploy/grafana/teacher.json");
        let dashboard: serde_json::Value = serde_json::from_str(dashboard).unwrap();
        let mut shown = BTreeSet::new();
        let mut rest = vec![&dashboard];
        while let Some(value) = rest.pop() {
            rest.extend(value.as_array().into_iter().flatten());
            for (name, value) in value.as_object().into_iter().flatten() {
                let is_query = ["expr", "query", "definition"].contains(&name.as_str());
                shown.extend(value.as_str().filter(|_| is_query).map(names).unwrap_or_default());
                rest.push(value);
            }
        }
        let page = page();
        let lines: String = page.lines().filter(|line| !line.starts_with('#')).collect();
        let mut told = names(&lines);
        // What labels hold is not a metric's name.
        told.retain(|name| page.contains(&format!("# TYPE {name} ")));
        assert_eq!(shown.difference(&told).collect::<Vec<_>>(), Vec::<&String>::new());
        let unseen: Vec<&String> = told.difference(&shown).collect();
        assert_eq!(unseen, Vec::<&String>::new(), "on the page and not on the dashboard");
    }

    #[test]
    fn the_memory_of_this_process_is_told() {
        let metrics = Metrics::default();
        metrics.measure_memory();
        let of = |kind| metrics.device_memory.get_or_create(&MemoryLabels { kind }).get();
        // A test program takes more than a MiB and less than there is.
        assert!(of("used") > 1 << 20 && of("used") < of("total"), "{} {}", of("used"), of("total"));
    }
}
