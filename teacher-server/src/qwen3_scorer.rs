//! The real model: one packed forward pass a batch, then what each job wants of the hidden states at its
//! positions (`qwen3_scorer::answer`).

mod answer;
mod timing;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use distill::fingerprint::Fingerprint;
use hub::settings::HubSettings;
use hub::source::resolve_model;
use hub::tokenizer::Tokenizer;
use model::config::Qwen3Config;
use model::device::Device;
use model::language_model::LanguageModel;
use model::needs::{amount, answering};
use model::ops::Precision;
use model::profile::Turns;
use model::qwen3::ModelError;
use model::started::Started;
use proto::convert::ScoreJob;

use crate::config::Dtype;
use crate::decoder::{Calibrating, Calibration, CalibrationSubject, Decoder};
use crate::scorer::{Facts, JobScores, LoadError, Loaded, Scorer, ScorerError, TextCodec};
use answer::Answering;
use timing::Timing;

/// Which model, and how it computes.
#[derive(Clone, Debug)]
pub struct ModelSource {
    /// Hub id, directory or GGUF file.
    pub model: String,
    /// Branch, tag or commit on the hub.
    pub revision: Option<String>,
    /// `auto`, `cpu` or `cuda:N`.
    pub device: String,
    /// Arithmetic.
    pub dtype: Dtype,
    /// Where codes of hidden states are kept, and what they are made of.
    pub calibrating: Calibrating,
    /// Its batches, where it is to serve.
    pub batches: Option<Batches>,
}

/// The batches a model will be asked.
#[derive(Clone, Debug)]
pub struct Batches {
    /// Tokens of the largest one of several sequences.
    pub tokens: usize,
    /// Most entries of a position.
    pub k: usize,
    /// Where it is written which of them took how long.
    pub profile: Option<(PathBuf, Turns)>,
}

/// A model, its tokenizer, and what they are.
pub struct Opened {
    /// The model.
    pub network: Box<dyn LanguageModel>,
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
        let how = self.calibrating.clone();
        let profile = self.batches.as_ref().and_then(|batches| batches.profile.clone());
        let Opened { network, tokenizer, facts } = self.open()?;
        let text: Arc<dyn TextCodec> = Arc::new(tokenizer);
        let of = CalibrationSubject {
            model: facts.model_fingerprint,
            width: network.config().hidden_size,
            tokenizer: facts.tokenizer_fingerprint,
            text: Arc::clone(&text),
        };
        let calibration = Calibration::new(of, how);
        let scorer = Qwen3Scorer::new(network).with_calibration(calibration);
        let scorer = Box::new(scorer.with_timing(profile.map(Timing::new)));
        Ok(Loaded { scorer, text, facts })
    }

    /// Finds, checks and loads the model.
    ///
    /// # Errors
    /// What is wrong with the place, its configuration, tokenizer or weights, or with the device.
    pub fn open(self) -> Result<Opened, LoadError> {
        let device = model::device::choose(&self.device, |text| tracing::warn!("{text}"))?;
        let precision = precision(self.dtype, device);
        let settings = HubSettings::from_env();
        let resolved = resolve_model(&self.model, self.revision.as_deref(), &settings)?;
        tracing::info!(model = resolved.id, dir = %resolved.dir.display(), "loading");
        let began = Instant::now();
        let config = Qwen3Config::from_dir(&resolved.dir)?;
        let tokenizer = Tokenizer::load(&resolved.dir)?;
        let model_fingerprint = model::fingerprint::of_place(&resolved.weights, &config)?;
        if let Some(batches) = &self.batches {
            tell_memory(device, (&resolved.weights, &config), precision, batches)?;
        }
        let network = device.load(&resolved.weights, config.clone(), precision)?;
        tracing::debug!(seconds = began.elapsed().as_secs_f64(), "weights are loaded");
        let facts = Facts {
            model: display_name(&self.model, &resolved.id),
            revision: resolved.revision.unwrap_or_default(),
            model_fingerprint,
            tokenizer_fingerprint: Fingerprint(tokenizer.fingerprint()),
            vocab_size: config.vocab_size as u32,
            tokenizer_size: tokenizer.size() as u32,
            hidden_size: config.hidden_size as u32,
            max_positions: u32::try_from(config.max_position_embeddings).unwrap_or(u32::MAX),
            dtype: precision.dtype().as_str().to_owned(),
            device: network.device(),
            parameters: network.index().total() as u64,
        };
        Ok(Opened { network, tokenizer, facts })
    }
}

/// Says what the model and its largest batch take of a card, before they take it.
fn tell_memory(
    device: Device,
    (place, config): (&Path, &Qwen3Config),
    precision: Precision,
    batches: &Batches,
) -> Result<(), LoadError> {
    let Some([free, all]) = device.memory()? else { return Ok(()) };
    let longest = config.max_position_embeddings.min(batches.tokens).max(1);
    let mut rows = vec![longest; batches.tokens / longest];
    rows.extend(Some(batches.tokens % longest).filter(|&rest| rest > 0));
    let Some(needs) = answering(device, place, config, precision, (&rows, batches.k))? else {
        return Ok(());
    };
    let (model, tokens) = (needs.model, batches.tokens);
    let batch = needs.total() - model;
    tracing::info!(
        "memory of {device}: the model takes {}, a batch of {tokens} tokens {} more; {} of {} are free",
        amount(model),
        amount(batch),
        amount(free),
        amount(all)
    );
    if needs.total() > free {
        tracing::warn!(
            "that is more than is free: large batches will be computed in halves; lower --max-batch-tokens, or \
             choose another card"
        );
    }
    Ok(())
}

/// A Qwen3 on its device.
pub struct Qwen3Scorer {
    network: Box<dyn LanguageModel>,
    calibration: Option<Calibration>,
    timing: Option<Timing>,
    /// What the profile calls the batches that are under way.
    turns: BTreeMap<u64, u64>,
}

impl Qwen3Scorer {
    /// Scores with this network, without coded hidden states.
    pub fn new(network: Box<dyn LanguageModel>) -> Self {
        Self { network, calibration: None, timing: None, turns: BTreeMap::new() }
    }

    /// The same with what hidden states are read with.
    #[must_use]
    pub fn with_calibration(mut self, calibration: Calibration) -> Self {
        self.calibration = Some(calibration);
        self
    }

    /// The same with a profile of its batches, where one is wanted.
    #[must_use]
    fn with_timing(mut self, timing: Option<Timing>) -> Self {
        self.timing = timing;
        self
    }

    fn answering(&self) -> Answering<'_> {
        let encoder = self.calibration.as_ref().and_then(Calibration::encoder);
        Answering { network: &*self.network, encoder }
    }

    /// What was started, under the number of its answers where the device computes by itself.
    fn begin(&mut self, jobs: &[&ScoreJob]) -> Result<Started<Vec<JobScores>>, LoadError> {
        if let Some(calibration) = &mut self.calibration {
            jobs.iter().for_each(|job| calibration.hear(&job.tokens));
        }
        Ok(match self.answering().start(jobs)? {
            done @ Started::Done(_) => Started::Done(self.answering().finish(done, jobs)?),
            Started::Running(number) => Started::Running(number),
        })
    }

    fn end(
        &self,
        started: Started<Vec<JobScores>>,
        jobs: &[&ScoreJob],
    ) -> Result<Vec<JobScores>, LoadError> {
        match started {
            Started::Done(scores) => Ok(scores),
            Started::Running(number) => self.answering().finish(Started::Running(number), jobs),
        }
    }
}

impl Scorer for Qwen3Scorer {
    fn decoder(&mut self, code: bool) -> Result<Arc<Decoder>, ScorerError> {
        match &mut self.calibration {
            Some(calibration) => calibration.decoder(&*self.network, code),
            None => Err(ScorerError::Failed("this model gives no hidden states".to_owned())),
        }
    }

    fn code(&self) -> Option<Fingerprint> {
        let encoder = self.calibration.as_ref()?.encoder()?;
        Some(encoder.code().fingerprint())
    }

    fn start(&mut self, jobs: &[&ScoreJob]) -> Result<Started<Vec<JobScores>>, ScorerError> {
        let turn = self.timing.as_mut().map(|timing| timing.begins(&*self.network));
        let started = self.begin(jobs);
        match started {
            Ok(Started::Running(number)) => drop(turn.map(|turn| self.turns.insert(number, turn))),
            Ok(Started::Done(_)) | Err(_) => self.ends(turn, jobs),
        }
        started.map_err(said)
    }

    fn has_ended(&mut self, started: &Started<Vec<JobScores>>) -> bool {
        match started {
            Started::Done(_) => true,
            // What is wrong with the device is said by who waits for it.
            Started::Running(number) => {
                self.network.has_ended(&Started::Running(*number)).unwrap_or(true)
            }
        }
    }

    fn finish(
        &mut self,
        started: Started<Vec<JobScores>>,
        jobs: &[&ScoreJob],
    ) -> Result<Vec<JobScores>, ScorerError> {
        let turn = match &started {
            Started::Done(_) => None,
            Started::Running(number) => self.turns.remove(number),
        };
        let scores = self.end(started, jobs);
        self.ends(turn, jobs);
        scores.map_err(said)
    }
}

impl Qwen3Scorer {
    /// A batch has ended.
    fn ends(&mut self, turn: Option<u64>, jobs: &[&ScoreJob]) {
        if let Some((timing, turn)) = self.timing.as_mut().zip(turn) {
            timing.ends(turn, &*self.network, jobs);
        }
    }
}

/// An error as the server is told of it.
fn said(error: LoadError) -> ScorerError {
    // candle appends a stack trace to its errors where RUST_BACKTRACE is set; a client needs none.
    let text = error.to_string().lines().next().unwrap_or_default().to_owned();
    match error.downcast_ref::<ModelError>() {
        Some(ModelError::OutOfMemory(_)) => ScorerError::OutOfMemory(text),
        Some(ModelError::DeviceLost(_)) => ScorerError::DeviceLost(text),
        Some(_) | None => ScorerError::Failed(text),
    }
}

impl Drop for Qwen3Scorer {
    fn drop(&mut self) {
        if let Some(timing) = &mut self.timing {
            timing.close(&*self.network);
        }
    }
}

impl TextCodec for Tokenizer {
    fn encode(&self, text: &str) -> Result<Vec<u32>, ScorerError> {
        Self::encode(self, text).map_err(|error| ScorerError::Failed(error.to_string()))
    }

    fn text_of(&self, id: u32) -> String {
        self.id_to_text(id).unwrap_or_default()
    }
}

fn precision(dtype: Dtype, device: Device) -> Precision {
    match dtype {
        Dtype::Auto => device.auto_precision(),
        Dtype::Bf16 => Precision::Bf16,
        Dtype::F32 => Precision::F32,
        Dtype::F16 => Precision::F16,
    }
}

/// A directory or file shows by its own name: clients have no use for where it lies.
fn display_name(given: &str, id: &str) -> String {
    let path = PathBuf::from(given);
    // A file may be a link to one of another name, as in the hub's cache.
    let own = match path.is_dir() {
        true => path.canonicalize().ok(),
        false => path.is_file().then_some(path),
    };
    own.and_then(|dir| Some(dir.file_name()?.to_string_lossy().into_owned()))
        .unwrap_or_else(|| id.to_owned())
}

#[cfg(test)]
#[path = "qwen3_scorer_tests.rs"]
pub(crate) mod tests;
