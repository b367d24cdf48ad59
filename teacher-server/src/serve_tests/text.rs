//! `ScoreText`: plain fields with the model's own numbers, its refusals, and how many at a time.

use std::time::Duration;

use distill::signal::log_sum_exp;
use proto::v1::ScoreTextRequest;
use tonic::Code;
use tonic_types::StatusExt as _;

use super::harness::{CLASSES, PATIENCE, Server, post_to};
use crate::settings::Settings;
use crate::testing::FakeScorer;

/// Time in which a request that may be admitted is.
const SHORT: Duration = Duration::from_millis(300);

fn ask(text: &str, temperature: f32, top_k: u32) -> ScoreTextRequest {
    ScoreTextRequest { text: text.into(), temperature, top_k }
}

#[tokio::test(flavor = "multi_thread")]
async fn text_comes_back_with_the_most_probable_next_tokens() {
    let server = Server::start(FakeScorer::new(CLASSES), Settings::DEFAULT).await;
    let mut client = server.client().await;
    let reply = client.score_text(ask("!BC", 2.0, 3)).await.unwrap().into_inner();
    let ids: Vec<u32> = reply.tokens.iter().map(|token| token.id).collect();
    assert_eq!(ids, [33 % 32, 66 % 32, 67 % 32]);
    assert_eq!((reply.temperature, reply.model_fingerprint), (2.0, "a5".repeat(32)));
    assert_eq!(reply.tokenizer_fingerprint, "5a".repeat(32));
    for (t, token) in reply.tokens.iter().enumerate() {
        let logits = FakeScorer::logits(&ids[..=t], CLASSES);
        let log_z = log_sum_exp(logits.iter().map(|y| y / 2.0));
        assert!((f64::from(token.log_z) - log_z).abs() < 1e-5);
        let mut order: Vec<usize> = (0..CLASSES).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        assert_eq!(token.next.len(), 3);
        for (next, id) in token.next.iter().zip(order) {
            assert_eq!(next.id as usize, id);
            assert!((f64::from(next.logit) - logits[id]).abs() < 1e-5);
            assert!((f64::from(next.logprob) - (logits[id] / 2.0 - log_z)).abs() < 1e-5);
        }
        let followed =
            ids.get(t + 1).map(|&id| logits[id as usize] - log_sum_exp(logits.iter().copied()));
        let close = |found: f32, wanted: f64| (f64::from(found) - wanted).abs() < 1e-5;
        match (token.next_logprob, followed) {
            (Some(found), Some(wanted)) => assert!(close(found, wanted), "{found} for {wanted}"),
            (found, wanted) => assert!(found.is_none() && wanted.is_none()),
        }
    }
    let defaults = client.score_text(ask("a", 0.0, 0)).await.unwrap().into_inner();
    assert_eq!((defaults.temperature, defaults.tokens[0].next.len()), (1.0, 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_scored_is_refused_by_name() {
    let server = Server::start(FakeScorer::new(CLASSES), Settings::DEFAULT).await;
    let mut client = server.client().await;
    let long = "a".repeat(4097);
    let wide = "a".repeat(4096);
    let huge = "a".repeat(16 * 4096 + 1);
    let cases = [
        (ask("", 1.0, 5), "empty"),
        (ask(&long, 1.0, 5), "4097"),
        (ask(&huge, 1.0, 5), "65537 bytes, this server takes at most 65536"),
        (ask(&wide, 1.0, 32), "65536"),
        (ask("a", f32::NAN, 5), "temperature NaN"),
        (ask("a", -1.0, 5), "temperature -1"),
        (ask("a", f32::INFINITY, 5), "temperature inf"),
        (ask("a", 1.0, 33), "top_k 33"),
        (ask("a", 1.0, u32::MAX), "top_k 4294967295"),
    ];
    for (request, wanted) in cases {
        let refused = client.score_text(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains(wanted), "{wanted}: {refused}");
    }
    assert!(client.score_text(ask("still here", 1.0, 5)).await.is_ok());
}

/// A tokenizer that waits for leave.
struct SlowText {
    leave: std::sync::Mutex<std::sync::mpsc::Receiver<()>>,
    running: std::sync::Arc<std::sync::atomic::AtomicUsize>,
}

impl crate::scorer::TextCodec for SlowText {
    fn encode(&self, _: &str) -> Result<Vec<u32>, crate::scorer::ScorerError> {
        self.running.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let _ = self.leave.lock().unwrap().recv();
        Ok(vec![1])
    }

    fn text_of(&self, id: u32) -> String {
        id.to_string()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_are_encoded_a_few_at_a_time_and_those_whose_callers_left_count() {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    let (let_go, leave) = std::sync::mpsc::channel();
    let running = std::sync::Arc::new(AtomicUsize::new(0));
    let text = SlowText { leave: leave.into(), running: running.clone() };
    let load = move || {
        let loaded = FakeScorer::new(CLASSES).loaded();
        Ok(crate::scorer::Loaded { text: std::sync::Arc::new(text), ..loaded })
    };
    let settings = Settings::with(|limits| limits.max_encoding_texts = 4);
    let mut server = Server::start_loading(load, settings).await;
    server.ready().await;
    let ask = |mut client: proto::v1::teacher_client::TeacherClient<_>| {
        let text = ScoreTextRequest { text: "a".into(), ..Default::default() };
        tokio::spawn(async move {
            let asked = tokio::time::timeout(PATIENCE, client.score_text(text)).await;
            asked.expect("an answer in time")
        })
    };
    let client = server.client().await;
    // Alone a client may have half of the four.
    let calls = [ask(client.clone()), ask(client.clone())];
    while running.load(SeqCst) < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let status = ask(client.clone()).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.message().contains("max_encoding_texts"), "{status}");
    assert!(status.get_details_retry_info().is_some());
    // Its callers leave, and their texts are being encoded all the same.
    calls.iter().for_each(tokio::task::JoinHandle::abort);
    tokio::time::sleep(SHORT).await;
    let status = ask(client.clone()).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    // Another client has room, and waits for one of the two threads.
    let other = ask(server.client().await);
    tokio::time::sleep(SHORT).await;
    assert_eq!(running.load(SeqCst), 2);
    (0..3).for_each(|_| let_go.send(()).unwrap());
    assert!(other.await.unwrap().is_ok());
}

/// A server with a short queue whose model waits for leave before each sequence, and how many texts
/// were encoded.
async fn short_queue()
-> (Server, std::sync::mpsc::Sender<()>, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
    use std::sync::atomic::AtomicUsize;
    // Its end is dropped: nothing waits.
    let (_, leave) = std::sync::mpsc::channel();
    let running = std::sync::Arc::new(AtomicUsize::new(0));
    let text = SlowText { leave: leave.into(), running: running.clone() };
    let (let_go, gate) = std::sync::mpsc::channel();
    let load = move || {
        let loaded = FakeScorer { gate: Some(gate), ..FakeScorer::new(CLASSES) }.loaded();
        Ok(crate::scorer::Loaded { text: std::sync::Arc::new(text), ..loaded })
    };
    let settings = Settings::with(|limits| {
        (limits.max_batch_tokens, limits.max_queued_sequences) = (1, 4);
    });
    let mut server = Server::start_loading(load, settings).await;
    server.ready().await;
    (server, let_go, running)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_text_is_encoded_that_the_queue_has_no_room_for() {
    use std::sync::atomic::Ordering::SeqCst;
    let (server, let_go, running) = short_queue().await;
    let client = server.client().await;
    let mut waiting = tokio::task::JoinSet::new();
    let refused = loop {
        let mut client = client.clone();
        waiting.spawn(async move { client.score_text(ask("a", 1.0, 1)).await });
        let ended = tokio::time::timeout(SHORT, waiting.join_next()).await;
        if let Ok(Some(ended)) = ended {
            break ended.unwrap().unwrap_err();
        }
        assert!(waiting.len() < 8, "the queue never fills");
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    let encoded = running.load(SeqCst);
    assert_eq!(encoded, waiting.len());
    let again = client.clone().score_text(ask("a", 1.0, 1)).await.unwrap_err();
    assert!(again.get_details_retry_info().is_some(), "{again}");
    assert_eq!(running.load(SeqCst), encoded);
    (0..8).for_each(|_| let_go.send(()).unwrap());
    while let Some(ended) = waiting.join_next().await {
        ended.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_text_of_a_completion_is_encoded_that_the_queue_has_no_room_for() {
    use std::sync::atomic::Ordering::SeqCst;
    let (server, let_go, running) = short_queue().await;
    let http = server.http;
    let post = move |body: &'static str| async move {
        let body = serde_json::from_str(body).unwrap();
        post_to(http, "/v1/completions", &body).await
    };
    let ask = r#"{"prompt":"a","prompt_logprobs":1}"#;
    let mut waiting = tokio::task::JoinSet::new();
    for admitted in 1.. {
        waiting.spawn(post(ask));
        let ended = tokio::time::timeout(SHORT, waiting.join_next()).await;
        if let Ok(Some(ended)) = ended {
            let (head, body) = ended.unwrap();
            assert!(head.contains("503 Service") && head.contains("retry-after"), "{head} {body}");
            break;
        }
        assert!(admitted < 8, "the queue never fills");
    }
    let encoded = running.load(SeqCst);
    assert_eq!(encoded, waiting.len());
    let (head, body) = post(ask).await;
    assert!(head.contains("503 Service"), "{head} {body}");
    assert!(body["error"]["message"].as_str().unwrap().contains("wait for the device"), "{body}");
    // Nor is anything made of what is no request at all.
    assert!(post("[1]").await.0.contains("503 Service"));
    assert_eq!(running.load(SeqCst), encoded);
    (0..8).for_each(|_| let_go.send(()).unwrap());
    while let Some(ended) = waiting.join_next().await {
        assert!(ended.unwrap().0.contains("200 OK"));
    }
}
