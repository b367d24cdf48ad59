//! What a teacher says of the rows of one set: asked for once and kept in memory as far as a budget
//! goes, so that a later epoch or evaluation asks only for what found no room. With a cache before the
//! teacher it asks only for what is not there, and puts there what came.
//!
//! Which rows are kept is known beforehand from their lengths alone: the first of the set that fit.

use std::sync::Arc;
use std::time::Duration;

use distill::batch::Sequence;
use model::ops::head::TEACHER_LOGITS_BYTES;

use crate::asking::{Ask, Wanted};
use crate::cache::Lookup;
use crate::candidates::Own;
use crate::data::RowSet;
use crate::error::{TrainError, at_row};
use crate::feed::{Feed, Question, Scored};
use crate::memory;
use crate::reading::Reading;
use crate::stop::Stop;
use crate::teacher::{Network, Teacher, TeacherError};
use crate::toll::Toll;

/// A teacher's answers about the rows of a set.
#[derive(Debug)]
pub struct Signals {
    teacher: Teacher,
    ask: Ask,
    set: Arc<[Sequence]>,
    /// Answers of the rows that are kept, once they are there.
    kept: Vec<Option<Scored>>,
    /// Rows whose answers the cache has, or had when it was looked at; as many as rows.
    cached: Vec<bool>,
    /// Whether the cache keeps what comes, so that no row need be asked for twice.
    keeps: bool,
    toll: Option<Toll>,
    course: Option<Course>,
}

/// An order that is being followed.
struct Course {
    /// The whole order, from its beginning.
    rows: Box<dyn Fn() -> Box<dyn Iterator<Item = usize> + Send>>,
    /// Rows of it that were taken.
    taken: usize,
    runtime: tokio::runtime::Handle,
    feed: Feed,
    waited: Duration,
}

impl std::fmt::Debug for Course {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Course").field("taken", &self.taken).field("feed", &self.feed).finish()
    }
}

impl Signals {
    /// Answers of `teacher` about `set`, at most `budget` bytes of them kept. Nothing is asked yet.
    pub fn new(teacher: Teacher, ask: Ask, set: Arc<[Sequence]>, budget: u64) -> Self {
        let mut left = budget;
        let fits = |row: &&Sequence| match left.checked_sub(kept_bytes(row, ask.wanted)) {
            Some(rest) => {
                left = rest;
                true
            }
            None => false,
        };
        let kept = vec![None; set.iter().take_while(fits).count()];
        let cached = vec![false; set.len()];
        let toll = Toll::of(ask.wanted);
        Self { teacher, ask, set, kept, cached, keeps: false, toll, course: None }
    }

    /// Rows whose answers are kept, of all.
    pub fn coverage(&self) -> [usize; 2] {
        [self.kept.len(), self.set.len()]
    }

    /// Memory that the answers about all rows take, in bytes.
    pub(crate) fn bytes_of_all(&self) -> u64 {
        bytes_to_keep(&self.set, self.ask.wanted, u64::MAX)
    }

    /// Whether the answers say how much mass they leave out.
    pub fn knows_mass(&self) -> bool {
        self.teacher.knows_mass(f64::from(self.ask.temperature))
    }

    /// How the answers are read.
    pub(crate) fn reading(&self) -> &Reading {
        self.teacher.reading()
    }

    /// Whether a cache keeps what finds no room in memory.
    pub fn has_cache(&self) -> bool {
        self.teacher.cache().is_some()
    }

    /// Begins to ask for the rows of `order` that are not kept, each kept row once.
    pub fn follow(
        &mut self,
        network: &Network,
        order: impl Iterator<Item = usize> + Clone + Send + 'static,
    ) {
        let rows =
            Box::new(move || -> Box<dyn Iterator<Item = usize> + Send> { Box::new(order.clone()) });
        let runtime = network.handle().clone();
        let feed = self.ask_for(&runtime, rows());
        let (taken, waited) = (0, Duration::ZERO);
        self.course = Some(Course { rows, taken, runtime, feed, waited });
    }

    /// A feed of those rows of an order that neither memory nor cache have when it comes to them.
    fn ask_for(
        &mut self,
        runtime: &tokio::runtime::Handle,
        order: Box<dyn Iterator<Item = usize> + Send>,
    ) -> Feed {
        if let Some(cache) = self.teacher.cache() {
            self.cached = self.set.iter().map(|row| cache.holds(row)).collect();
            self.keeps = cache.writes();
        }
        let in_memory = |row: usize| self.kept.get(row).is_some_and(Option::is_some);
        let mut known: Vec<bool> =
            self.cached.iter().enumerate().map(|(row, &cached)| cached || in_memory(row)).collect();
        let remembered = if self.keeps { self.set.len() } else { self.kept.len() };
        let order = order.filter(move |&row| match row < remembered {
            true => !std::mem::replace(&mut known[row], true),
            false => !known[row],
        });
        let set = Arc::clone(&self.set);
        Feed::start(runtime, &self.teacher, set, order, self.ask)
    }

    /// The answers of the next `rows` of the order followed; none when a stop was asked for. Blocks
    /// the calling thread.
    ///
    /// # Errors
    /// Those of [`Feed::next`]; [`TeacherError::NotKept`] when only a cache could have answered.
    pub fn take(
        &mut self,
        rows: &[usize],
        stop: &Stop,
    ) -> Result<Option<Vec<Scored>>, TeacherError> {
        self.begin_anew_without_cache();
        let mut answers = Vec::with_capacity(rows.len());
        for &row in rows {
            let Some(answer) = self.next(row, stop)? else { return Ok(None) };
            if let Some(course) = &mut self.course {
                course.taken += 1;
            }
            answers.push(answer);
        }
        Ok(Some(answers))
    }

    /// What is asked, where that is candidates, about which the student has a say.
    pub(crate) fn candidates(&self) -> Option<Wanted> {
        Some(self.ask.wanted).filter(|wanted| matches!(wanted, Wanted::Candidates { .. }))
    }

    /// The answers to questions beside the order followed; none when a stop was asked for. Nothing of
    /// them is kept. Blocks the calling thread.
    ///
    /// # Errors
    /// Those of [`Feed::next`].
    pub(crate) fn ask(
        &mut self,
        questions: Vec<Question>,
        stop: &Stop,
    ) -> Result<Option<Vec<Scored>>, TeacherError> {
        let Some(course) = &mut self.course else { return Ok(None) };
        let (set, count) = (Arc::clone(&self.set), questions.len());
        let order = questions.into_iter();
        let mut feed = Feed::start(&course.runtime, &self.teacher, set, order, self.ask);
        let answers: Result<Vec<_>, _> =
            (0..count).map_while(|_| feed.next(stop).transpose()).collect();
        course.waited += feed.take_waited();
        let answers = answers?;
        Ok(Some(answers).filter(|answers| answers.len() == count))
    }

    /// Where the cache keeps nothing any more, what was counted on to be in it has to be asked for.
    fn begin_anew_without_cache(&mut self) {
        let failed = self.teacher.cache().is_some_and(|cache| cache.failure().is_some());
        if !(self.keeps && failed) {
            return;
        }
        let Some(mut course) = self.course.take() else { return };
        let rest = Box::new((course.rows)().skip(course.taken));
        course.waited += course.feed.take_waited();
        course.feed = self.ask_for(&course.runtime.clone(), rest);
        self.course = Some(course);
    }

    /// The answer of the next row of the order.
    fn next(&mut self, row: usize, stop: &Stop) -> Result<Option<Scored>, TeacherError> {
        if let Some(Some(known)) = self.kept.get(row) {
            return Ok(Some(known.clone()));
        }
        let answer = match self.cached[row] {
            true => self.look_up(row, stop)?,
            false => match &mut self.course {
                Some(course) => course.feed.next(stop)?.inspect(|answer| {
                    if let Some(toll) = &mut self.toll {
                        toll.count(&self.set[row], answer);
                    }
                    if let Some(cache) = self.teacher.cache() {
                        cache.keep(&self.set, row, answer);
                        self.cached[row] = self.keeps;
                    }
                }),
                None => None,
            },
        };
        if let (Some(place), Some(answer)) = (self.kept.get_mut(row), &answer) {
            // Its bytes have travelled once.
            *place = Some(Scored { wire_bytes: 0, ..answer.clone() });
        }
        Ok(answer)
    }

    /// What the cache has of a row; where that cannot be used, it is asked for again.
    fn look_up(&mut self, row: usize, stop: &Stop) -> Result<Option<Scored>, TeacherError> {
        let Some(cache) = self.teacher.cache() else { return Ok(None) };
        let place = cache.place();
        let reason = match cache.read(&self.set[row]) {
            Lookup::Answer(answer) => return Ok(Some(answer)),
            Lookup::Damaged(reason) => Some(reason),
            Lookup::Nothing => None,
        };
        let Some(course) = self.course.as_mut().filter(|_| self.teacher.can_be_asked()) else {
            return Err(TeacherError::NotKept { place, row, reason });
        };
        let reason = reason.as_deref().unwrap_or("it is not there any more");
        tracing::warn!("--cache {place}: {reason}; row {row} is asked for again");
        let (set, row_alone) = (Arc::clone(&self.set), std::iter::once(row));
        let mut feed = Feed::start(&course.runtime, &self.teacher, set, row_alone, self.ask);
        let answer = feed.next(stop)?;
        course.waited += feed.take_waited();
        if let Some(answer) = &answer {
            cache.keep(&self.set, row, answer);
        }
        Ok(answer)
    }

    /// What to say, once, of a code that takes far more than was said.
    pub(crate) fn surprise(&mut self) -> Option<String> {
        self.toll.as_mut()?.surprise()
    }

    /// Time spent waiting for the teacher since the last call of this.
    pub fn take_waited(&mut self) -> Duration {
        let Some(course) = &mut self.course else { return Duration::ZERO };
        course.feed.take_waited() + std::mem::take(&mut course.waited)
    }
}

/// The answers of the next `these` of `rows`, to what a model has a say in where it has; none where no
/// teacher takes part.
pub(crate) fn take(
    signals: Option<&mut Signals>,
    these: &[usize],
    rows: &RowSet,
    own: Own<'_>,
    stop: &Stop,
) -> Result<Vec<Scored>, TrainError> {
    let Some(signals) = signals else { return Ok(Vec::new()) };
    let answers = signals.take(these, stop).map_err(|error| at_row(error, rows))?;
    let answers = answers.ok_or(TrainError::Stopped)?;
    let Some(wanted) = signals.candidates() else { return Ok(answers) };
    let sequences: Vec<_> = these.iter().map(|&row| (row, &rows.sequences[row])).collect();
    let questions = match own.questions(&sequences, &answers, wanted) {
        // A student whose logits are no numbers holds nothing likely: the loss will name its rows.
        Err(error) if error.is_of_an_operation() => return Ok(answers),
        questions => questions?,
    };
    let more = signals.ask(questions, stop).map_err(|error| at_row(error, rows))?;
    let more = more.ok_or(TrainError::Stopped)?.into_iter().zip(answers);
    Ok(more.map(|(more, first)| more.after(&first)).collect())
}

/// The memory that is free, in bytes, less what a teacher's answers about these sets will take of it, and
/// the logits of one that says all.
pub(crate) fn free_beside(asked: Option<([&[Sequence]; 2], Wanted)>, budget: u64) -> Option<u64> {
    let sets = asked.into_iter().flat_map(|(sets, wanted)| sets.map(|set| (set, wanted)));
    let answers = sets.map(|(set, wanted)| bytes_to_keep(set, wanted, budget));
    let says_all = matches!(asked, Some((_, Wanted::Hidden { .. })));
    let logits = if says_all { TEACHER_LOGITS_BYTES } else { 0 };
    Some(memory::available()?.saturating_sub(answers.fold(logits, u64::saturating_add)))
}

/// Memory that the answers about a set will take once all that may be kept are there, in bytes.
fn bytes_to_keep(set: &[Sequence], wanted: Wanted, budget: u64) -> u64 {
    set.iter().map(|row| kept_bytes(row, wanted)).fold(0, u64::saturating_add).min(budget)
}

/// What a row's answer takes in memory, about.
fn kept_bytes(row: &Sequence, wanted: Wanted) -> u64 {
    let position = wanted.position_bytes();
    (size_of::<Option<Scored>>() + row.scored().count().saturating_mul(position)) as u64
}

#[cfg(test)]
#[path = "signals_tests.rs"]
mod tests;
