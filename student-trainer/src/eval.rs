//! How good a model is on held-out rows: its perplexity, its distance from the teacher, and how
//! often both would say the same.

use std::sync::Arc;
use std::time::Instant;

use distill::batch::TokenBatch;
use distill::codec::row_bytes;
use distill::perplexity::Nll;
use distill::signal::TopK;
use model::ops::head::{HeadLoss, LossSettings};
use model::qwen3::Qwen3;
use model::student::{losses, rows_not_finite};

use crate::data::RowSet;
use crate::error::TrainError;
use crate::feed::{Ask, Feed, Scored};
use crate::observer::Perplexity;
use crate::setup::at_row;
use crate::stop::Stop;
use crate::teacher::{Network, Teacher};

/// Held-out answers up to this many bytes are asked for once and kept; more are asked for anew at
/// each evaluation.
const KEPT_BYTES: usize = 1 << 30;

/// Held-out rows, and where what the teacher says of them comes from.
pub struct HeldOut {
    rows: RowSet,
    answers: Answers,
}

enum Answers {
    /// No teacher takes part.
    None,
    /// In memory.
    Kept(Vec<Scored>),
    /// Asked for each time.
    Asked(Box<(Teacher, Ask)>),
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
    /// Rows computed at once.
    pub rows_at_once: usize,
    /// Temperature and tail of the divergence, rounding of the products.
    pub loss: LossSettings,
}

impl HeldOut {
    /// Held-out rows, and a teacher's answers where one takes part: asked for now if they may be
    /// kept.
    ///
    /// # Errors
    /// Those of the feed.
    pub fn new(
        rows: RowSet,
        teacher: Option<&(Teacher, Ask)>,
        network: &Network,
        stop: &Stop,
    ) -> Result<Self, TrainError> {
        let Some((teacher, ask)) = teacher else {
            return Ok(Self { rows, answers: Answers::None });
        };
        let positions: usize = rows.sequences.iter().map(|row| row.scored().count()).sum();
        // In memory an entry takes 8 bytes and a position 12 more: the raw codec's size.
        let bytes = positions.saturating_mul(row_bytes(ask.top_k, distill::codec::Codec::Raw) + 4);
        if bytes > KEPT_BYTES {
            return Ok(Self { rows, answers: Answers::Asked(Box::new((teacher.clone(), *ask))) });
        }
        let set = Arc::clone(&rows.sequences);
        let mut feed = Feed::start(network, teacher, set, 0..rows.len(), *ask);
        let mut kept = Vec::with_capacity(rows.len());
        while let Some(scored) = feed.next(stop).map_err(|e| at_row(e, &rows))? {
            kept.push(scored);
        }
        if kept.len() < rows.len() {
            return Err(TrainError::Stopped);
        }
        Ok(Self { rows, answers: Answers::Kept(kept) })
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
/// [`TrainError::EvaluationNotFinite`]; when an operation fails, or the teacher when its answers
/// are asked for anew.
pub fn evaluate(
    model: &Qwen3,
    name: &str,
    held_out: &HeldOut,
    settings: &EvalSettings,
    network: &Network,
    stop: &Stop,
) -> Result<Evaluation, TrainError> {
    let begin = Instant::now();
    let rows = &held_out.rows;
    let mut feed = match &held_out.answers {
        Answers::Asked(asked) => {
            let (teacher, ask) = asked.as_ref();
            Some(Feed::start(network, teacher, Arc::clone(&rows.sequences), 0..rows.len(), *ask))
        }
        Answers::None | Answers::Kept(_) => None,
    };
    let (mut tally, mut bad) = (Tally::default(), Vec::new());
    for (index, chunk) in rows.sequences.chunks(settings.rows_at_once.max(1)).enumerate() {
        let first = index * settings.rows_at_once.max(1);
        let asked;
        let answers: &[Scored] = match (&held_out.answers, &mut feed) {
            (Answers::Kept(kept), _) => &kept[first..first + chunk.len()],
            (_, Some(feed)) => {
                asked = take(feed, rows, chunk.len(), stop)?;
                &asked
            }
            (_, None) => &[],
        };
        let batch = TokenBatch::pack(chunk);
        let signal = joined(answers);
        let loss = losses(model, &batch, settings.classes, signal.as_ref(), &settings.loss)?;
        bad.extend(rows_not_finite(&batch, &loss).into_iter().map(|row| first + row));
        tally.add(&batch, &loss, answers);
    }
    if !bad.is_empty() {
        let (model, count, of) = (name.to_owned(), bad.len(), rows.len());
        return Err(TrainError::EvaluationNotFinite { model, count, of, rows: rows.list(&bad) });
    }
    tally.report(begin.elapsed().as_secs_f64())
}

/// The next `count` answers of a feed of `rows`.
pub(crate) fn take(
    feed: &mut Feed,
    rows: &RowSet,
    count: usize,
    stop: &Stop,
) -> Result<Vec<Scored>, TrainError> {
    let mut answers = Vec::with_capacity(count);
    while answers.len() < count {
        let answer = feed.next(stop).map_err(|e| at_row(e, rows))?;
        answers.push(answer.ok_or(TrainError::Stopped)?);
    }
    Ok(answers)
}

/// The signals of several rows as one.
pub(crate) fn joined(answers: &[Scored]) -> Option<TopK> {
    let mut all = TopK::new(answers.first()?.signal.k);
    answers.iter().for_each(|scored| all.append(&scored.signal));
    Some(all)
}

/// Sums over positions, in row order.
#[derive(Debug, Default)]
struct Tally {
    student: Nll,
    teacher: Nll,
    kl: f64,
    agreed: u64,
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
            let signal = &scored.signal;
            self.teacher.add_row(scored.next_logprob.iter().map(|logprob| -logprob));
            for row in 0..signal.rows() {
                self.kl += f64::from(loss.kl[start + row]);
                self.agreed += u64::from(loss.argmax[start + row] == signal.ids[row * signal.k]);
            }
            start += signal.rows();
            self.answered += signal.rows() as u64;
        }
    }

    fn report(&self, seconds: f64) -> Result<Evaluation, TrainError> {
        let answered = self.answered as f64;
        let of_answered = |sum: f64| (self.answered > 0).then(|| sum / answered);
        Ok(Evaluation {
            student: perplexity(&self.student).ok_or(TrainError::NothingHeldOut)?,
            teacher: perplexity(&self.teacher),
            kl: of_answered(self.kl),
            agreement: of_answered(self.agreed as f64),
            positions: self.student.tokens(),
            seconds,
        })
    }
}

fn perplexity(nll: &Nll) -> Option<Perplexity> {
    Some(Perplexity { token: nll.perplexity()?, row_mean: nll.perplexity_row_mean()? })
}
