//! What comes over HTTP in the words of other trainers: a body is refused as its mistake, or it is
//! answered with what it asked for; nothing is ever answered with a fault of the server.
//!
//! An input's first byte says which route, and what the other bytes are: the body as it travels, or
//! decisions of which one is made. It is read and answered as the server does it, but that a model of
//! no cost answers at once ([`teacher_server::dialects::by_hand`]); the queue, the device and the
//! bounds of the transport are tried in the server's own tests.

mod check;
mod drawn;
mod model;

use std::sync::Arc;

use axum::body::to_bytes;
use axum::http::StatusCode;
use proto::convert::ScoreJob;
use serde_json::Value;
use teacher_server::dialects::by_hand;
use teacher_server::settings::Settings;
use teacher_server::state::Serving;
use teacher_server::testing::{FakeText, facts};
use tokio::runtime::Runtime;

use model::Table;

use crate::draw::Draw;

/// Classes of the model.
const CLASSES: usize = 32;
/// Most bytes of answers held.
const MOST_HELD: usize = 8 << 10;

/// Tries an input; whether it was a body that is answered.
///
/// # Panics
/// When a law is broken.
pub fn run(input: &[u8]) -> bool {
    thread_local! {
        static SERVER: Server = Server::start();
    }
    let Some((&kind, rest)) = input.split_first() else { return false };
    let route = usize::from(kind & 1);
    let body = match (kind >> 1) & 1 {
        0 => rest.to_vec(),
        _ => drawn::body(route, &mut Draw::new(rest)),
    };
    let (status, answer) = SERVER.with(|server| server.post(route, &body));
    let shown =
        || format!("{} to {}", String::from_utf8_lossy(&answer), String::from_utf8_lossy(&body));
    let parsed: Value =
        serde_json::from_slice(&answer).unwrap_or_else(|error| panic!("{error}: {}", shown()));
    match status {
        StatusCode::OK => check::answered(route, &body, &parsed),
        StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND => {
            let says = [&parsed["detail"], &parsed["error"]["message"]][route];
            assert!(says.as_str().is_some_and(|says| !says.is_empty()), "{}", shown());
        }
        status => panic!("{status}: {}", shown()),
    }
    status == StatusCode::OK
}

/// What bodies are answered by.
struct Server {
    runtime: Runtime,
    serving: Arc<Serving>,
    model: Table,
}

impl Server {
    fn start() -> Self {
        let settings = Settings {
            max_sequence_tokens: Some(16),
            max_text_bytes: Some(24),
            ..Settings::with(|limits| {
                limits.max_held_bytes_per_stream = MOST_HELD;
                limits.max_top_k = 100;
            })
        };
        let classes = CLASSES as u32;
        let facts = settings.resolve(&facts(classes)).expect("bounds that hold together");
        let serving = Serving { facts, text: Arc::new(FakeText { vocab_size: classes }) }.into();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        Self { runtime: runtime.expect("a runtime"), serving, model: Table::new() }
    }

    fn post(&self, route: usize, body: &[u8]) -> (StatusCode, Vec<u8>) {
        let scores = |job: &ScoreJob| self.model.scores(job);
        self.runtime.block_on(async {
            let response = match route {
                0 => by_hand::trl(body, &self.serving, scores),
                _ => by_hand::vllm(body, &self.serving, scores).await,
            };
            let status = response.status();
            let answer = to_bytes(response.into_body(), usize::MAX).await.expect("a whole answer");
            (status, answer.to_vec())
        })
    }
}

/// Inputs to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    let of = |kind: u8, body: &str| [&[kind], body.as_bytes()].concat();
    let trl = "{\"sequences\":[[5,7,2,9],[5,3],[1],[1]],\"prompt_lengths\":[2,1,0,1],\
        \"top_logprobs\":2,\"temperature\":2.5,\"response_format\":\"json\",\"more\":[null,1e3]}";
    let vllm = "{\"model\":\"fake\",\"prompt\":[[1,2,3],[4]],\"prompt_logprobs\":2,\"max_tokens\":0,\
        \"temperature\":2,\"n\":1,\"stream\":false,\"return_tokens_as_token_ids\":true}";
    let echo = "{\"prompt\":\"a\\u00e9\",\"echo\":true,\"logprobs\":1,\"max_tokens\":1,\
        \"return_token_ids\":true,\"temperature\":null}";
    vec![
        of(0, trl),
        of(0, &trl.replace("json", "binary")),
        of(0, "{\"sequences\":[],\"prompt_lengths\":[],\"top_logprobs\":0}"),
        of(1, vllm),
        of(
            1,
            &vllm
                .replace("[[1,2,3],[4]]", "[7,8]")
                .replace("\"prompt_logprobs\":2", "\"prompt_logprobs\":-1"),
        ),
        of(1, &vllm.replace("[[1,2,3],[4]]", "[\"ab\",\"c\"]")),
        of(1, echo),
        vec![2],
        vec![3, 0, 0, 5, 10, 0],
    ]
}
