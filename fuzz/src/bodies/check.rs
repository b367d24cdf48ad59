//! Whether an answer is one to its question: for each sequence as many positions as it has, for each
//! position as many tokens as were asked for, and probabilities that can be some.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;

use super::CLASSES;

/// What probabilities of different tokens may sum to above 1: sums of exponentials of float32s.
const ROUNDING: f64 = 1e-4;

/// What was asked, as far as an answer depends on it. Other fields may hold what no [`Value`] can.
#[derive(Deserialize)]
struct Trl {
    sequences: Vec<Vec<usize>>,
    prompt_lengths: Vec<usize>,
    top_logprobs: Option<usize>,
    response_format: Option<String>,
}

/// The same of the other route.
#[derive(Deserialize)]
struct Vllm {
    prompt: Value,
    max_tokens: Option<usize>,
    prompt_logprobs: Option<i64>,
    logprobs: Option<i64>,
    echo: Option<bool>,
    return_token_ids: Option<bool>,
}

/// Tries an answer with status 200.
///
/// # Panics
/// When it is none to this question.
pub(super) fn answered(route: usize, body: &[u8], answer: &Value) {
    match route {
        0 => trl(&asked(body), answer),
        _ => vllm(&asked(body), answer),
    }
}

fn asked<'a, T: Deserialize<'a>>(body: &'a [u8]) -> T {
    let text = std::str::from_utf8(body).expect("JSON is UTF-8, and this was answered");
    serde_json::from_str(text).expect("what the server could read")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("{value} is no list"))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn whole(value: &Value) -> usize {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no whole number")) as usize
}

/// Different classes, and probabilities that sum to 1 at most.
fn assert_probable(ids: &[usize], logprobs: &[f64]) {
    assert_eq!(ids.len(), logprobs.len());
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{ids:?}");
    assert!(ids.iter().all(|&id| id < CLASSES), "{ids:?}");
    let sum: f64 = logprobs.iter().map(|logprob| logprob.exp()).sum();
    assert!(sum <= 1.0 + ROUNDING, "{logprobs:?} are {sum} in all");
}

/// The tokens of each sequence that are predicted, and whether the first has nothing before it.
fn completions(asked: &Trl) -> Vec<(Vec<usize>, bool)> {
    let parts = asked.sequences.iter().zip(&asked.prompt_lengths);
    parts.map(|(ids, &prompt)| (ids[prompt..].to_vec(), prompt == 0)).collect()
}

fn trl(asked: &Trl, answer: &Value) {
    let completions = completions(asked);
    let k = asked.top_logprobs.unwrap_or(100);
    if asked.response_format.as_deref() == Some("binary") {
        return rectangle(&completions, k, answer);
    }
    let (logprobs, ids) = (list(&answer["logprobs"]), list(&answer["logprob_token_ids"]));
    assert_eq!((logprobs.len(), ids.len()), (completions.len(), completions.len()));
    for ((logprobs, ids), (tokens, unknown_first)) in logprobs.iter().zip(ids).zip(&completions) {
        let (logprobs, ids) = (list(logprobs), list(ids));
        assert_eq!((logprobs.len(), ids.len()), (tokens.len(), tokens.len()));
        for (at, token) in tokens.iter().enumerate() {
            let ids: Vec<usize> = list(&ids[at]).iter().map(whole).collect();
            let logprobs: Vec<f64> = list(&logprobs[at]).iter().map(number).collect();
            assert_probable(&ids, &logprobs);
            let best = k.min(CLASSES);
            match at == 0 && *unknown_first {
                true => assert!(ids.is_empty(), "{ids:?}"),
                false if ids.len() == best => assert!(ids.contains(token), "{token} of {ids:?}"),
                false => assert_eq!(ids[best..], [*token]),
            }
            assert!(logprobs[..best.min(ids.len())].is_sorted_by(|a, b| a >= b), "{logprobs:?}");
        }
    }
}

/// The binary form: rectangular, filled with -inf and 0.
fn rectangle(completions: &[(Vec<usize>, bool)], k: usize, answer: &Value) {
    let words = |name: &str| -> Vec<u32> {
        let text = answer[name].as_str().unwrap_or_else(|| panic!("no {name}"));
        let bytes = STANDARD.decode(text).expect("base64");
        let (words, []) = bytes.as_chunks::<4>() else { panic!("{name} is {} bytes", bytes.len()) };
        words.iter().map(|word| u32::from_le_bytes(*word)).collect()
    };
    let longest = completions.iter().map(|(tokens, _)| tokens.len()).max().unwrap_or(0);
    let cells = completions.len() * longest;
    let (best, best_ids) = (words("logprobs_b64"), words("token_ids_b64"));
    let (realised, realised_ids) = (words("actual_logprobs_b64"), words("actual_token_ids_b64"));
    assert_eq!((best.len(), best_ids.len()), (cells * k, cells * k));
    assert_eq!((realised.len(), realised_ids.len()), (cells, cells));
    let shape: Vec<usize> = list(&answer["shape"]).iter().map(whole).collect();
    assert_eq!(shape, [completions.len(), longest, k]);
    let lengths = list(&answer["completion_lengths"]).iter().map(whole);
    assert!(lengths.eq(completions.iter().map(|(tokens, _)| tokens.len())));
    for (cell, (&logprob, &id)) in realised.iter().zip(&realised_ids).enumerate() {
        let ((tokens, unknown_first), at) = (&completions[cell / longest], cell % longest);
        let known = tokens.get(at).filter(|_| at > 0 || !unknown_first);
        let logprob = f32::from_bits(logprob);
        assert_eq!(id as usize, known.copied().unwrap_or(0));
        assert_eq!(logprob.is_finite(), known.is_some(), "{logprob}");
        let row = cell * k..(cell + 1) * k;
        let filled = if known.is_some() { k.min(CLASSES) } else { 0 };
        let ids: Vec<usize> = best_ids[row.clone()].iter().map(|&id| id as usize).collect();
        let logprobs: Vec<f64> = best[row].iter().map(|&p| f32::from_bits(p).into()).collect();
        assert_probable(&ids[..filled], &logprobs[..filled]);
        assert!(logprobs[filled..].iter().all(|&logprob| logprob == f64::NEG_INFINITY));
        assert!(ids[filled..].iter().all(|&id| id == 0));
    }
}

fn vllm(asked: &Vllm, answer: &Value) {
    let prompts = prompts(&asked.prompt);
    let next = asked.max_tokens.unwrap_or(1) == 1;
    let count = |asked: Option<i64>| match asked {
        Some(-1) => Some(CLASSES),
        Some(k) => Some((k as usize).min(CLASSES)),
        None => None,
    };
    let echo = asked.echo == Some(true);
    let logprobs = count(asked.logprobs);
    let entries = count(asked.prompt_logprobs).or(logprobs.filter(|_| echo));
    let choices = list(&answer["choices"]);
    assert_eq!(choices.len(), prompts.len());
    for (choice, tokens) in choices.iter().zip(&prompts) {
        match entries {
            None => assert!(choice["prompt_logprobs"].is_null()),
            Some(k) => prompt_logprobs(list(&choice["prompt_logprobs"]), k, tokens),
        }
        if logprobs.is_some() {
            let shown = if echo { tokens.len() } else { 0 } + usize::from(next);
            for name in ["text_offset", "token_logprobs", "tokens", "top_logprobs"] {
                assert_eq!(list(&choice["logprobs"][name]).len(), shown, "{name} of {choice}");
            }
        }
        if asked.return_token_ids == Some(true) {
            let listed = list(&choice["prompt_token_ids"]).iter().map(whole);
            assert!(listed.eq(tokens.iter().copied()), "{choice}");
        }
    }
    let usage = &answer["usage"];
    assert_eq!(whole(&usage["prompt_tokens"]), prompts.iter().map(Vec::len).sum::<usize>());
    assert_eq!(whole(&usage["completion_tokens"]), if next { prompts.len() } else { 0 });
}

/// The ids of what is asked; the model's tokenizer has one for each byte.
fn prompts(prompt: &Value) -> Vec<Vec<usize>> {
    let text = |text: &str| text.bytes().map(|byte| usize::from(byte) % CLASSES).collect();
    let one = |value: &Value| match value.as_str() {
        Some(one) => text(one),
        None => list(value).iter().map(whole).collect(),
    };
    match prompt.as_array() {
        Some(all) if !all[0].is_number() => all.iter().map(one).collect(),
        _ => vec![one(prompt)],
    }
}

/// None for the first position; then the realised token and the best.
fn prompt_logprobs(positions: &[Value], k: usize, tokens: &[usize]) {
    assert_eq!(positions.len(), tokens.len());
    for (at, (position, token)) in positions.iter().zip(tokens).enumerate() {
        let Value::Object(entries) = position else {
            assert!(at == 0 && position.is_null(), "{position}");
            continue;
        };
        let ids: Vec<usize> = entries.keys().map(|id| id.parse().expect("an id")).collect();
        let logprobs: Vec<f64> = entries.values().map(|entry| number(&entry["logprob"])).collect();
        assert_probable(&ids, &logprobs);
        assert!(ids.first() == Some(token) && (k.max(1)..=k + 1).contains(&ids.len()), "{ids:?}");
        let ranks = entries.values().map(|entry| whole(&entry["rank"]));
        assert!(ranks.skip(1).is_sorted(), "{position}");
    }
}
