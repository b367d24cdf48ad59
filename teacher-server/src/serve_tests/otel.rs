//! Spans as they reach a collector, in a build that exports them; and collectors that do not answer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract;
use axum::routing::post;
use prost::Message;
use proto::convert::score_request;
use proto::v1::ScoreTextRequest;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::transport::Server as Transport;
use tonic::{Request, Response, Status};
use tracing::dispatcher::{DefaultGuard, Dispatch};
use tracing_subscriber::layer::SubscriberExt as _;

use super::harness::{CLASSES, PATIENCE, Server, assert_right, job, tell};
use crate::settings::Settings;
use crate::telemetry::Export;
use crate::testing::FakeScorer;

/// The trace and the span of a caller, as the W3C's recommendation writes them.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

// OpenTelemetry's messages (opentelemetry-proto, trace/v1/trace.proto), as far as they are looked at.

#[derive(Clone, PartialEq, Message)]
struct Exported {
    #[prost(message, repeated, tag = "1")]
    resources: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scopes: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(bytes, tag = "1")]
    trace: Vec<u8>,
    #[prost(bytes, tag = "2")]
    id: Vec<u8>,
    #[prost(bytes, tag = "4")]
    parent: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start: u64,
    #[prost(fixed64, tag = "8")]
    end: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    status: Option<SpanStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct SpanStatus {
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
    #[prost(int64, optional, tag = "3")]
    integer: Option<i64>,
    #[prost(double, optional, tag = "4")]
    number: Option<f64>,
}

/// Attributes by their names, as text.
fn attributes(all: &[KeyValue]) -> BTreeMap<&str, String> {
    let text = |value: &AnyValue| {
        let number = value.number.map(|number| number.to_string());
        let integer = value.integer.map(|integer| integer.to_string());
        value.text.clone().or(integer).or(number).unwrap_or_default()
    };
    all.iter().map(|entry| (entry.key.as_str(), text(entry.value.as_ref().unwrap()))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A collector on a free port, and what it receives.
async fn collector() -> (SocketAddr, mpsc::UnboundedReceiver<Exported>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (at, (received, exported)) = (listener.local_addr().unwrap(), mpsc::unbounded_channel());
    let export = move |request: extract::Request| {
        let received = received.clone();
        async move {
            let take = tower::service_fn(move |request: Request<Exported>| {
                received.send(request.into_inner()).unwrap();
                std::future::ready(Ok::<_, Status>(Response::new(())))
            });
            let codec = tonic_prost::ProstCodec::<(), Exported>::default();
            tonic::server::Grpc::new(codec).unary(take, request).await
        }
    };
    let path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
    let routes = Router::new().route(path, post(export));
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(Transport::builder().add_routes(routes.into()).serve_with_incoming(incoming));
    (at, exported)
}

/// Exports what this thread does while the guard lives.
fn export_to(at: SocketAddr) -> (Export, DefaultGuard) {
    let opened = Export::open("--otlp-endpoint", &format!("http://{at}"), |_| None);
    let export = opened.unwrap().unwrap();
    let subscriber = tracing_subscriber::registry().with(export.layer());
    let guard = tell(&Dispatch::new(subscriber));
    (export, guard)
}

/// Ends the export; how long that took.
async fn end(export: Export, within: Duration) -> Duration {
    let begin = Instant::now();
    tokio::task::spawn_blocking(move || export.end(within)).await.unwrap();
    begin.elapsed()
}

fn traced<T>(message: T, id: &str) -> Request<T> {
    let mut request = Request::new(message);
    let parent = format!("00-{TRACE}-{PARENT}-01");
    for (name, value) in [("x-request-id", id), ("traceparent", &parent)] {
        request.metadata_mut().insert(name, value.parse().unwrap());
    }
    request
}

#[tokio::test]
async fn otel_spans_reach_a_collector_with_their_names_parents_and_outcomes() {
    let (at, mut exported) = collector().await;
    let (export, _guard) = export_to(at);
    let fake = FakeScorer { nan_at: Some(3), ..FakeScorer::new(CLASSES) };
    let mut server = Server::start(fake, Settings::DEFAULT).await;
    let mut client = server.client().await;
    let text = |text: &str| ScoreTextRequest { text: text.into(), top_k: 2, ..Default::default() };
    client.score_text(traced(text("ab"), "o-1")).await.unwrap();
    client.score_text(traced(text("\u{3}"), "o-2")).await.unwrap_err();
    let mut stream = server.score().await;
    assert_right(&job(7, vec![1, 2, 4]), &stream.ask(&job(7, vec![1, 2, 4])).await);
    stream.send(score_request(&job(8, vec![]))).await;
    stream.next().await;
    drop((stream, client));
    server.get("/health").await;
    server.stop();
    server.end().await.unwrap();
    end(export, PATIENCE).await;

    exported.close();
    let (mut spans, mut services) = (Vec::new(), Vec::new());
    while let Some(batch) = exported.recv().await {
        for ResourceSpans { resource, scopes } in batch.resources {
            services.push(attributes(&resource.unwrap().attributes)["service.name"].clone());
            spans.extend(scopes.into_iter().flat_map(|scope| scope.spans));
        }
    }
    assert!(!services.is_empty() && services.iter().all(|name| name == "teacher-server"));
    let of = |key: &str, value: &str| -> Span {
        let holds =
            |span: &&Span| attributes(&span.attributes).get(key).is_some_and(|v| v == value);
        let found: Vec<&Span> = spans.iter().filter(holds).collect();
        assert_eq!(found.len(), 1, "{key} = {value} among {spans:#?}");
        found[0].clone()
    };
    let good = of("request_id", "o-1");
    assert_eq!((hex(&good.trace), hex(&good.parent)), (TRACE.to_owned(), PARENT.to_owned()));
    // SPAN_KIND_SERVER.
    assert_eq!(
        (good.name.as_str(), good.kind, good.status.unwrap_or_default().code),
        ("ScoreText", 2, 0)
    );
    assert!(good.start > 0 && good.end > good.start);
    let told = attributes(&good.attributes);
    assert!(told["client"].starts_with("127.0.0.1:"), "{told:?}");
    for (name, value) in [("tokens", "2"), ("positions", "2"), ("k", "2"), ("code", "OK")] {
        assert_eq!(told[name], value, "{name}");
    }
    for name in ["queue_ms", "compute_ms", "bytes", "ms"] {
        assert!(told[name].parse::<f64>().unwrap() > 0.0, "{name} is {}", told[name]);
    }
    let bad = of("request_id", "o-2");
    // STATUS_CODE_ERROR.
    assert_eq!((bad.status.unwrap().code, hex(&bad.parent)), (2, PARENT.to_owned()));
    assert_eq!(attributes(&bad.attributes)["code"], "INTERNAL");
    // A stream that names no parent begins a trace, in which its sequences are.
    let call = of("method", "/distill.v1.Teacher/Score");
    assert!(call.parent.is_empty() && hex(&call.trace) != TRACE, "{call:?}");
    for (id, code, error) in [("7", "OK", 0), ("8", "INVALID_ARGUMENT", 0)] {
        let sequence = of("id", id);
        assert_eq!((sequence.name.as_str(), &sequence.parent), ("sequence", &call.id));
        let told = attributes(&sequence.attributes);
        assert_eq!((sequence.trace, told["code"].as_str()), (call.trace.clone(), code));
        assert_eq!(told["request_id"], attributes(&call.attributes)["request_id"]);
        assert_eq!(sequence.status.unwrap_or_default().code, error);
    }
    assert_eq!(of("method", "/health").name, "health");
}

#[tokio::test]
async fn otel_collectors_that_are_silent_or_not_there_harm_nobody() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for at in [silent.local_addr().unwrap(), gone] {
        let (export, _guard) = export_to(at);
        let settings = Settings::with(|limits| limits.batch_wait = Duration::ZERO);
        let mut server = Server::start(FakeScorer::new(CLASSES), settings).await;
        let mut stream = server.score().await;
        let begin = Instant::now();
        // More than the queue of spans holds.
        for id in 0..3000 {
            assert_right(&job(id, vec![1]), &stream.ask(&job(id, vec![1])).await);
        }
        assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
        drop(stream);
        server.stop();
        server.end().await.unwrap();
        let took = end(export, Duration::from_millis(300)).await;
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
}
