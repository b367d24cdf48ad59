//! `ScoreText`: the same way as `Score`, with text at both ends.

use std::sync::Arc;

use distill::codec::Codec;
use proto::convert::{self, ScoreJob};
use proto::v1::{ScoreTextReply, ScoreTextRequest};

use crate::engine::Engine;
use crate::error::TeacherError;
use crate::scorer::all_positions;
use crate::state::Serving;

/// Candidates of one reply, over all positions. About 30 bytes each: a reply stays below the 4 MiB
/// that stock clients accept.
const MAX_CANDIDATES: usize = 65_536;

/// Answers one request.
///
/// # Errors
/// [`TeacherError`]: a bad request, a full queue, or a fault of the device.
pub async fn score_text(
    request: ScoreTextRequest,
    serving: &Arc<Serving>,
    engine: &Engine,
) -> Result<ScoreTextReply, TeacherError> {
    let facts = &serving.facts;
    let job = convert::text_job(request, facts)?;
    let tokens = encode(job.text.clone(), serving).await?;
    job.check_tokens(tokens.len(), facts)?;
    if tokens.len() * job.k > MAX_CANDIDATES {
        let (tokens, k, most) = (tokens.len(), job.k, MAX_CANDIDATES);
        return Err(TeacherError::TextReply { tokens, k, most });
    }
    let score = ScoreJob {
        id: 0,
        ranges: all_positions(tokens.len()),
        tokens: tokens.clone(),
        temperature: job.temperature,
        k: job.k,
        codec: Codec::Raw,
        classes: facts.vocab_size,
    };
    let answer = engine.submit(score)?.await.unwrap_or(Err(TeacherError::Stopped))?;
    let scores = answer.scores;
    let text_of = |id| serving.text.text_of(id);
    Ok(convert::text_reply(&job, &tokens, &scores.signal, &scores.next_logprob, facts, text_of))
}

/// A long text takes the tokenizer a while, and the network's threads have others to serve.
async fn encode(text: String, serving: &Arc<Serving>) -> Result<Vec<u32>, TeacherError> {
    let serving = Arc::clone(serving);
    let encoded = tokio::task::spawn_blocking(move || serving.text.encode(&text)).await;
    match encoded {
        Ok(ids) => ids.map_err(|error| TeacherError::Text(error.to_string())),
        Err(panic) => Err(TeacherError::Panicked(panic.to_string())),
    }
}
