//! Where sense is made of the bodies of other trainers, and what that takes.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::harness::{CLASSES, Server, post_to};
use crate::settings::Settings;
use crate::testing::FakeScorer;

/// Time in which a request that may be answered is.
const SHORT: Duration = Duration::from_millis(300);

fn posted(server: &Server, path: &'static str, body: Value) -> JoinHandle<(String, Value)> {
    let http = server.http;
    tokio::spawn(async move { post_to(http, path, &body).await })
}

/// Runs this where one thread serves the network and one does what takes long, and that one is taken
/// until what `test` gets is dropped.
fn with_one_thread_taken<F: Future<Output = ()>>(
    settings: Settings,
    test: impl FnOnce(Server, std::sync::mpsc::Sender<()>) -> F,
) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let server = Server::start(FakeScorer::new(CLASSES), settings).await;
        let (let_go, taken) = std::sync::mpsc::channel();
        let taken = tokio::task::spawn_blocking(move || {
            let _ = taken.recv();
        });
        test(server, let_go).await;
        taken.await.unwrap();
    });
}

#[test]
fn no_body_is_read_by_the_networks_threads() {
    with_one_thread_taken(Settings::DEFAULT, async |server, let_go| {
        let asked = [
            posted(&server, "/v1/completions", json!({ "prompt": [1, 2], "prompt_logprobs": 1 })),
            posted(
                &server,
                "/get_sequence_logprobs/",
                json!({ "sequences": [[1, 2]], "prompt_lengths": [1] }),
            ),
        ];
        tokio::time::sleep(SHORT).await;
        for asked in &asked {
            assert!(!asked.is_finished(), "it was read by a thread of the network's");
        }
        assert!(server.get("/health").await.0.contains("200 OK"));
        drop(let_go);
        for asked in asked {
            let (head, body) = asked.await.unwrap();
            assert!(head.contains("200 OK"), "{head} {body}");
        }
    });
}

#[test]
fn a_body_keeps_its_room_until_it_has_been_read() {
    let settings = Settings::with(|limits| {
        limits.max_request_bytes = 3000;
        limits.max_http_body_bytes = 3000;
        limits.max_unfinished_bytes = 3000;
    });
    with_one_thread_taken(settings, async |server, let_go| {
        let padding = "x".repeat(2800);
        let ask = json!({ "prompt": [1, 2], "prompt_logprobs": 1, "user": padding });
        let asked = posted(&server, "/v1/completions", ask.clone());
        tokio::time::sleep(SHORT).await;
        let refused = posted(&server, "/v1/completions", ask.clone());
        let refused = tokio::time::timeout(super::harness::PATIENCE, refused).await;
        let (head, body) = refused.expect("a refusal in time").unwrap();
        assert!(head.contains("503 Service") && head.contains("retry-after"), "{head}");
        assert!(body.to_string().contains("max_unfinished_bytes"), "{body}");
        drop(let_go);
        let (head, body) = asked.await.unwrap();
        assert!(head.contains("200 OK"), "{head} {body}");
        // And gives it back.
        assert!(posted(&server, "/v1/completions", ask).await.unwrap().0.contains("200 OK"));
    });
}
