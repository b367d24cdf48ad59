//! A short continuation of a prompt: the sample a person reads before and after training.
//!
//! Each token runs the whole forward again. That is slow and simple, and right for a hundred
//! tokens of a small model.

use distill::batch::{Sequence, TokenBatch};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::ops::embed::gather_rows;
use crate::ops::matmul::linear;
use crate::qwen3::{ModelError, Qwen3};

/// How to continue a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateSettings {
    /// The most tokens to add.
    pub max_tokens: usize,
    /// 0 takes the most probable token (the lower id among equals); above 0 draws from the
    /// softmax of logits / temperature.
    pub temperature: f64,
    /// Seed of the draws.
    pub seed: u64,
    /// Tokens that end the text; the one that does is not returned.
    pub stop: Vec<u32>,
    /// Only the first rows of the vocabulary, those the tokenizer knows, take part.
    pub classes: usize,
}

/// The tokens after `prompt`. Ends at a stop token, at `max_tokens`, or where the model's
/// positions end.
///
/// # Errors
/// [`ModelError`] when the prompt is empty, too long, or holds a token the model does not have.
pub fn generate(
    model: &Qwen3,
    prompt: &[u32],
    settings: &GenerateSettings,
) -> Result<Vec<u32>, ModelError> {
    let mut random = ChaCha8Rng::seed_from_u64(settings.seed);
    let mut ids = prompt.to_vec();
    let room = model.config().max_position_embeddings.saturating_sub(prompt.len());
    for _ in 0..settings.max_tokens.min(room) {
        let logits = next_logits(model, &ids, settings.classes)?;
        let next = if settings.temperature > 0.0 {
            draw(&logits, settings.temperature, random.random())
        } else {
            largest(&logits)
        };
        if settings.stop.contains(&next) {
            break;
        }
        ids.push(next);
    }
    Ok(ids.split_off(prompt.len()))
}

/// The most probable continuation, token by token, over the model's whole vocabulary.
///
/// # Errors
/// As [`generate`].
pub fn greedy(
    model: &Qwen3,
    prompt: &[u32],
    max_tokens: usize,
    stop: &[u32],
) -> Result<Vec<u32>, ModelError> {
    let classes = model.config().vocab_size;
    let settings =
        GenerateSettings { max_tokens, temperature: 0.0, seed: 0, stop: stop.to_vec(), classes };
    generate(model, prompt, &settings)
}

/// Logits of the token after the last, the first `classes` of them.
fn next_logits(model: &Qwen3, ids: &[u32], classes: usize) -> Result<Vec<f32>, ModelError> {
    let sequence = Sequence::all_scored(ids.to_vec()).map_err(|_| ModelError::Empty)?;
    let hidden = model.forward_hidden(&TokenBatch::pack([&sequence]))?;
    let last = gather_rows(&hidden, &[ids.len() as u32 - 1])?;
    let logits = linear(&last, model.head(), model.precision())?;
    let mut logits = logits.flatten_all()?.to_vec1()?;
    logits.truncate(classes);
    Ok(logits)
}

fn largest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

/// The class at `point` (0 to 1) of the cumulative softmax.
fn draw(logits: &[f32], temperature: f64, point: f64) -> u32 {
    let top = f64::from(logits[largest(logits) as usize]);
    let weights: Vec<f64> =
        logits.iter().map(|&z| ((f64::from(z) - top) / temperature).exp()).collect();
    let mut left = point * weights.iter().sum::<f64>();
    for (id, weight) in weights.iter().enumerate() {
        left -= weight;
        if left < 0.0 {
            return id as u32;
        }
    }
    // Rounding can leave a crumb past the last class.
    largest(logits)
}

#[cfg(test)]
#[path = "generate_tests.rs"]
mod tests;
