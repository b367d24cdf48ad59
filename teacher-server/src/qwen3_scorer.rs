//! The real model: one packed forward pass a batch, logits at the wanted positions only.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{Device, Tensor};
use distill::batch::{Sequence, TokenBatch};
use distill::fingerprint::Fingerprint;
use distill::signal::Entries;
use hub::settings::HubSettings;
use hub::source::resolve_model;
use hub::tokenizer::Tokenizer;
use model::config::Qwen3Config;
use model::ops::Precision;
use model::ops::embed::gather_rows;
use model::ops::topk::{Wanted, score_head};
use model::qwen3::Qwen3;
use model::weights::Weights;
use proto::convert::ScoreJob;

use crate::config::Dtype;
use crate::scorer::{Facts, LoadError, Loaded, NotFinite, Scorer, ScorerError, Scores, TextCodec};

/// Which model, and how it computes.
#[derive(Clone, Debug)]
pub struct ModelSource {
    /// Hub id or directory.
    pub model: String,
    /// Branch, tag or commit on the hub.
    pub revision: Option<String>,
    /// `auto`, `cpu` or `cuda:N`.
    pub device: String,
    /// Arithmetic.
    pub dtype: Dtype,
}

/// A model, its tokenizer, and what they are.
pub struct Opened {
    /// The model.
    pub network: Qwen3,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// What was loaded.
    pub facts: Facts,
}

impl ModelSource {
    /// Makes the model ready to score. Meant to run on the thread that will own the device.
    ///
    /// # Errors
    /// Those of [`Self::open`].
    pub fn load(self) -> Result<Loaded, LoadError> {
        let Opened { network, tokenizer, facts } = self.open()?;
        let scorer = Box::new(Qwen3Scorer::new(network));
        Ok(Loaded { scorer, text: Arc::new(tokenizer), facts })
    }

    /// Finds, checks and loads the model.
    ///
    /// # Errors
    /// What is wrong with the place, its configuration, tokenizer or weights, or with the device.
    pub fn open(self) -> Result<Opened, LoadError> {
        let device = model::device::choose(&self.device)?;
        let precision = precision(self.dtype, &device);
        let settings = HubSettings::from_env();
        let resolved = resolve_model(&self.model, self.revision.as_deref(), &settings)?;
        tracing::info!(model = resolved.id, dir = %resolved.dir.display(), "loading");
        let began = Instant::now();
        let config = Qwen3Config::from_dir(&resolved.dir)?;
        let tokenizer = Tokenizer::load(&resolved.dir)?;
        let model_fingerprint = model::fingerprint::of_dir(&resolved.dir, &config)?;
        let weights = Weights::load(&resolved.dir, &config, precision.dtype(), &device)?;
        tracing::debug!(seconds = began.elapsed().as_secs_f64(), "weights are loaded");
        let facts = Facts {
            model: display_name(&self.model, &resolved.id),
            revision: resolved.revision.unwrap_or_default(),
            model_fingerprint,
            tokenizer_fingerprint: Fingerprint(tokenizer.fingerprint()),
            vocab_size: config.vocab_size as u32,
            tokenizer_size: tokenizer.size() as u32,
            max_positions: u32::try_from(config.max_position_embeddings).unwrap_or(u32::MAX),
            dtype: precision.dtype().as_str().to_owned(),
            device: model::device::name(&device),
            parameters: weights.index().total() as u64,
        };
        let network = Qwen3::new(config, weights, precision)?;
        Ok(Opened { network, tokenizer, facts })
    }
}

/// A Qwen3 on its device.
pub struct Qwen3Scorer {
    network: Qwen3,
}

impl Qwen3Scorer {
    /// Scores with this network.
    pub fn new(network: Qwen3) -> Self {
        Self { network }
    }

    fn score_batch(&self, jobs: &[&ScoreJob]) -> Result<Vec<JobScores>, LoadError> {
        let rows = jobs.iter().map(|job| Sequence::all_scored(job.tokens.clone()));
        let rows: Vec<Sequence> = rows.collect::<Result<_, _>>()?;
        let batch = TokenBatch::pack(&rows);
        let hidden = self.network.forward_hidden(&batch)?;
        let starts = batch.rows().map(|row| row.start as u32);
        let placed: Vec<Placed> = jobs.iter().copied().zip(starts).collect();
        // Jobs that ask for the same share one sweep over the output matrix; what is computed for a
        // position does not depend on the others.
        let mut scores: Vec<Option<JobScores>> = vec![None; jobs.len()];
        for group in groups(jobs) {
            let members: Vec<Placed> = group.iter().map(|&at| placed[at]).collect();
            for (at, of_job) in group.into_iter().zip(self.score_group(&members, &hidden)?) {
                scores[at] = Some(of_job);
            }
        }
        Ok(scores.into_iter().flatten().collect())
    }

    /// Scores of jobs that ask for the same k, temperature and classes. Where a number is not finite
    /// each is tried alone, to find whose it is.
    fn score_group(&self, jobs: &[Placed], hidden: &Tensor) -> Result<Vec<JobScores>, LoadError> {
        match self.score_together(jobs, hidden)? {
            Ok(scores) => Ok(scores.into_iter().map(Ok).collect()),
            Err(error) if jobs.len() == 1 => Ok(vec![Err(error)]),
            Err(_) => {
                let alone = |job: &Placed| Ok(self.score_group(&[*job], hidden)?.remove(0));
                jobs.iter().map(alone).collect()
            }
        }
    }

    fn score_together(
        &self,
        jobs: &[Placed],
        hidden: &Tensor,
    ) -> Result<Result<Vec<Scores>, NotFinite>, LoadError> {
        let Some(&(first, _)) = jobs.first() else { return Ok(Ok(Vec::new())) };
        let rows = jobs.iter().flat_map(|(job, start)| job.positions().map(move |t| start + t));
        let rows: Vec<u32> = rows.collect();
        let next: Vec<Option<u32>> = jobs.iter().flat_map(|(job, _)| job.next_tokens()).collect();
        let wanted = gather_rows(hidden, &rows)?;
        let (head, precision) = (self.network.head(), self.network.precision());
        let asked = Wanted {
            classes: first.classes,
            next: &next,
            temperature: f64::from(first.temperature),
            k: first.k,
            entries: &entries(jobs),
        };
        let scores = match score_head(&wanted, head, asked, precision) {
            Ok(scored) => scored,
            // candle's errors are text; this is the one that speaks of the model's own numbers.
            Err(error) => match first_line(&error) {
                text if text.contains(NOT_FINITE) => return Ok(Err(NotFinite(text))),
                _ => return Err(error.into()),
            },
        };
        let mut first = 0;
        let of_job = |(job, _): &Placed| {
            let these = first..first + job.positions().count();
            first = these.end;
            Scores {
                signal: scores.signal.slice(these.clone()),
                next_logprob: scores.next_logprob[these.clone()].to_vec(),
                next_logprob_t: scores.next_logprob_t[these].to_vec(),
            }
        };
        Ok(Ok(jobs.iter().map(of_job).collect()))
    }
}

/// A job, and where its first token lies in the batch.
type Placed<'a> = (&'a ScoreJob, u32);

/// The entries of jobs of one group, all rows in turn.
fn entries(jobs: &[Placed]) -> Entries {
    let named = |(job, _): &Placed| match &job.entries {
        Entries::Top => Vec::new(),
        Entries::Named(ids) if ids.len() == job.k => ids.repeat(job.rows()),
        Entries::Named(ids) => ids.clone(),
    };
    match jobs.first() {
        Some((ScoreJob { entries: Entries::Named(_), .. }, _)) => {
            Entries::Named(jobs.iter().flat_map(named).collect())
        }
        Some(_) | None => Entries::Top,
    }
}

/// The jobs in groups that ask for the same kind of signal, k, temperature and classes, by their
/// places.
fn groups(jobs: &[&ScoreJob]) -> Vec<Vec<usize>> {
    let mut groups: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (at, job) in jobs.iter().enumerate() {
        let top = job.entries == Entries::Top;
        groups.entry((top, job.k, job.temperature.to_bits(), job.classes)).or_default().push(at);
    }
    groups.into_values().collect()
}

/// What a job came to.
type JobScores = Result<Scores, NotFinite>;

/// How `score_head` says that a logit is NaN or infinite.
const NOT_FINITE: &str = "not a finite number";

impl Scorer for Qwen3Scorer {
    fn score(&mut self, jobs: &[&ScoreJob]) -> Result<Vec<JobScores>, ScorerError> {
        self.score_batch(jobs).map_err(|error| match first_line(error.as_ref()) {
            // CUDA_ERROR_OUT_OF_MEMORY in the driver's own words.
            text if text.to_lowercase().contains("out of memory")
                || text.contains("OUT_OF_MEMORY") =>
            {
                ScorerError::OutOfMemory(text)
            }
            text => ScorerError::Failed(text),
        })
    }
}

/// candle appends a stack trace to its errors where RUST_BACKTRACE is set; a client needs none.
fn first_line(error: &dyn std::error::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

impl TextCodec for Tokenizer {
    fn encode(&self, text: &str) -> Result<Vec<u32>, ScorerError> {
        Self::encode(self, text).map_err(|error| ScorerError::Failed(error.to_string()))
    }

    fn text_of(&self, id: u32) -> String {
        self.id_to_text(id).unwrap_or_default()
    }
}

fn precision(dtype: Dtype, device: &Device) -> Precision {
    match dtype {
        Dtype::Auto => model::device::auto_precision(device),
        Dtype::Bf16 => Precision::Bf16,
        Dtype::F32 => Precision::F32,
        Dtype::F16 => Precision::F16,
    }
}

/// A directory shows by its own name: clients have no use for where it lies.
fn display_name(given: &str, id: &str) -> String {
    let path = PathBuf::from(given);
    let own = path.is_dir().then(|| path.canonicalize().ok()).flatten();
    own.and_then(|dir| Some(dir.file_name()?.to_string_lossy().into_owned()))
        .unwrap_or_else(|| id.to_owned())
}

#[cfg(test)]
#[path = "qwen3_scorer_tests.rs"]
mod tests;
