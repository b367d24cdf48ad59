//! What vLLM's `prompt_logprobs` mean: a signal of the k most probable tokens.

use std::fmt;
use std::time::Duration;

use distill::codec::repeated;
use distill::signal::{Entries, TopK, log_sum_exp};
use proto::convert::{Reaction, ScoreJob, Scored};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use tonic::Code;

/// How far probabilities may sum above 1: models compute them in 16 bits.
const MASS_TOLERANCE: f64 = 0.02;
/// Most bytes of one entry: an id, a log-probability, a rank and the token's text.
const ENTRY_BYTES: usize = 512;

/// Why the answer of a vLLM server is none. Both values in each.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AnswerError {
    /// The server refused the request.
    #[error("request {id}: the server refused it with {code:?}: {message}{}", advice(message))]
    Refused {
        /// The request.
        id: u64,
        /// What the HTTP status means.
        code: Code,
        /// The status and the server's words.
        message: String,
    },
    /// The server has no room now, or failed at this request.
    #[error("request {id}: {message}")]
    Busy {
        /// The request.
        id: u64,
        /// The status and the server's words.
        message: String,
        /// The pause the server asked for (`Retry-After`); zero where it asked for none.
        pause: Duration,
    },
    /// What this dialect cannot say.
    #[error("request {id}: a vLLM server cannot give {what}")]
    Unsupported {
        /// The request.
        id: u64,
        /// What was wanted.
        what: &'static str,
    },
    /// No such JSON.
    #[error("request {id}: no completion with prompt_logprobs: {reason}")]
    Form {
        /// The request.
        id: u64,
        /// What is wrong.
        reason: String,
    },
    /// Other positions than asked.
    #[error("request {id}: prompt_logprobs has {found} positions, wanted {wanted}")]
    Positions {
        /// The request.
        id: u64,
        /// As received.
        found: usize,
        /// The tokens of the request.
        wanted: usize,
    },
    /// Too few entries.
    #[error(
        "request {id}, position {position}: {found} entries where {wanted} were asked for: start \
         the server with --max-logprobs {wanted}, or give a smaller k"
    )]
    Entries {
        /// The request.
        id: u64,
        /// The position.
        position: u32,
        /// As received.
        found: usize,
        /// k.
        wanted: usize,
    },
    /// The token that really follows is not among them.
    #[error(
        "request {id}, position {position}: no log-probability of the next token {token}: the \
         server scored other tokens"
    )]
    Next {
        /// The request.
        id: u64,
        /// The position.
        position: u32,
        /// The token that follows.
        token: u32,
    },
    /// A token the student does not know.
    #[error(
        "request {id}, position {position}: token {token}, but the student has {classes} classes"
    )]
    Class {
        /// The request.
        id: u64,
        /// The position.
        position: u32,
        /// As received.
        token: u32,
        /// Classes of the student.
        classes: usize,
    },
    /// A token that counts twice.
    #[error("request {id}, position {position}: token {token} comes twice")]
    Repeated {
        /// The request.
        id: u64,
        /// The position.
        position: u32,
        /// The token.
        token: u32,
    },
    /// No log-probabilities.
    #[error(
        "request {id}, position {position}: {found} where log-probabilities were wanted (start the \
         server with --logprobs-mode raw_logprobs, its default)"
    )]
    Values {
        /// The request.
        id: u64,
        /// The position.
        position: u32,
        /// What was found.
        found: String,
    },
}

impl AnswerError {
    /// What to do about it: a busy server may have room later, the others give the same again.
    pub fn reaction(&self) -> Reaction {
        if let Self::Busy { .. } = self { Reaction::Retry } else { Reaction::Stop }
    }

    /// The pause the server asked for.
    pub fn pause(&self) -> Duration {
        if let Self::Busy { pause, .. } = self { *pause } else { Duration::ZERO }
    }
}

/// What to do about a refusal that many meet: the server's own bound is 20 by default.
fn advice(message: &str) -> &'static str {
    if message.contains("logprobs") {
        ". Start the server with --max-logprobs K for the k you ask (vLLM's default is 20), or ask \
         for a smaller one"
    } else {
        ""
    }
}

/// The longest body that can be an answer to this job, in bytes.
pub(super) fn most_bytes(job: &ScoreJob) -> usize {
    let entries = job.tokens.len().saturating_mul(job.k.saturating_add(1));
    entries.saturating_mul(ENTRY_BYTES).saturating_add(1 << 20)
}

#[derive(Deserialize)]
struct Completion {
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    prompt_logprobs: Option<Vec<Option<Row>>>,
}

/// Token ids and their log-probabilities, in the order they came.
struct Row(Vec<(u32, f32)>);

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entry;
        #[derive(Deserialize)]
        struct Value {
            logprob: f32,
        }
        impl<'de> Visitor<'de> for Entry {
            type Value = Row;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from token ids to objects with a logprob")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Row, A::Error> {
                let mut row = Vec::with_capacity(map.size_hint().unwrap_or(0));
                while let Some((id, Value { logprob })) = map.next_entry()? {
                    row.push((id, logprob));
                }
                Ok(Row(row))
            }
        }
        deserializer.deserialize_map(Entry)
    }
}

/// The signal at the positions a job wants. `prompt_logprobs[t + 1]` speaks of the token that
/// follows position t. At the job's temperature T, with log-probabilities l at T = 1:
/// `scaled = l / T`. At T = 1 `log_z = 0` and the mass of the others is `1 - Σ exp(l)`; at another
/// T the others are taken to have none, so that `log_z` is that of the k alone.
///
/// # Errors
/// [`AnswerError`], with both values.
pub(super) fn read(job: &ScoreJob, body: &[u8]) -> Result<Scored, AnswerError> {
    let id = job.id;
    if job.entries != Entries::Top {
        return Err(AnswerError::Unsupported { id, what: "candidates of the client's choice" });
    }
    let form = |reason: String| AnswerError::Form { id, reason };
    let completion: Completion = serde_json::from_slice(body).map_err(|e| form(e.to_string()))?;
    let choice = completion.choices.into_iter().next();
    let choice = choice.ok_or_else(|| form("choices is empty".to_owned()))?;
    let rows = choice.prompt_logprobs.ok_or_else(|| form("prompt_logprobs is null".to_owned()))?;
    if rows.len() != job.tokens.len() {
        let (found, wanted) = (rows.len(), job.tokens.len());
        return Err(AnswerError::Positions { id, found, wanted });
    }
    let (mut signal, mut next_logprob) = (TopK::new(job.k), Vec::with_capacity(job.rows()));
    for (position, next) in job.positions().zip(job.next_tokens()) {
        let Some(token) = next else {
            return Err(AnswerError::Unsupported { id, what: "the last position of a sequence" });
        };
        let row = rows[position as usize + 1].as_ref();
        let row = row.ok_or_else(|| form(format!("position {position} is null")))?;
        let found = row.0.iter().find(|(id, _)| *id == token);
        let found = found.ok_or(AnswerError::Next { id, position, token })?;
        next_logprob.push(found.1);
        push(&mut signal, job, position, row.0.clone())?;
    }
    Ok(Scored {
        id,
        signal: signal.into(),
        next_logprob,
        wire_bytes: body.len(),
        queued: Duration::ZERO,
        computed: Duration::ZERO,
    })
}

/// Appends one position.
fn push(
    signal: &mut TopK,
    job: &ScoreJob,
    position: u32,
    mut row: Vec<(u32, f32)>,
) -> Result<(), AnswerError> {
    let (id, k, t) = (job.id, job.k, f64::from(job.temperature));
    row.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if row.len() < k {
        return Err(AnswerError::Entries { id, position, found: row.len(), wanted: k });
    }
    if let Some(&(token, _)) = row.iter().find(|(token, _)| *token as usize >= job.classes) {
        return Err(AnswerError::Class { id, position, token, classes: job.classes });
    }
    let ids: Vec<u32> = row.iter().map(|(id, _)| *id).collect();
    if let Some((_, token)) = repeated(&ids, ids.len(), job.classes) {
        return Err(AnswerError::Repeated { id, position, token });
    }
    let mass: f64 = row.iter().map(|(_, l)| f64::from(*l).exp()).sum();
    // A sum that is no number is no mass.
    if !(0.0..=1.0 + MASS_TOLERANCE).contains(&mass) {
        let found = format!("numbers whose exponentials sum to {mass}");
        return Err(AnswerError::Values { id, position, found });
    }
    // The token that follows may stand beside the k.
    row.truncate(k);
    let scaled = || row.iter().map(|(_, l)| f64::from(*l) / t);
    let (log_z, log_rest) = if job.temperature == 1.0 {
        let rest = 1.0 - row.iter().map(|(_, l)| f64::from(*l).exp()).sum::<f64>();
        (0.0, if rest > 0.0 { rest.ln() } else { f64::NEG_INFINITY })
    } else {
        (log_sum_exp(scaled()), f64::NEG_INFINITY)
    };
    signal.ids.extend(row.iter().map(|(id, _)| id));
    signal.scaled.extend(scaled().map(|s| s as f32));
    signal.log_z.push(log_z as f32);
    signal.log_rest.push(log_rest as f32);
    Ok(())
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
