//! The ways other people's trainers ask a teacher, over HTTP: TRL's ([`trl`]) and vLLM's ([`vllm`]).
//!
//! Each reads a request into [`Asked`], sequences in order with the positions wanted of each, and
//! writes the answer from the [`Scored`]; what is between is here, and the same as for gRPC: the same
//! checks, the same queue with the same shares, the same device. The field's names and numbers are
//! described in docs/dialects.md.

pub mod ask;
pub mod body;
pub mod problem;
pub mod prompt;
pub mod trl;
pub mod vllm;

use std::time::Instant;

use axum::Router;
use axum::routing::{get, post};
use tonic::Code;

use crate::desk::Desk;
use crate::unfinished::Unfinished;

pub use ask::{Asked, Scored};
pub use problem::Problem;

/// Most sequences of one request.
pub const MAX_SEQUENCES: usize = 4096;

/// What a handler needs.
#[derive(Clone)]
pub struct Counter {
    desk: Desk,
    unfinished: Unfinished,
}

impl Counter {
    /// Counts how a request that came then ended.
    fn counted(&self, method: &'static str, since: Instant, problem: Option<&Problem>) {
        if problem.is_none() {
            self.desk.metrics.first_reply_seconds.observe(since.elapsed().as_secs_f64());
        }
        self.desk.metrics.answered(method, problem.map_or(Code::Ok, |problem| problem.code));
        if let Some(problem) = problem {
            self.desk.metrics.refused(problem.reason);
        }
    }
}

/// The routes.
pub fn routes(desk: Desk, unfinished: Unfinished) -> Router {
    Router::new()
        .route("/get_sequence_logprobs", post(trl::answer))
        .route("/v1/completions", post(vllm::answer))
        .route("/v1/models", get(vllm::models))
        .with_state(Counter { desk, unfinished })
}
