//! A completion as vLLM writes it.

use std::sync::Arc;

use super::{Style, now};
use crate::dialects::body::{Answer, Gone};
use crate::dialects::{Scored, Write};
use crate::scorer::Scores;
use crate::state::Serving;

/// One token at a position: id, log-probability, and rank.
#[derive(Clone, Copy)]
struct Ranked {
    id: u32,
    logprob: f32,
    rank: usize,
}

/// What stands at a position after the first, and what was expected there.
struct Position<'a> {
    realised: Ranked,
    best: Box<dyn Iterator<Item = Ranked> + Send + 'a>,
}

/// A prompt and its scores.
struct Choice<'a> {
    tokens: &'a [u32],
    scores: Option<&'a Scores>,
    style: &'a Style,
    serving: &'a Serving,
}

/// An answer to be written.
pub(crate) struct Completion {
    pub(super) prompts: Vec<Vec<u32>>,
    pub(super) style: Style,
    pub(super) serving: Arc<Serving>,
}

impl Write for Completion {
    async fn write(self, scored: Scored, mut answer: Answer) -> Result<(), Gone> {
        let Self { prompts, style, serving } = self;
        let created = now();
        // Nobody asks for it by this name again: it need only be another one each time.
        let id = distill::fingerprint::payload_checksum(&[
            &created.to_le_bytes(),
            &distill::codec::token_bytes(prompts.first().map_or(&[], Vec::as_slice)),
        ]);
        answer.formatted(format_args!(
        "{{\"id\":\"cmpl-{id:016x}\",\"object\":\"text_completion\",\"created\":{created},\"model\":"
    ));
        answer.quoted(&serving.facts.model);
        answer.push(",\"choices\":[");
        for (index, (tokens, scores)) in prompts.iter().zip(&scored.scores).enumerate() {
            let separator = if index == 0 { "" } else { "," };
            answer.formatted(format_args!("{separator}{{\"index\":{index},\"text\":"));
            let choice =
                Choice { tokens, scores: scores.as_ref(), style: &style, serving: &serving };
            choice.write(&mut answer).await?;
        }
        let asked: usize = prompts.iter().map(Vec::len).sum();
        let made = if style.next { prompts.len() } else { 0 };
        let total = asked + made;
        answer.formatted(format_args!(
        "],\"service_tier\":null,\"system_fingerprint\":\"{}\",\"usage\":{{\"prompt_tokens\":{asked},\
         \"total_tokens\":{total},\"completion_tokens\":{made},\"prompt_tokens_details\":null}},\
         \"kv_transfer_params\":null}}",
        serving.facts.model_fingerprint
    ));
        answer.end().await
    }
}

impl Choice<'_> {
    async fn write(&self, answer: &mut Answer) -> Result<(), Gone> {
        let next = self.next();
        let mut text = String::new();
        if self.style.echo {
            self.tokens.iter().for_each(|&id| text.push_str(&self.text_of(id)));
        }
        text.extend(next.map(|next| self.text_of(next.id)));
        answer.quoted(&text);
        answer.push(",\"logprobs\":");
        match self.style.logprobs {
            Some(k) => self.logprobs(k, next, answer).await?,
            None => answer.push("null"),
        }
        answer.push(",\"finish_reason\":\"length\",\"stop_reason\":null,\"token_ids\":");
        let listed = self.style.list_ids.then(|| next.map(|next| next.id).into_iter().collect());
        list(listed, answer);
        answer.push(",\"prompt_logprobs\":");
        match self.style.prompt_logprobs {
            Some(k) => self.prompt_logprobs(k, answer).await?,
            None => answer.push("null"),
        }
        answer.push(",\"prompt_token_ids\":");
        list(self.style.list_ids.then(|| self.tokens.to_vec()), answer);
        answer.push("}");
        answer.flow().await
    }

    fn text_of(&self, id: u32) -> String {
        self.serving.text.text_of(id)
    }

    /// The most probable token after the prompt, where it is wanted.
    fn next(&self) -> Option<Ranked> {
        let last = self.tokens.len().checked_sub(1).filter(|_| self.style.next)?;
        self.best(last, 1)?.next()
    }

    /// The best at a row, at most `k`.
    fn best(&self, row: usize, k: usize) -> Option<impl Iterator<Item = Ranked> + Send> {
        let signal = self.scores?.signal.top_k()?;
        let here = row * signal.k..(row + 1) * signal.k;
        let (ids, scaled) = (&signal.ids[here.clone()], &signal.scaled[here]);
        let log_z = signal.log_z[row];
        let ranked = ids.iter().zip(scaled).zip(1..);
        let ranked =
            ranked.map(move |((&id, scaled), rank)| Ranked { id, logprob: scaled - log_z, rank });
        Some(ranked.take(k))
    }

    /// The position of token `at`, which a row before it predicts; none for the first.
    fn position(&self, at: usize, k: usize) -> Option<Position<'_>> {
        let (row, scores) = (at.checked_sub(1)?, self.scores?);
        let (id, most) = (self.tokens[at], scores.signal.top_k()?.k);
        // Beyond the best its rank is not known; it is no better than this.
        let rank = self.best(row, most)?.find(|best| best.id == id).map_or(most + 1, |b| b.rank);
        let realised = Ranked { id, logprob: scores.next_logprob_t[row], rank };
        let others = self.best(row, k)?.filter(move |best| best.id != id);
        Some(Position { realised, best: Box::new(others) })
    }

    /// Objects by id, in which the realised token comes first.
    async fn prompt_logprobs(&self, k: usize, answer: &mut Answer) -> Result<(), Gone> {
        answer.push("[");
        for at in 0..self.tokens.len() {
            answer.push(if at == 0 { "" } else { "," });
            match self.position(at, k) {
                None => answer.push("null"),
                Some(Position { realised, best }) => {
                    self.entry('{', realised, answer);
                    best.for_each(|ranked| self.entry(',', ranked, answer));
                    answer.push("}");
                }
            }
            answer.flow().await?;
        }
        answer.push("]");
        Ok(())
    }

    fn entry(&self, before: char, Ranked { id, logprob, rank }: Ranked, answer: &mut Answer) {
        answer.formatted(format_args!("{before}\"{id}\":{{\"logprob\":"));
        answer.number(logprob);
        answer.formatted(format_args!(",\"rank\":{rank},\"decoded_token\":"));
        answer.quoted(&self.text_of(id));
        answer.push("}");
    }

    /// The older form: arrays over the tokens, of the prompt if it is echoed and of what follows.
    async fn logprobs(
        &self,
        k: usize,
        next: Option<Ranked>,
        answer: &mut Answer,
    ) -> Result<(), Gone> {
        let echoed = if self.style.echo { self.tokens } else { &[] };
        let shown = || echoed.iter().copied().chain(next.map(|next| next.id));
        answer.push("{\"text_offset\":[");
        let mut offset = 0;
        for (index, id) in shown().enumerate() {
            let separator = if index == 0 { "" } else { "," };
            answer.formatted(format_args!("{separator}{offset}"));
            offset += self.name(id).chars().count();
        }
        answer.push("],\"token_logprobs\":[");
        for (index, id) in shown().enumerate() {
            answer.push(if index == 0 { "" } else { "," });
            match (index < echoed.len(), self.realised(index), next) {
                (true, Some(logprob), _) => answer.number(logprob),
                (false, _, Some(next)) if next.id == id => answer.number(next.logprob),
                _ => answer.push("null"),
            }
        }
        answer.push("],\"tokens\":[");
        for (index, id) in shown().enumerate() {
            answer.push(if index == 0 { "" } else { "," });
            answer.quoted(&self.name(id));
            answer.flow().await?;
        }
        answer.push("],\"top_logprobs\":[");
        for at in 0..echoed.len() {
            answer.push(if at == 0 { "" } else { "," });
            match self.position(at, k) {
                None => answer.push("null"),
                Some(Position { realised, best }) => {
                    self.named(std::iter::once(realised).chain(best), answer);
                }
            }
            answer.flow().await?;
        }
        let last = next.and_then(|_| self.best(self.tokens.len() - 1, k.max(1)));
        if let Some(best) = last {
            answer.push(if echoed.is_empty() { "" } else { "," });
            self.named(best, answer);
        }
        answer.push("]}");
        Ok(())
    }

    fn realised(&self, at: usize) -> Option<f32> {
        self.scores.and_then(|scores| Some(scores.next_logprob_t[at.checked_sub(1)?]))
    }

    /// An object by text, in which the first of equal texts counts.
    fn named(&self, ranked: impl Iterator<Item = Ranked>, answer: &mut Answer) {
        let mut seen = std::collections::HashSet::new();
        answer.push("{");
        for Ranked { id, logprob, .. } in ranked {
            let name = self.name(id);
            if seen.contains(&name) {
                continue;
            }
            answer.push(if seen.is_empty() { "" } else { "," });
            answer.quoted(&name);
            answer.push(":");
            answer.number(logprob);
            seen.insert(name);
        }
        answer.push("}");
    }

    fn name(&self, id: u32) -> String {
        match self.style.ids_for_tokens {
            true => format!("token_id:{id}"),
            false => self.text_of(id),
        }
    }
}

fn list(ids: Option<Vec<u32>>, answer: &mut Answer) {
    match ids {
        None => answer.push("null"),
        Some(ids) => answer.push(&serde_json::json!(ids).to_string()),
    }
}
