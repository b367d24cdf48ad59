//! What remains of a run: `summary.json`.

use serde::{Deserialize, Serialize};
use std::path::Path;

use crate::config::{Choice as _, DivergenceKind};
use crate::observer::{EvalReport, Perplexity};

/// The numbers of a finished run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The teacher's perplexity on the held-out rows, token-weighted.
    pub teacher_perplexity: Option<f64>,
    /// The same, as the mean over rows.
    pub teacher_perplexity_row_mean: Option<f64>,
    /// The student's before the first step.
    pub student_perplexity_before: Option<f64>,
    /// The same, as the mean over rows.
    pub student_perplexity_before_row_mean: Option<f64>,
    /// The student's after the last step.
    pub student_perplexity_after: Option<f64>,
    /// The same, as the mean over rows.
    pub student_perplexity_after_row_mean: Option<f64>,
    /// Held-out KL(teacher ‖ student) before the first step, without T².
    pub eval_kl_before: Option<f64>,
    /// The same after the last step.
    pub eval_kl_after: Option<f64>,
    /// Share of held-out positions where both agree on the most probable token, before.
    pub agreement_before: Option<f64>,
    /// The same after the last step.
    pub agreement_after: Option<f64>,
    /// Every evaluation, in order.
    pub evaluations: Vec<EvalReport>,
    /// Mean loss of the steps of each epoch; the last may be of a part of one.
    pub epoch_loss: Vec<f64>,
    /// Optimiser steps.
    pub steps: u64,
    /// Tokens of all steps, prompts included.
    pub tokens: u64,
    /// Wall time of the steps, evaluations and saving apart.
    pub train_seconds: f64,
    /// Tokens by that time.
    pub tokens_per_second: f64,
    /// Share of that time spent waiting for the teacher.
    pub teacher_wait_fraction: f64,
    /// Bytes of requests and replies by the tokens asked about.
    pub wire_bytes_per_token: f64,
    /// Largest resident memory of this process so far; none where the system does not say.
    pub peak_rss_bytes: Option<u64>,
    /// Fingerprint of the teacher's weights and config.
    pub fingerprint_teacher: Option<String>,
    /// Seed of order and initialisation.
    pub seed: u64,
    /// Whether the run was stopped before its last step.
    pub stopped_early: bool,
    /// The resolved configuration.
    pub config: serde_json::Value,
}

impl Summary {
    /// What the divergence of the configuration is called; KL where it names none.
    pub fn divergence(&self) -> String {
        let named = self.config["divergence"].as_str().and_then(DivergenceKind::from_word);
        named.unwrap_or_default().heading(self.config["beta"].as_f64().unwrap_or_default())
    }

    /// Writes it as indented JSON.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        std::fs::write(path, text)
    }
}

/// The two numbers of an optional perplexity.
pub(crate) fn split(perplexity: Option<Perplexity>) -> (Option<f64>, Option<f64>) {
    (perplexity.map(|p| p.token), perplexity.map(|p| p.row_mean))
}
