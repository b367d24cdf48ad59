//! Which of teacher and cache a run needs: who holds every answer need not be asked, and is then not
//! reached beyond one look whether it is still the same model.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use client::Access;
use distill::fingerprint::Fingerprint;
use distill::handshake::StudentFacts;
use distill::hidden::HiddenForm;
use hub::tokenizer::Tokenizer;

use super::error::{CacheError, at};
use super::handle::Cache;
use super::manifest::{DecoderNames, Manifest, blob_name, in_words};
use super::place::Located;
use super::store::Store;
use crate::asking::{Ask, Terms, Wanted};
use crate::candidates;
use crate::config::{Config, SignalConfig, SignalKind};
use crate::data::RowSet;
use crate::decoder::{Coded, choose};
use crate::error::TrainError;
use crate::joining::{join_teacher, of_draws};
use crate::reading::{Projection, Reading, ReadingError, read, read_code};
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
    pub(crate) signal: &'a SignalConfig,
    pub(crate) terms: Terms,
    /// Whether a record is read before it counts as there, not looked up only.
    pub(crate) thorough: bool,
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
            Some(place) => {
                let alone = self.reach.0.is_empty();
                let located = if alone { Located::existing(place) } else { Located::of(place) };
                join(self, located?.stopped_by(self.stop), sets)
            }
            None => {
                let joined = join_teacher(self)?;
                if let Some((teacher, Ask { wanted: Wanted::Candidates { k, .. }, .. })) = &joined {
                    let classes = teacher.agreement().classes;
                    let limit = teacher.facts().limits.max_request_bytes;
                    for (_, set) in sets {
                        candidates::fit(set, *k, classes, limit)?;
                    }
                }
                Ok(joined)
            }
        }
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
    [rows, held_out]: [&RowSet; 2],
    note: &mut dyn FnMut(&str),
    stop: &Stop,
) -> Result<Option<(Teacher, Ask)>, TrainError> {
    let reach = (&config.teacher[..], &config.access);
    let signal = &config.signal;
    let terms = Terms::new(config.temperature, config.teacher_window, config.teacher_timeout);
    let thorough = false;
    let mut asker = Asker { network, reach, who, signal, terms, thorough, rows, note, stop };
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
    let (found, away) = open(asker, &mut located)?;
    let Some(mut store) = found else {
        if alone {
            return Err(CacheError::Absent { place }.into());
        }
        return with_teacher(asker, located);
    };
    let words = wanted_in_words(asker);
    store.manifest.serves(&place, facts, (&words, asker.terms.temperature))?;
    tell_damage(asker, &store);
    let missing = missing(&mut store, sets, asker.thorough);
    if let Some((what, rows)) = missing {
        if !alone {
            return with_teacher(asker, located);
        }
        if let Some(error) = away {
            return Err(error.into());
        }
        let Some((_, set)) = sets.iter().find(|(name, _)| *name == what) else { return Ok(None) };
        let (missing, of, first) = (rows.len(), set.len(), set.place(rows[0]));
        return Err(CacheError::Incomplete { place, missing, of, what, first }.into());
    }
    let (wanted, reading) = match kept_reading(asker, &located.dir, &store.manifest) {
        Ok(found) => found,
        // What it lacks a teacher has.
        Err(TrainError::Reading(error)) if !alone => {
            (asker.note)(&format!("--cache: {error}; the teacher is asked"));
            return with_teacher(asker, located);
        }
        Err(error) => return Err(error),
    };
    if let Wanted::Sampled { .. } = wanted {
        (asker.note)(&of_draws(asker.terms.temperature));
    }
    if away.is_none() {
        store = send_rest(asker, &mut located, store)?;
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
    let teacher = teacher.read_by(reading).remembering(Arc::new(cache));
    Ok(Some((teacher, asker.terms.ask(wanted))))
}

/// Opens the cache, for a run or for a build, which is for the store. Why a store is not asked comes with it.
fn open(
    asker: &mut Asker<'_>,
    located: &mut Located,
) -> Result<(Option<Store>, Option<CacheError>), CacheError> {
    if located.remote.is_some() {
        (asker.note)(&format!("--cache {}: looking at what the store has", located.place));
    }
    if asker.thorough {
        return Ok((located.open(true)?, None));
    }
    let (store, away) = located.open_for_run()?;
    if let Some(error) = &away {
        // Who wants no progress wants to know this.
        let copy = located.dir.display();
        tracing::warn!("{error}; this machine's copy, {copy}, is used without it");
    }
    Ok((store, away))
}

/// Sends what an earlier run could not send: who finds every answer here writes nothing otherwise.
fn send_rest(
    asker: &mut Asker<'_>,
    located: &mut Located,
    store: Store,
) -> Result<Store, CacheError> {
    if !located.has_more()? {
        return Ok(store);
    }
    let place = located.place.clone();
    (asker.note)(&format!("--cache {place}: what the store lacks of the answers here is sent"));
    let store = located.send_rest(&store.manifest, asker.stop)?;
    store.ok_or(CacheError::Absent { place })
}

/// Names what of a cache is damaged, and how much more.
fn tell_damage(asker: &mut Asker<'_>, store: &Store) {
    for what in store.damage.iter().take(DAMAGE_TOLD) {
        (asker.note)(&format!("--cache: damaged: {what}; it counts as not there"));
    }
    if store.damage.len() > DAMAGE_TOLD {
        let more = store.damage.len() - DAMAGE_TOLD;
        (asker.note)(&format!(
            "--cache: {more} more are damaged; `student-trainer cache verify` names all"
        ));
    }
}

/// What the options want, in the words of a manifest, as far as it can be known without a teacher.
fn wanted_in_words(asker: &Asker<'_>) -> String {
    match Terms::listing(asker.signal, asker.who.1.codec) {
        Some(wanted) => in_words(wanted),
        None if asker.signal.kind == SignalKind::Coded => "coded".to_owned(),
        None => format!("full form={}", asker.signal.hidden_form),
    }
}

/// What the answers of a cache are asked for as, and how they are read: of hidden states with the files
/// beside them.
///
/// # Errors
/// [`ReadingError`] where these are gone or damaged; [`CacheError::Differs`] where the code's step is not
/// the one the options want.
fn kept_reading(
    asker: &Asker<'_>,
    dir: &Path,
    manifest: &Manifest,
) -> Result<(Wanted, Reading), TrainError> {
    let listing = Terms::listing(asker.signal, asker.who.1.codec);
    if let Some(wanted) = listing {
        return Ok((wanted, Reading::default()));
    }
    let (Some(form), Some(names)) = (manifest.form(), &manifest.decoder) else {
        return Err(ReadingError::Other.into());
    };
    let sizes = [names.hidden_size, manifest.classes];
    let named = |name: &str| -> Result<(Fingerprint, PathBuf), ReadingError> {
        Ok((name.parse().map_err(|_| ReadingError::Other)?, dir.join(blob_name(name))))
    };
    let matrix = Projection::read(named(&names.output_matrix)?, sizes)?;
    let HiddenForm::Coded { code, rung } = form else {
        let wanted = Wanted::Hidden { form, bytes: form.row_bytes(names.hidden_size) };
        return Ok((wanted, Reading::full(matrix, None)));
    };
    let path = named(&code.to_string())?.1;
    let [model, _] = manifest.fingerprints();
    let code = read_code(&path, code, model)?;
    let Coded { code, rate } = choose(code, asker.signal)?;
    if rate.rung != rung {
        return Err(CacheError::Differs {
            place: dir.display().to_string(),
            what: "the step of coded hidden states",
            found: rung.to_string(),
            wanted: rate.rung.to_string(),
            remedy: "set --signal-bytes or --signal-error as when it was built",
        }
        .into());
    }
    let wanted = Wanted::Hidden { form, bytes: rate.bytes.ceil() as usize };
    Ok((wanted, Reading::full(matrix, Some((code, path, rung)))))
}

/// Reaches the teacher, and makes this the writer of the cache.
fn with_teacher(
    asker: &mut Asker<'_>,
    located: Located,
) -> Result<Option<(Teacher, Ask)>, TrainError> {
    let place = located.place.clone();
    let Some((teacher, ask)) = join_teacher(asker)? else { return Ok(None) };
    let (facts, classes) = (teacher.facts(), teacher.agreement().classes);
    let knows_mass = teacher.knows_mass(f64::from(ask.temperature));
    let files = teacher.reading().files();
    let decoder = files.first().map(|(matrix, _)| DecoderNames {
        hidden_size: facts.hidden_size,
        output_matrix: matrix.to_string(),
        code: files.get(1).map(|(code, _)| code.to_string()),
    });
    let manifest = Manifest::of(facts, classes, (ask.wanted, ask.temperature), decoder, knows_mass);
    let dir = located.dir.clone();
    let cache = Cache::writing(located, &manifest)?;
    cache.manifest().is_of(&place, facts)?;
    // It may have been made by another program a moment ago.
    let words = in_words(ask.wanted);
    cache.manifest().serves(&place, asker.who.1, (&words, ask.temperature))?;
    for (name, path) in files {
        let kept = dir.join(blob_name(&name.to_string()));
        if read(&kept, *name).is_err() {
            let begun = kept.with_extension("part");
            let copied = at("write", &begun, std::fs::copy(path, &begun))
                .and_then(|_| at("write", &kept, std::fs::rename(&begun, &kept)));
            if let Err(error) = copied {
                // What is half written is of no use to anybody.
                drop(std::fs::remove_file(&begun));
                cache.refuse(&error);
            }
        }
    }
    Ok(Some((teacher.remembering(Arc::new(cache)), ask)))
}

/// The first set with rows that have no answer, and which rows those are; each is read where that is
/// `thorough`.
fn missing(
    store: &mut Store,
    sets: [(&'static str, &RowSet); 2],
    thorough: bool,
) -> Option<(&'static str, Vec<usize>)> {
    sets.into_iter().find_map(|(what, set)| {
        let lacks = |&row: &usize| {
            let row = &set.sequences[row];
            let key = store.space.key(&row.ids, &row.scored_ranges());
            !(if thorough { store.has(&key) } else { store.holds(&key) })
        };
        let rows: Vec<usize> = (0..set.len()).filter(lacks).collect();
        (!rows.is_empty()).then_some((what, rows))
    })
}
