//! How good a model is on held-out rows: its perplexity, its distance from the teacher, and how
//! often both would say the same.

use std::sync::Arc;
use std::time::Instant;

use distill::batch::{Sequence, TokenBatch};
use distill::perplexity::Nll;
use distill::signal::Signal;
use model::language_model::LanguageModel;
use model::ops::head::{HeadLoss, LossSettings};
use model::student::rows_not_finite;

use crate::asking::Ask;
use crate::at_once::AtOnce;
use crate::candidates::Own;
use crate::data::RowSet;
use crate::error::TrainError;
use crate::feed::Scored;
use crate::observer::Perplexity;
use crate::reading::Said;
use crate::signals::{Signals, take};
use crate::stop::Stop;
use crate::teacher::{Network, Teacher};

/// Held-out rows, and what a teacher says of them where one takes part.
pub struct HeldOut {
    rows: RowSet,
    signals: Option<Signals>,
}

/// What an evaluation found.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// The model's perplexity.
    pub student: Perplexity,
    /// The teacher's, on the same positions.
    pub teacher: Option<Perplexity>,
    /// Mean divergence of the signal at T, without T².
    pub kl: Option<f64>,
    /// Share of positions where both find the same token most probable.
    pub agreement: Option<f64>,
    /// Positions scored.
    pub positions: u64,
    /// Wall time it took.
    pub seconds: f64,
}

/// How a model is measured.
#[derive(Clone, Copy, Debug)]
pub struct EvalSettings {
    /// Classes the distributions are taken over.
    pub classes: usize,
    /// What is computed at once.
    pub at_once: AtOnce,
    /// Temperature and tail of the divergence, rounding of the products.
    pub loss: LossSettings,
}

impl HeldOut {
    /// Held-out rows; of a teacher's answers at most `budget` bytes are kept between evaluations.
    pub fn new(rows: RowSet, teacher: Option<&(Teacher, Ask)>, budget: u64) -> Self {
        let set = || Arc::clone(&rows.sequences);
        let signals =
            teacher.map(|(teacher, ask)| Signals::new(teacher.clone(), *ask, set(), budget));
        Self { rows, signals }
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// Measures `model`, called `name`, on held-out rows.
///
/// # Errors
/// [`TrainError::EvaluationNotFinite`]; when an operation fails, or the teacher.
pub fn evaluate(
    model: &dyn LanguageModel,
    name: &str,
    held_out: &mut HeldOut,
    settings: &EvalSettings,
    network: &Network,
    stop: &Stop,
) -> Result<Evaluation, TrainError> {
    let begin = Instant::now();
    let HeldOut { rows, signals } = held_out;
    if let Some(signals) = signals {
        signals.follow(network, 0..rows.len());
    }
    let (mut tally, mut bad) = (Tally::default(), Vec::new());
    let all: Vec<usize> = (0..rows.len()).collect();
    for these in settings.at_once.groups(rows.sequences.iter().map(Sequence::len)) {
        let these = &all[these];
        let own = Own { model, classes: settings.classes, at_once: settings.at_once };
        let answers = take(signals.as_mut(), these, rows, own, stop)?;
        let parts = settings.at_once.in_parts(0..these.len(), &mut |part| {
            let batch =
                TokenBatch::pack(these[part.clone()].iter().map(|&row| &rows.sequences[row]));
            // Without a teacher there are none.
            let answers = answers.get(part.clone()).unwrap_or_default();
            let said = signals.as_ref().map_or(Ok(None), |s| s.reading().said(answers))?;
            let teaching = said.as_ref().map(Said::teaching);
            let loss = model.losses(&batch, settings.classes, teaching, &settings.loss)?;
            Ok((part, batch, loss))
        })?;
        for (part, batch, loss) in parts {
            let broken = rows_not_finite(batch.scored_per_row(), &loss);
            bad.extend(broken.into_iter().map(|row| these[part.start + row]));
            tally.add(&batch, &loss, answers.get(part).unwrap_or_default());
        }
    }
    if !bad.is_empty() {
        let (model, count, of) = (name.to_owned(), bad.len(), rows.len());
        return Err(TrainError::EvaluationNotFinite { model, count, of, rows: rows.list(&bad) });
    }
    tally.report(begin.elapsed().as_secs_f64())
}

/// Sums over positions, in row order.
#[derive(Debug, Default)]
struct Tally {
    student: Nll,
    teacher: Nll,
    /// Whether there are targets of which the teacher's log-probability is not known, as a table that was
    /// imported may lack it.
    unsaid: bool,
    kl: f64,
    agreed: u64,
    /// Positions whose most probable token the teacher named.
    named: u64,
    answered: u64,
}

impl Tally {
    fn add(&mut self, batch: &TokenBatch, loss: &HeadLoss, answers: &[Scored]) {
        let mut start = 0;
        for &count in batch.scored_per_row() {
            self.student.add_row(loss.ce[start..start + count].iter().copied());
            start += count;
        }
        let mut start = 0;
        for scored in answers {
            let these = start..start + scored.signal.rows();
            match &loss.teacher {
                Some(teacher) => self.teacher.add_row(teacher.ce[these.clone()].iter().copied()),
                None => {
                    let next = &scored.next_logprob;
                    self.unsaid |= next.iter().any(|logprob| logprob.is_nan());
                    self.teacher.add_row(next.iter().map(|logprob| -logprob));
                }
            }
            for (row, at) in these.clone().enumerate() {
                self.kl += f64::from(loss.kl[at]);
                let best = match &loss.teacher {
                    Some(teacher) => Some(teacher.argmax[at]),
                    None => best(&scored.signal, row),
                };
                self.named += u64::from(best.is_some());
                self.agreed += u64::from(best == Some(loss.argmax[at]));
            }
            start = these.end;
            self.answered += these.len() as u64;
        }
    }

    fn report(&self, seconds: f64) -> Result<Evaluation, TrainError> {
        let answered = self.answered as f64;
        let of_answered = |sum: f64| (self.answered > 0).then(|| sum / answered);
        Ok(Evaluation {
            student: perplexity(&self.student).ok_or(TrainError::NothingHeldOut)?,
            teacher: perplexity(&self.teacher).filter(|_| !self.unsaid),
            kl: of_answered(self.kl),
            agreement: (self.named > 0).then(|| self.agreed as f64 / self.named as f64),
            positions: self.student.tokens(),
            seconds,
        })
    }
}

/// The token that a listing signal says is the most probable; none where draws were all.
fn best(signal: &Signal, row: usize) -> Option<u32> {
    match signal {
        Signal::TopK(signal) => signal.ids.get(row * signal.k).copied(),
        Signal::Drawn(signal) => {
            let exact = signal.exact(row);
            let pairs = signal.exact_ids[exact.clone()].iter().zip(&signal.exact_log_p[exact]);
            // Of equal ones the first.
            pairs.rev().max_by(|a, b| a.1.total_cmp(b.1)).map(|(&id, _)| id)
        }
        Signal::Hidden(_) => None,
    }
}

fn perplexity(nll: &Nll) -> Option<Perplexity> {
    Some(Perplexity { token: nll.perplexity()?, row_mean: nll.perplexity_row_mean()? })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use distill::signal::TopK;
    use model::ops::head::{Divergence, Tail, Teaching};
    use model::student::{Student, Training};

    use super::*;
    use crate::testing::{CLASSES, logits, rows, tiny_source};

    /// Rows with a teacher whose log-probability of the n-th target of all is `next(n)`.
    fn found(next: impl Fn(usize) -> f32) -> Evaluation {
        let dir = tempfile::tempdir().unwrap();
        let config = tiny_source(dir.path()).config;
        let student = Student::random(config, 3, Training::default(), &Device::Cpu).unwrap();
        let settings = LossSettings {
            alpha: 0.7,
            temperature: 1.0,
            divergence: Divergence::ForwardKl,
            tail: Tail::Bucket,
            precision: student.model().precision(),
        };
        let (mut tally, mut seen) = (Tally::default(), 0);
        for row in rows(4, 0).iter() {
            let mut signal = TopK::new(5);
            row.scored().for_each(|at| signal.push_exact(&logits(row.ids[at], CLASSES), 1.0));
            let next_logprob = (seen..seen + signal.rows()).map(&next).collect();
            seen += signal.rows();
            let batch = TokenBatch::pack([row]);
            let teaching = Some(Teaching::TopK(&signal));
            let loss = student.model().losses(&batch, CLASSES, teaching, &settings).unwrap();
            let scored = Scored { signal: signal.into(), next_logprob, wire_bytes: 0 };
            tally.add(&batch, &loss, &[scored]);
        }
        tally.report(0.0).unwrap()
    }

    #[test]
    fn a_teacher_of_which_a_target_is_not_known_has_no_perplexity() {
        let known = found(|_| -(2.0f32.ln()));
        assert!((known.teacher.unwrap().token - 2.0).abs() < 1e-6);
        let unknown = found(|n| if n == 3 { f32::NAN } else { -(2.0f32.ln()) });
        assert_eq!(unknown.teacher, None);
        assert_eq!((unknown.student, unknown.kl), (known.student, known.kl));
    }
}
