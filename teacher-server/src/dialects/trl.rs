//! `POST /get_sequence_logprobs`: the server distillation of TRL 1.1 to 1.10.
//!
//! Entry t of a sequence is the distribution that predicts its token `prompt_length + t`.

use axum::extract::{Request, State};
use axum::response::Response;
use distill::handshake::TeacherFacts;
use serde::Deserialize;

use super::body::{self, Answer, Gone};
use super::prompt::Sequences;
use super::reading::Received;
use super::{Asked, Counter, Problem, Scored, Write};
use crate::scorer::Scores;

/// Name in the metrics.
const METHOD: &str = "get_sequence_logprobs";

/// A request's body. Fields this does not name are passed over, as TRL's server does.
#[derive(Debug, Deserialize)]
struct Body {
    sequences: Sequences,
    prompt_lengths: Vec<usize>,
    #[serde(default = "top_logprobs")]
    top_logprobs: usize,
    #[serde(default = "temperature")]
    temperature: f64,
    #[serde(default)]
    response_format: String,
}

fn top_logprobs() -> usize {
    100
}

fn temperature() -> f64 {
    1.0
}

/// A request, checked.
#[derive(Debug, PartialEq)]
pub struct Question {
    /// What is to be scored.
    pub asked: Asked,
    shape: Shape,
}

/// How an answer is laid out.
#[derive(Debug, PartialEq)]
struct Shape {
    binary: bool,
    /// Entries a position that were asked for; fewer exist where the vocabulary has fewer.
    k: usize,
    /// For each sequence, the tokens that are predicted.
    completions: Vec<Vec<u32>>,
    /// For each sequence, whether the first of them has nothing before it.
    unknown_first: Vec<bool>,
}

impl Question {
    /// Reads a body.
    ///
    /// # Errors
    /// [`Problem`]: not the JSON wanted, or what this server cannot answer.
    pub fn read(body: &[u8], facts: &TeacherFacts) -> Result<Self, Problem> {
        let body: Body = body::read(body)?;
        let Body { sequences: Sequences(sequences), prompt_lengths, .. } = body;
        if sequences.len() != prompt_lengths.len() {
            return Err(Problem::invalid(format!(
                "{} sequences and {} prompt_lengths; there has to be one for each",
                sequences.len(),
                prompt_lengths.len()
            )));
        }
        for (index, (tokens, &length)) in sequences.iter().zip(&prompt_lengths).enumerate() {
            if length > tokens.len() {
                let found = tokens.len();
                return Err(Problem::invalid(format!(
                    "prompt_lengths[{index}] is {length}, its sequence has {found} tokens"
                )));
            }
        }
        let (k, limit) = (body.top_logprobs, facts.limits.max_top_k);
        if k > limit {
            let message = format!("top_logprobs is {k}, this server has at most {limit}");
            return Err(Problem::invalid(message));
        }
        let parts = || sequences.iter().zip(&prompt_lengths);
        let shape = Shape {
            binary: body.response_format == "binary",
            k,
            completions: parts().map(|(tokens, &prompt)| tokens[prompt..].to_vec()).collect(),
            unknown_first: parts().map(|(tokens, &p)| p == 0 && !tokens.is_empty()).collect(),
        };
        shape.check(facts)?;
        let temperature = body::temperature(Some(body.temperature));
        let rows = sequences.into_iter().zip(prompt_lengths).map(|(tokens, prompt)| {
            let rows = prompt.saturating_sub(1)..tokens.len().saturating_sub(1);
            (tokens, rows)
        });
        let asked = Asked::of(rows, temperature, k.clamp(1, facts.vocab_size), facts)?;
        Ok(Self { asked, shape })
    }

    /// What is to be scored, and how it is written.
    pub(super) fn parts(self) -> (Asked, impl Write) {
        (self.asked, self.shape)
    }
}

/// The handler.
pub async fn answer(State(counter): State<Counter>, request: Request) -> Response {
    let question = async |received: Received| {
        let Received { body, reading, serving, .. } = received;
        reading.run(move || Ok(Question::read(&body, &serving.facts)?.parts())).await
    };
    let answered = counter.answer(METHOD, request, question).await;
    answered.unwrap_or_else(Problem::into_trl)
}

/// A position of a completion.
struct Entry<'a> {
    ids: &'a [u32],
    scaled: &'a [f32],
    log_z: f32,
    realised: u32,
    realised_logprob: f32,
}

impl Write for Shape {
    async fn write(self, scored: Scored, answer: Answer) -> Result<(), Gone> {
        match self.binary {
            true => self.write_binary(&scored.scores, answer).await,
            false => self.write_json(&scored.scores, answer).await,
        }
    }
}

impl Shape {
    /// A rectangle is as large as its longest row makes it.
    fn check(&self, facts: &TeacherFacts) -> Result<(), Problem> {
        let longest = self.completions.iter().map(Vec::len).max().unwrap_or(0);
        let limit = facts.limits.max_held_bytes_per_stream;
        let bytes = self.completions.len() * longest * (self.k + 1) * 8;
        match self.binary && bytes > limit {
            true => Err(Problem::invalid(format!(
                "the rectangle of the answer takes {bytes} bytes, more than the {limit} that one \
                 request may have held (--max-held-bytes-per-stream); send fewer sequences at a \
                 time, or those of like length together"
            ))),
            false => Ok(()),
        }
    }

    /// The entries of a sequence; none for a first token that has nothing before it.
    fn entries<'a>(
        &'a self,
        index: usize,
        scores: &'a Option<Scores>,
    ) -> impl Iterator<Item = Option<Entry<'a>>> {
        let unknown = usize::from(self.unknown_first[index]);
        self.completions[index].iter().enumerate().map(move |(t, &realised)| {
            let (row, scores) = (t.checked_sub(unknown)?, scores.as_ref()?);
            let signal = scores.signal.top_k()?;
            let here = row * signal.k..(row + 1) * signal.k;
            Some(Entry {
                ids: &signal.ids[here.clone()],
                scaled: &signal.scaled[here],
                log_z: signal.log_z[row],
                realised,
                realised_logprob: scores.next_logprob_t[row],
            })
        })
    }

    /// Lists a position: the k best in order, and the token that stands there after them unless it
    /// is one of them.
    async fn write_json(&self, scores: &[Option<Scores>], mut answer: Answer) -> Result<(), Gone> {
        for (name, ids) in [("{\"logprobs\":[", false), ("],\"logprob_token_ids\":[", true)] {
            answer.push(name);
            for (index, scores) in scores.iter().enumerate() {
                answer.push(if index == 0 { "[" } else { ",[" });
                for (t, entry) in self.entries(index, scores).enumerate() {
                    answer.push(if t == 0 { "[" } else { ",[" });
                    if let Some(entry) = entry {
                        self.list(&entry, ids, &mut answer);
                    }
                    answer.push("]");
                    answer.flow().await?;
                }
                answer.push("]");
            }
        }
        answer.push("]}");
        answer.end().await
    }

    fn list(&self, entry: &Entry<'_>, ids: bool, answer: &mut Answer) {
        let best = self.k.min(entry.ids.len());
        let mut separator = "";
        let mut one = |id: u32, logprob: f32| {
            answer.push(separator);
            separator = ",";
            match ids {
                true => answer.formatted(format_args!("{id}")),
                false => answer.number(logprob),
            }
        };
        for (&id, &scaled) in entry.ids.iter().zip(entry.scaled).take(best) {
            one(id, scaled - entry.log_z);
        }
        if !entry.ids[..best].contains(&entry.realised) {
            one(entry.realised, entry.realised_logprob);
        }
    }

    /// Rectangular arrays, `[B, C, k]` and `[B, C, 1]`, what is missing filled with -inf and 0.
    async fn write_binary(
        &self,
        scores: &[Option<Scores>],
        mut answer: Answer,
    ) -> Result<(), Gone> {
        let longest = self.completions.iter().map(Vec::len).max().unwrap_or(0);
        type Cells = fn(&Option<Entry<'_>>, usize, &mut Vec<u8>);
        let arrays: [(&str, Cells); 4] = [
            ("{\"logprobs_b64\":\"", top_logprobs_of),
            ("\",\"token_ids_b64\":\"", top_ids_of),
            ("\",\"actual_logprobs_b64\":\"", |entry, _, cells| {
                let logprob = entry.as_ref().map_or(f32::NEG_INFINITY, |e| e.realised_logprob);
                cells.extend(logprob.to_le_bytes());
            }),
            ("\",\"actual_token_ids_b64\":\"", |entry, _, cells| {
                cells.extend(entry.as_ref().map_or(0, |entry| entry.realised).to_le_bytes());
            }),
        ];
        let mut cells = Vec::new();
        for (name, cells_of) in arrays {
            answer.push(name);
            for (index, scores) in scores.iter().enumerate() {
                let padding = longest - self.completions[index].len();
                let entries = self.entries(index, scores);
                for entry in entries.chain(std::iter::repeat_with(|| None).take(padding)) {
                    cells.clear();
                    cells_of(&entry, self.k, &mut cells);
                    answer.base64(&cells);
                    answer.flow().await?;
                }
            }
            answer.end_base64();
        }
        let lengths: Vec<usize> = self.completions.iter().map(Vec::len).collect();
        let shape = [scores.len(), longest, self.k];
        answer
            .formatted(format_args!("\",\"shape\":{shape:?},\"completion_lengths\":{lengths:?}}}"));
        answer.end().await
    }
}

fn top_logprobs_of(entry: &Option<Entry<'_>>, k: usize, cells: &mut Vec<u8>) {
    let known = entry.iter().flat_map(|e| e.scaled.iter().map(|scaled| scaled - e.log_z));
    let filled = known.chain(std::iter::repeat(f32::NEG_INFINITY));
    cells.extend(filled.take(k).flat_map(f32::to_le_bytes));
}

fn top_ids_of(entry: &Option<Entry<'_>>, k: usize, cells: &mut Vec<u8>) {
    let known = entry.iter().flat_map(|e| e.ids.iter().copied());
    cells.extend(known.chain(std::iter::repeat(0)).take(k).flat_map(u32::to_le_bytes));
}

#[cfg(test)]
#[path = "trl_tests.rs"]
mod tests;
