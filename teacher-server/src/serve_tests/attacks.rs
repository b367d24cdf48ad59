//! Floods on one connection, in frames no client library would send: calls reset without number,
//! pings, settings and heads without end, windows that stay shut. Each is cut or bounded, and a
//! neighbour is served meanwhile and afterwards.

use std::time::{Duration, Instant};

use prost::Message as _;
use proto::convert::{ScoreJob, score_request};
use proto::v1::ScoreTextRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::by_hand::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, Hand, INITIAL_WINDOW_SIZE, PING,
    PRIORITY, RESET, SETTINGS, WINDOW_UPDATE, ask, beside, call, field, frame, message, open,
};
use super::harness::{CLASSES, Server, assert_right, job};
use crate::settings::Settings;
use crate::testing::FakeScorer;

const SCORE: &str = "/distill.v1.Teacher/Score";
const SHORT: Duration = Duration::from_millis(300);
/// ENHANCE_YOUR_CALM (RFC 9113, 7).
const CALM: u32 = 11;
/// More than the system keeps of a connection nobody reads at the other end: Linux lets the two
/// buffers grow to 6 MiB and 4 MiB.
const SYSTEM_BYTES: usize = 16 << 20;

/// A server that is quick to lose its patience.
async fn impatient() -> Server {
    let settings = Settings::with(|limits| {
        limits.idle_timeout = SHORT;
        limits.reader_timeout = SHORT;
        limits.stream_idle_timeout = SHORT;
    });
    Server::start(FakeScorer::new(CLASSES), settings).await
}

async fn served() -> Server {
    Server::start(FakeScorer::new(CLASSES), Settings::DEFAULT).await
}

/// `count` streams, by their numbers.
fn streams(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|at| 2 * at + 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_reset_as_soon_as_they_are_opened_end_their_connection() {
    let server = served().await;
    let said = beside(&server, async {
        let mut hand = Hand::greet(server.grpc, &[]).await;
        let reset = |stream| [open(stream, SCORE), frame(RESET, 0, stream, &[0, 0, 0, 8])].concat();
        let flood: Vec<u8> = streams(5000).flat_map(reset).collect();
        // The server closes before it has read everything.
        let _ = hand.0.write_all(&flood).await;
        hand.goodbye().await
    })
    .await;
    assert_eq!(said, Some((CALM, "too_many_resets".to_owned())));
    server.until_metric("teacher_streams", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_make_the_server_reset_them_end_their_connection() {
    let server = served().await;
    let said = beside(&server, async {
        let mut hand = Hand::greet(server.grpc, &[]).await;
        // A window that grows beyond all bounds is an error of the stream (RFC 9113, 6.9.1).
        let grow = |stream| frame(WINDOW_UPDATE, 0, stream, &(u32::MAX >> 1).to_be_bytes());
        let wrong = |stream| [open(stream, SCORE), grow(stream)].concat();
        let flood: Vec<u8> = streams(5000).flat_map(wrong).collect();
        let _ = hand.0.write_all(&flood).await;
        hand.goodbye().await
    })
    .await;
    assert_eq!(said, Some((CALM, "too_many_internal_resets".to_owned())));
    server.until_metric("teacher_streams", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_reset_calls_had_asked_fills_no_queue() {
    const AT_ONCE: u32 = 100;
    let (server, leave) = Server::gated(Settings::DEFAULT).await;
    let mut hand = Hand::greet(server.grpc, &[]).await;
    // Far more than the queue has places, each waiting in it before its call is reset.
    let all: Vec<u32> = streams(20 * AT_ONCE).collect();
    for (round, some) in (1..).zip(all.chunks(AT_ONCE as usize)) {
        for &stream in some {
            hand.send(&[open(stream, SCORE), ask(stream, &job(1, vec![1]))].concat()).await;
        }
        server.until_admitted(round * AT_ONCE).await;
        for &stream in some {
            hand.send(&frame(RESET, 0, stream, &[0, 0, 0, 8])).await;
        }
        server.until_metric("teacher_streams", 0.0).await;
    }
    assert!(server.metric("teacher_queued_sequences").await <= 256.0);
    // The one on the device, and then only what somebody waits for.
    let mut neighbour = server.score().await;
    let good = job(1, vec![1, 2]);
    (0..2).for_each(|_| leave.send(()).unwrap());
    assert_right(&good, &neighbour.ask(&good).await);
    server.until_metric("teacher_queued_sequences", 0.0).await;
    assert_eq!(server.metric("teacher_batches_total").await, 2.0);
    assert_eq!(server.metric("teacher_panics_total").await, 0.0);
}

/// What makes the server answer, and cannot be refused.
fn questions() -> [(&'static str, Vec<u8>); 2] {
    let empty = frame(SETTINGS, 0, 0, &[]);
    [("pings", frame(PING, 0, 0, &[7; 8]).repeat(64)), ("settings", empty.repeat(64))]
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_nobody_reads_stop_the_server_reading_and_then_end_the_connection() {
    let server = impatient().await;
    beside(&server, async {
        for (what, flood) in questions() {
            for with_a_call in [false, true] {
                let mut hand = Hand::greet(server.grpc, &[]).await;
                if with_a_call {
                    hand.send(&open(1, SCORE)).await;
                }
                // What it reads beyond what it can answer would be its memory.
                let taken = hand.flood(&flood, SHORT / 3, 4 * SYSTEM_BYTES).await;
                assert!(taken <= SYSTEM_BYTES, "{taken} bytes of {what} were taken");
                let name = format!("{what}, with a call: {with_a_call}");
                let closed = tokio::time::timeout(20 * SHORT, hand.closed(&flood)).await;
                assert!(closed.is_ok(), "{name}: the connection stays open");
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_whose_answers_are_read_is_no_use_of_a_connection_either() {
    let server = impatient().await;
    beside(&server, async {
        let priorities = frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1]).repeat(1000);
        for (what, flood) in questions().into_iter().chain([("priorities", priorities)]) {
            let begin = Instant::now();
            let hand = Hand::greet(server.grpc, &[]).await;
            let (mut read, mut write) = hand.0.into_split();
            let listen = async {
                let mut heard = vec![0; 1 << 16];
                while read.read(&mut heard).await.is_ok_and(|bytes| bytes > 0) {}
            };
            let talk = async { while write.write_all(&flood).await.is_ok() {} };
            let both = tokio::time::timeout(20 * SHORT, async { tokio::join!(listen, talk) });
            assert!(both.await.is_ok(), "{what} hold a connection open");
            assert!(begin.elapsed() >= SHORT, "{what}: {:?}", begin.elapsed());
        }
    })
    .await;
}

/// Opens a call with shut windows and asks for much; the request and what is asked of it.
fn much(path: &str) -> Vec<u8> {
    let big = ScoreJob { k: 32, ..job(0, vec![1; 1200]) };
    let text = ScoreTextRequest { text: "a".repeat(100), ..Default::default() };
    let one = |id| score_request(&ScoreJob { id, ..big.clone() }).encode_to_vec();
    let asked: Vec<u8> = match path {
        SCORE => (0..8).flat_map(|id| message(0, &one(id))).collect(),
        _ => message(0, &text.encode_to_vec()),
    };
    let parts = asked.chunks(16_000);
    let frames = parts.flat_map(|part| frame(DATA, 0, 1, part)).collect();
    let end = frame(DATA, END_STREAM, 1, &[]);
    [open(1, path), frames, end].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_that_stay_shut_or_open_by_a_byte_hold_an_answer_for_a_time_and_then_nothing() {
    let server = impatient().await;
    beside(&server, async {
        let mut cut = 0.0;
        for path in [SCORE, "/distill.v1.Teacher/ScoreText"] {
            for window in [0, 1] {
                let mut hand = Hand::greet(server.grpc, &[(INITIAL_WINDOW_SIZE, window)]).await;
                hand.send(&much(path)).await;
                if path == SCORE {
                    cut += 1.0;
                    server.until_metric("teacher_refusals_total{reason=\"unread\"}", cut).await;
                    // The neighbour's remains.
                    server.until_metric("teacher_streams", 1.0).await;
                }
                // A byte more every now and then, or a ping's answer, until the server has closed.
                let drip = match window {
                    0 => frame(PING, ACK, 0, &[0; 8]),
                    more => frame(WINDOW_UPDATE, 0, 1, &more.to_be_bytes()),
                };
                let held = tokio::time::timeout(20 * SHORT, hand.closed(&drip)).await;
                assert!(held.is_ok(), "{path} with a window of {window} stays");
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_without_end_ends_its_connection() {
    let server = served().await;
    let begun = &call(SCORE)[..];
    let large = field("x", &"y".repeat(100)).repeat(150);
    for (what, more) in [("nothing", &[][..]), ("large parts", &large)] {
        let (taken, said) = beside(&server, async {
            let mut hand = Hand::greet(server.grpc, &[]).await;
            hand.send(&frame(HEADERS, 0, 1, begun)).await;
            let taken = hand.flood(&frame(CONTINUATION, 0, 1, more), SHORT, 4 * SYSTEM_BYTES).await;
            (taken, hand.goodbye().await)
        })
        .await;
        assert!(taken <= SYSTEM_BYTES, "{what}: {taken} bytes were taken");
        // Its last words may be lost: it closes with bytes unread.
        assert!(said.is_none_or(|(code, _)| code == CALM || code == 9), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_that_are_too_large_or_unpack_to_much_are_refused() {
    let server = served().await;
    // 4,000 bytes that enter the table once (6.2.1) and are named by one byte each from then on.
    let entry = [&[0x40, 1, b'x', 0x7F, 0xA1, 0x1E][..], &[b'y'; 4000]].concat();
    let bomb = |times| [call(SCORE), entry.clone(), vec![0xBE; times]].concat();
    let plain = |times| [call(SCORE), field("x", &"y".repeat(100)).repeat(times)].concat();
    // Within the limit of 16 KiB, over it, and so far over it that nobody errs so.
    for (within, over, far) in [(plain(50), plain(150), plain(1000)), (bomb(1), bomb(5), bomb(100))]
    {
        beside(&server, async {
            let mut hand = Hand::greet(server.grpc, &[]).await;
            hand.send(&frame(HEADERS, END_HEADERS, 1, &within)).await;
            hand.send(&frame(HEADERS, END_HEADERS, 3, &over)).await;
            // The answer's `:status` is 431, in Huffman's code (RFC 7541, appendix B).
            let answer = hand.until(HEADERS, 3).await.payload;
            assert!(answer.windows(3).any(|part| part == [0x69, 0x90, 0xFF]), "{answer:X?}");
            hand.until(RESET, 3).await;
            // The other goes on.
            hand.send(&ask(1, &job(1, vec![1, 2]))).await;
            hand.until(DATA, 1).await;
            let _ = hand.0.write_all(&frame(HEADERS, END_HEADERS, 5, &far)).await;
            assert_eq!(hand.goodbye().await.map(|said| said.0), Some(CALM));
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_in_parts_of_a_byte_or_none_ends_its_connection() {
    let server = served().await;
    for part in [&[][..], &[0]] {
        let said = beside(&server, async {
            let mut hand = Hand::greet(server.grpc, &[]).await;
            hand.send(&open(1, SCORE)).await;
            let flood = frame(DATA, 0, 1, part).repeat(50_000);
            let _ = hand.0.write_all(&flood).await;
            hand.goodbye().await
        })
        .await;
        assert_eq!(said, Some((CALM, "too_many_data_frames".to_owned())));
    }
}

/// The length of the first message.
fn length(messages: &[u8]) -> usize {
    u32::from_be_bytes(messages[1..5].try_into().unwrap()) as usize
}

#[tokio::test(flavor = "multi_thread")]
async fn tiny_requests_in_frames_of_their_own_are_answered_however_far_ahead_they_are_sent() {
    let (server, leave) = Server::gated(Settings::DEFAULT).await;
    let mut hand = Hand::greet(server.grpc, &[(INITIAL_WINDOW_SIZE, 1 << 30)]).await;
    hand.send(&frame(WINDOW_UPDATE, 0, 0, &(1u32 << 30).to_be_bytes())).await;
    hand.send(&open(1, SCORE)).await;
    // As grpc-go sends them, as far ahead as the server's window allows.
    let hello = hand.until(SETTINGS, 0).await.payload;
    let window = hello.chunks(6).find(|pair| pair[..2] == [0, 4]).unwrap();
    let mut left = u32::from_be_bytes(window[2..].try_into().unwrap()) as usize;
    let mut sent = 0;
    loop {
        let request = ask(1, &job(sent, vec![1]));
        let Some(rest) = left.checked_sub(request.len() - 9) else { break };
        hand.send(&request).await;
        (sent, left) = (sent + 1, rest);
    }
    // Only a few are read before the device has answered them.
    server.until_admitted(64).await;
    drop(leave);
    let mut answers = Vec::new();
    for _ in 0..sent {
        // Several may share a frame.
        while answers.len() < 5 || answers.len() < 5 + length(&answers) {
            answers.extend(hand.until(DATA, 1).await.payload);
        }
        answers.drain(..5 + length(&answers));
    }
    assert!(sent > 1000, "{sent}");
}
