//! Answers that are not computed or not read yet: their bytes are bounded over all clients, whichever way
//! they ask.

use prost::Message as _;
use proto::convert::score_request;
use proto::v1::ScoreTextRequest;
use tonic::Code;
use tonic_types::StatusExt as _;

use super::by_hand::{DATA, END_STREAM, HEADERS, Hand, INITIAL_WINDOW_SIZE, frame, message, open};
use super::harness::{CLASSES, PATIENCE, Server, assert_right, job};
use crate::settings::Settings;
use crate::testing::FakeScorer;

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_all_streams_and_dialects_share_their_bytes() {
    // Raw answers of 2 rows with k = 4 take 80 bytes.
    let settings = Settings::with(|limits| {
        limits.max_held_bytes_per_stream = 240;
        limits.max_held_bytes = 240;
    });
    let (server, leave) = Server::gated(settings).await;
    let (mut one, mut other) = (server.score().await, server.score().await);
    for (stream, admitted, refused) in [(&mut one, 2, 2), (&mut other, 3, 1)] {
        for id in 0..=refused {
            stream.send(score_request(&job(id, vec![1, 2]))).await;
        }
        let error = stream.next().await.error.unwrap();
        assert_eq!(error.code, Code::ResourceExhausted as i32, "{}", error.message);
        assert!(error.message.contains("max_held_bytes"), "{}", error.message);
        assert_eq!(error.retry_after_ms, 1000);
        server.until_admitted(admitted).await;
    }
    let text = ScoreTextRequest { text: "ab".into(), top_k: 2, ..Default::default() };
    let status = server.client().await.score_text(text.clone()).await.unwrap_err();
    assert!(status.get_details_retry_info().is_some(), "{status:?}");
    let ask = serde_json::json!({ "prompt": [1, 2], "prompt_logprobs": 1 });
    let (head, _) = server.post("/v1/completions", &ask).await;
    assert!(head.contains("503 Service Unavailable") && head.contains("retry-after: 1"), "{head}");
    assert_eq!(server.metric("teacher_refusals_total{reason=\"held_bytes\"}").await, 4.0);
    // Room again for what was kept out, and for one that is larger than all of it.
    drop(leave);
    for (stream, answers) in [(&mut one, 2), (&mut other, 1)] {
        for _ in 0..answers {
            assert!(stream.next().await.error.is_none());
        }
    }
    server.client().await.score_text(text).await.unwrap();
    assert!(server.post("/v1/completions", &ask).await.0.contains("200 OK"));
    let large = job(9, vec![1; 100]);
    assert_right(&large, &one.ask(&large).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_takes_its_bytes_until_it_has_been_read() {
    // The answer of two positions with two candidates each counts as 128 bytes.
    let settings = Settings::with(|limits| {
        limits.max_held_bytes_per_stream = 200;
        limits.max_held_bytes = 200;
    });
    let server = Server::start(FakeScorer::new(CLASSES), settings).await;
    let text = ScoreTextRequest { text: "ab".into(), top_k: 2, ..Default::default() };
    let mut lazy = Hand::greet(server.grpc, &[(INITIAL_WINDOW_SIZE, 0)]).await;
    let asked = frame(DATA, END_STREAM, 1, &message(0, &text.encode_to_vec()));
    lazy.send(&[open(1, "/distill.v1.Teacher/ScoreText"), asked].concat()).await;
    lazy.until(HEADERS, 1).await;
    let mut other = server.client().await;
    let status = other.score_text(text.clone()).await.unwrap_err();
    assert!(status.message().contains("max_held_bytes"), "{status}");
    drop(lazy);
    let again = async { while other.score_text(text.clone()).await.is_err() {} };
    tokio::time::timeout(PATIENCE, again).await.expect("room again");
}
