//! Connections that never come to the point: prefaces and heads sent a byte at a time or by half,
//! other protocols, bodies without end; on both ports. Each is closed in time, and a crowd of them
//! keeps others out no longer than that.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use proto::v1::GetInfoRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::by_hand::{END_HEADERS, HEADERS, Hand, PREFACE, beside, call, frame, settings};
use super::harness::{CLASSES, PATIENCE, Server};
use crate::settings::Settings;
use crate::testing::FakeScorer;

const IDLE: Duration = Duration::from_millis(300);

async fn impatient(connections: usize) -> Server {
    let settings = Settings::with(|limits| {
        limits.idle_timeout = IDLE;
        limits.reader_timeout = IDLE;
        limits.max_connections = connections;
    });
    Server::start(FakeScorer::new(CLASSES), settings).await
}

/// Says this, a part at a time, then the last part over and over; returns what was answered and how
/// long the server bore it.
async fn borne(at: SocketAddr, words: &[&[u8]], forever: &[u8]) -> (String, Duration) {
    let begin = Instant::now();
    let (mut read, mut write) = TcpStream::connect(at).await.unwrap().into_split();
    let talk = async {
        for word in words {
            if write.write_all(word).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // A write fails only once the server has closed.
        while !forever.is_empty() && write.write_all(forever).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if forever.is_empty() {
            std::future::pending().await
        }
    };
    let mut answer = Vec::new();
    let listen = async {
        let mut part = [0; 4096];
        while let Ok(bytes @ 1..) = read.read(&mut part).await {
            answer.extend_from_slice(&part[..bytes]);
        }
    };
    let both = async {
        tokio::select! { () = talk => {} () = listen => {} }
    };
    tokio::time::timeout(PATIENCE, both).await.expect("the connection stays open");
    (String::from_utf8_lossy(&answer).into_owned(), begin.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preface_that_comes_slowly_or_not_or_is_another_is_given_up() {
    let server = impatient(8).await;
    let bytes: Vec<&[u8]> = PREFACE.chunks(1).collect();
    let hello = [PREFACE, &settings(&[])].concat();
    let head = frame(HEADERS, END_HEADERS, 1, &call("/distill.v1.Teacher/Score"));
    let part = |length: usize| [&hello, &head[..length]].concat();
    let (begun, in_block) = (part(5), part(20));
    let noise: Vec<u8> = (0..255).rev().cycle().take(5000).collect();
    let cases: [(_, Vec<&[u8]>, &[u8]); 9] = [
        ("silence", vec![], b""),
        ("a byte at a time", bytes, b""),
        ("half a preface", vec![&PREFACE[..12]], b""),
        ("no settings", vec![PREFACE], b""),
        ("a frame's begun head", vec![&begun], b""),
        ("a begun header block", vec![&in_block], b""),
        ("HTTP/1.1", vec![b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"], b""),
        ("HTTP/1.1 without end", vec![b"GET / HTTP/1.1\r\nX: "], b"y"),
        ("noise", vec![&noise], &noise),
    ];
    for (name, words, forever) in cases {
        let (_, took) = beside(&server, borne(server.grpc, &words, forever)).await;
        assert!(took < 10 * IDLE, "{name} held its place for {took:?}");
    }
    server.until_metric("teacher_connections", 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_with_half_prefaces_keeps_others_out_for_the_idle_time_at_most() {
    let server = impatient(8).await;
    let begin = Instant::now();
    let mut crowd = Vec::new();
    for _ in 0..40 {
        let mut one = TcpStream::connect(server.grpc).await.unwrap();
        let _ = one.write_all(&PREFACE[..12]).await;
        crowd.push(one);
    }
    server.until_metric("teacher_refused_connections_total", 32.0).await;
    server.until_metric("teacher_connections", 1.0).await;
    assert!(begin.elapsed() < 10 * IDLE, "{:?}", begin.elapsed());
    server.client().await.get_info(GetInfoRequest {}).await.unwrap();
    drop(crowd);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_http_port_answers_or_closes_whatever_it_hears() {
    let server = impatient(8).await;
    let get: &[u8] = b"GET /health HTTP/1.1\r\nHost: x\r\n";
    let long = [get, b"X: ", &[b'y'; 1 << 20], b"\r\n\r\n"].concat();
    let many = [get, &b"X: y\r\n".repeat(2000), b"\r\n"].concat();
    let pipelined = [get, b"\r\n", &[0xFF; 5000]].concat();
    let sized = [get, b"Content-Length: 1000000000\r\n\r\n"].concat();
    let chunked = b"POST /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let both = [get, b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"].concat();
    let cases: [(&str, &[u8], &[u8], &str); 11] = [
        ("a head a byte at a time", get, b"X", ""),
        ("a long head", &long, b"", "HTTP/1.1 431"),
        ("many fields", &many, b"", "HTTP/1.1 431"),
        (
            "a head without end",
            get,
            b"X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n",
            "",
        ),
        ("pipelined noise", &pipelined, b"", "HTTP/1.1 200"),
        ("a body that never comes", &sized, b"", "HTTP/1.1 200"),
        ("a body that comes slowly", &sized, b"x", "HTTP/1.1 200"),
        ("chunks without end", chunked, b"1\r\nx\r\n", "HTTP/1.1 405"),
        ("two lengths", &both, b"", "HTTP/1.1 "),
        ("noise", &[0xFF; 5000], b"", "HTTP/1.1 400"),
        ("HTTP/2", &[PREFACE, &settings(&[])].concat(), b"", ""),
    ];
    for (name, words, forever, answers) in cases {
        let (answer, took) = beside(&server, borne(server.http, &[words], forever)).await;
        let first = answer.lines().next().unwrap_or_default();
        assert!(first.starts_with(answers), "{name}: {first:?}");
        assert!(took < 10 * IDLE, "{name} held its place for {took:?}");
    }
    // The one that reads this.
    server.until_metric("teacher_connections", 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_nobody_reads_end_their_connection() {
    let server = impatient(8).await;
    beside(&server, async {
        let mut hand = Hand(TcpStream::connect(server.http).await.unwrap());
        let asked = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100);
        let taken = hand.flood(&asked, IDLE / 3, 64 << 20).await;
        assert!(taken <= 16 << 20, "{taken} bytes of requests were taken");
        hand.closed(&asked).await;
    })
    .await;
    server.until_metric("teacher_connections", 1.0).await;
}
