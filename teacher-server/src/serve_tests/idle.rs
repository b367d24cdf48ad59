//! Connections nobody uses are closed, those in use are not, and one port's crowd is not the other's.

use std::time::{Duration, Instant};

use proto::convert::{ScoreJob, score_request};
use proto::v1::GetInfoRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::harness::{CLASSES, PATIENCE, Server, assert_right, job};
use crate::settings::Settings;
use crate::testing::FakeScorer;

const IDLE: Duration = Duration::from_millis(400);

/// What an HTTP/2 client says first: the preface and empty settings.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const PING: &[u8] = b"\0\0\x08\x06\0\0\0\0\0hoarding";

async fn impatient() -> Server {
    let settings = Settings::with(|limits| limits.idle_timeout = IDLE);
    Server::start(FakeScorer::new(CLASSES), settings).await
}

/// Says `hello` and then `drip` every 20 ms; returns how long the server bore it.
async fn borne(address: std::net::SocketAddr, hello: &[u8], drip: &[u8]) -> Duration {
    let begin = Instant::now();
    let (mut read, mut write) = TcpStream::connect(address).await.unwrap().into_split();
    write.write_all(hello).await.unwrap();
    let drip = async {
        // A write fails only once the server has closed.
        while write.write_all(drip).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let mut heard = [0; 4096];
    let closed = async { while !matches!(read.read(&mut heard).await, Ok(0) | Err(_)) {} };
    let end = async {
        tokio::select! { () = closed => {} () = drip => {} }
    };
    tokio::time::timeout(PATIENCE, end).await.expect("the connection stays open");
    begin.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_without_a_call_are_closed_whatever_they_send() {
    let server = impatient().await;
    let cases: [(_, &[u8], &[u8]); 5] = [
        (server.grpc, HELLO, b""),
        (server.grpc, HELLO, PING),
        (server.http, b"GET /health HTTP/1.1\r\nX: ", b"a"),
        (server.http, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b""),
        (server.http, b"", b""),
    ];
    for (address, hello, drip) in cases {
        let took = borne(address, hello, drip).await;
        let name = String::from_utf8_lossy(hello);
        assert!(took >= IDLE - Duration::from_millis(20), "{name:?} was cut after {took:?}");
        assert!(took < 10 * IDLE, "{name:?} held its place for {took:?}");
    }
    server.until_metric("teacher_connections", 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_stream_keeps_its_connection_and_a_client_that_was_idle_calls_again() {
    let server = impatient().await;
    let mut stream = server.score().await;
    let mut client = server.client().await;
    client.get_info(GetInfoRequest {}).await.unwrap();
    // The stream's, the client's, and the one that reads this.
    assert_eq!(server.metric("teacher_connections").await, 3.0);
    tokio::time::sleep(3 * IDLE).await;
    let good = job(1, vec![1, 2, 3]);
    assert_right(&good, &stream.ask(&good).await);
    assert_eq!(server.metric("teacher_connections").await, 2.0);
    client.get_info(GetInfoRequest {}).await.unwrap();
    drop(stream);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_takes_its_time_keeps_its_connection_as_long_as_its_answers_may_wait() {
    let server = impatient().await;
    let mut stream = server.score().await;
    // Together they are more than the client's window and the server's buffer hold.
    let big = |id| ScoreJob { k: 32, ..job(id, vec![1; 1200]) };
    for id in 0..20 {
        stream.send(score_request(&big(id))).await;
    }
    tokio::time::sleep(5 * IDLE).await;
    for _ in 0..20 {
        let reply = stream.next().await;
        assert!(reply.error.is_none() && reply.last, "{:?}", reply.error);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_at_the_grpc_port_leaves_after_a_while_and_never_shuts_the_http_port() {
    let settings = Settings::with(|limits| {
        limits.max_connections = 2;
        limits.idle_timeout = IDLE;
    });
    let server = Server::start(FakeScorer::new(CLASSES), settings).await;
    let mut crowd = Vec::new();
    for _ in 0..2 {
        let mut hoarder = TcpStream::connect(server.grpc).await.unwrap();
        hoarder.write_all(HELLO).await.unwrap();
        crowd.push(hoarder);
    }
    for _ in 0..3 {
        let mut refused = TcpStream::connect(server.grpc).await.unwrap();
        let read = tokio::time::timeout(PATIENCE, refused.read(&mut [0])).await;
        assert!(matches!(read, Ok(Ok(0) | Err(_))), "{read:?}");
    }
    assert_eq!(server.get("/health").await.1, "serving\n");
    assert_eq!(server.metric("teacher_refused_connections_total").await, 3.0);
    server.until_metric("teacher_connections", 1.0).await;
    server.client().await.get_info(GetInfoRequest {}).await.unwrap();
    drop(crowd);
}
