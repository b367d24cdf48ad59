//! What jobs are answered, all of a batch in one pass of the model: listed tokens, draws, or the hidden states
//! themselves.

use std::collections::BTreeMap;
use std::sync::Arc;

use distill::batch::{Sequence, TokenBatch};
use distill::fingerprint::token_checksum;
use distill::signal::{CodedStates, Computed, DrawKey, Entries, HiddenStates};
use model::coding::Encoder;
use model::language_model::{Answer, Asked, Asking, LanguageModel, Said};
use model::ops::draws::WantedDraws;
use model::ops::topk::Wanted;
use model::started::Started;
use proto::convert::ScoreJob;

use crate::scorer::{JobScores, LoadError, NotFinite, Scores};

/// What answers are made of.
pub(super) struct Answering<'a> {
    pub(super) network: &'a dyn LanguageModel,
    /// Where there is a code.
    pub(super) encoder: Option<&'a Encoder>,
}

/// Jobs that ask for the same with the same parameters: they share one sweep over the output matrix; what is
/// computed for a position does not depend on the others.
struct Group<'a> {
    /// Their places among all.
    places: Vec<usize>,
    jobs: Vec<&'a ScoreJob>,
    /// Their positions in the batch.
    rows: Vec<u32>,
    next: Vec<Option<u32>>,
    entries: Entries,
    keys: Vec<DrawKey>,
}

impl Answering<'_> {
    /// Starts a pass of the model over jobs.
    pub(super) fn start(&self, jobs: &[&ScoreJob]) -> Result<Started<Vec<Answer>>, LoadError> {
        let rows = jobs.iter().map(|job| Sequence::all_scored(job.tokens.clone()));
        let rows: Vec<Sequence> = rows.collect::<Result<_, _>>()?;
        let (batch, groups) = (TokenBatch::pack(&rows), groups(jobs));
        Ok(self.network.start_answer(&batch, &asked(&groups))?)
    }

    /// Scores of jobs, in their order. Where a number of a group is not finite each of its jobs is tried alone, to find
    /// whose it is.
    pub(super) fn finish(
        &self,
        started: Started<Vec<Answer>>,
        jobs: &[&ScoreJob],
    ) -> Result<Vec<JobScores>, LoadError> {
        let groups = groups(jobs);
        let said = self.network.finish_answer(started, &asked(&groups))?;
        let mut scores: Vec<Option<JobScores>> = vec![None; jobs.len()];
        for (group, said) in groups.iter().zip(said) {
            let of_group = match said {
                Ok(said) => self.by_job(&group.jobs, said)?.into_iter().map(Ok).collect(),
                Err(error) if group.jobs.len() == 1 => vec![Err(NotFinite(error.0))],
                Err(_) => {
                    let alone =
                        |job: &&ScoreJob| Ok(self.finish(self.start(&[job])?, &[job])?.remove(0));
                    group.jobs.iter().map(alone).collect::<Result<Vec<_>, LoadError>>()?
                }
            };
            for (&place, of_job) in group.places.iter().zip(of_group) {
                scores[place] = Some(of_job);
            }
        }
        Ok(scores.into_iter().flatten().collect())
    }

    fn by_job(&self, jobs: &[&ScoreJob], said: Said) -> Result<Vec<Scores>, LoadError> {
        match said {
            Said::Listed(scores) => {
                let signal = |rows| scores.signal.slice(rows).into();
                Ok(slices(jobs, signal, [&scores.next_logprob, &scores.next_logprob_t]))
            }
            Said::Drawn(scores) => {
                let signal = |rows| Computed::Drawn(scores.signal.slice(rows));
                Ok(slices(jobs, signal, [&scores.next_logprob, &scores.next_logprob_t]))
            }
            Said::States(values) => self.states(jobs, &values),
        }
    }

    fn states(&self, jobs: &[&ScoreJob], values: &[f32]) -> Result<Vec<Scores>, LoadError> {
        let width = self.network.config().hidden_size;
        let mut scores = Vec::with_capacity(jobs.len());
        let mut rest = values;
        for job in jobs {
            let (of_job, after) = rest.split_at(job.rows() * width);
            rest = after;
            let states = HiddenStates { width, values: of_job.to_vec() };
            let coded = job.entries.rung().zip(self.encoder);
            let signal = match coded {
                Some((rung, encoder)) => {
                    let code = Arc::clone(encoder.code());
                    let numbers = encoder.numbers(of_job, rung)?;
                    Computed::Coded(CodedStates { code, numbers, states })
                }
                // Coded ones were not let in without a code.
                None => Computed::Hidden(states),
            };
            scores.push(Scores { signal, next_logprob: Vec::new(), next_logprob_t: Vec::new() });
        }
        Ok(scores)
    }
}

/// The jobs of a batch in groups that ask for the same kind of signal with the same parameters.
fn groups<'a>(jobs: &[&'a ScoreJob]) -> Vec<Group<'a>> {
    let ends = jobs.iter().scan(0, |end, job| {
        let start = *end;
        *end += job.tokens.len() as u32;
        Some(start)
    });
    let starts: Vec<u32> = ends.collect();
    places(jobs).into_iter().map(|places| Group::of(places, jobs, &starts)).collect()
}

/// What is asked about each group.
fn asked<'a>(groups: &'a [Group<'_>]) -> Vec<Asking<'a>> {
    groups.iter().map(|group| (&group.rows[..], group.asked())).collect()
}

/// The places of the jobs of each group.
fn places(jobs: &[&ScoreJob]) -> Vec<Vec<usize>> {
    let mut groups: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (at, job) in jobs.iter().enumerate() {
        let kind = match job.entries {
            Entries::Top => (0, 0),
            Entries::Named(_) => (1, 0),
            Entries::Drawn { draws, .. } => (2, draws),
            Entries::Hidden(_) => (3, 0),
        };
        groups.entry((kind, job.k, job.temperature.to_bits(), job.classes)).or_default().push(at);
    }
    groups.into_values().collect()
}

impl<'a> Group<'a> {
    /// The jobs at these places of all, whose first tokens lie at `starts` of the batch.
    fn of(places: Vec<usize>, all: &[&'a ScoreJob], starts: &[u32]) -> Self {
        let jobs: Vec<&ScoreJob> = places.iter().map(|&place| all[place]).collect();
        let rows = places.iter().flat_map(|&place| {
            all[place].positions().map(move |position| starts[place] + position)
        });
        Self {
            rows: rows.collect(),
            next: jobs.iter().flat_map(|job| job.next_tokens()).collect(),
            entries: entries(&jobs),
            keys: jobs.iter().flat_map(|job| keys(job)).collect(),
            places,
            jobs,
        }
    }

    /// What is asked about all of their positions.
    fn asked(&self) -> Asked<'_> {
        // A group has a job.
        let first = self.jobs[0];
        let (classes, k, temperature) = (first.classes, first.k, f64::from(first.temperature));
        let Self { next, entries, keys, .. } = self;
        match first.entries {
            Entries::Top | Entries::Named(_) => {
                Asked::Listed(Wanted { classes, next, temperature, k, entries })
            }
            Entries::Drawn { draws, .. } => {
                Asked::Drawn(WantedDraws { classes, next, temperature, draws, k, keys })
            }
            Entries::Hidden(_) => Asked::States,
        }
    }
}

/// Scores of all rows as those of each job.
fn slices(
    jobs: &[&ScoreJob],
    signal: impl Fn(std::ops::Range<usize>) -> Computed,
    [next_logprob, next_logprob_t]: [&[f32]; 2],
) -> Vec<Scores> {
    let mut first = 0;
    let of_job = |job: &&ScoreJob| {
        let these = first..first + job.rows();
        first = these.end;
        Scores {
            signal: signal(these.clone()),
            next_logprob: next_logprob[these.clone()].to_vec(),
            next_logprob_t: next_logprob_t[these].to_vec(),
        }
    };
    jobs.iter().map(of_job).collect()
}

/// What the draws of a job's positions depend on.
fn keys(job: &ScoreJob) -> Vec<DrawKey> {
    let Entries::Drawn { seed, .. } = job.entries else { return Vec::new() };
    let token_checksum = token_checksum(&job.tokens);
    job.positions().map(|position| DrawKey { seed, token_checksum, position }).collect()
}

/// The entries of jobs of one group, all rows in turn.
fn entries(jobs: &[&ScoreJob]) -> Entries {
    let named = |job: &&ScoreJob| match &job.entries {
        Entries::Named(ids) if ids.len() == job.k => ids.repeat(job.rows()),
        Entries::Named(ids) => ids.clone(),
        Entries::Top | Entries::Drawn { .. } | Entries::Hidden(_) => Vec::new(),
    };
    match jobs.first() {
        Some(ScoreJob { entries: Entries::Named(_), .. }) => {
            Entries::Named(jobs.iter().flat_map(named).collect())
        }
        Some(_) | None => Entries::Top,
    }
}
