//! A teacher that was reached and fits.
//!
//! How it is spoken to is [`client`]'s; whether teacher and student fit is decided by
//! [`distill::handshake`].

mod error;
mod known;
#[cfg(test)]
#[path = "teacher/tls_tests.rs"]
mod tls_tests;
mod tokenizer;
#[cfg(test)]
#[path = "teacher/vllm_tests.rs"]
mod vllm_tests;
mod voice;

use std::sync::Arc;
use std::time::{Duration, Instant};

use client::{Access, Failure};
use distill::backoff::Backoff;
use distill::handshake::{Agreement, StudentFacts, TeacherFacts, check};
use distill::window::LONGEST_PAUSE;
use tokio::runtime::{Builder, Runtime};

use crate::cache::Cache;
use crate::observer::TeacherLine;
use crate::reading::Reading;
use crate::stop::Stop;
pub use error::TeacherError;
pub(crate) use voice::{Voice, fingerprint, nobody};

/// The network side of the trainer: one worker thread for all connections.
#[derive(Debug)]
pub struct Network(Runtime);

impl Network {
    /// Starts it.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start() -> Result<Self, TeacherError> {
        let built = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("network")
            .enable_all()
            .build();
        built.map(Self).map_err(TeacherError::Runtime)
    }

    /// Where tasks are started.
    pub(crate) fn handle(&self) -> &tokio::runtime::Handle {
        self.0.handle()
    }
}

/// A teacher that was reached and fits.
#[derive(Clone, Debug)]
pub struct Teacher {
    pub(crate) voice: Voice,
    pub(crate) agreement: Agreement,
    facts: Arc<TeacherFacts>,
    /// Answers it need not be asked for.
    cache: Option<Arc<Cache>>,
    /// How its answers are read.
    reading: Arc<Reading>,
}

impl Teacher {
    /// Reaches the teacher at `url` with what `access` holds, trying again for at most `limit`, and
    /// checks that it fits the student.
    ///
    /// # Errors
    /// [`TeacherError`], with the address.
    pub fn connect(
        network: &Network,
        url: &str,
        access: &Access,
        student: &StudentFacts,
        limit: Duration,
        stop: &Stop,
    ) -> Result<Self, TeacherError> {
        let voice = Voice::parse(url, access)?;
        let facts = network.0.block_on(reach(&voice, student, limit, stop))?;
        let agreement = check(&facts, student)
            .map_err(|source| TeacherError::Mismatch { url: url.to_owned(), source })?;
        Ok(Self { voice, agreement, facts: Arc::new(facts), cache: None, reading: Arc::default() })
    }

    /// How its answers are read.
    pub(crate) fn reading(&self) -> &Reading {
        &self.reading
    }

    /// It, its answers read like this.
    pub(crate) fn read_by(self, reading: Reading) -> Self {
        Self { reading: Arc::new(reading), ..self }
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        self.voice.url()
    }

    /// What it said of itself.
    pub fn facts(&self) -> &TeacherFacts {
        &self.facts
    }

    /// The terms of the work.
    pub fn agreement(&self) -> &Agreement {
        &self.agreement
    }

    /// Whether its signal at this temperature says how much mass the tokens that are not sent have.
    /// A vLLM server gives log-probabilities at T = 1 alone.
    pub fn knows_mass(&self, temperature: f64) -> bool {
        match &self.voice {
            Voice::Grpc(_) => true,
            Voice::Vllm(_) => temperature == 1.0,
            Voice::Kept { knows_mass, .. } => *knows_mass,
        }
    }

    /// It, in the words of the reports.
    pub fn line(&self) -> TeacherLine {
        TeacherLine {
            url: self.url().to_owned(),
            model: self.facts.model.clone(),
            revision: self.facts.revision.clone(),
            fingerprint: self.facts.model_fingerprint.to_string(),
            parameters: self.facts.parameters,
            dtype: self.facts.dtype.clone(),
            device: self.facts.device.clone(),
        }
    }
}

/// Asks for the facts until they come or the time is over.
async fn reach(
    voice: &Voice,
    student: &StudentFacts,
    limit: Duration,
    stop: &Stop,
) -> Result<TeacherFacts, TeacherError> {
    let begin = Instant::now();
    let mut attempts = 0;
    loop {
        attempts += 1;
        let facts = voice.facts(student).await;
        let pause = facts.as_ref().err().map(Failure::pause).unwrap_or_default();
        let last_error = match facts {
            Ok(facts) => return Ok(facts),
            Err(Failure::Final(error)) => return Err(voice.who_refuses(error).await.into()),
            Err(Failure::Passing(error) | Failure::Busy { reason: error, .. }) => error,
            Err(Failure::Garbled(error)) => match voice.stranger().await {
                Some(error) => return Err(error.into()),
                None => error,
            },
        };
        let url = voice.url().to_owned();
        let tried_for = begin.elapsed();
        if tried_for >= limit {
            let error = TeacherError::Unreachable { url, attempts, tried_for, limit, last_error };
            return Err(error);
        }
        tracing::info!(teacher = url, attempts, last_error, "teacher not reached yet");
        let backoff = Backoff::default().delay(attempts, rand::random());
        let wait = backoff.max(pause.min(LONGEST_PAUSE)).min(limit - tried_for);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.wait() => return Err(TeacherError::Stopped { url }),
        }
    }
}
