//! Which of teacher and cache a run needs: who holds every answer need not be asked, and is then not
//! reached beyond one look whether it is still the same model.

use std::sync::Arc;
use std::time::Duration;

use client::Access;
use distill::handshake::StudentFacts;
use hub::tokenizer::Tokenizer;

use super::error::CacheError;
use super::handle::Cache;
use super::manifest::Manifest;
use super::place::Located;
use super::store::Store;
use crate::config::Config;
use crate::data::RowSet;
use crate::error::TrainError;
use crate::feed::Ask;
use crate::setup::join_teacher;
use crate::stop::Stop;
use crate::teacher::{Network, Teacher};

/// Damaged records that are named; of more, how many.
const DAMAGE_TOLD: usize = 5;
/// How long the teacher of a whole cache is looked for, to see that it is still the same.
const GLANCE: Duration = Duration::from_secs(2);

/// Who asks, and how.
pub(crate) struct Asker<'a> {
    pub(crate) network: &'a Network,
    /// Addresses of teachers; none where only a cache answers.
    pub(crate) reach: (&'a [String], &'a Access),
    pub(crate) who: (&'a Tokenizer, &'a StudentFacts),
    pub(crate) ask: Ask,
    /// Rows that the alignment is proved on.
    pub(crate) rows: &'a RowSet,
    pub(crate) note: &'a mut dyn FnMut(&str),
    pub(crate) stop: &'a Stop,
}

impl Asker<'_> {
    /// Reaches the teacher, with the cache of this name before it where one is named.
    ///
    /// # Errors
    /// Those of [`join_teacher`] and [`join`].
    pub(crate) fn join(
        &mut self,
        place: Option<&str>,
        sets: [(&'static str, &RowSet); 2],
    ) -> Result<Option<(Teacher, Ask)>, TrainError> {
        match place {
            Some(place) => join(self, Located::of(place)?, sets),
            None => self.teacher(),
        }
    }

    fn teacher(&mut self) -> Result<Option<(Teacher, Ask)>, TrainError> {
        let Self { network, reach, who, ask, rows, note, stop } = self;
        join_teacher(network, *reach, *who, *ask, rows, note, stop)
    }
}

/// Who answers a run: its teacher, its cache, or one before the other. `sets` are its training and its
/// held-out rows.
///
/// # Errors
/// Those of [`Asker::join`].
pub(crate) fn of_run(
    config: &Config,
    network: &Network,
    who: (&Tokenizer, &StudentFacts),
    ask: Ask,
    [rows, held_out]: [&RowSet; 2],
    note: &mut dyn FnMut(&str),
    stop: &Stop,
) -> Result<Option<(Teacher, Ask)>, TrainError> {
    let reach = (&config.teacher[..], &config.access);
    let mut asker = Asker { network, reach, who, ask, rows, note, stop };
    let none = RowSet::default();
    let learned = if config.alpha > 0.0 { rows } else { &none };
    asker.join(config.cache.as_deref(), [("training", learned), ("held-out", held_out)])
}

/// Reaches the teacher as [`join_teacher`] does, with a cache before it: sets of rows, each
/// with its name, whose answers are all there need no teacher.
///
/// # Errors
/// Those of [`join_teacher`]; [`CacheError`] when the cache is of something else, is being written by
/// another program, or lacks answers that nobody can be asked for.
fn join(
    asker: &mut Asker<'_>,
    mut located: Located,
    sets: [(&'static str, &RowSet); 2],
) -> Result<Option<(Teacher, Ask)>, TrainError> {
    let place = located.place.clone();
    let (urls, access) = asker.reach;
    let facts = asker.who.1;
    let alone = urls.is_empty();
    let Some(store) = located.open()? else {
        if alone {
            return Err(CacheError::Absent { place }.into());
        }
        return with_teacher(asker, located);
    };
    store.manifest.serves(&place, facts, asker.ask.temperature)?;
    for what in store.damage.iter().take(DAMAGE_TOLD) {
        (asker.note)(&format!("--cache: damaged: {what}; it counts as not there"));
    }
    if store.damage.len() > DAMAGE_TOLD {
        let more = store.damage.len() - DAMAGE_TOLD;
        (asker.note)(&format!(
            "--cache: {more} more are damaged; `student-trainer cache verify` names all"
        ));
    }
    let missing = missing(&store, sets);
    if let Some((what, rows)) = missing {
        if !alone {
            return with_teacher(asker, located);
        }
        let Some((_, set)) = sets.iter().find(|(name, _)| *name == what) else { return Ok(None) };
        let (missing, of, first) = (rows.len(), set.len(), set.place(rows[0]));
        return Err(CacheError::Incomplete { place, missing, of, what, first }.into());
    }
    let cache = Cache::reading(located, store);
    let teacher = match urls {
        [url, ..] => {
            let known = Teacher::known(url, access, cache.manifest(), facts)?;
            match known.glance(asker.network, facts, GLANCE) {
                Ok(now) => cache.manifest().is_of(&place, &now)?,
                Err(reason) => (asker.note)(&format!(
                    "teacher {url} was not reached ({reason}) to see that it is still the one the \
                     answers are of"
                )),
            }
            known
        }
        [] => Teacher::kept(&place, cache.manifest(), facts)?,
    };
    let (count, model) =
        (sets.iter().map(|(_, set)| set.len()).sum::<usize>(), &cache.manifest().model);
    (asker.note)(&format!(
        "--cache {place} has the answers of all {count} rows ({model}): the teacher is asked for none"
    ));
    Ok(Some((teacher.remembering(Arc::new(cache)), asker.ask)))
}

/// Reaches the teacher, and makes this the writer of the cache.
fn with_teacher(
    asker: &mut Asker<'_>,
    located: Located,
) -> Result<Option<(Teacher, Ask)>, TrainError> {
    let place = located.place.clone();
    let Some((teacher, ask)) = asker.teacher()? else { return Ok(None) };
    let (facts, classes) = (teacher.facts(), teacher.agreement().classes);
    let knows_mass = teacher.knows_mass(f64::from(ask.temperature));
    let manifest =
        Manifest::of(facts, classes, (ask.top_k, ask.codec, ask.temperature), knows_mass);
    let cache = Cache::writing(located, &manifest)?;
    cache.manifest().is_of(&place, facts)?;
    // It may have been made by another program a moment ago.
    cache.manifest().serves(&place, asker.who.1, ask.temperature)?;
    Ok(Some((teacher.remembering(Arc::new(cache)), ask)))
}

/// The first set with rows that have no answer, and which rows those are.
fn missing(
    store: &Store,
    sets: [(&'static str, &RowSet); 2],
) -> Option<(&'static str, Vec<usize>)> {
    sets.into_iter().find_map(|(what, set)| {
        let lacks = |&row: &usize| {
            let row = &set.sequences[row];
            !store.holds(&store.space.key(&row.ids, &row.scored_ranges()))
        };
        let rows: Vec<usize> = (0..set.len()).filter(lacks).collect();
        (!rows.is_empty()).then_some((what, rows))
    })
}
