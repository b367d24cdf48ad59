//! What the training loop tells: the facts of the run, each step, each evaluation, the end.
//!
//! The loop does not format numbers; whoever shows or stores them implements [`Observer`].

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

use crate::config::TailKind;
use crate::needs::Plan;
use crate::summary::Summary;

/// Receives what the loop tells, on the loop's own thread. A slow observer slows the training.
pub trait Observer {
    /// Everything was proved and loaded; the first step comes next.
    fn started(&mut self, facts: &RunFacts);
    /// One optimiser step was done.
    fn step(&mut self, report: &StepReport);
    /// One evaluation was done.
    fn evaluated(&mut self, report: &EvalReport);
    /// The run is over and its outputs are written.
    fn finished(&mut self, summary: &Summary);
    /// Something a person should read: a retry, a fallback, a checkpoint.
    fn note(&mut self, text: &str);
}

/// An observer that ignores everything.
#[derive(Debug, Default)]
pub struct Silent;

impl Observer for Silent {
    fn started(&mut self, _: &RunFacts) {}
    fn step(&mut self, _: &StepReport) {}
    fn evaluated(&mut self, _: &EvalReport) {}
    fn finished(&mut self, _: &Summary) {}
    fn note(&mut self, _: &str) {}
}

/// What is known of a run before its first step.
#[derive(Clone, Debug, Serialize)]
pub struct RunFacts {
    /// The teacher, where one takes part.
    pub teacher: Option<TeacherLine>,
    /// The student's name as it was given.
    pub student: String,
    /// Parameters of the student.
    pub student_parameters: u64,
    /// How the loss takes the tokens the teacher does not send; less than was wished for where its
    /// signal does not say their mass.
    pub tail: TailKind,
    /// Classes the distributions are taken over.
    pub classes: usize,
    /// Device the student is trained on.
    pub device: String,
    /// Type the operands of its products are rounded to.
    pub dtype: String,
    /// Rows a training epoch has.
    pub train_rows: usize,
    /// Tokens a training epoch has.
    pub train_tokens: u64,
    /// Rows of the held-out set.
    pub eval_rows: usize,
    /// Optimiser steps an epoch has.
    pub steps_per_epoch: u64,
    /// Optimiser steps of the whole run.
    pub total_steps: u64,
    /// Steps already done when this process began: 0, or the resumed checkpoint's. A record of
    /// steps kept from before may hold more than these; they are taken again.
    pub start_step: u64,
    /// Where the outputs go.
    pub output_dir: PathBuf,
    /// What training takes of the device's memory.
    pub memory: Plan,
}

/// A teacher, in the words of its own `GetInfo`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeacherLine {
    /// Where it was reached.
    pub url: String,
    /// Model id.
    pub model: String,
    /// Commit of the model; empty for a local directory.
    pub revision: String,
    /// Fingerprint of weights and config, 64 hexadecimal digits.
    pub fingerprint: String,
    /// Parameters of the model; 0 where the teacher does not state them.
    pub parameters: u64,
    /// Type it computes in.
    pub dtype: String,
    /// Device it runs on.
    pub device: String,
}

/// One optimiser step, as a line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: u64,
    /// Epochs done, this step included, with its fraction.
    pub epoch: f64,
    /// `alpha · kl + (1 - alpha) · ce`.
    pub loss: f64,
    /// T² times the mean divergence of the signal; none without a teacher's signal (alpha = 0).
    pub kl: Option<f64>,
    /// Mean cross-entropy of the targets at T = 1, in nats.
    pub ce: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Norm of the whole gradient, before clipping.
    pub grad_norm: f64,
    /// Tokens of the rows of this step, prompts included.
    pub tokens: u64,
    /// Those tokens by the wall time of this step, waiting included.
    pub tokens_per_second: f64,
    /// Seconds of this step spent waiting for the teacher.
    pub teacher_wait_seconds: f64,
    /// Mean over positions of the teacher's mass on what was sent; none where it cannot be known.
    pub teacher_mass: Option<f64>,
    /// Mean over positions of the student's mass on the same ids.
    pub student_mass: Option<f64>,
    /// Of `kl`, the part of the outcome that stands for all tokens that were not sent; none where the
    /// signal or the divergence has no such part.
    #[serde(default)]
    pub kl_rest: Option<f64>,
    /// Mean entropy of the teacher at T over the outcomes its signal tells apart, in nats; none where it
    /// does not say.
    #[serde(default)]
    pub teacher_entropy: Option<f64>,
    /// Bytes of the requests and replies of this step's rows, encoded; a row whose answer was kept
    /// from an earlier epoch costs none.
    pub wire_bytes: u64,
    /// Tokens of the rows those bytes are about.
    pub wire_tokens: u64,
}

/// When an evaluation was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// Before the first step.
    Before,
    /// Between steps.
    During,
    /// After the last step.
    After,
}

/// Perplexity, both ways of averaging.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Perplexity {
    /// `exp(Σ nll / Σ tokens)`.
    pub token: f64,
    /// `exp(mean over rows of a row's mean nll)`.
    pub row_mean: f64,
}

/// One evaluation on the held-out rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalReport {
    /// When.
    pub moment: Moment,
    /// Steps done by then.
    pub step: u64,
    /// Epochs done by then.
    pub epoch: f64,
    /// The model's perplexity.
    pub student: Perplexity,
    /// The teacher's perplexity on the same positions, where one takes part.
    pub teacher: Option<Perplexity>,
    /// Mean divergence of the configured signal, KL(teacher ‖ student) at T, without T².
    pub kl: Option<f64>,
    /// Share of positions where both find the same token most probable.
    pub agreement: Option<f64>,
    /// Positions scored.
    pub positions: u64,
    /// Wall time it took.
    pub seconds: f64,
}
