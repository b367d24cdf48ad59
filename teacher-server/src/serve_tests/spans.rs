//! The name of every call, sent back and on every line of the log; and what is told of a call.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proto::convert::{ScoreJob, score_request};
use proto::v1::{GetInfoRequest, ScoreTextRequest};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Status};
use tracing::dispatcher::{DefaultGuard, Dispatch};
use tracing_subscriber::EnvFilter;

use super::by_hand::{HEADERS, Hand, RESET, frame, open};
use super::harness::{CLASSES, PATIENCE, Server, assert_right, job, tell};
use super::security;
use crate::settings::Settings;
use crate::telemetry::DEFAULT_LOG;
use crate::testing::FakeScorer;

/// Everything this server says of its calls.
const DEBUG: &str = "off,teacher_server=debug";

/// What this thread logs while it lives. A server on a runtime of one thread logs here too.
struct Log {
    written: Arc<Mutex<Vec<u8>>>,
    dispatch: Dispatch,
    _guard: DefaultGuard,
}

/// Where lines are written.
struct Writer(Arc<Mutex<Vec<u8>>>);

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn start(filter: &str) -> Self {
        let written = Arc::default();
        let writer = Arc::clone(&written);
        let lines = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new(filter))
            .with_ansi(false)
            .with_writer(move || Writer(Arc::clone(&writer)));
        let dispatch = Dispatch::new(lines.finish());
        let _guard = tell(&dispatch);
        Self { written, dispatch, _guard }
    }

    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8(self.written.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits for the one line with all of these.
    async fn line(&self, all: &[&str]) -> String {
        let find = async {
            loop {
                let holds = |line: &String| all.iter().all(|part| line.contains(part));
                let found: Vec<String> = self.lines().into_iter().filter(holds).collect();
                match &found[..] {
                    [] => tokio::time::sleep(Duration::from_millis(5)).await,
                    [line] => return line.clone(),
                    _ => panic!("{all:?} more than once: {found:#?}"),
                }
            }
        };
        let found = tokio::time::timeout(PATIENCE, find).await;
        found.unwrap_or_else(|_| panic!("no line with {all:?} in {:#?}", self.lines()))
    }
}

fn named<T>(message: T, id: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-request-id", id.parse().unwrap());
    request
}

fn sent_back(metadata: &MetadataMap) -> String {
    let all: Vec<_> = metadata.get_all("x-request-id").iter().collect();
    assert_eq!(all.len(), 1, "{metadata:?}");
    all[0].to_str().unwrap().to_owned()
}

fn is_fresh(id: &str) -> bool {
    id.len() == 16 && id.bytes().all(|digit| digit.is_ascii_hexdigit())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_grpc_call_is_answered_with_its_name() {
    let server = Server::start(FakeScorer::new(CLASSES), Settings::DEFAULT).await;
    let mut client = server.client().await;
    let good = client.get_info(named(GetInfoRequest {}, "a-1")).await.unwrap();
    assert_eq!(sent_back(good.metadata()), "a-1");
    let empty = ScoreTextRequest::default();
    let refused = client.score_text(named(empty.clone(), "a-2")).await.unwrap_err();
    assert_eq!(
        (refused.code(), sent_back(refused.metadata())),
        (Code::InvalidArgument, "a-2".into())
    );
    let stream = client.score(named(tokio_stream::empty(), "a-3")).await.unwrap();
    assert_eq!(sent_back(stream.metadata()), "a-3");
    let mut nothing = tonic::client::Grpc::new(server.channel().await);
    nothing.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<GetInfoRequest, ()>::default();
    let path = "/distill.v1.Teacher/Nothing".parse().unwrap();
    let refused: Result<tonic::Response<()>, Status> =
        nothing.unary(named(GetInfoRequest {}, "a-4"), path, codec).await;
    let refused = refused.unwrap_err();
    assert_eq!(
        (refused.code(), sent_back(refused.metadata())),
        (Code::Unimplemented, "a-4".into())
    );
    // None, and one that could not be told from the rest of a line.
    let fresh = client.get_info(GetInfoRequest {}).await.unwrap();
    assert!(is_fresh(&sent_back(fresh.metadata())));
    for wrong in ["two words", &"a".repeat(129)] {
        let fresh = client.get_info(named(GetInfoRequest {}, wrong)).await.unwrap();
        assert!(is_fresh(&sent_back(fresh.metadata())));
    }
    let dir = tempfile::tempdir().unwrap();
    let server = security::start(security::tokens(dir.path()), Settings::DEFAULT).await;
    let refused =
        server.client().await.get_info(named(GetInfoRequest {}, "a-5")).await.unwrap_err();
    assert_eq!(
        (refused.code(), sent_back(refused.metadata())),
        (Code::Unauthenticated, "a-5".into())
    );
}

/// The head of the answer to a request over HTTP with these headers.
async fn head(server: &Server, line: &str, headers: &str) -> String {
    let mut connection = TcpStream::connect(server.http).await.unwrap();
    let request = format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    answer.split("\r\n\r\n").next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_over_http_carries_the_name_too() {
    let server = Server::start(FakeScorer::new(CLASSES), Settings::DEFAULT).await;
    for (line, status) in [
        ("GET /health/", "200"),
        ("GET /metrics", "200"),
        ("GET /nothing", "404"),
        ("GET /v1/completions", "405"),
        ("POST /v1/completions", "400"),
        ("POST /get_sequence_logprobs/", "400"),
    ] {
        let answer = head(&server, line, "X-Request-Id: b;1\r\n").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{line}: {answer}");
        assert_eq!(answer.matches("x-request-id: b;1").count(), 1, "{line}: {answer}");
        let answer = head(&server, line, "").await;
        let id = answer.lines().find_map(|line| line.strip_prefix("x-request-id: "));
        assert!(id.is_some_and(is_fresh), "{line}: {answer}");
    }
}

/// The value of a field of a line; a number.
fn number(line: &str, field: &str) -> f64 {
    let (_, rest) = line.split_once(&format!("{field}=")).unwrap_or_else(|| panic!("{line}"));
    rest.split([' ', '}']).next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_line_for_each_call_and_each_sequence_says_what_it_was() {
    let log = Log::start(DEBUG);
    let server = Server::start(FakeScorer::new(CLASSES), Settings::DEFAULT).await;
    let (requests, receiver) = tokio::sync::mpsc::channel(4);
    let inbound = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut client = server.client().await;
    let mut replies = client.score(named(inbound, "c-1")).await.unwrap().into_inner();
    let good = ScoreJob { ranges: vec![1..2, 2..3], ..job(7, vec![1, 2, 3, 4, 5]) };
    for request in [score_request(&good), score_request(&job(8, vec![99]))] {
        requests.send(request).await.unwrap();
        replies.message().await.unwrap().unwrap();
    }
    let line = log.line(&["sequence{request_id=\"c-1\" id=7", "answered"]).await;
    assert!(line.contains("tokens=5 k=4 positions=2") && line.contains("code=\"OK\""), "{line}");
    // Two rows of 4 raw entries, and 4 bytes each for the token that follows.
    assert_eq!(number(&line, "bytes"), 2.0 * (4.0 * 8.0 + 8.0 + 4.0));
    assert!(number(&line, "queue_ms") >= 0.0 && number(&line, "compute_ms") >= 0.0, "{line}");
    let line = log.line(&["id=8 tokens=1 k=4", "refused error=\"", "99"]).await;
    assert!(line.contains("code=\"INVALID_ARGUMENT\""), "{line}");
    drop(requests);
    assert!(replies.message().await.unwrap().is_none());
    let line = log.line(&["answered", "sequences=2"]).await;
    let is = "call{request_id=\"c-1\" method=\"/distill.v1.Teacher/Score\" client=\"127.0.0.1:";
    assert!(line.contains(is) && line.contains("code=\"OK\""), "{line}");
    assert!(number(&line, "bytes") > 88.0 && number(&line, " ms") > 0.0, "{line}");

    let text = ScoreTextRequest { text: "abc".into(), top_k: 2, ..Default::default() };
    client.score_text(named(text, "c-2")).await.unwrap();
    let line = log.line(&["\"c-2\"", "answered"]).await;
    assert!(line.contains("sequences=1 tokens=3 positions=3 k=2"), "{line}");
    assert!(number(&line, "queue_ms") >= 0.0 && number(&line, "compute_ms") >= 0.0, "{line}");

    // Whoever leaves is not taken for served.
    let mut hand = Hand::greet(server.grpc, &[]).await;
    hand.send(&open(1, "/distill.v1.Teacher/Score")).await;
    hand.until(HEADERS, 1).await;
    hand.send(&frame(RESET, 0, 1, &[0, 0, 0, 8])).await;
    log.line(&["Score", "code=\"CANCELLED\"", "answered"]).await;
}

#[tokio::test]
async fn a_line_for_each_request_over_http_says_what_it_was_and_nothing_of_its_query() {
    let log = Log::start(DEBUG);
    let dir = tempfile::tempdir().unwrap();
    let server = security::start(security::tokens(dir.path()), Settings::DEFAULT).await;
    let token = format!("Authorization: Bearer {}\r\n", security::TOKEN);
    let body = json!({ "prompt": [[1, 2, 3], [4, 5]], "prompt_logprobs": 2 }).to_string();
    let length = body.len();
    let headers = format!("{token}X-Request-Id: d-1\r\nContent-Length: {length}\r\n\r\n{body}");
    let answer = head(&server, "POST /v1/completions?secret=1", &headers).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let line = log.line(&["\"d-1\"", "answered"]).await;
    let is =
        "call{request_id=\"d-1\" method=\"/v1/completions\" client=\"alice\" sequences=2 tokens=5";
    assert!(line.contains(is) && line.contains("status=200"), "{line}");
    assert!(number(&line, "bytes") > 100.0 && number(&line, "compute_ms") >= 0.0, "{line}");
    head(&server, "GET /metrics", "X-Request-Id: d-2\r\n").await;
    log.line(&["\"d-2\"", "client=\"127.0.0.1:", "refused error=\"this server wants a token"])
        .await;
    log.line(&["\"d-2\"", "status=401", "answered"]).await;
    // What would begin a line, or tell a terminal something, is neither.
    let answer = head(&server, "GET /a\u{85}\u{9b}2J", "X-Request-Id: d-3\u{85}\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    head(&server, &format!("GET /{}", "ä".repeat(3000)), "X-Request-Id: d-4\r\n").await;
    let line = log.line(&["\"d-4\"", "answered"]).await;
    assert!(line.len() < 500, "{line}");
    for line in log.lines() {
        assert!(!line.contains("secret") && !line.contains(security::TOKEN), "{line}");
        assert!(line.chars().all(|c| !c.is_control()), "{line:?}");
        assert!(line.contains("DEBUG") || line.contains("INFO"), "no line of ours: {line:?}");
    }
}

#[tokio::test]
async fn by_default_refusals_leave_no_line_and_faults_leave_one_with_the_calls_name() {
    let log = Log::start(DEFAULT_LOG);
    let dispatch = log.dispatch.clone();
    let load = move || {
        // This runs on the device's thread, which logs here too from now on.
        std::mem::forget(tell(&dispatch));
        Ok(FakeScorer { nan_at: Some(3), fail_at: Some(4), ..FakeScorer::new(CLASSES) }.loaded())
    };
    let mut server = Server::start_loading(load, Settings::DEFAULT).await;
    server.ready().await;
    let mut client = server.client().await;
    for _ in 0..200 {
        client.score_text(ScoreTextRequest::default()).await.unwrap_err();
    }
    let mut stream = server.score().await;
    for id in 0..200 {
        stream.send(score_request(&job(id, vec![99]))).await;
        stream.next().await;
    }
    assert_right(&job(1, vec![1]), &stream.ask(&job(1, vec![1])).await);
    assert_eq!(log.lines(), Vec::<String>::new());
    for (text, id, says) in
        [("\u{3}", "e-1", "a sequence was not answered"), ("\u{4}", "e-2", "a sequence failed")]
    {
        let text = ScoreTextRequest { text: text.into(), ..Default::default() };
        client.score_text(named(text, id)).await.unwrap_err();
        log.line(&["ERROR", &format!("request_id=\"{id}\""), says]).await;
    }
    assert_eq!(log.lines().len(), 2, "{:#?}", log.lines());
}

#[tokio::test]
async fn handshakes_that_fail_leave_one_line_for_many() {
    let log = Log::start(DEFAULT_LOG);
    let authority = security::Authority::new();
    let (server, _) = security::encrypted(authority.files("teacher", false, false)).await;
    for _ in 0..50 {
        let mut stranger = TcpStream::connect(server.grpc).await.unwrap();
        stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        // Closed, by a reset or not, when the handshake has failed.
        let _ = stranger.read_to_end(&mut Vec::new()).await;
    }
    log.line(&["TLS handshakes failed", "failed=1", "reason"]).await;
    assert_eq!(log.lines().len(), 1, "{:#?}", log.lines());
}
