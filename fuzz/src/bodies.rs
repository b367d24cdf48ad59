//! What comes over HTTP in the words of other trainers: a body is refused as its mistake, or it is
//! answered with what it asked for; nothing is ever answered with a fault of the server.
//!
//! An input's first byte says which route, whether the body says how long it is, and what the other
//! bytes are: the body as it travels, or decisions of which one is made. It goes through the routes,
//! the queue and the thread of the device as the server has them; only the model is none.

mod check;
mod drawn;
mod model;

use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use distill::handshake::TeacherFacts;
use distill::queue::QueueBounds;
use futures::stream;
use serde_json::Value;
use teacher_server::desk::Desk;
use teacher_server::dialects;
use teacher_server::engine::{Batching, Engine};
use teacher_server::metrics::Metrics;
use teacher_server::settings::Settings;
use teacher_server::shutdown::Calls;
use teacher_server::state::{Serving, State};
use teacher_server::unfinished::Unfinished;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tower::ServiceExt as _;

use crate::draw::Draw;

/// Classes of the model.
const CLASSES: usize = 32;
/// Largest body.
const MOST_BYTES: usize = 2048;
/// Most bytes of answers held.
const MOST_HELD: usize = 8 << 10;

/// The routes of each dialect.
const ROUTES: [&str; 2] = ["/get_sequence_logprobs", "/v1/completions"];

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
    let (status, answer) = SERVER.with(|server| server.post(route, &body, kind & 4 != 0));
    let shown =
        || format!("{} to {}", String::from_utf8_lossy(&answer), String::from_utf8_lossy(&body));
    let parsed: Value =
        serde_json::from_slice(&answer).unwrap_or_else(|error| panic!("{error}: {}", shown()));
    let large = body.len() > MOST_BYTES;
    assert_eq!(status == StatusCode::PAYLOAD_TOO_LARGE, large, "{}", shown());
    match status {
        StatusCode::PAYLOAD_TOO_LARGE => {}
        StatusCode::OK => check::answered(route, &body, &parsed),
        StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND => {
            let says = [&parsed["detail"], &parsed["error"]["message"]][route];
            assert!(says.as_str().is_some_and(|says| !says.is_empty()), "{}", shown());
        }
        status => panic!("{status}: {}", shown()),
    }
    status == StatusCode::OK
}

/// The server but for its sockets.
struct Server {
    runtime: Runtime,
    routes: Router,
    /// What handlers watch.
    _state: watch::Sender<State>,
}

impl Server {
    fn start() -> Self {
        let settings = Settings {
            max_sequence_tokens: Some(16),
            max_text_bytes: Some(24),
            ..Settings::with(|limits| {
                limits.max_http_body_bytes = MOST_BYTES;
                limits.max_held_bytes_per_stream = MOST_HELD;
                limits.max_top_k = 100;
                limits.batch_wait = Duration::ZERO;
            })
        };
        let limits = settings.limits;
        let metrics = Metrics::default();
        let bounds = QueueBounds {
            sequences: limits.max_queued_sequences,
            tokens: limits.max_queued_tokens,
        };
        let batching = Batching { max_tokens: limits.max_batch_tokens, wait: limits.batch_wait };
        let load = || Ok(model::loaded());
        let started = Engine::start(load, bounds, batching, metrics.clone()).expect("a thread");
        let ready = started.ready.blocking_recv().expect("the fake loads").expect("the fake loads");
        let facts: TeacherFacts =
            settings.resolve(&ready.facts).expect("bounds that hold together");
        let serving = State::Serving(Serving { facts, text: ready.text }.into());
        let (state, watched) = watch::channel(serving);
        let unfinished = Unfinished::new(&limits, metrics.clone());
        let desk = Desk::new(started.engine, watched, Calls::default(), &limits, metrics);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let routes = dialects::routes(desk, unfinished);
        Self { runtime: runtime.expect("a runtime"), routes, _state: state }
    }

    /// The answer to a body, which comes in two pieces and without its length if it is `cut`.
    fn post(&self, route: usize, body: &[u8], cut: bool) -> (StatusCode, Vec<u8>) {
        let (first, second) = body.split_at(body.len() / 2);
        let pieces = [first.to_vec(), second.to_vec()].map(Ok::<_, std::io::Error>);
        let body = match cut {
            true => Body::from_stream(stream::iter(pieces)),
            false => Body::from(body.to_vec()),
        };
        let request = Request::post(ROUTES[route]).body(body).expect("a request");
        self.runtime.block_on(async {
            let Ok(response) = self.routes.clone().oneshot(request).await;
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
        of(4, &trl.replace("json", "binary")),
        of(0, "{\"sequences\":[],\"prompt_lengths\":[],\"top_logprobs\":0}"),
        of(1, vllm),
        of(
            5,
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
