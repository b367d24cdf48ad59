//! Where the time of a step goes, as `--profile` asks for it.

use std::time::Instant;

use model::language_model::LanguageModel;
use model::profile::{Profiling, Trace};

use crate::config::Config;
use crate::observer::Observer;

/// The profile of a run, where one is wanted.
#[derive(Debug)]
pub(crate) struct Timing(Option<Profiling>);

impl Timing {
    /// As the options say.
    pub(crate) fn new(config: &Config) -> Self {
        let to = |path: &std::path::PathBuf| Profiling::new(path.clone(), config.profile_steps);
        Self(config.profile.as_ref().map(to))
    }

    /// A step begins.
    pub(crate) fn begins(&mut self, step: u64, model: &dyn LanguageModel) {
        if let Some(profiling) = &mut self.0 {
            profiling.begins(step, model);
        }
    }

    /// Something ends that has gone on since then.
    pub(crate) fn span(&mut self, name: impl Into<String>, since: Instant) {
        if let Some(profiling) = &mut self.0 {
            profiling.span(name, since);
        }
    }

    /// A step has ended.
    pub(crate) fn ends(
        &mut self,
        step: u64,
        model: &dyn LanguageModel,
        observer: &mut dyn Observer,
    ) {
        self.write(observer, |profiling| profiling.ends(step, model));
    }

    /// No more steps come.
    pub(crate) fn close(&mut self, model: &dyn LanguageModel, observer: &mut dyn Observer) {
        self.write(observer, |profiling| profiling.close(model));
    }

    /// A profile that cannot be written ends no run.
    fn write(
        &mut self,
        observer: &mut dyn Observer,
        write: impl FnOnce(&mut Profiling) -> std::io::Result<Trace>,
    ) {
        let Some(profiling) = &mut self.0 else { return };
        let written = write(profiling);
        let path = profiling.path().display();
        match written {
            Ok(Trace::Unchanged) => {}
            Ok(Trace::Written) => {
                observer.note(&format!("profile {path} (chrome://tracing, Perfetto)"))
            }
            Ok(Trace::Missed) => observer.note(&format!(
                "no profile {path}: this run made none of --profile-steps {}",
                profiling.turns()
            )),
            Err(error) => observer.note(&format!("the profile {path} is not written: {error}")),
        }
    }
}
