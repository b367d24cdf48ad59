//! What other trainers ask over HTTP, through the whole server.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::by_hand;
use super::harness::{CLASSES, PATIENCE, Server};
use crate::settings::Settings;
use crate::testing::FakeScorer;

const SHORT: Duration = Duration::from_millis(300);

/// log_softmax(z / T) of the fake model after these tokens.
fn logprobs(prefix: &[u32], temperature: f64) -> Vec<f64> {
    let logits = FakeScorer::logits(prefix, CLASSES);
    let sum: f64 = logits.iter().map(|z| (z / temperature).exp()).sum();
    logits.iter().map(|z| z / temperature - sum.ln()).collect()
}

/// Its tokens, the most probable first.
fn ranking(prefix: &[u32]) -> Vec<u32> {
    let logits = FakeScorer::logits(prefix, CLASSES);
    let mut ids: Vec<u32> = (0..CLASSES as u32).collect();
    ids.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
    ids
}

fn near(found: f64, wanted: f64) {
    assert!((found - wanted).abs() < 1e-5, "{found} is not {wanted}");
}

async fn served() -> Server {
    Server::start(FakeScorer::new(CLASSES), Settings::DEFAULT).await
}

#[tokio::test(flavor = "multi_thread")]
async fn trl_has_its_positions_at_its_temperature() {
    let server = served().await;
    let sequences = [vec![5, 7, 2, 9], vec![5, 3]];
    let ask = |format: &str| {
        json!({ "sequences": sequences, "prompt_lengths": [2, 1], "top_logprobs": 3,
                "temperature": 2.5, "response_format": format })
    };
    let (head, body) = server.post("/get_sequence_logprobs/", &ask("json")).await;
    assert!(head.contains("200 OK") && head.contains("application/json"), "{head}");
    assert!(head.contains("server-timing: queue;dur="), "{head}");
    let asked = [(0, 0, 2), (0, 1, 3), (1, 0, 1)];
    for (sequence, t, at) in asked {
        let (prefix, realised) = (&sequences[sequence][..at], sequences[sequence][at]);
        let mut ids = ranking(prefix)[..3].to_vec();
        if !ids.contains(&realised) {
            ids.push(realised);
        }
        assert_eq!(body["logprob_token_ids"][sequence][t], json!(ids));
        let found = body["logprobs"][sequence][t].as_array().unwrap();
        assert_eq!(found.len(), ids.len());
        for (found, id) in found.iter().zip(ids) {
            near(found.as_f64().unwrap(), logprobs(prefix, 2.5)[id as usize]);
        }
    }
    let (_, body) = server.post("/get_sequence_logprobs", &ask("binary")).await;
    let floats = |name: &str| -> Vec<f32> {
        let bytes = STANDARD.decode(body[name].as_str().unwrap()).unwrap();
        bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    };
    assert_eq!((&body["shape"], &body["completion_lengths"]), (&json!([2, 2, 3]), &json!([2, 1])));
    let (top, realised) = (floats("logprobs_b64"), floats("actual_logprobs_b64"));
    assert_eq!((top.len(), realised.len()), (12, 4));
    for (sequence, t, at) in asked {
        let (prefix, row) = (&sequences[sequence][..at], 2 * sequence + t);
        let wanted = logprobs(prefix, 2.5);
        near(realised[row].into(), wanted[sequences[sequence][at] as usize]);
        near(top[3 * row].into(), wanted[ranking(prefix)[0] as usize]);
    }
    assert_eq!(realised[3], f32::NEG_INFINITY);
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_are_scored_at_their_temperature_and_text_like_ids() {
    let server = served().await;
    let (_, models) = server.get_json("/v1/models").await;
    assert_eq!(models["data"][0]["id"], "fake");
    let prompt = [5, 7, 2, 9];
    for (temperature, t) in [(json!(5.0), 5.0), (json!(0), 1.0), (Value::Null, 1.0)] {
        let ask = json!({ "model": models["data"][0]["id"], "prompt": [prompt, [4, 4, 4, 4]],
            "max_tokens": 1, "temperature": temperature, "prompt_logprobs": 2 });
        let (head, body) = server.post("//v1/completions/", &ask).await;
        assert!(head.contains("200 OK"), "{head} {body}");
        let found = &body["choices"][0]["prompt_logprobs"];
        assert_eq!((found.as_array().unwrap().len(), &found[0]), (4, &Value::Null));
        for at in 1..4 {
            let (wanted, rank) = (logprobs(&prompt[..at], t), ranking(&prompt[..at]));
            for (place, &id) in rank[..2].iter().enumerate() {
                let entry = &found[at][id.to_string()];
                assert_eq!(entry["rank"], place + 1);
                near(entry["logprob"].as_f64().unwrap(), wanted[id as usize]);
            }
            let realised = &found[at][prompt[at].to_string()];
            near(realised["logprob"].as_f64().unwrap(), wanted[prompt[at] as usize]);
        }
        let next = ranking(&prompt)[0];
        assert_eq!(body["choices"][0]["text"], char::from_u32(next).unwrap().to_string());
    }
    // The fake tokenizer's ids are bytes.
    let text = |prompt: Value| json!({ "prompt": prompt, "prompt_logprobs": 1 });
    let (_, texts) = server.post("/v1/completions", &text(json!(["\u{5}\u{7}"]))).await;
    let (_, ids) = server.post("/v1/completions", &text(json!([5, 7]))).await;
    assert_eq!(texts["choices"], ids["choices"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_larger_than_the_queue_passes_it_in_parts() {
    let settings = Settings::with(|limits| limits.max_queued_sequences = 4);
    let (server, leave) = Server::gated(settings).await;
    let ask = json!({ "prompt": vec![[1, 2, 3]; 20], "prompt_logprobs": 1 });
    (0..20).for_each(|_| leave.send(()).unwrap());
    let (head, body) = server.post("/v1/completions", &ask).await;
    assert!(head.contains("200 OK"), "{head} {body}");
    assert_eq!(body["choices"].as_array().unwrap().len(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_have_the_form_of_their_dialect() {
    let settings = Settings::with(|limits| limits.max_http_body_bytes = 1000);
    let server = Server::start(FakeScorer::new(CLASSES), settings).await;
    let wrong = json!({ "prompt": [99], "prompt_logprobs": 1 });
    let (head, body) = server.post("/v1/completions", &wrong).await;
    assert!(head.contains("400 Bad Request"), "{head}");
    assert_eq!(
        (&body["error"]["code"], &body["error"]["type"]),
        (&400.into(), &"BadRequestError".into())
    );
    assert!(body["error"]["message"].as_str().unwrap().contains("99"), "{body}");
    let wrong = json!({ "sequences": [[99]], "prompt_lengths": [0] });
    let (head, body) = server.post("/get_sequence_logprobs/", &wrong).await;
    assert!(
        head.contains("400 Bad") && body["detail"].as_str().unwrap().contains("99"),
        "{head}{body}"
    );
    let large = json!({ "prompt": vec![1; 1000], "prompt_logprobs": 1 });
    let (head, body) = server.post("/v1/completions", &large).await;
    assert!(head.contains("413 Payload") && !head.contains("retry-after"), "{head}");
    assert!(body["error"]["message"].as_str().unwrap().contains("1000 bytes"), "{body}");
    assert_eq!(server.metric("teacher_refusals_total{reason=\"invalid\"}").await, 3.0);
    let counted = "teacher_requests_total{method=\"v1/completions\",code=\"INVALID_ARGUMENT\"}";
    assert_eq!(server.metric(counted).await, 2.0);
    let (head, _) = server.get("/v1/completions").await;
    assert!(head.contains("405 Method"), "{head}");
    // A model that has no numbers has no answer.
    let fake = FakeScorer { nan_at: Some(3), ..FakeScorer::new(CLASSES) };
    let server = Server::start(fake, Settings::DEFAULT).await;
    let (head, body) =
        server.post("/v1/completions", &json!({ "prompt": [3, 3], "prompt_logprobs": 1 })).await;
    assert!(
        head.contains("500 Internal") && body["error"]["type"] == "InternalServerError",
        "{head}{body}"
    );
    let (head, _) =
        server.post("/v1/completions", &json!({ "prompt": [4, 4], "prompt_logprobs": 1 })).await;
    assert!(head.contains("200 OK"), "{head}");
}

/// What is said over HTTP to these words, until the server closes.
pub(super) async fn said(server: &Server, words: &str) -> String {
    let mut connection = TcpStream::connect(server.http).await.unwrap();
    connection.write_all(words.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = connection.read_to_string(&mut answer);
    tokio::time::timeout(PATIENCE, read).await.expect("an answer in time").unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_has_so_many_bytes_and_so_much_time_however_it_comes() {
    let body = "{\"prompt\":[1,2],\"prompt_logprobs\":1}";
    let settings = Settings::with(|limits| {
        limits.max_http_body_bytes = body.len();
        limits.message_timeout = SHORT;
    });
    let server = Server::start(FakeScorer::new(CLASSES), settings).await;
    let post = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
    for (length, status) in [(body.len(), "200"), (body.len() + 1, "413")] {
        let padded = format!("{body:length$}");
        let plain = format!("{post}Content-Length: {length}\r\n\r\n{padded}");
        let answer = said(&server, &plain).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{length}: {answer}");
        let chunked =
            format!("{post}Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{padded}\r\n0\r\n\r\n");
        let answer = said(&server, &chunked).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{length}: {answer}");
    }
    let packed = format!("{post}Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\u{1f}\u{1}");
    let answer = said(&server, &packed).await;
    assert!(answer.starts_with("HTTP/1.1 415") && answer.contains("gzip"), "{answer}");
    // One that breaks its own form is not too large: who is told so would send it in parts.
    let broken = format!("{post}Transfer-Encoding: chunked\r\n\r\nZZ\r\n{body}\r\n0\r\n\r\n");
    let answer = said(&server, &broken).await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("to its end"), "{answer}");
    let begun = Instant::now();
    let length = body.len();
    let half = format!("{post}Content-Length: {length}\r\n\r\n{{");
    let answer = said(&server, &half).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("--message-timeout") && begun.elapsed() >= SHORT, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_under_way_share_the_room_for_unfinished_requests() {
    let settings = Settings::with(|limits| {
        limits.max_request_bytes = 3000;
        limits.max_http_body_bytes = 3000;
        limits.max_unfinished_bytes = 3000;
    });
    let server = Server::start(FakeScorer::new(CLASSES), settings).await;
    let mut slow = TcpStream::connect(server.http).await.unwrap();
    let head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 3000\r\n\r\n{";
    // As much as may be held of one, and what is not counted.
    let head = format!("{head}{}", " ".repeat(2998));
    slow.write_all(head.as_bytes()).await.unwrap();
    let small = json!({ "prompt": [1], "prompt_logprobs": 1 });
    let ask = json!({ "prompt": [1], "prompt_logprobs": 1, "user": "x".repeat(2800) });
    let kept_out = async {
        loop {
            let (head, _) = server.post("/v1/completions", &ask).await;
            if head.contains("503 Service") {
                break head;
            }
        }
    };
    let head = tokio::time::timeout(PATIENCE, kept_out).await.expect("a refusal");
    assert!(head.contains("retry-after: 1"), "{head}");
    // A small one finds room whatever others hold.
    assert!(server.post("/v1/completions", &small).await.0.contains("200 OK"));
    drop(slow);
    let let_in =
        async { while !server.post("/v1/completions", &ask).await.0.contains("200 OK") {} };
    tokio::time::timeout(PATIENCE, let_in).await.expect("room again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_given_up_when_it_has_taken_as_long_as_one_may() {
    let settings = Settings::with(|limits| limits.stream_timeout = SHORT);
    let (server, leave) = Server::gated(settings).await;
    let begun = Instant::now();
    let ask = json!({ "prompt": [[1, 2], [3, 4]], "prompt_logprobs": 1 });
    let asked = tokio::time::timeout(PATIENCE, server.post("/v1/completions", &ask)).await;
    let (head, body) = asked.expect("an answer in time");
    assert!(head.contains("504 Gateway Timeout") && begun.elapsed() >= SHORT, "{head}");
    let message = body["error"]["message"].as_str().unwrap();
    assert!(message.contains("--stream-timeout") && message.contains("0.3 s"), "{message}");
    let ask = json!({ "sequences": [[1, 2]], "prompt_lengths": [1] });
    let asked = server.post("/get_sequence_logprobs/", &ask);
    let (head, body) = tokio::time::timeout(PATIENCE, asked).await.expect("an answer in time");
    assert!(
        head.contains("504 Gateway") && body["detail"].to_string().contains("0.3 s"),
        "{head} {body}"
    );
    assert_eq!(server.metric("teacher_refusals_total{reason=\"request_time\"}").await, 2.0);
    // What waited for the device behind the first is not computed.
    (0..3).for_each(|_| leave.send(()).unwrap());
    server.until_metric("teacher_abandoned_total", 3.0).await;
    assert_eq!(server.metric("teacher_batches_total").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_is_not_computed_for() {
    let (server, leave) = Server::gated(Settings::DEFAULT).await;
    let ask = json!({ "prompt": vec![[1, 2]; 10], "prompt_logprobs": 1 });
    let asked = server.post("/v1/completions", &ask);
    // One is on the device, nine wait.
    let queued = server.until_metric("teacher_queued_sequences", 9.0);
    tokio::select! { answer = asked => panic!("answered: {answer:?}"), () = queued => {} }
    // Its connection is closed with it.
    tokio::time::sleep(SHORT).await;
    (0..10).for_each(|_| leave.send(()).unwrap());
    server.until_metric("teacher_abandoned_total", 10.0).await;
    assert_eq!(server.metric("teacher_batches_total").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_waits_for_what_was_let_in_and_lets_nothing_more_in() {
    let (mut server, leave) = Server::gated(Settings::DEFAULT).await;
    let ask = json!({ "prompt": [1, 2], "prompt_logprobs": 1 });
    let http = server.http;
    let asked = tokio::spawn({
        let ask = ask.clone();
        async move { super::harness::post_to(http, "/v1/completions", &ask).await }
    });
    server.until_admitted(1).await;
    server.stop();
    server.until_metric("teacher_serving", 0.0).await;
    let (head, body) = server.post("/v1/completions", &ask).await;
    assert!(head.contains("503 Service") && head.contains("retry-after"), "{head}");
    assert!(body["error"]["message"].as_str().unwrap().contains("shutting down"), "{body}");
    leave.send(()).unwrap();
    let (head, body) = asked.await.unwrap();
    assert!(
        head.contains("200 OK") && body["choices"][0]["prompt_logprobs"][1].is_object(),
        "{head}"
    );
    server.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_waits_for_no_body() {
    let settings = Settings::with(|limits| limits.drain_timeout = 2 * PATIENCE);
    let mut server = Server::start(FakeScorer::new(CLASSES), settings).await;
    let mut half = TcpStream::connect(server.http).await.unwrap();
    let words = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{";
    half.write_all(words.as_bytes()).await.unwrap();
    tokio::time::sleep(SHORT).await;
    server.stop();
    tokio::time::timeout(PATIENCE, server.end()).await.expect("an end before the drain's").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_announces_no_length_takes_room_as_it_comes() {
    let settings = Settings::with(|limits| {
        limits.max_request_bytes = limits.max_unfinished_bytes;
        limits.max_http_body_bytes = limits.max_unfinished_bytes;
    });
    let server = Server::start(FakeScorer::new(CLASSES), settings).await;
    let post = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
    let mut silent = Vec::new();
    for _ in 0..8 {
        let mut connection = TcpStream::connect(server.http).await.unwrap();
        connection.write_all(post.as_bytes()).await.unwrap();
        silent.push(connection);
    }
    tokio::time::sleep(SHORT).await;
    // Nor is one bounded more tightly than one that announces the same.
    let filled = "x".repeat(settings.limits.max_unfinished_bytes - 100);
    let asked = json!({ "prompt": [1, 2], "prompt_logprobs": 1, "user": filled }).to_string();
    let (first, second) = asked.split_at(asked.len() / 2);
    let [first, second] = [first, second].map(|part| format!("{:x}\r\n{part}\r\n", part.len()));
    let answer = said(&server, &format!("{post}{first}{second}0\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_port_of_http_speaks_no_http_2() {
    let server = Server::start(FakeScorer::new(CLASSES), Settings::DEFAULT).await;
    let mut connection = TcpStream::connect(server.http).await.unwrap();
    connection
        .write_all(&[by_hand::PREFACE, &by_hand::frame(by_hand::SETTINGS, 0, 0, &[])].concat())
        .await
        .unwrap();
    let mut answer = Vec::new();
    let read = connection.read_to_end(&mut answer);
    // Closed with words unread it may be reset.
    let _ = tokio::time::timeout(PATIENCE, read).await.expect("it is closed");
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{answer:?}");
}
