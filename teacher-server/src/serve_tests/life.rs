//! From the first connection to the last: loading, health, reflection, drain.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use distill::handshake::Limits;
use model::started::Started;
use proto::convert::ScoreJob;
use proto::v1::{GetInfoRequest, ScoreTextRequest};
use tokio::net::TcpStream;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ListServiceResponse, ServerReflectionRequest};

use super::harness::{CLASSES, PATIENCE, Server, assembler, assert_right, job};
use crate::health::{ProbeError, probe};
use crate::scorer::{Facts, JobScores, Loaded, Scorer, ScorerError};
use crate::settings::Settings;
use crate::testing::{FakeScorer, facts};
use crate::{Listeners, ServeError};

async fn health(server: &Server, service: &str) -> ServingStatus {
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(server.channel().await).check(request).await.unwrap();
    answer.into_inner().status()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_served_before_the_model_is_there_and_everything_after() {
    let (leave, wait) = mpsc::channel::<()>();
    let load = move || {
        wait.recv().unwrap();
        Ok(FakeScorer::new(CLASSES).loaded())
    };
    let mut server = Server::start_loading(load, Settings::DEFAULT).await;
    let mut client = server.client().await;
    for service in ["", "distill.v1.Teacher"] {
        assert_eq!(health(&server, service).await, ServingStatus::NotServing);
    }
    let refused = client.get_info(GetInfoRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("loading"), "{refused}");
    let refused = client.score(tokio_stream::empty()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    let (status, body) = server.get("/health").await;
    assert_eq!((status.as_str(), body.as_str()), ("HTTP/1.1 503 Service Unavailable", "loading\n"));
    let asked = probe(&server.grpc.to_string(), None, PATIENCE).await;
    assert!(matches!(asked, Err(ProbeError::NotServing { .. })), "{asked:?}");

    leave.send(()).unwrap();
    let facts = server.ready().await;
    for service in ["", "distill.v1.Teacher"] {
        assert_eq!(health(&server, service).await, ServingStatus::Serving);
    }
    let info = client.get_info(GetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(proto::convert::facts_from_info(&info).unwrap(), facts);
    assert_eq!(server.get("/health").await.1, "serving\n");
    probe(&server.grpc.to_string(), None, PATIENCE).await.unwrap();
}

/// Limits no two of which are the same number, so that none can stand where another should.
fn distinct_limits() -> Settings {
    let limits = Limits {
        // These two are told once the model is known.
        max_sequence_tokens: 0,
        max_text_bytes: 0,
        max_top_k: 33,
        max_reply_bytes: 5000,
        max_request_bytes: 6000,
        max_in_flight_per_stream: 7,
        max_batch_tokens: 108,
        max_queued_sequences: 9,
        max_queued_tokens: 110,
        max_connections: 11,
        max_streams_per_connection: 12,
        max_held_bytes_per_stream: 13_000,
        max_held_bytes: 14_000,
        max_unfinished_bytes: 15_000,
        max_http_body_bytes: 1600,
        max_encoding_texts: 17,
        stream_timeout: Duration::from_secs(18),
        stream_idle_timeout: Duration::from_secs(19),
        message_timeout: Duration::from_secs(20),
        reader_timeout: Duration::from_secs(21),
        batch_wait: Duration::from_millis(22),
        idle_timeout: Duration::from_secs(23),
        drain_timeout: Duration::from_secs(24),
    };
    Settings { max_sequence_tokens: Some(125), max_text_bytes: Some(2600), limits }
}

#[tokio::test(flavor = "multi_thread")]
async fn info_states_the_facts_and_every_limit() {
    let server = Server::start(FakeScorer::new(CLASSES), distinct_limits()).await;
    let info = server.client().await.get_info(GetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.model.as_str(), info.revision.as_str()), ("fake", ""));
    assert_eq!(info.model_fingerprint, "a5".repeat(32));
    assert_eq!(info.tokenizer_fingerprint, "5a".repeat(32));
    assert_eq!((info.vocab_size, info.tokenizer_size, info.protocol_version), (32, 32, 1));
    assert_eq!((info.signals, info.codecs), (vec![1, 2, 3], vec![1, 2, 3, 4]));
    assert_eq!((info.dtype.as_str(), info.device.as_str()), ("f32", "cpu"));
    let wanted = proto::v1::Limits {
        max_sequence_tokens: 125,
        max_text_bytes: 2600,
        max_top_k: 33,
        max_reply_bytes: 5000,
        max_request_bytes: 6000,
        max_in_flight_per_stream: 7,
        max_batch_tokens: 108,
        max_queued_sequences: 9,
        max_queued_tokens: 110,
        max_connections: 11,
        max_streams_per_connection: 12,
        max_held_bytes_per_stream: 13_000,
        max_held_bytes: 14_000,
        max_unfinished_bytes: 15_000,
        max_http_body_bytes: 1600,
        max_encoding_texts: 17,
        max_stream_seconds: 18,
        idle_stream_seconds: 19,
        message_seconds: 20,
        stalled_reader_seconds: 21,
        batch_wait_ms: 22,
        idle_connection_seconds: 23,
        drain_seconds: 24,
    };
    assert_eq!(info.limits, Some(wanted));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_cannot_be_loaded_or_served_ends_the_server() {
    let load = || Err("model.safetensors is cut short".into());
    let failed = Server::start_loading(load, Settings::DEFAULT).await.end().await.unwrap_err();
    let ServeError::Load(why) = failed else { panic!("{failed}") };
    assert_eq!(why.to_string(), "model.safetensors is cut short");

    let load = || panic!("a bug in loading");
    let failed = Server::start_loading(load, Settings::DEFAULT).await.end().await.unwrap_err();
    assert!(matches!(failed, ServeError::LoadPanicked), "{failed}");

    let load = || {
        let loaded = FakeScorer::new(CLASSES).loaded();
        Ok(Loaded { facts: Facts { tokenizer_size: 99, ..facts(32) }, ..loaded })
    };
    let failed = Server::start_loading(load, Settings::DEFAULT).await.end().await.unwrap_err();
    assert!(matches!(failed, ServeError::Settings(_)), "{failed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use_is_named_with_its_flag() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (taken, free) = (taken.local_addr().unwrap(), "127.0.0.1:0".parse().unwrap());
    let refused = Listeners::bind(free, taken).await.unwrap_err().to_string();
    assert!(refused.contains("--http-listen") && refused.contains(&taken.to_string()), "{refused}");
    let refused = Listeners::bind(taken, free).await.unwrap_err().to_string();
    assert!(refused.contains("(--listen)"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_lists_the_services() {
    let server = Server::start(FakeScorer::new(CLASSES), Settings::DEFAULT).await;
    let request =
        |request| ServerReflectionRequest { host: String::new(), message_request: Some(request) };
    let requests = [
        request(MessageRequest::ListServices(String::new())),
        request(MessageRequest::FileContainingSymbol("distill.v1.Teacher".into())),
    ];
    let mut client = ServerReflectionClient::new(server.channel().await);
    let stream = client.server_reflection_info(tokio_stream::iter(requests)).await.unwrap();
    let mut answers = stream.into_inner();
    let listed = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(ListServiceResponse { service }) = listed else {
        panic!("{listed:?}")
    };
    let names: Vec<&str> = service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&"distill.v1.Teacher"), "{names:?}");
    assert!(names.contains(&"grpc.health.v1.Health"), "{names:?}");
    let found = answers.message().await.unwrap().unwrap().message_response.unwrap();
    assert!(matches!(found, MessageResponse::FileDescriptorResponse(_)), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_answers_what_was_admitted_refuses_the_rest_and_ends() {
    let (mut server, leave) = Server::gated(Settings::DEFAULT).await;
    let mut stream = server.score().await;
    let admitted = [job(7, vec![1, 2, 3]), job(8, vec![4])];
    for job in &admitted {
        stream.send(proto::convert::score_request(job)).await;
    }
    let mut client = server.client().await;
    server.until_admitted(2).await;
    server.stop();
    server.until_metric("teacher_serving", 0.0).await;
    assert_eq!(server.get("/health").await.1, "draining\n");
    assert_eq!(health(&server, "distill.v1.Teacher").await, ServingStatus::NotServing);
    let request = ScoreTextRequest { text: "a".into(), ..Default::default() };
    let refused = client.score_text(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    for job in &admitted {
        leave.send(()).unwrap();
        let scored = assembler(job).push(&stream.next().await).unwrap().unwrap();
        assert_right(job, &scored);
    }
    let end = stream.replies.message().await.unwrap_err();
    assert_eq!(end.code(), Code::Unavailable);
    assert!(end.message().contains("shutting down"), "{end}");
    let began = Instant::now();
    server.end().await.unwrap();
    assert!(began.elapsed() < PATIENCE);
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_and_idle_streams_do_not_delay_the_end() {
    let mut server = Server::start(FakeScorer::new(CLASSES), Settings::DEFAULT).await;
    let silent = [
        TcpStream::connect(server.grpc).await.unwrap(),
        TcpStream::connect(server.http).await.unwrap(),
    ];
    let idle = server.score().await;
    let watch = HealthCheckRequest { service: String::new() };
    let _watch = HealthClient::new(server.channel().await).watch(watch).await.unwrap();
    server.until_metric("teacher_streams", 1.0).await;
    let began = Instant::now();
    server.stop();
    server.end().await.unwrap();
    // The drain timeout is 45 s; nothing was left to do.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // And the connections really are closed.
    for mut connection in silent {
        let mut goodbye = Vec::new();
        let read = tokio::io::AsyncReadExt::read_to_end(&mut connection, &mut goodbye);
        assert!(tokio::time::timeout(PATIENCE, read).await.is_ok(), "the connection is open");
    }
    drop(idle);
}

/// A scorer that has something to do when it goes, as writing a profile.
struct Leaving {
    scorer: FakeScorer,
    takes: Duration,
    gone: Arc<AtomicBool>,
}

impl Scorer for Leaving {
    fn start(&mut self, jobs: &[&ScoreJob]) -> Result<Started<Vec<JobScores>>, ScorerError> {
        self.scorer.start(jobs)
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        std::thread::sleep(self.takes);
        self.gone.store(true, Ordering::SeqCst);
    }
}

/// Whether the scorer had time to go, and how long the server took to stop.
async fn stopped_while_leaving(takes: Duration, drain_timeout: Duration) -> (bool, Duration) {
    let gone = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&gone);
    let load = move || {
        let Loaded { text, facts, .. } = FakeScorer::new(CLASSES).loaded();
        let scorer = Leaving { scorer: FakeScorer::new(CLASSES), takes, gone: told };
        Ok(Loaded { scorer: Box::new(scorer), text, facts })
    };
    let settings = Settings::with(|limits| limits.drain_timeout = drain_timeout);
    let mut server = Server::start_loading(load, settings).await;
    server.ready().await;
    let began = Instant::now();
    server.stop();
    server.end().await.unwrap();
    (gone.load(Ordering::SeqCst), began.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_model_does_when_it_goes_is_done_within_the_drain_timeout() {
    let [short, long] = [Duration::from_millis(300), Duration::from_secs(10)];
    let (gone, took) = stopped_while_leaving(short, long).await;
    assert!(gone && took < Duration::from_secs(5), "{took:?}");
    let (gone, took) = stopped_while_leaving(long, short).await;
    assert!(!gone && took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_drain_timeout_holds_when_the_device_hangs() {
    let settings = Settings::with(|limits| limits.drain_timeout = Duration::from_millis(300));
    let (mut server, leave) = Server::gated(settings).await;
    let stream = server.score().await;
    stream.send(proto::convert::score_request(&job(1, vec![1]))).await;
    server.until_admitted(1).await;
    let began = Instant::now();
    server.stop();
    server.end().await.unwrap();
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(290) && took < Duration::from_secs(3), "{took:?}");
    drop(leave);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_over_the_limit_are_closed_at_once_and_counted() {
    let settings = Settings::with(|limits| limits.max_connections = 2);
    let server = Server::start(FakeScorer::new(CLASSES), settings).await;
    let kept = server.score().await;
    let silent = TcpStream::connect(server.grpc).await.unwrap();
    let mut refused = TcpStream::connect(server.grpc).await.unwrap();
    let mut byte = [0];
    let read = tokio::io::AsyncReadExt::read(&mut refused, &mut byte);
    let read = tokio::time::timeout(PATIENCE, read).await.expect("the connection is open");
    assert!(matches!(read, Ok(0) | Err(_)));
    assert_eq!(server.metric("teacher_refused_connections_total").await, 1.0);
    drop((kept, silent));
    // Room again once one has left.
    server.until_metric("teacher_connections", 1.0).await;
    server.client().await.get_info(GetInfoRequest {}).await.unwrap();
}
