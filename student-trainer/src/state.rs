//! What a run needs, beside its tensors, to go on as if it had never stopped.

use std::path::Path;

use distill::batch::Sequence;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::checkpoint::CheckpointError;
use crate::config::{
    Choice as _, CodecKind, Config, DivergenceKind, HiddenFormKind, SchedulerKind,
};
use crate::observer::{EvalReport, StepReport};

/// The file of it within a checkpoint.
const FILE: &str = "training.json";

/// Options that decide what the steps compute. A resumed run must have the same; all others (how
/// long, how often to evaluate and save, where to) may change.
const DECISIVE: [&str; 29] = [
    "alpha",
    "temperature",
    "signal",
    "top_k",
    "codec",
    "draws",
    "exact",
    "hidden_form",
    "signal_bytes",
    "signal_error",
    "tail",
    "divergence",
    "beta",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "loss_on",
    "chat_template",
    "shuffle",
    "seed",
    "dtype",
];

/// What has been done and measured so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Optimiser steps done.
    pub step: u64,
    /// Tokens of those steps.
    pub tokens: u64,
    /// Bytes on the wire for them.
    pub wire_bytes: u64,
    /// Tokens of the rows those bytes are about.
    #[serde(default)]
    pub wire_tokens: u64,
    /// Wall time of the steps, in seconds.
    pub train_seconds: f64,
    /// Of it, waiting for the teacher.
    pub wait_seconds: f64,
    /// Mean loss of each epoch done.
    pub epoch_loss: Vec<f64>,
    /// Sum of the losses of the steps of the epoch begun.
    pub loss_sum: f64,
    /// How many those are.
    pub loss_steps: u64,
    /// Every evaluation so far.
    pub evaluations: Vec<EvalReport>,
}

impl Progress {
    /// Takes a step into account, which took `seconds`.
    pub fn count(&mut self, report: &StepReport, seconds: f64, ends_epoch: bool) {
        self.step = report.step;
        self.tokens += report.tokens;
        self.wire_bytes += report.wire_bytes;
        self.wire_tokens += report.wire_tokens;
        self.train_seconds += seconds;
        self.wait_seconds += report.teacher_wait_seconds;
        self.loss_sum += report.loss;
        self.loss_steps += 1;
        if ends_epoch {
            self.epoch_loss.extend(self.begun_epoch());
            (self.loss_sum, self.loss_steps) = (0.0, 0);
        }
    }

    /// Mean loss of the epoch begun; none when no step of one was done.
    pub fn begun_epoch(&self) -> Option<f64> {
        (self.loss_steps > 0).then(|| self.loss_sum / self.loss_steps as f64)
    }
}

/// What makes a run this run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// The decisive options, by name, and what the rows and the teacher are.
    values: Map<String, Value>,
}

impl Identity {
    /// Of a run with these settings and rows, a teacher's fingerprint, and the code and step its hidden
    /// states come in. Its number of steps belongs to it where the learning rate falls towards the last
    /// one.
    pub fn new(
        config: &Config,
        rows: &[Sequence],
        [teacher, code]: [Option<String>; 2],
        steps: u64,
    ) -> Self {
        let all = serde_json::to_value(config).unwrap_or_default();
        let pick = |key: &&str| ((*key).to_owned(), all[*key].clone());
        let mut values: Map<_, _> = DECISIVE.iter().map(pick).collect();
        let falls = match config.lr_scheduler_type {
            SchedulerKind::Linear | SchedulerKind::Cosine => true,
            SchedulerKind::Constant | SchedulerKind::ConstantWithWarmup => false,
        };
        if falls {
            values.insert("steps of the schedule".to_owned(), steps.into());
        }
        values.insert("training rows (digest)".to_owned(), digest(rows).into());
        values.insert("teacher (fingerprint)".to_owned(), teacher.into());
        if let Some(code) = code {
            let name = "code of the teacher's hidden states (its --calibration-dir keeps it)";
            values.insert(name.to_owned(), code.into());
        }
        Self { values }
    }

    /// The first value that differs, as name, here, there.
    fn differs(&self, other: &Self) -> Option<(String, String, String)> {
        let keys = self.values.keys().chain(other.values.keys());
        let of = |identity: &Self, key| identity.values.get(key).unwrap_or(&Value::Null).clone();
        keys.map(|key| (key, of(self, key), of(other, key)))
            .find(|(_, here, there)| here != there)
            .map(|(key, here, there)| (key.clone(), here.to_string(), there.to_string()))
    }
}

#[derive(Serialize, Deserialize)]
struct Saved {
    progress: Progress,
    identity: Identity,
}

/// Writes progress and identity into a checkpoint.
///
/// # Errors
/// Those of the file system.
pub fn save(dir: &Path, progress: &Progress, identity: &Identity) -> Result<(), CheckpointError> {
    let path = dir.join(FILE);
    let saved = Saved { progress: progress.clone(), identity: identity.clone() };
    let text = serde_json::to_string_pretty(&saved).map_err(std::io::Error::from);
    text.and_then(|text| std::fs::write(&path, text)).map_err(|source| CheckpointError::Io {
        action: "write",
        path,
        source,
    })
}

/// Reads the progress of a checkpoint of this very run.
///
/// # Errors
/// [`CheckpointError::OtherRun`] names the first option that differs.
pub fn load(dir: &Path, identity: &Identity) -> Result<Progress, CheckpointError> {
    let path = dir.join(FILE);
    let text = std::fs::read_to_string(&path).map_err(|source| CheckpointError::Io {
        action: "read",
        path: path.clone(),
        source,
    })?;
    let mut saved: Saved = serde_json::from_str(&text)
        .map_err(|e| CheckpointError::Unreadable { path, reason: e.to_string() })?;
    // Runs of releases without these options had these.
    let later: [(&str, Value); 8] = [
        ("codec", CodecKind::Packed.word().into()),
        ("divergence", DivergenceKind::ForwardKl.word().into()),
        ("beta", 0.5.into()),
        ("draws", 16.into()),
        ("exact", 0.into()),
        ("hidden_form", HiddenFormKind::Bf16.word().into()),
        ("signal_bytes", Value::Null),
        ("signal_error", Value::Null),
    ];
    for (key, value) in later {
        saved.identity.values.entry(key).or_insert(value);
    }
    if let Some((key, wanted, found)) = identity.differs(&saved.identity) {
        return Err(CheckpointError::OtherRun { dir: dir.to_owned(), key, found, wanted });
    }
    Ok(saved.progress)
}

/// BLAKE3 over tokens and masks of every row.
fn digest(rows: &[Sequence]) -> String {
    let mut hasher = blake3::Hasher::new();
    for row in rows {
        hasher.update(&(row.len() as u64).to_le_bytes());
        hasher.update(&distill::codec::token_bytes(&row.ids));
        hasher.update(&row.loss_mask.iter().map(|&scored| u8::from(scored)).collect::<Vec<_>>());
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::config;

    #[test]
    fn a_run_does_not_go_on_with_another_code() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), &[("alpha", "0")]);
        let of = |code: &str| Identity::new(&config, &[], [None, Some(code.to_owned())], 1);
        save(dir.path(), &Progress::default(), &of("aa at step 2^(-3/16)")).unwrap();
        assert!(load(dir.path(), &of("aa at step 2^(-3/16)")).is_ok());
        for other in ["bb at step 2^(-3/16)", "aa at step 2^(-4/16)"] {
            let said = load(dir.path(), &of(other)).unwrap_err().to_string();
            for piece in [other, "aa at step 2^(-3/16)", "--calibration-dir"] {
                assert!(said.contains(piece), "no {piece:?} in {said}");
            }
        }
    }

    #[test]
    fn a_checkpoint_of_a_release_without_an_option_had_its_default() {
        let dir = tempfile::tempdir().unwrap();
        let identity = |codec| {
            let config = config(dir.path(), &[("alpha", "0"), ("codec", codec)]);
            Identity::new(&config, &[], [None, None], 1)
        };
        let mut old = identity("packed");
        assert_eq!(old.values.remove("codec"), Some("packed".into()));
        assert_eq!(old.values.remove("divergence"), Some("forward-kl".into()));
        assert_eq!(old.values.remove("beta"), Some(0.5.into()));
        assert_eq!(old.values.remove("draws"), Some(16.into()));
        assert_eq!(old.values.remove("hidden_form"), Some("bf16".into()));
        assert_eq!(old.values.remove("signal_bytes"), Some(Value::Null));
        save(dir.path(), &Progress::default(), &old).unwrap();
        assert_eq!(load(dir.path(), &identity("packed")).unwrap(), Progress::default());
        let error = load(dir.path(), &identity("compact8")).unwrap_err();
        let CheckpointError::OtherRun { key, found, wanted, .. } = error else { panic!("{error}") };
        let words = (key.as_str(), found.as_str(), wanted.as_str());
        assert_eq!(words, ("codec", "\"packed\"", "\"compact8\""));
    }
}
