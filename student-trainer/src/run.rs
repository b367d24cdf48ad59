//! A run made ready: everything it needs, found, proved and loaded before the first update.

use std::path::PathBuf;
use std::sync::Arc;

use distill::schedule::LrSchedule;
use model::learner::Learner;
use model::needs::Taught;
use model::ops::head::LossSettings;
use model::recompute::Recompute;

use crate::asking::Ask;
use crate::at_once::AtOnce;
use crate::cache::join;
use crate::checkpoint;
use crate::config::{Config, OnMemory, Resume};
use crate::data::RowSet;
use crate::error::TrainError;
use crate::eval::{EvalSettings, Evaluation, HeldOut, evaluate};
use crate::joining;
use crate::memory;
use crate::needs::{self, Fit};
use crate::observer::{EvalReport, Moment, Observer, RunFacts};
use crate::outputs::{self, Claim, Reuse};
use crate::plan::{Plan, PlannedStep};
use crate::saving::{self, Saving, Snapshot};
use crate::setup::{self, Learning, Material};
use crate::signals::{Signals, free_beside};
use crate::state::{Identity, Progress};
use crate::stop::Stop;
use crate::summary::{Summary, split};
use crate::teacher::{Network, Teacher};
use crate::timing::Timing;

/// The directory of the checkpoints within the output directory.
pub(crate) const CHECKPOINTS: &str = "checkpoints";

/// A run between two steps.
pub(crate) struct Run {
    pub(crate) rows: RowSet,
    pub(crate) student: Box<dyn Learner>,
    pub(crate) plan: Plan,
    pub(crate) progress: Progress,
    pub(crate) schedule: LrSchedule,
    pub(crate) loss: LossSettings,
    pub(crate) classes: usize,
    /// What goes to the device as one.
    pub(crate) at_once: AtOnce,
    /// Whether it may become less where memory does not suffice.
    pub(crate) splits: bool,
    /// The plan of memory.
    memory: needs::Plan,
    pub(crate) timing: Timing,
    pub(crate) max_grad_norm: Option<f64>,
    pub(crate) output_dir: PathBuf,
    /// Step of the newest checkpoint written or resumed from.
    pub(crate) saved_step: u64,
    /// A checkpoint that is being written.
    pub(crate) saving: Option<Saving>,
    config: Config,
    model_dir: PathBuf,
    model_id: String,
    held_out: Option<HeldOut>,
    teacher: Option<(Teacher, Ask)>,
    /// What the teacher says of the training rows; none when the loss takes no notice of it.
    pub(crate) signals: Option<Signals>,
    network: Network,
    identity: Identity,
    /// Held as long as the run may write.
    _claim: Claim,
}

impl Run {
    /// Finds, proves and loads everything a run needs. Nothing is written but the claim on the
    /// output directory, and with `overwrite_output_dir` nothing of an earlier run is removed
    /// before all else is known to be right.
    pub(crate) fn prepare(
        config: &Config,
        observer: &mut dyn Observer,
        stop: &Stop,
    ) -> Result<Self, TrainError> {
        let reuse = match config.resume_from_checkpoint {
            Resume::Off if config.overwrite_output_dir => Reuse::Overwritten,
            Resume::Off => Reuse::Nothing,
            Resume::Auto | Resume::Path(_) => Reuse::Continued,
        };
        let claim = outputs::claim(&config.output_dir, reuse)?;
        let material = Material::gather(config, observer)?;
        Self::assemble(config, claim, material, observer, stop)
    }

    /// Makes a run of rows and a model already at hand.
    pub(crate) fn assemble(
        config: &Config,
        claim: Claim,
        material: Material,
        observer: &mut dyn Observer,
        stop: &Stop,
    ) -> Result<Self, TrainError> {
        let Material { source, rows, held_out: held_out_rows } = material;
        let network = Network::start()?;
        let sets: [&[_]; 2] = [&rows.sequences, &held_out_rows.sequences];
        let facts = source.student_facts(sets, &config.signal);
        let note = &mut |text: &str| observer.note(text);
        let who = (&source.tokenizer, &facts);
        let teacher = join::of_run(config, &network, who, [&rows, &held_out_rows], note, stop)?;
        let tail = joining::tail(config.tail, config.divergence, teacher.as_ref(), note)?;
        let config = &Config { tail, ..config.clone() };
        let classes = teacher.as_ref().map_or(facts.vocab_size, |(t, _)| t.agreement().classes);
        let plan = plan(config, rows.len());
        let fingerprint = teacher.as_ref().map(|(t, _)| t.facts().model_fingerprint.to_string());
        let said = [fingerprint, teacher.as_ref().and_then(|(_, ask)| ask.wanted.code())];
        let identity = Identity::new(config, &rows.sequences, said, plan.total_steps);
        let budget = (config.teacher_memory as u64).saturating_mul(1 << 20);
        let sets = [&rows.sequences[..], &held_out_rows.sequences];
        let asked = teacher.as_ref().map(|(_, ask)| (sets, ask.wanted));
        let free = free_beside(asked, budget);
        let taught = teacher.as_ref().map_or(Taught::Nothing, |(teacher, _)| {
            needs::taught(&config.signal, teacher.facts().hidden_size, teacher.facts().vocab_size)
        });
        let Learning { student, progress, memory } =
            setup::student(config, &source, (&rows, taught), free, &identity, observer)?;
        let schedule = setup::schedule(config, plan.total_steps)?;
        let held_out = match held_out_rows.is_empty() {
            true => None,
            false => Some(HeldOut::new(held_out_rows, teacher.as_ref(), budget)),
        };
        let signals = teacher
            .clone()
            .filter(|_| config.alpha > 0.0)
            .map(|(teacher, ask)| Signals::new(teacher, ask, Arc::clone(&rows.sequences), budget));
        saving::make_way(config, &source.dir, progress.step, observer)?;
        let precision = student.model().precision();
        Ok(Self {
            rows,
            student,
            plan,
            saved_step: progress.step,
            saving: None,
            progress,
            schedule,
            loss: setup::loss_of(config, precision),
            classes,
            at_once: at_once(config, memory.fit),
            splits: config.on_memory == OnMemory::Split && memory.recompute != Recompute::Gradients,
            memory,
            timing: Timing::new(config),
            max_grad_norm: Some(config.max_grad_norm).filter(|norm| norm.is_finite()),
            output_dir: config.output_dir.clone(),
            config: config.clone(),
            model_dir: source.dir,
            model_id: source.id,
            held_out,
            teacher,
            signals,
            network,
            identity,
            _claim: claim,
        })
    }

    /// What is known before the first step.
    pub(crate) fn facts(&self) -> RunFacts {
        let model = self.student.model();
        RunFacts {
            teacher: self.teacher.as_ref().map(|(teacher, _)| teacher.line()),
            student: self.model_id.clone(),
            student_parameters: model.index().total() as u64,
            tail: self.config.tail,
            classes: self.classes,
            device: model.device(),
            dtype: model.precision().to_string(),
            train_rows: self.rows.len(),
            train_tokens: self.rows.sequences.iter().map(|row| row.len() as u64).sum(),
            eval_rows: self.held_out.as_ref().map_or(0, HeldOut::len),
            steps_per_epoch: self.plan.steps_per_epoch(),
            total_steps: self.plan.total_steps,
            start_step: self.progress.step,
            output_dir: self.output_dir.clone(),
            memory: self.memory.clone(),
        }
    }

    /// Begins to ask for the signals of the steps that are left, where they need a teacher.
    pub(crate) fn follow_teacher(&mut self, observer: &mut dyn Observer) {
        let [kept, rows] = self.signals.as_ref().map_or([0, 0], Signals::coverage);
        let cached = self.signals.as_ref().is_some_and(Signals::has_cache);
        if kept < rows && !cached && self.plan.total_steps > self.plan.steps_per_epoch() {
            let budget = self.config.teacher_memory;
            let all = self.signals.as_ref().map_or(0, Signals::bytes_of_all).div_ceil(1 << 20);
            observer.note(&format!(
                "--teacher-memory {budget} holds the answers of {kept} of {rows} rows: the others are \
                 asked for again in each epoch; {all} would hold all"
            ));
        }
        let order = self.plan.steps_after(self.progress.step).flat_map(|step| step.rows);
        if let Some(signals) = &mut self.signals {
            signals.follow(&self.network, order);
        }
    }

    /// The student on the held-out rows; none without such rows.
    pub(crate) fn measure(&mut self, stop: &Stop) -> Result<Option<Evaluation>, TrainError> {
        let Some(held_out) = &mut self.held_out else { return Ok(None) };
        let settings =
            EvalSettings { classes: self.classes, at_once: self.at_once, loss: self.loss };
        let name = match self.progress.step {
            0 => self.model_id.clone(),
            step => format!("{} after step {step}", self.model_id),
        };
        let model = self.student.model();
        evaluate(model, &name, held_out, &settings, &self.network, stop).map(Some)
    }

    /// Whether an evaluation follows this step. The last step's is made when all is over.
    pub(crate) fn evaluation_is_due(&self, planned: &PlannedStep) -> bool {
        let due = match self.config.eval_steps {
            Some(every) => planned.step.is_multiple_of(every as u64),
            None => planned.ends_epoch,
        };
        due && planned.step < self.plan.total_steps
    }

    /// Whether a checkpoint follows this step.
    pub(crate) fn checkpoint_is_due(&self, step: u64) -> bool {
        self.saves() && step.is_multiple_of(self.config.save_steps as u64)
    }

    /// Whether something follows this step that the next one must wait for.
    pub(crate) fn something_is_due(&self, planned: &PlannedStep) -> bool {
        self.evaluation_is_due(planned) || self.checkpoint_is_due(planned.step)
    }

    /// Whether checkpoints are written without being asked for by a stop.
    pub(crate) fn saves(&self) -> bool {
        self.config.save_steps > 0
    }

    /// Writes the model as it stands to the root of the output directory.
    pub(crate) fn save_model(&self) -> Result<(), TrainError> {
        self.snapshot()?.write_model(&self.output_dir)
    }

    pub(crate) fn snapshot(&self) -> Result<Snapshot, TrainError> {
        Ok(Snapshot {
            student: self.student.snapshot()?,
            progress: self.progress.clone(),
            identity: self.identity.clone(),
            model_dir: self.model_dir.clone(),
            dtype: self.config.save_dtype,
            root: self.checkpoints(),
            keep: self.config.save_total_limit,
        })
    }

    fn checkpoints(&self) -> PathBuf {
        self.output_dir.join(CHECKPOINTS)
    }

    /// What to type to go on.
    pub(crate) fn how_to_resume(&self) -> String {
        let (step, steps, how) = (self.progress.step, self.plan.total_steps, self.resume_flags());
        format!("stopped after step {step} of {steps}; to go on, run the same command {how}")
    }

    /// An error that ended the steps, with what is kept and what to do.
    pub(crate) fn explain(&self, error: TrainError) -> TrainError {
        let (step, saved) = (self.progress.step, self.saved_step);
        let of_teacher = matches!(error, TrainError::Teacher(_) | TrainError::AtRow { .. });
        let of_disk = error.is_of_the_disk();
        if saved == 0 || !(of_disk || of_teacher && saved == step) {
            return error;
        }
        let checkpoint = self.checkpoints().join(checkpoint::name(saved));
        // Somebody may have taken it away.
        if !checkpoint.join(checkpoint::MANIFEST).is_file() {
            return error;
        }
        let (source, how) = (Box::new(error), self.resume_flags());
        match of_disk {
            true => TrainError::Unsaved { source, step: saved, checkpoint, how },
            false => TrainError::Interrupted { source, step, checkpoint, how },
        }
    }

    fn resume_flags(&self) -> &'static str {
        match self.config.overwrite_output_dir {
            true => "with --resume-from-checkpoint auto in place of --overwrite-output-dir",
            false => "with --resume-from-checkpoint auto",
        }
    }

    /// The numbers of the run so far.
    pub(crate) fn summary(&self, stopped_early: bool) -> Summary {
        let progress = &self.progress;
        let at = |moment| progress.evaluations.iter().rev().find(|e| e.moment == moment);
        let (before, after) = (at(Moment::Before), at(Moment::After));
        let teacher = progress.evaluations.iter().find_map(|e| e.teacher);
        let student = |report: Option<&EvalReport>| split(report.map(|e| e.student));
        let (teacher_perplexity, teacher_perplexity_row_mean) = split(teacher);
        let (student_perplexity_before, student_perplexity_before_row_mean) = student(before);
        let (student_perplexity_after, student_perplexity_after_row_mean) = student(after);
        let mut epoch_loss = progress.epoch_loss.clone();
        epoch_loss.extend(progress.begun_epoch());
        let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        let tokens = progress.tokens as f64;
        Summary {
            teacher_perplexity,
            teacher_perplexity_row_mean,
            student_perplexity_before,
            student_perplexity_before_row_mean,
            student_perplexity_after,
            student_perplexity_after_row_mean,
            eval_kl_before: before.and_then(|e| e.kl),
            eval_kl_after: after.and_then(|e| e.kl),
            agreement_before: before.and_then(|e| e.agreement),
            agreement_after: after.and_then(|e| e.agreement),
            evaluations: progress.evaluations.clone(),
            epoch_loss,
            steps: progress.step,
            tokens: progress.tokens,
            train_seconds: progress.train_seconds,
            tokens_per_second: share(tokens, progress.train_seconds),
            teacher_wait_fraction: share(progress.wait_seconds, progress.train_seconds),
            wire_bytes_per_token: share(progress.wire_bytes as f64, progress.wire_tokens as f64),
            peak_rss_bytes: memory::peak_rss_bytes(),
            fingerprint_teacher: self.teacher.as_ref().map(|(t, _)| t.line().fingerprint),
            seed: self.config.seed,
            stopped_early,
            config: serde_json::to_value(&self.config).unwrap_or_default(),
        }
    }

    /// Writes `summary.json`.
    pub(crate) fn write_summary(&self, summary: &Summary) -> Result<(), TrainError> {
        let path = self.output_dir.join("summary.json");
        Ok(outputs::at("write", &path, summary.write(&path))?)
    }
}

fn plan(config: &Config, rows: usize) -> Plan {
    let rows_per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps;
    let of_epochs = Plan::steps_of_epochs(rows, rows_per_step, config.num_train_epochs);
    Plan {
        rows,
        rows_per_step,
        total_steps: config.max_steps.map_or(of_epochs, |steps| steps as u64),
        shuffle: config.shuffle,
        seed: config.seed,
    }
}

/// What goes to the device as one.
fn at_once(config: &Config, fit: Option<Fit>) -> AtOnce {
    let rows = AtOnce::rows(config.per_device_train_batch_size);
    let rows = if config.on_memory == OnMemory::Split { rows } else { rows.whole() };
    match fit {
        Some(Fit::Parts { tokens, .. }) => rows.at_most(tokens),
        Some(Fit::Whole | Fit::Tried) | None => rows,
    }
}
