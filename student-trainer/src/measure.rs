//! `student-trainer eval`: one model on held-out rows, with or without a teacher. The numbers come
//! from the functions training uses.

use model::language_model::LanguageModel;
use serde::Serialize;

use crate::asking::Terms;
use crate::at_once::AtOnce;
use crate::cache::join::Asker;
use crate::config::{DivergenceKind, EvalConfig, SignalKind};
use crate::data::{RowSet, TokenizeOptions};
use crate::error::TrainError;
use crate::eval::{EvalSettings, Evaluation, HeldOut, evaluate};
use crate::joining;
use crate::observer::TeacherLine;
use crate::setup::{self, Source};
use crate::stop::Stop;
use crate::teacher::Network;

/// What `eval` reports.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measurement {
    /// The model's name as it was given.
    pub model: String,
    /// Its parameters.
    pub parameters: u64,
    /// Held-out rows.
    pub rows: usize,
    /// Scored positions.
    pub positions: u64,
    /// Token-weighted perplexity of the model.
    pub perplexity: f64,
    /// The same as the mean over rows.
    pub perplexity_row_mean: f64,
    /// Token-weighted perplexity of the teacher on the same positions.
    pub teacher_perplexity: Option<f64>,
    /// The same as the mean over rows.
    pub teacher_perplexity_row_mean: Option<f64>,
    /// Mean divergence of the signal at the temperature, without T²; KL(teacher ‖ model) as a rule.
    pub kl: Option<f64>,
    /// Share of positions where both find the same token most probable.
    pub agreement: Option<f64>,
    /// Which divergence `kl` is.
    pub divergence: DivergenceKind,
    /// Its mixing weight, where it has one.
    pub beta: Option<f64>,
    /// Temperature of `kl`.
    pub temperature: f64,
    /// What the teacher said.
    pub signal: SignalKind,
    /// Entries a position `kl` is taken over; none where it is taken over all classes.
    pub top_k: Option<usize>,
    /// The teacher.
    pub teacher: Option<TeacherLine>,
    /// Wall time of the evaluation.
    pub seconds: f64,
}

/// Measures a model as `config` says; `note` is told what became of the rows.
///
/// # Errors
/// [`TrainError`].
pub fn measure(
    config: &EvalConfig,
    note: &mut dyn FnMut(&str),
    stop: &Stop,
) -> Result<Measurement, TrainError> {
    let source = Source::open(&config.model, config.revision.as_deref())?;
    let options = TokenizeOptions {
        loss_on: config.loss_on,
        chat_template: config.chat_template,
        max_length: config.max_length,
    };
    let limit = config.max_eval_samples;
    let rows = source.rows("held-out", &config.eval_file, limit, options, note)?;
    let network = Network::start()?;
    let facts = source.student_facts([&rows.sequences, &[]], &config.signal);
    let terms = Terms::new(config.temperature, config.teacher_window, config.teacher_timeout);
    let reach = (&config.teacher[..], &config.access);
    let who = (&source.tokenizer, &facts);
    let (signal, note) = (&config.signal, &mut *note);
    let (network, thorough) = (&network, false);
    let mut asker = Asker { network, reach, who, signal, terms, thorough, rows: &rows, note, stop };
    let teacher = asker
        .join(config.cache.as_deref(), [("held-out", &rows), ("training", &RowSet::default())])?;
    let tail = joining::tail(config.tail, config.divergence, teacher.as_ref(), note)?;
    let compared = (tail, config.divergence.with(config.beta));
    let classes = teacher.as_ref().map_or(facts.vocab_size, |(t, _)| t.agreement().classes);
    let model = load(&source, config, note)?;
    let settings = EvalSettings {
        classes,
        at_once: AtOnce::rows(config.per_device_train_batch_size),
        loss: setup::loss(0.0, config.temperature, compared, model.precision()),
    };
    let count = rows.len();
    // Each row is asked for once: nothing need be kept.
    let mut held_out = HeldOut::new(rows, teacher.as_ref(), 0);
    let found = evaluate(&*model, &source.id, &mut held_out, &settings, network, stop)?;
    Ok(report(config, &source, &*model, count, found, teacher.map(|(t, _)| t.line())))
}

fn load(
    source: &Source,
    config: &EvalConfig,
    note: &mut dyn FnMut(&str),
) -> Result<Box<dyn LanguageModel>, TrainError> {
    let device = model::device::choose(&config.device, |text| note(text))?;
    let precision = setup::precision(config.dtype, device);
    Ok(device.load(&source.weights, source.config.clone(), precision)?)
}

fn report(
    config: &EvalConfig,
    source: &Source,
    model: &dyn LanguageModel,
    rows: usize,
    found: Evaluation,
    teacher: Option<TeacherLine>,
) -> Measurement {
    Measurement {
        model: source.id.clone(),
        parameters: model.index().total() as u64,
        rows,
        positions: found.positions,
        perplexity: found.student.token,
        perplexity_row_mean: found.student.row_mean,
        teacher_perplexity: found.teacher.map(|p| p.token),
        teacher_perplexity_row_mean: found.teacher.map(|p| p.row_mean),
        kl: found.kl,
        agreement: found.agreement,
        divergence: config.divergence,
        beta: matches!(config.divergence, DivergenceKind::Jsd | DivergenceKind::Mixture)
            .then_some(config.beta),
        temperature: config.temperature,
        signal: config.signal.kind,
        top_k: config.signal.lists().then_some(config.signal.top_k),
        teacher,
        seconds: found.seconds,
    }
}
