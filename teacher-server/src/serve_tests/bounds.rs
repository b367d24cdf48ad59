//! Bounds in time and bytes: streams that stay, messages that never end, readers that stop,
//! deadlines; each refused by name, and others answered meanwhile.

use std::time::{Duration, Instant};

use proto::convert::{ScoreJob, score_request};
use proto::v1::teacher_client::TeacherClient;
use proto::v1::{GetInfoRequest, ScoreTextRequest};
use tonic::{Code, Request, Status};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_types::StatusExt as _;

use super::by_hand::{DATA, Hand, frame, open};
use super::harness::{CLASSES, PATIENCE, Server, assert_right, job};
use crate::settings::Settings;
use crate::testing::FakeScorer;

const SHORT: Duration = Duration::from_millis(300);

async fn served(settings: Settings) -> Server {
    Server::start(FakeScorer::new(CLASSES), settings).await
}

/// How a stream ends of which nothing more is expected.
async fn ending(replies: &mut tonic::Streaming<proto::v1::ScoreReply>) -> Status {
    let end = async {
        loop {
            match replies.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended well"),
                Err(status) => return status,
            }
        }
    };
    tokio::time::timeout(PATIENCE, end).await.expect("the stream goes on")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_nothing_is_asked_and_when_its_time_is_over() {
    let server = served(Settings::with(|limits| limits.stream_idle_timeout = SHORT)).await;
    let mut stream = server.score().await;
    let good = job(1, vec![1, 2, 3]);
    for _ in 0..5 {
        // Each request begins the time anew.
        tokio::time::sleep(SHORT / 3).await;
        assert_right(&good, &stream.ask(&good).await);
    }
    let status = ending(&mut stream.replies).await;
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains("--stream-idle-timeout"), "{status}");

    let server = served(Settings::with(|limits| limits.stream_timeout = SHORT)).await;
    // Before the stream is there: its time begins where it is opened.
    let begin = Instant::now();
    let mut stream = server.score().await;
    while begin.elapsed() < SHORT / 2 {
        assert_right(&good, &stream.ask(&good).await);
    }
    let status = ending(&mut stream.replies).await;
    assert!(status.message().contains("--stream-timeout"), "{status}");
    assert!(begin.elapsed() >= SHORT);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stream_asked_is_answered_before_its_time_ends_it() {
    let settings = Settings::with(|limits| limits.stream_timeout = SHORT);
    let (server, leave) = Server::gated(settings).await;
    let mut stream = server.score().await;
    let good = job(1, vec![1, 2, 3]);
    stream.send(score_request(&good)).await;
    server.until_admitted(1).await;
    tokio::time::sleep(2 * SHORT).await;
    leave.send(()).unwrap();
    assert_eq!(stream.next().await.id, 1);
    let status = ending(&mut stream.replies).await;
    assert!(status.message().contains("--stream-timeout"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_deadline_a_client_sets_holds_for_the_whole_stream() {
    let (server, leave) = Server::gated(Settings::DEFAULT).await;
    let (requests, receiver) = tokio::sync::mpsc::channel(4);
    let mut call = Request::new(tokio_stream::wrappers::ReceiverStream::new(receiver));
    call.set_timeout(SHORT);
    let begin = Instant::now();
    let mut replies = server.client().await.score(call).await.unwrap().into_inner();
    requests.send(score_request(&job(1, vec![1]))).await.unwrap();
    let status = ending(&mut replies).await;
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert!(begin.elapsed() >= SHORT && begin.elapsed() < PATIENCE);
    // A unary call's too; what it waited for is dropped from the queue.
    let mut text = Request::new(ScoreTextRequest { text: "a".into(), ..Default::default() });
    text.set_timeout(SHORT);
    let status = server.client().await.score_text(text).await.unwrap_err();
    assert!([Code::DeadlineExceeded, Code::Cancelled].contains(&status.code()), "{status}");
    // The client gives up on its own; the server hears of it a moment later.
    tokio::time::sleep(SHORT).await;
    leave.send(()).unwrap();
    leave.send(()).unwrap();
    // The one on the device was computed for nobody, the other not at all.
    server.until_metric("teacher_abandoned_total", 2.0).await;
    assert_eq!(server.metric("teacher_batches_total").await, 1.0);
}

/// Opens a stream of health's.
async fn watch(
    channel: tonic::transport::Channel,
) -> Result<tonic::Streaming<HealthCheckResponse>, Status> {
    let request = HealthCheckRequest { service: String::new() };
    Ok(HealthClient::new(channel).watch(request).await?.into_inner())
}

#[tokio::test(flavor = "multi_thread")]
async fn watching_health_or_reflecting_has_an_end() {
    let server = served(Settings::with(|limits| limits.stream_timeout = SHORT)).await;
    let begin = Instant::now();
    let mut replies = watch(server.channel().await).await.unwrap();
    assert!(replies.message().await.unwrap().is_some(), "the state as it is");
    let status = tokio::time::timeout(PATIENCE, replies.message()).await.expect("it goes on");
    let status = status.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains("--stream-timeout") && begin.elapsed() >= SHORT, "{status}");
    let open = tokio_stream::pending::<ServerReflectionRequest>();
    let mut client = ServerReflectionClient::new(server.channel().await);
    let mut replies = client.server_reflection_info(open).await.unwrap().into_inner();
    let status = tokio::time::timeout(PATIENCE, replies.message()).await.expect("it goes on");
    assert_eq!(status.unwrap_err().code(), Code::Unavailable);
    assert_eq!(server.metric("teacher_refusals_total{reason=\"stream_time\"}").await, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_are_as_many_as_connections_and_share_that() {
    let server = served(Settings::with(|limits| limits.max_connections = 4)).await;
    let (one, other) = (server.channel().await, server.channel().await);
    let mut open = Vec::new();
    for (channel, most) in [(&one, 2), (&other, 1)] {
        for _ in 0..most {
            open.push(watch(channel.clone()).await.unwrap());
        }
        let status = watch(channel.clone()).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        assert!(status.message().contains("max_connections"), "{status}");
        assert!(status.get_details_retry_info().is_some(), "{status:?}");
    }
    // Other calls have their own room, and what is closed is free.
    TeacherClient::new(other.clone()).get_info(GetInfoRequest {}).await.unwrap();
    open.pop();
    let again = async { while watch(other.clone()).await.is_err() {} };
    tokio::time::timeout(PATIENCE, again).await.expect("room again");
}

/// A call on a connection of its own, and the first bytes of its body.
async fn begun(server: &Server, path: &str, bytes: &[u8]) -> Hand {
    let mut hand = Hand::greet(server.grpc, &[]).await;
    hand.send(&[open(1, path), frame(DATA, 0, 1, bytes)].concat()).await;
    hand
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_never_ends_is_given_up_and_so_is_a_call_without_one() {
    let server = served(Settings::with(|limits| limits.message_timeout = SHORT)).await;
    let mut neighbour = server.score().await;
    let cases: [(&str, &[u8]); 6] = [
        // 1,000 bytes announced, 3 sent.
        ("/distill.v1.Teacher/Score", &[0, 0, 0, 3, 232, 1, 2, 3]),
        ("/distill.v1.Teacher/ScoreText", &[0, 0]),
        ("/distill.v1.Teacher/GetInfo", &[]),
        // Whole, but the request does not end: an empty message, and a text.
        ("/grpc.health.v1.Health/Check", &[0, 0, 0, 0, 0]),
        ("/grpc.health.v1.Health/Watch", &[0, 0, 0, 0, 0]),
        ("/distill.v1.Teacher/ScoreText", &[0, 0, 0, 0, 3, 0x0a, 1, b'a']),
    ];
    for (at, (path, words)) in (1..).zip(cases) {
        let begin = Instant::now();
        let _hand = begun(&server, path, words).await;
        server.until_metric("teacher_refusals_total{reason=\"message_time\"}", f64::from(at)).await;
        assert!(begin.elapsed() >= SHORT, "{path} was given up after {:?}", begin.elapsed());
    }
    // A stream whose first message has not begun is no such case.
    tokio::time::sleep(2 * SHORT).await;
    let good = job(1, vec![1, 2]);
    assert_right(&good, &neighbour.ask(&good).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_messages_hold_a_bounded_number_of_bytes() {
    let settings = Settings::with(|limits| {
        limits.max_request_bytes = 30_000;
        limits.max_unfinished_bytes = 50_000;
        limits.max_http_body_bytes = 50_000;
    });
    let server = served(settings).await;
    let mut hoards = Vec::new();
    for _ in 0..2 {
        // 21,000 bytes announced and all but one of them sent, in frames of at most 16,384.
        let mut hand = begun(&server, "/distill.v1.Teacher/Score", &[0, 0, 0, 82, 8, 1]).await;
        for part in [10_000, 10_998] {
            hand.send(&frame(DATA, 0, 1, &vec![1; part])).await;
        }
        hoards.push(hand);
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    // About 10,000 are left, and a third large one does not fit.
    let large = job(2, vec![1; 4000]);
    let mut third = server.score().await;
    third.send(score_request(&large)).await;
    let status = ending(&mut third.replies).await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.message().contains("max_unfinished_bytes"), "{status}");
    assert!(status.get_details_retry_info().is_some(), "{status:?}");
    assert_eq!(server.metric("teacher_refusals_total{reason=\"unfinished_bytes\"}").await, 1.0);
    // Small requests still find room, and all of it comes back.
    let good = job(1, vec![1, 2]);
    assert_right(&good, &server.score().await.ask(&good).await);
    drop(hoards);
    server.until_metric("teacher_streams", 0.0).await;
    assert_eq!(server.score().await.ask(&large).await.id, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stops_is_cut_and_what_it_held_is_free() {
    let settings = Settings::with(|limits| {
        limits.reader_timeout = SHORT;
        limits.max_held_bytes_per_stream = 1 << 20;
    });
    let server = served(settings).await;
    let mut lazy = server.score().await;
    let big = ScoreJob { k: 32, ..job(0, vec![1; 1200]) };
    for id in 0..60 {
        let sent = lazy.requests.send(score_request(&ScoreJob { id, ..big.clone() }));
        if tokio::time::timeout(SHORT, sent).await.is_err() {
            break;
        }
    }
    let mut other = server.score().await;
    let good = job(1, vec![2, 3]);
    assert_right(&good, &other.ask(&good).await);
    server.until_metric("teacher_refusals_total{reason=\"unread\"}", 1.0).await;
    // The other's remains.
    server.until_metric("teacher_streams", 1.0).await;
    // Whoever reads on is told, and does not take it for a good end.
    let status = ending(&mut lazy.replies).await;
    assert_eq!(status.code(), Code::Aborted, "{status}");
    assert!(status.message().contains("--reader-timeout"), "{status}");
    assert_right(&good, &other.ask(&good).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_tells_callers_when_to_come_again() {
    let settings = Settings::with(|limits| limits.max_queued_sequences = 2);
    let (server, leave) = Server::gated(settings).await;
    let stream = server.score().await;
    stream.send(score_request(&job(0, vec![1]))).await;
    server.until_admitted(1).await;
    server.until_metric("teacher_queued_sequences", 0.0).await;
    stream.send(score_request(&job(1, vec![1]))).await;
    server.until_admitted(2).await;
    // The second place is another client's, whose next has none.
    let mut client = server.client().await;
    let text = ScoreTextRequest { text: "a".into(), ..Default::default() };
    let first = tokio::spawn({
        let (mut client, text) = (client.clone(), text.clone());
        async move { client.score_text(text).await }
    });
    server.until_admitted(3).await;
    let status = client.score_text(text).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    let pause = status.get_details_retry_info().and_then(|retry| retry.retry_delay);
    assert!(pause.is_some_and(|pause| pause >= Duration::from_millis(100)), "{pause:?}");
    let ask = serde_json::json!({ "prompt": [1, 2], "prompt_logprobs": 1 });
    let (head, body) = server.post("/v1/completions", &ask).await;
    assert!(head.contains("503 Service Unavailable") && head.contains("retry-after: 1"), "{head}");
    assert_eq!(body["error"]["type"], "ServiceUnavailableError");
    assert_eq!(server.metric("teacher_refusals_total{reason=\"queued_sequences\"}").await, 2.0);
    (0..3).for_each(|_| leave.send(()).unwrap());
    assert!(first.await.unwrap().is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flooding_client_makes_another_wait_for_two_batches_at_most() {
    let (server, leave) = Server::gated(Settings::DEFAULT).await;
    let flood = server.score().await;
    for id in 0..64 {
        flood.send(score_request(&job(id, vec![1]))).await;
    }
    server.until_admitted(64).await;
    let mut small = server.score().await;
    let good = job(5, vec![2, 3]);
    small.send(score_request(&good)).await;
    server.until_admitted(65).await;
    // The batch that runs, one of the flood's at most, and its own.
    (0..3).for_each(|_| leave.send(()).unwrap());
    assert_eq!(small.next().await.id, 5);
    drop(leave);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_so_many_calls_at_a_time_and_the_next_waits() {
    let server = served(Settings::with(|limits| limits.max_streams_per_connection = 2)).await;
    let mut client = server.client().await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let (requests, receiver) = tokio::sync::mpsc::channel(1);
        let inbound = tokio_stream::wrappers::ReceiverStream::new(receiver);
        open.push((requests, client.score(inbound).await.unwrap()));
    }
    let (third, info) = (client.get_info(GetInfoRequest {}), GetInfoRequest {});
    assert!(tokio::time::timeout(SHORT, third).await.is_err(), "a third call is answered");
    // Another connection has its own.
    server.client().await.get_info(info).await.unwrap();
    open.pop();
    let third = tokio::time::timeout(PATIENCE, client.get_info(info)).await;
    third.expect("room for the next").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_read_no_further_than_its_answers_bytes() {
    // Raw answers of 2 rows with k = 4 take 80 bytes: the second request is read, the third not.
    let settings = Settings::with(|limits| limits.max_held_bytes_per_stream = 81);
    let (server, leave) = Server::gated(settings).await;
    let mut stream = server.score().await;
    for id in 0..4 {
        stream.send(score_request(&job(id, vec![1, 2]))).await;
    }
    server.until_admitted(2).await;
    tokio::time::sleep(SHORT).await;
    assert_eq!(server.metric("teacher_admitted_total").await, 2.0);
    (0..4).for_each(|_| leave.send(()).unwrap());
    for _ in 0..4 {
        assert!(stream.next().await.error.is_none());
    }
}
