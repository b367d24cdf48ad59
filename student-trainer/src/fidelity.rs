//! `student-trainer signals`: what each signal of a teacher is worth to a student, on rows of one's own.
//!
//! The measure is the student's gradient of the divergence: that under a signal is held against that under
//! the teacher's full distribution, which float32 hidden states give. Its angle is what a signal teaches
//! wrongly, whatever the optimiser makes of it. How it is taken: `fidelity::bench`.

mod bench;

use serde::Serialize;

use crate::config::SignalsConfig;
use crate::data::{RowSet, TokenizeOptions};
use crate::error::TrainError;
use crate::observer::TeacherLine;
use crate::setup::Source;
use crate::stop::Stop;
use bench::{Answers, Bench, Candidate, Gradient};

/// An angle that the optimiser's own noise hides, in degrees: what is recommended where nobody names a
/// budget is the signal of the fewest bytes within it.
const GOOD_ANGLE: f64 = 2.0;

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fidelity {
    /// The teacher.
    pub teacher: TeacherLine,
    /// The student's name.
    pub student: String,
    /// Rows asked about.
    pub rows: usize,
    /// Scored positions of them.
    pub positions: usize,
    /// Each signal.
    pub signals: Vec<Measured>,
    /// Bytes a position that were allowed; none where nobody said.
    pub budget: Option<f64>,
    /// Index of the signal that is recommended; none where the budget has room for none.
    pub recommended: Option<usize>,
}

/// A signal.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// Its name.
    pub name: String,
    /// Options of `train` that ask for it.
    pub options: String,
    /// Bytes of the answers a scored position, all of the messages included, at the temperature where
    /// they are most.
    pub bytes: f64,
    /// Seconds from the first request to the last answer, for 1,000 positions.
    pub ask_seconds: f64,
    /// Seconds of the student's passes, for 1,000 positions.
    pub learn_seconds: f64,
    /// At each temperature.
    pub at: Vec<AtTemperature>,
}

/// A signal at a temperature.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct AtTemperature {
    /// The temperature.
    pub temperature: f64,
    /// Bytes of the answers a scored position.
    pub bytes: f64,
    /// The teacher's mass on what is listed; none where nothing is left out.
    pub teacher_mass: Option<f64>,
    /// Between the two gradients, in degrees.
    pub angle: f64,
    /// Norm of the gradient under the signal, of that under the full distribution.
    pub norm_ratio: f64,
    /// Mean divergence as the signal says it, in nats, without T².
    pub kl: f64,
    /// That less the divergence from the full distribution.
    pub kl_error: f64,
}

impl Measured {
    /// The largest of its angles.
    pub fn worst_angle(&self) -> f64 {
        self.at.iter().map(|at| at.angle).fold(0.0, f64::max)
    }
}

/// Measures what `config` says; `note` is told what is being done.
///
/// # Errors
/// [`TrainError`]
pub fn measure(
    config: &SignalsConfig,
    note: &mut dyn FnMut(&str),
    stop: &Stop,
) -> Result<Fidelity, TrainError> {
    let source = Source::open(&config.student, config.student_revision.as_deref())?;
    let options = TokenizeOptions {
        loss_on: config.loss_on,
        chat_template: config.chat_template,
        max_length: config.max_length,
    };
    let limit = Some(config.max_samples);
    let rows: RowSet = source.rows("measured", &config.data, limit, options, note)?;
    let device = model::device::choose(&config.device, |text| note(text))?;
    let mut bench = Bench::new(config, &source, &rows, device, stop)?;
    let candidates = bench.candidates(config, note)?;
    let mut signals: Vec<Measured> = candidates.iter().map(Candidate::unmeasured).collect();
    let mut kept: Vec<Option<Answers>> = candidates.iter().map(|_| None).collect();
    for &temperature in &config.temperatures {
        note(&format!("measuring {} signals at temperature {temperature}", candidates.len()));
        let mut exact = None;
        for (index, candidate) in candidates.iter().enumerate() {
            if kept[index].is_none() || candidate.is_of_one_temperature() {
                kept[index] = Some(bench.ask(candidate.wanted, temperature)?);
            }
            let Some(answers) = &kept[index] else { continue };
            let found = bench.gradient(candidate, &answers.scored, temperature)?;
            // The first one is everything.
            let exact = exact.get_or_insert_with(|| (found.flat.clone(), found.kl));
            signals[index].take(temperature, &found, exact, answers, candidate.lists());
        }
    }
    let positions = bench.set.iter().map(|row| row.scored().count()).sum();
    let of_position = |signal: &mut Measured| signal.by_position(positions, &config.temperatures);
    signals.iter_mut().for_each(of_position);
    let recommended = recommend(&signals, config.budget);
    let teacher = bench.teacher.line();
    let (student, rows, budget) = (source.id, rows.len(), config.budget);
    Ok(Fidelity { teacher, student, rows, positions, signals, budget, recommended })
}

impl Measured {
    /// Takes note of a temperature; costs are summed.
    fn take(
        &mut self,
        temperature: f64,
        found: &Gradient,
        (exact, exact_kl): &(Vec<f32>, f64),
        answers: &Answers,
        lists: bool,
    ) {
        let (angle, norm_ratio) = apart(&found.flat, exact);
        self.at.push(AtTemperature {
            temperature,
            bytes: answers.bytes as f64,
            teacher_mass: lists.then_some(found.teacher_mass),
            angle,
            norm_ratio,
            kl: found.kl,
            kl_error: found.kl - exact_kl,
        });
        self.ask_seconds += answers.seconds;
        self.learn_seconds += found.seconds;
    }

    /// Sums over temperatures become means for so many positions.
    fn by_position(&mut self, positions: usize, temperatures: &[f64]) {
        let all = positions as f64 * temperatures.len() as f64;
        self.at.iter_mut().for_each(|at| at.bytes /= positions as f64);
        self.bytes = self.at.iter().map(|at| at.bytes).fold(0.0, f64::max);
        self.ask_seconds *= 1000.0 / all;
        self.learn_seconds *= 1000.0 / all;
    }
}

/// The angle between two vectors, in degrees, and the norm of the first by that of the second.
fn apart(a: &[f32], b: &[f32]) -> (f64, f64) {
    let norm = |v: &[f32]| v.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    let (of_a, of_b) = (norm(a), norm(b));
    // By the half angle: the arc cosine loses its digits where vectors are nearly the same.
    let halves = a.iter().zip(b).map(|(&a, &b)| {
        let (a, b) = (f64::from(a) / of_a, f64::from(b) / of_b);
        ((a - b) * (a - b), (a + b) * (a + b))
    });
    let (less, more) = halves.fold((0.0, 0.0), |(x, y), (a, b)| (x + a, y + b));
    (2.0 * less.sqrt().atan2(more.sqrt()).to_degrees(), of_a / of_b)
}

/// The signal of the smallest worst angle within the budget; without one that of the fewest bytes whose
/// worst angle is good, or where none is, of the smallest.
fn recommend(signals: &[Measured], budget: Option<f64>) -> Option<usize> {
    let angle = |&at: &usize| signals[at].worst_angle();
    let all = 0..signals.len();
    let by_angle = |a: &usize, b: &usize| angle(a).total_cmp(&angle(b));
    match budget {
        Some(budget) => all.filter(|&at| signals[at].bytes <= budget).min_by(by_angle),
        None => {
            let good = all.clone().filter(|at| angle(at) <= GOOD_ANGLE);
            let fewest = good.min_by(|&a, &b| signals[a].bytes.total_cmp(&signals[b].bytes));
            fewest.or_else(|| all.min_by(by_angle))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signal(bytes: f64, angle: f64) -> Measured {
        let at = AtTemperature {
            temperature: 1.0,
            bytes,
            teacher_mass: None,
            angle,
            norm_ratio: 1.0,
            kl: 0.0,
            kl_error: 0.0,
        };
        let (name, options) = (String::new(), String::new());
        let at = vec![AtTemperature { angle: 0.5 * angle, ..at }, at];
        Measured { name, options, bytes, ask_seconds: 0.0, learn_seconds: 0.0, at }
    }

    #[test]
    fn the_angle_of_vectors_by_hand() {
        let (angle, ratio) = apart(&[3.0, 0.0], &[1.0, 1.0]);
        assert!((angle - 45.0).abs() < 1e-12 && (ratio - 3.0 / 2f64.sqrt()).abs() < 1e-12);
        assert_eq!(apart(&[1.0, 2.0], &[1.0, 2.0]), (0.0, 1.0));
        let (angle, _) = apart(&[1.0, 1e-6], &[1.0, 0.0]);
        assert!((angle / 1e-6f64.to_degrees() - 1.0).abs() < 1e-6, "{angle}");
        assert!((apart(&[1.0, 0.0], &[-2.0, 0.0]).0 - 180.0).abs() < 1e-12);
    }

    #[test]
    fn the_best_within_the_budget_is_recommended_or_the_smallest_that_is_good() {
        let all = [signal(1000.0, 0.0), signal(40.0, 1.5), signal(90.0, 0.4), signal(12.0, 9.0)];
        assert_eq!(recommend(&all, None), Some(1));
        assert_eq!(recommend(&all, Some(100.0)), Some(2));
        assert_eq!(recommend(&all, Some(20.0)), Some(3));
        assert_eq!(recommend(&all, Some(5.0)), None);
        assert_eq!(recommend(&all[3..], None), Some(0));
    }
}
