//! Bodies answered without a server around: as the routes do, but with scores that are given instead
//! of the queue and the device. For trying bodies by the million.

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use proto::convert::{ScoreJob, Times};

use super::body::Answer;
use super::{Asked, Problem, Write, trl, vllm};
use crate::error::TeacherError;
use crate::scorer::Scores;
use crate::shutdown::Calls;
use crate::state::Serving;

/// How long an answer waits for its reader, which is at hand.
const PATIENCE: Duration = Duration::from_secs(5);

/// The answer to a body of `POST /get_sequence_logprobs`.
///
/// # Panics
/// When `scores` does.
pub fn trl(body: &[u8], serving: &Serving, scores: impl Fn(&ScoreJob) -> Scores) -> Response {
    let question = trl::Question::read(body, &serving.facts);
    let answered = question.map(|question| written(question.parts(), scores));
    answered.unwrap_or_else(Problem::into_trl)
}

/// The answer to a body of `POST /v1/completions`.
///
/// # Panics
/// When `scores` does.
pub async fn vllm(
    body: &[u8],
    serving: &Arc<Serving>,
    scores: impl Fn(&ScoreJob) -> Scores,
) -> Response {
    let encode = |text: String| {
        let encoded = serving.text.encode(&text);
        ready(encoded.map_err(|error| TeacherError::Text(error.to_string())))
    };
    let asked = async {
        let question = vllm::Question::read(body, &serving.facts)?;
        let limit = serving.facts.limits.max_text_bytes;
        question.encoded(encode, limit).await?.asked(serving)
    };
    let answered = asked.await.map(|parts| written(parts, scores));
    answered.unwrap_or_else(Problem::into_vllm)
}

fn written((asked, write): (Asked, impl Write), scores: impl Fn(&ScoreJob) -> Scores) -> Response {
    let scored = asked.score_by(scores);
    let call = Calls::default().begin().expect("no other call runs");
    Answer::start(Times::default(), PATIENCE, call, |answer| write.write(scored, answer))
}
