//! Bounds in motion: reading ahead, the full queue, clients that leave.

use std::time::Duration;

use proto::convert::score_request;
use tonic::Code;

use super::harness::{CLASSES, PATIENCE, Server, assembler, assert_right, job};
use crate::settings::Settings;
use crate::testing::FakeScorer;

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_read_no_further_than_its_requests_in_flight() {
    let settings = Settings::with(|limits| limits.max_in_flight_per_stream = 3);
    let (server, leave) = Server::gated(settings).await;
    let mut stream = server.score().await;
    let jobs: Vec<_> = (0..10).map(|id| job(id, vec![id as u32; 2])).collect();
    for job in &jobs {
        stream.send(score_request(job)).await;
    }
    // One is on the device and two wait; with no bound nine would.
    server.until_metric("teacher_queued_sequences", 2.0).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(server.metric("teacher_queued_sequences").await, 2.0);
    for _ in &jobs {
        leave.send(()).unwrap();
    }
    for _ in &jobs {
        let reply = stream.next().await;
        let job = &jobs[reply.id as usize];
        assert_right(job, &assembler(job).push(&reply).unwrap().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_at_once_and_the_stream_lives() {
    // Of which one client may have half.
    let settings = Settings::with(|limits| limits.max_queued_sequences = 4);
    let (server, leave) = Server::gated(settings).await;
    let mut stream = server.score().await;
    stream.send(score_request(&job(0, vec![1]))).await;
    // The device has the first, so exactly two can wait.
    server.until_admitted(1).await;
    server.until_metric("teacher_queued_sequences", 0.0).await;
    for id in 1..5 {
        stream.send(score_request(&job(id, vec![1]))).await;
    }
    for id in [3, 4] {
        let reply = stream.next().await;
        let error = reply.error.unwrap();
        assert_eq!((reply.id, error.code), (id, Code::ResourceExhausted as i32));
        assert!(error.message.contains("2 sequences wait"), "{}", error.message);
        assert!(error.retry_after_ms >= 100, "{}", error.retry_after_ms);
    }
    (0..3).for_each(|_| leave.send(()).unwrap());
    let mut answered: Vec<u64> = Vec::new();
    for _ in 0..3 {
        answered.push(stream.next().await.id);
    }
    answered.sort_unstable();
    assert_eq!(answered, [0, 1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_left_behind_is_not_computed() {
    let (server, leave) = Server::gated(Settings::DEFAULT).await;
    let stream = server.score().await;
    for id in 0..6 {
        stream.send(score_request(&job(id, vec![1]))).await;
    }
    server.until_metric("teacher_queued_sequences", 5.0).await;
    drop(stream);
    server.until_metric("teacher_streams", 0.0).await;
    (0..3).for_each(|_| leave.send(()).unwrap());
    server.until_metric("teacher_abandoned_total", 6.0).await;
    // The one that was on the device already, and the next client's.
    let mut next = server.score().await;
    let good = job(1, vec![2, 3]);
    assert_right(&good, &next.ask(&good).await);
    assert_eq!(server.metric("teacher_batches_total").await, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_holds_up_nobody() {
    let server = Server::start(FakeScorer::new(CLASSES), Settings::DEFAULT).await;
    let lazy = server.score().await;
    // About 13 MB of answers, more than the windows and buffers between the two hold.
    let big = proto::convert::ScoreJob { k: 32, ..job(0, vec![1; 1200]) };
    for id in 0..40 {
        let request = score_request(&proto::convert::ScoreJob { id, ..big.clone() });
        let sent = lazy.requests.send(request);
        assert!(tokio::time::timeout(PATIENCE, sent).await.is_ok());
    }
    let mut other = server.score().await;
    let good = job(1, vec![2, 3]);
    let asked = tokio::time::timeout(PATIENCE, other.ask(&good)).await;
    assert_right(&good, &asked.expect("the other client waits"));
}
