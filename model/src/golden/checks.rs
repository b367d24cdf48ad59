//! The comparisons, in the order the engine is built up: forward, signal, losses, gradients,
//! AdamW steps.

use std::error::Error;
use std::path::Path;

use candle_core::{Device as Tensors, Tensor};
use distill::batch::TokenBatch;
use distill::signal::{Entries, TopK};

use super::distances::{largest_difference, norm_of_difference};
use super::files::{Golden, Losses, Mode};
use super::{GoldenError, Kind, Report};
use crate::config::Qwen3Config;
use crate::device::Device;
use crate::language_model::{Asked, LanguageModel, NotFinite, Said as Answer};
use crate::learner::Learner;
use crate::ops::Precision;
use crate::ops::adamw::AdamW;
use crate::ops::head::{Divergence, HeadLoss, LossSettings, Tail, Teaching};
use crate::ops::matmul::linear;
use crate::ops::topk::Wanted;
use crate::parameters::ParameterIndex;
use crate::recompute::Recompute;
use crate::student::Training;

/// The setting of the golden gradients.
const GRADIENT_ALPHA: f64 = 0.7;
const GRADIENT_TEMPERATURE: f64 = 5.0;

type Outcome<T = ()> = Result<T, GoldenError>;

/// Compares everything a golden folder holds, in float32, whatever the training steps compute again.
///
/// # Errors
/// [`GoldenError`] when the folder cannot be read or the engine refuses it. An error beyond its
/// tolerance is no `Err`: see [`Report::passes`].
pub fn run(dir: &Path, device: Device, recompute: Recompute) -> Result<Report, GoldenError> {
    let case = Case { recompute, ..Case::open(dir, device)? };
    let mut report = Report::new(device);
    case.check_logits("teacher", &*case.teacher, &mut report)?;
    let student = case.student()?;
    case.check_logits("student", student.model(), &mut report)?;
    case.check_signal(&mut report)?;
    case.check_losses(student.model(), &mut report)?;
    for mode in Mode::ALL {
        case.check_gradients(mode, &mut report)?;
    }
    for (mode, steps) in &case.golden.numbers.adamw.steps {
        let mut student = case.student()?;
        for (number, step) in steps.iter().enumerate() {
            let place = || format!("{} step {}", mode.name(), number + 1);
            let adamw = &case.golden.numbers.adamw;
            let objective = case.objective_of_steps(*mode, adamw.alpha, adamw.temperature)?;
            let loss = case.backward(&mut *student, objective)?;
            let norm = student.step(adamw.lr, Some(adamw.clip_grad_norm)).map_err(engine)?;
            report.add_relative(Kind::StepLosses, loss.total, step.losses.total, place);
            report.add_relative(Kind::StepLosses, loss.kl, step.losses.kl, || kl(place()));
            report.add_relative(Kind::StepLosses, loss.ce, step.losses.ce, || ce(place()));
            report.add_relative(Kind::StepNorms, norm, step.grad_norm, || {
                format!("gradient norm, {}", place())
            });
        }
        case.check_parameters(*mode, steps.len(), &*student, &mut report)?;
    }
    Ok(report)
}

/// The relative error of every parameter's gradient against the golden one of a signal, with the
/// student's products in `precision` and the teacher's in float32: the golden signal is given, the
/// student is on trial.
///
/// # Errors
/// [`GoldenError`] when the folder cannot be read or the engine refuses it.
#[cfg(test)]
pub(super) fn gradient_errors(
    dir: &Path,
    mode: Mode,
    precision: Precision,
) -> Result<Vec<(String, f64)>, GoldenError> {
    let case = Case { precision, ..Case::open(dir, Device::Cpu)? };
    let mut student = case.student()?;
    let objective = case.objective(mode, GRADIENT_ALPHA, GRADIENT_TEMPERATURE)?;
    case.backward(&mut *student, objective)?;
    let gradients = student.take_gradients().map_err(engine)?;
    let error = |parameter: &crate::parameters::Parameter| {
        let golden = case.golden.floats(&format!("grad.{}.{}", mode.name(), parameter.name))?;
        let ours = &gradients[parameter.offset..parameter.offset + parameter.len()];
        Ok((parameter.name.clone(), norm_of_difference(ours, &golden)))
    };
    student.model().index().parameters().iter().map(error).collect()
}

/// What the teacher of a case says.
enum Said {
    TopK(TopK),
    Full { hidden: Tensor, w: Tensor },
}

impl Said {
    fn teaching(&self) -> Teaching<'_> {
        match self {
            Self::TopK(signal) => Teaching::TopK(signal),
            Self::Full { hidden, w } => Teaching::Full { hidden, w },
        }
    }
}

struct Case {
    golden: Golden,
    batch: TokenBatch,
    /// Where each token of the batch lies in the padded tensors.
    places: Vec<usize>,
    teacher: Box<dyn LanguageModel>,
    device: Device,
    classes: usize,
    /// Of the student's products.
    precision: Precision,
    recompute: Recompute,
}

impl Case {
    fn open(dir: &Path, device: Device) -> Outcome<Self> {
        let golden = Golden::read(dir)?;
        let (batch, places) = golden.batch()?;
        let folder = dir.join("teacher");
        let config = Qwen3Config::from_dir(&folder).map_err(engine)?;
        let teacher = device.load(&folder, config, Precision::F32).map_err(engine)?;
        let student = Qwen3Config::from_dir(&dir.join("student")).map_err(engine)?;
        let classes = teacher.config().vocab_size.min(student.vocab_size);
        let (precision, recompute) = (Precision::F32, Recompute::None);
        Ok(Self { golden, batch, places, teacher, device, classes, precision, recompute })
    }

    /// The student as it starts.
    fn student(&self) -> Outcome<Box<dyn Learner>> {
        self.student_with(self.recompute)
    }

    fn student_with(&self, recompute: Recompute) -> Outcome<Box<dyn Learner>> {
        let folder = self.golden.dir.join("student");
        let config = Qwen3Config::from_dir(&folder).map_err(engine)?;
        let adamw = &self.golden.numbers.adamw;
        let optimiser = AdamW {
            beta1: adamw.betas[0],
            beta2: adamw.betas[1],
            epsilon: adamw.eps,
            weight_decay: adamw.weight_decay,
        };
        let training = Training { precision: self.precision, optimiser, recompute };
        self.device.learner(&folder, config, training).map_err(engine)
    }

    fn check_logits(&self, who: &str, model: &dyn LanguageModel, report: &mut Report) -> Outcome {
        let hidden = self.hidden(model, model.states(&self.batch).map_err(engine)?)?;
        let head = model.head().map_err(engine)?;
        let logits = linear(&hidden, &head, Precision::F32).map_err(engine)?;
        let ours: Vec<f32> = logits.flatten_all().and_then(|t| t.to_vec1()).map_err(engine)?;
        let golden = self.golden.floats(&format!("{who}_logits"))?;
        let width = model.config().vocab_size;
        let golden: Vec<f32> =
            self.places.iter().flat_map(|&at| &golden[at * width..][..width]).copied().collect();
        report.add(Kind::Logits, largest_difference(&ours, &golden), || format!("{who}_logits"));
        Ok(())
    }

    /// The teacher's top-k of the given positions among its first classes.
    fn signal(
        &self,
        positions: &[u32],
        classes: usize,
        k: usize,
        temperature: f64,
    ) -> Outcome<TopK> {
        let next = vec![None; positions.len()];
        let wanted = Wanted { classes, next: &next, temperature, k, entries: &Entries::Top };
        match self.ask(positions, Asked::Listed(wanted))? {
            Answer::Listed(scores) => Ok(scores.signal),
            Answer::Drawn(_) | Answer::States(_) => Err(not_asked()),
        }
    }

    /// What the teacher says of some positions.
    fn ask(&self, positions: &[u32], asked: Asked<'_>) -> Outcome<Answer> {
        let said = self.teacher.answer(&self.batch, &[(positions, asked)]).map_err(engine)?.pop();
        match said {
            Some(Ok(said)) => Ok(said),
            Some(Err(NotFinite(what))) => Err(engine(candle_core::Error::msg(what))),
            None => Err(not_asked()),
        }
    }

    /// Hidden states of a model, `[R, D]`.
    fn hidden(&self, model: &dyn LanguageModel, states: Vec<f32>) -> Outcome<Tensor> {
        let width = model.config().hidden_size;
        let rows = states.len() / width;
        Tensor::from_vec(states, (rows, width), &Tensors::Cpu).map_err(engine)
    }

    fn check_signal(&self, report: &mut Report) -> Outcome {
        let k = self.golden.numbers.k;
        let all: Vec<u32> = (0..self.places.len() as u32).collect();
        let logits = self.golden.floats("teacher_topk_logits")?;
        let everything = self.golden.floats("teacher_logits")?;
        let width = self.teacher.config().vocab_size;
        for (temperature, name) in [(1.0, "teacher_logsumexp_T1"), (5.0, "teacher_logsumexp_T5")] {
            let signal = self.signal(&all, width, k, temperature)?;
            let golden = self.golden.floats(name)?;
            let golden: Vec<f32> = self.places.iter().map(|&at| golden[at]).collect();
            let error = largest_difference(&signal.log_z, &golden);
            report.add(Kind::Signal, error, || name.to_owned());

            let values: Vec<f32> =
                signal.scaled.iter().map(|s| (f64::from(*s) * temperature) as f32).collect();
            let golden: Vec<f32> =
                self.places.iter().flat_map(|&at| &logits[at * k..][..k]).copied().collect();
            let error = largest_difference(&values, &golden);
            report.add(Kind::Signal, error, || format!("top-{k} logits at T {temperature}"));

            // The golden logits of our tokens: equal to the golden top k whatever the ties.
            let ours = signal.ids.chunks(k).zip(&self.places);
            let at = ours.flat_map(|(ids, at)| ids.iter().map(move |id| at * width + *id as usize));
            let chosen: Vec<f32> = at.map(|at| everything[at]).collect();
            let error = largest_difference(&chosen, &golden);
            report.add(Kind::Signal, error, || format!("top-{k} tokens at T {temperature}"));
        }
        Ok(())
    }

    fn check_losses(&self, student: &dyn LanguageModel, report: &mut Report) -> Outcome {
        for case in &self.golden.numbers.losses {
            let (said, settings) = self.objective(case.mode, case.alpha, case.temperature)?;
            let teaching = Some(said.teaching());
            let loss = student.losses(&self.batch, self.classes, teaching, &settings);
            let loss = loss.map_err(engine)?;
            let ours = means(&loss, &settings);
            let golden = case.losses;
            let (alpha, temperature) = (case.alpha, case.temperature);
            let place = || format!("{} alpha {alpha} T {temperature}", case.mode.name());
            report.add_relative(Kind::Losses, ours.total, golden.total, || {
                format!("total, {}", place())
            });
            report.add_relative(Kind::Losses, ours.kl, golden.kl, || kl(place()));
            report.add_relative(Kind::Losses, ours.ce, golden.ce, || ce(place()));
        }
        Ok(())
    }

    fn check_gradients(&self, mode: Mode, report: &mut Report) -> Outcome {
        let prefix = format!("grad.{}.", mode.name());
        if self.golden.names_after(&prefix).next().is_none() {
            return Ok(());
        }
        let mut student = self.student_with(match self.recompute {
            // The blocks' gradients are never there together; these are the same sums.
            Recompute::Gradients => Recompute::Blocks,
            kept @ (Recompute::None | Recompute::Blocks) => kept,
        })?;
        let objective = self.objective(mode, GRADIENT_ALPHA, GRADIENT_TEMPERATURE)?;
        self.backward(&mut *student, objective)?;
        let ours = student.take_gradients().map_err(engine)?;
        self.compare_parameters(Kind::Gradients, &prefix, student.model().index(), &ours, report)
    }

    fn check_parameters(
        &self,
        mode: Mode,
        steps: usize,
        student: &dyn Learner,
        report: &mut Report,
    ) -> Outcome {
        let prefix = format!("after{steps}.{}.", mode.name());
        let weights = student.snapshot().map_err(engine)?.weights;
        let ours = weights.flat().to_vec1::<f32>().map_err(engine)?;
        self.compare_parameters(Kind::Parameters, &prefix, weights.index(), &ours, report)
    }

    /// Every parameter of ours against its golden tensor, and no golden tensor left over.
    fn compare_parameters(
        &self,
        kind: Kind,
        prefix: &str,
        index: &ParameterIndex,
        ours: &[f32],
        report: &mut Report,
    ) -> Outcome {
        for parameter in index.parameters() {
            let place = format!("{prefix}{}", parameter.name);
            let golden = self.golden.floats(&place)?;
            let ours = &ours[parameter.offset..parameter.offset + parameter.len()];
            report.add(kind, norm_of_difference(ours, &golden), || place);
        }
        match self.golden.names_after(prefix).find(|name| index.get(name).is_none()) {
            None => Ok(()),
            Some(name) => Err(GoldenError::Tensor {
                name: format!("{prefix}{name}"),
                reason: "the student has no such parameter".to_owned(),
            }),
        }
    }

    /// Losses of the batch, its gradient added to the student's.
    fn backward(
        &self,
        student: &mut dyn Learner,
        (said, settings): (Said, LossSettings),
    ) -> Outcome<Losses> {
        let scale = 1.0 / self.batch.scored().len() as f64;
        let loss = student
            .backward(&self.batch, self.classes, Some(said.teaching()), &settings, scale)
            .map_err(engine)?;
        Ok(means(&loss, &settings))
    }

    /// What the teacher says of the scored positions, and the loss.
    fn objective(&self, mode: Mode, alpha: f64, temperature: f64) -> Outcome<(Said, LossSettings)> {
        let (k, scored) = (self.golden.numbers.k, self.batch.scored());
        let top_k = || self.signal(scored, self.classes, k, temperature).map(Said::TopK);
        let (said, tail) = match mode {
            Mode::Full => (self.everything(scored)?, Tail::Bucket),
            Mode::Tail => (top_k()?, Tail::Bucket),
            Mode::Renorm => (top_k()?, Tail::Renormalise),
        };
        let (divergence, precision) = (Divergence::ForwardKl, self.precision);
        Ok((said, LossSettings { alpha, temperature, divergence, tail, precision }))
    }

    /// The same with `full` as the top-k of every class, whose losses are made in float64: ten steps of
    /// AdamW magnify rounding beyond the tolerance otherwise (docs/log.md).
    fn objective_of_steps(
        &self,
        mode: Mode,
        alpha: f64,
        temperature: f64,
    ) -> Outcome<(Said, LossSettings)> {
        let (said, settings) = self.objective(mode, alpha, temperature)?;
        let said = match mode {
            Mode::Full => {
                let scored = self.batch.scored();
                Said::TopK(self.signal(scored, self.classes, self.classes, temperature)?)
            }
            Mode::Tail | Mode::Renorm => said,
        };
        Ok((said, settings))
    }

    fn everything(&self, positions: &[u32]) -> Outcome<Said> {
        let Answer::States(states) = self.ask(positions, Asked::States)? else {
            return Err(not_asked());
        };
        let hidden = self.hidden(&*self.teacher, states)?;
        Ok(Said::Full { hidden, w: self.teacher.head().map_err(engine)? })
    }
}

fn means(loss: &HeadLoss, settings: &LossSettings) -> Losses {
    let mean = |values: &[f32]| {
        values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len().max(1) as f64
    };
    let kl = settings.temperature * settings.temperature * mean(&loss.kl);
    let ce = mean(&loss.ce);
    Losses { total: settings.alpha * kl + (1.0 - settings.alpha) * ce, kl, ce }
}

fn kl(place: String) -> String {
    format!("kl, {place}")
}

fn ce(place: String) -> String {
    format!("ce, {place}")
}

fn not_asked() -> GoldenError {
    engine(candle_core::Error::msg("a model answered what it was not asked"))
}

fn engine(error: impl Error + Send + Sync + 'static) -> GoldenError {
    GoldenError::Engine(Box::new(error))
}
