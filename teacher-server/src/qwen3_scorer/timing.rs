//! Which batches took how long, as `--profile` asks for it.

use std::io;
use std::path::PathBuf;
use std::time::Instant;

use model::language_model::LanguageModel;
use model::profile::{Profiling, Turns};
use proto::convert::ScoreJob;

/// The profile of some batches. The first of all warms up and has number 0.
pub(super) struct Timing {
    profiling: Profiling,
    batch: u64,
    began: Instant,
    /// The end of the last one.
    ended: Option<Instant>,
}

impl Timing {
    pub(super) fn new((path, batches): (PathBuf, Turns)) -> Self {
        let profiling = Profiling::new(path, batches);
        Self { profiling, batch: 0, began: Instant::now(), ended: None }
    }

    /// A batch begins.
    pub(super) fn begins(&mut self, model: &dyn LanguageModel) {
        // Only what lies between two batches that are looked at.
        if let Some(ended) = self.ended.take() {
            self.profiling.span("between batches", ended);
        }
        self.profiling.begins(self.batch, model);
        self.began = Instant::now();
    }

    /// It has ended.
    pub(super) fn ends(&mut self, model: &dyn LanguageModel, jobs: &[&ScoreJob]) {
        let (batch, sequences) = (self.batch, jobs.len());
        let tokens: usize = jobs.iter().map(|job| job.tokens.len()).sum();
        let name = format!("batch {batch}: {sequences} sequences, {tokens} tokens");
        self.profiling.span(name, self.began);
        self.ended = Some(Instant::now());
        let written = self.profiling.ends(batch, model);
        self.tell(written);
        self.batch += 1;
    }

    /// No more come.
    pub(super) fn close(&mut self, model: &dyn LanguageModel) {
        let written = self.profiling.close(model);
        self.tell(written);
    }

    fn tell(&self, written: io::Result<bool>) {
        let path = self.profiling.path().display();
        match written {
            Ok(false) => {}
            Ok(true) => tracing::info!("profile {path} (chrome://tracing, Perfetto)"),
            Err(error) => tracing::error!(%error, "the profile {path} is not written"),
        }
    }
}
