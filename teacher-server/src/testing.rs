//! A teacher without a model, for tests of everything around the model.
//!
//! Its logits are a fixed function of the tokens up to a position, computed in float64, so that a
//! test can say what the right reply is; and it can be told to fail in each way a device can.

use std::sync::Arc;
use std::sync::mpsc::Receiver;

use distill::fingerprint::{Fingerprint, token_checksum};
use distill::signal::{Computed, DrawKey, Draws, Entries, TopK, log_sum_exp};
use model::started::Started;
use proto::convert::ScoreJob;

use crate::scorer::{Facts, JobScores, LoadError, Loaded, Scorer, ScorerError, Scores, TextCodec};

/// What a fake teacher says of itself.
pub fn facts(vocab_size: u32) -> Facts {
    Facts {
        model: "fake".into(),
        revision: String::new(),
        model_fingerprint: Fingerprint([0xA5; 32]),
        tokenizer_fingerprint: Fingerprint([0x5A; 32]),
        vocab_size,
        tokenizer_size: vocab_size,
        hidden_size: 0,
        max_positions: 4096,
        dtype: "f32".into(),
        device: "cpu".into(),
        parameters: 0,
    }
}

/// A scorer without a model.
#[derive(Debug, Default)]
pub struct FakeScorer {
    /// Number of classes.
    pub vocab_size: usize,
    /// A sequence with this token panics.
    pub panic_at: Option<u32>,
    /// A batch with this token in it fails.
    pub fail_at: Option<u32>,
    /// With a batch with this token in it the device fails for good.
    pub lost_at: Option<u32>,
    /// A sequence with this token is answered with NaN.
    pub nan_at: Option<u32>,
    /// A batch of more tokens than this is too large for the device's memory.
    pub memory_tokens: Option<usize>,
    /// Before it is warm something is taken from here; the server waits for it.
    pub warm: Option<Receiver<()>>,
    /// Before each batch something is taken from here; the batch waits for it.
    pub gate: Option<Receiver<()>>,
}

impl FakeScorer {
    /// A fake over this many classes that never fails.
    pub fn new(vocab_size: usize) -> Self {
        Self { vocab_size, ..Self::default() }
    }

    /// Ready to be served: with [`facts`] and a [`FakeText`].
    pub fn loaded(self) -> Loaded {
        let vocab_size = self.vocab_size as u32;
        let facts = facts(vocab_size);
        Loaded { scorer: Box::new(self), text: Arc::new(FakeText { vocab_size }), facts }
    }

    /// The logits after these tokens, `[classes]`: between -8 and 8, all different in practice.
    pub fn logits(prefix: &[u32], classes: usize) -> Vec<f64> {
        let bytes: Vec<u8> = prefix.iter().flat_map(|id| id.to_le_bytes()).collect();
        let seed = distill::fingerprint::payload_checksum(&[&bytes]);
        let hash = |j: usize| (seed ^ j as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        (0..classes).map(|j| hash(j) as f64 / f64::from(u32::MAX) * 16.0 - 8.0).collect()
    }

    /// What a job is answered, straight from the definition.
    pub fn scores(job: &ScoreJob) -> Scores {
        let temperature = f64::from(job.temperature);
        let draws = if let Entries::Drawn { draws, .. } = job.entries { draws } else { 0 };
        let (mut signal, mut drawn) = (TopK::new(job.k), Draws::new(draws, job.k));
        let (mut next_logprob, mut next_logprob_t) = (Vec::new(), Vec::new());
        let checksum = token_checksum(&job.tokens);
        for (row, (t, next)) in job.positions().zip(job.next_tokens()).enumerate() {
            let logits = Self::logits(&job.tokens[..=t as usize], job.classes);
            match (&job.entries, job.entries.named_at(row, job.k)) {
                (Entries::Drawn { draws, seed }, _) => {
                    let key = DrawKey { seed: *seed, token_checksum: checksum, position: t };
                    drawn.push_exact(&logits, temperature, &key.uniforms(*draws));
                }
                (_, None) => signal.push_exact(&logits, temperature),
                (_, Some(ids)) => signal.push_exact_named(ids, &logits, temperature),
            }
            let logprob = |t: f64| {
                let log_z = log_sum_exp(logits.iter().map(|y| y / t));
                next.map_or(f64::NAN, |id| logits[id as usize] / t - log_z) as f32
            };
            next_logprob.push(logprob(1.0));
            next_logprob_t.push(logprob(temperature));
        }
        let signal = if draws > 0 { Computed::Drawn(drawn) } else { signal.into() };
        Scores { signal, next_logprob, next_logprob_t }
    }
}

impl Scorer for FakeScorer {
    fn start(&mut self, jobs: &[&ScoreJob]) -> Result<Started<Vec<JobScores>>, ScorerError> {
        if let Some(gate) = &self.gate {
            // A test that dropped its end wants no more waiting.
            let _ = gate.recv();
        }
        let holds = |job: &ScoreJob, id: Option<u32>| id.is_some_and(|id| job.tokens.contains(&id));
        assert!(!jobs.iter().any(|job| holds(job, self.panic_at)), "the fake scorer was told to");
        if jobs.iter().any(|job| holds(job, self.fail_at)) {
            return Err(ScorerError::Failed("the fake device was told to fail".into()));
        }
        if jobs.iter().any(|job| holds(job, self.lost_at)) {
            return Err(ScorerError::DeviceLost(
                "the fake device was told to fail for good".into(),
            ));
        }
        let tokens: usize = jobs.iter().map(|job| job.tokens.len()).sum();
        if self.memory_tokens.is_some_and(|most| tokens > most) {
            return Err(ScorerError::OutOfMemory(format!("{tokens} tokens at once")));
        }
        let answer = |job: &&ScoreJob| {
            let mut scores = Self::scores(job);
            if holds(job, self.nan_at) {
                match &mut scores.signal {
                    Computed::TopK(signal) => signal.scaled[0] = f32::NAN,
                    Computed::Drawn(_) | Computed::Hidden(_) | Computed::Coded(_) => {
                        scores.next_logprob[0] = f32::NAN;
                    }
                }
            }
            Ok(scores)
        };
        Ok(Started::Done(jobs.iter().map(answer).collect()))
    }

    fn warm_up(&mut self, _: &Facts) -> Result<(), LoadError> {
        if let Some(warm) = &self.warm {
            let _ = warm.recv();
        }
        Ok(())
    }
}

/// Scores of two entries a row, given as log-probabilities, and the realised token's at the
/// temperature asked for. What they are made of (a sum of 2, another log-probability at T = 1) is
/// nothing that a reader of them should show.
pub fn scores_of(rows: &[([(u32, f32); 2], f32)]) -> Scores {
    let mut signal = TopK::new(2);
    for (entries, _) in rows {
        signal.ids.extend(entries.map(|(id, _)| id));
        signal.scaled.extend(entries.map(|(_, logprob)| logprob + 2.0));
        signal.log_z.push(2.0);
        signal.log_rest.push(-3.0);
    }
    let next_logprob_t = rows.iter().map(|(_, realised)| *realised).collect();
    let signal = signal.into();
    Scores { signal, next_logprob: vec![-77.0; rows.len()], next_logprob_t }
}

/// A tokenizer of bytes.
#[derive(Debug)]
pub struct FakeText {
    /// Ids are bytes modulo this.
    pub vocab_size: u32,
}

impl TextCodec for FakeText {
    fn encode(&self, text: &str) -> Result<Vec<u32>, ScorerError> {
        Ok(text.bytes().map(|byte| u32::from(byte) % self.vocab_size).collect())
    }

    fn text_of(&self, id: u32) -> String {
        char::from_u32(id).unwrap_or(char::REPLACEMENT_CHARACTER).to_string()
    }
}
