//! Which batches took how long, as `--profile` asks for it.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Instant;

use model::language_model::LanguageModel;
use model::profile::{Profiling, Trace, Turns};
use proto::convert::ScoreJob;

/// The profile of some batches. The first of all warms up and has number 0.
pub(super) struct Timing {
    profiling: Profiling,
    next: u64,
    /// When those began that have not ended.
    under_way: BTreeMap<u64, Instant>,
    /// The end of the last one.
    ended: Option<Instant>,
}

impl Timing {
    pub(super) fn new((path, batches): (PathBuf, Turns)) -> Self {
        let profiling = Profiling::new(path, batches);
        Self { profiling, next: 0, under_way: BTreeMap::new(), ended: None }
    }

    /// A batch begins; gives its number.
    pub(super) fn begins(&mut self, model: &dyn LanguageModel) -> u64 {
        // Only what lies between two batches that are looked at.
        if let Some(ended) = self.ended.take()
            && self.under_way.is_empty()
        {
            self.profiling.span("between batches", ended);
        }
        let batch = self.next;
        self.next += 1;
        self.profiling.begins(batch, model);
        self.under_way.insert(batch, Instant::now());
        batch
    }

    /// The batch of this number has ended.
    pub(super) fn ends(&mut self, batch: u64, model: &dyn LanguageModel, jobs: &[&ScoreJob]) {
        let Some(began) = self.under_way.remove(&batch) else { return };
        let sequences = jobs.len();
        let tokens: usize = jobs.iter().map(|job| job.tokens.len()).sum();
        let name = format!("batch {batch}: {sequences} sequences, {tokens} tokens");
        self.profiling.span(name, began);
        self.ended = Some(Instant::now());
        let written = self.profiling.ends(batch, model);
        self.tell(written);
    }

    /// No more come.
    pub(super) fn close(&mut self, model: &dyn LanguageModel) {
        let written = self.profiling.close(model);
        self.tell(written);
    }

    fn tell(&self, written: io::Result<Trace>) {
        let path = self.profiling.path().display();
        match written {
            Ok(Trace::Unchanged) => {}
            Ok(Trace::Written) => tracing::info!("profile {path} (chrome://tracing, Perfetto)"),
            Ok(Trace::Missed) => {
                let batches = self.profiling.turns();
                tracing::warn!("no profile {path}: none of --profile-batches {batches} came");
            }
            Err(error) => tracing::error!(%error, "the profile {path} is not written"),
        }
    }
}
