//! `POST /v1/completions` with `prompt_logprobs`, and `GET /v1/models`: how vLLM is asked to score.
//!
//! Nothing is generated but the one most probable token that clients which score by `echo` ask for.
//! Unlike vLLM's, the log-probabilities are those at the temperature of the request; without one, or
//! at 0, they are those of the model as it is.

mod write;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use distill::handshake::TeacherFacts;
use serde::Deserialize;
use serde_json::json;

use super::prompt::Prompt;
use super::reading::Received;
use super::{Asked, Counter, Problem, body};
use crate::error::TeacherError;
use crate::state::Serving;

pub(super) use write::Completion;

/// Name in the metrics.
const METHOD: &str = "v1/completions";

/// A request's body. Fields this does not name change nothing about scores and are passed over.
#[derive(Debug, Deserialize)]
struct Body {
    model: Option<String>,
    prompt: Prompt,
    prompt_logprobs: Option<i64>,
    max_tokens: Option<i64>,
    temperature: Option<f64>,
    #[serde(default)]
    echo: bool,
    logprobs: Option<i64>,
    n: Option<i64>,
    stream: Option<bool>,
    return_tokens_as_token_ids: Option<bool>,
    return_token_ids: Option<bool>,
}

/// A request, checked as far as it can be before its texts are encoded.
#[derive(Debug, PartialEq)]
pub struct Question {
    prompt: Prompt,
    temperature: f32,
    /// Entries a position of the device.
    k: usize,
    style: Style,
}

/// A request whose prompts are ids.
pub(super) struct Encoded {
    prompts: Vec<Vec<u32>>,
    temperature: f32,
    k: usize,
    style: Style,
}

/// How an answer is laid out.
#[derive(Clone, Debug, Default, PartialEq)]
struct Style {
    /// Entries of `prompt_logprobs` beside the realised token, where asked for.
    prompt_logprobs: Option<usize>,
    /// Those of `logprobs`.
    logprobs: Option<usize>,
    echo: bool,
    /// Whether the most probable token after the prompt is wanted.
    next: bool,
    ids_for_tokens: bool,
    list_ids: bool,
}

impl Question {
    /// Reads a body.
    ///
    /// # Errors
    /// [`Problem`]: not the JSON wanted, or what this server cannot answer.
    pub fn read(body: &[u8], facts: &TeacherFacts) -> Result<Self, Problem> {
        let body: Body = body::read(body)?;
        check_model(body.model.as_deref(), facts)?;
        if body.n.is_some_and(|n| n != 1) {
            return Err(Problem::field("n", "this server scores, so that n can only be 1"));
        }
        if body.stream == Some(true) {
            return Err(Problem::field("stream", "this server does not stream completions"));
        }
        let next = match body.max_tokens {
            None | Some(1) => true,
            Some(0) => false,
            Some(found) => {
                return Err(Problem::field(
                    "max_tokens",
                    format!(
                        "this server scores and does not generate; max_tokens is 0 or 1, not {found}"
                    ),
                ));
            }
        };
        let logprobs = count("logprobs", body.logprobs, facts)?;
        let prompt_logprobs = count("prompt_logprobs", body.prompt_logprobs, facts)?;
        if prompt_logprobs.is_none() && logprobs.is_none() {
            return Err(Problem::field(
                "prompt_logprobs",
                "this server scores and does not generate: ask for prompt_logprobs, or for logprobs \
                 with echo",
            ));
        }
        let style = Style {
            // As vLLM: who echoes with logprobs has both.
            prompt_logprobs: prompt_logprobs.or(logprobs.filter(|_| body.echo)),
            logprobs,
            echo: body.echo,
            next,
            ids_for_tokens: body.return_tokens_as_token_ids.unwrap_or(false),
            list_ids: body.return_token_ids.unwrap_or(false),
        };
        let temperature = body::temperature(body.temperature);
        let k = style.prompt_logprobs.max(style.logprobs).unwrap_or(0).max(1);
        Ok(Self { prompt: body.prompt, temperature, k, style })
    }
}

fn check_model(asked: Option<&str>, facts: &TeacherFacts) -> Result<(), Problem> {
    match asked {
        None | Some("") => Ok(()),
        Some(name) if name == facts.model => Ok(()),
        Some(name) => {
            let served = &facts.model;
            let message = format!("The model `{name}` does not exist. This server has `{served}`.");
            let status = StatusCode::NOT_FOUND;
            Err(Problem { status, ..Problem::field("model", message) })
        }
    }
}

/// Entries a position; -1 is the whole vocabulary.
fn count(
    field: &'static str,
    asked: Option<i64>,
    facts: &TeacherFacts,
) -> Result<Option<usize>, Problem> {
    let Some(asked) = asked else { return Ok(None) };
    let vocabulary = facts.vocab_size;
    let found = match asked {
        -1 => vocabulary,
        _ => usize::try_from(asked).map_err(|_| {
            Problem::field(field, format!("{field} is {asked}, wanted -1 or at least 0"))
        })?,
    };
    let limit = facts.limits.max_top_k;
    match found {
        _ if found > limit => Err(Problem::field(
            field,
            format!("{field} is {found}, this server has at most {limit} a position (--max-top-k)"),
        )),
        // More than there are is all there are.
        _ => Ok(Some(found.min(vocabulary))),
    }
}

/// The handler of completions.
pub async fn answer(State(counter): State<Counter>, request: Request) -> Response {
    let desk = counter.desk.clone();
    let question = async move |received: Received| {
        let Received { body, reading, client, serving } = received;
        let of = Arc::clone(&serving);
        let question = reading.run(move || Question::read(&body, &of.facts)).await?;
        let encode = |text| desk.encoders.encode(&client, text, &serving);
        let encoded = question.encoded(encode, serving.facts.limits.max_text_bytes).await?;
        reading.run(move || encoded.asked(&serving)).await
    };
    let answered = counter.answer(METHOD, request, question).await;
    answered.unwrap_or_else(Problem::into_vllm)
}

impl Question {
    /// The same once `encode` has made ids of the texts, of at most `limit` bytes each.
    pub(super) async fn encoded<F>(
        self,
        encode: impl Fn(String) -> F,
        limit: usize,
    ) -> Result<Encoded, Problem>
    where
        F: Future<Output = Result<Vec<u32>, TeacherError>>,
    {
        let Self { prompt, temperature, k, style } = self;
        let prompts = encoded(prompt, encode, limit).await?;
        Ok(Encoded { prompts, temperature, k, style })
    }
}

impl Encoded {
    /// What is to be scored, and how it is written.
    pub(super) fn asked(self, serving: &Arc<Serving>) -> Result<(Asked, Completion), Problem> {
        let Self { prompts, temperature, k, style } = self;
        // Without the token after the prompt nothing of the last position is wanted.
        let rows = |tokens: &Vec<u32>| 0..tokens.len().saturating_sub(usize::from(!style.next));
        let sequences = prompts.iter().map(|tokens| (tokens.clone(), rows(tokens)));
        let asked = Asked::of(sequences, temperature, k, &serving.facts)?;
        Ok((asked, Completion { prompts, style, serving: Arc::clone(serving) }))
    }
}

/// The ids of what is asked; a text has at most `limit` bytes.
async fn encoded<F>(
    prompt: Prompt,
    encode: impl Fn(String) -> F,
    limit: usize,
) -> Result<Vec<Vec<u32>>, Problem>
where
    F: Future<Output = Result<Vec<u32>, TeacherError>>,
{
    let texts = match prompt {
        Prompt::Ids(ids) => return Ok(vec![ids]),
        Prompt::ManyIds(all) => return Ok(all),
        Prompt::Text(text) => vec![text],
        Prompt::ManyTexts(texts) => texts,
    };
    let mut prompts = Vec::with_capacity(texts.len());
    for text in texts {
        let found = text.len();
        if found > limit {
            let message = format!("a text of {found} bytes, more than the {limit} of this server");
            return Err(Problem::field("prompt", message));
        }
        prompts.push(encode(text).await?);
    }
    Ok(prompts)
}

/// The handler of the list of models, which holds one.
pub async fn models(State(counter): State<Counter>) -> Response {
    let serving = counter.desk.state.borrow().serving();
    let answered = serving.map(|serving| {
        let TeacherFacts { model, limits, .. } = &serving.facts;
        let json = [(header::CONTENT_TYPE, "application/json")];
        let list = json!({ "object": "list", "data": [{
            "id": model, "object": "model", "created": now(), "owned_by": "limbeck",
            "root": model, "parent": null, "max_model_len": limits.max_sequence_tokens,
        }]});
        (json, list.to_string()).into_response()
    });
    answered.unwrap_or_else(|error: TeacherError| Problem::from(error).into_vllm())
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

#[cfg(test)]
#[path = "vllm_tests.rs"]
mod tests;
