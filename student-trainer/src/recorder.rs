//! What is kept and shown of one run: metrics, TensorBoard events, progress, report.

use std::time::{SystemTime, UNIX_EPOCH};

use student_trainer::config::Config;
use student_trainer::observer::{EvalReport, Observer, RunFacts, StepReport};
use student_trainer::summary::Summary;

use crate::metrics::{self, Metrics};
use crate::progress::{Console, Progress, banner, thin_signal};
use crate::report;
use crate::tensorboard::EventFile;

/// Steps after which the signal is judged.
const WEIGHED_STEPS: usize = 8;

/// The observer of a run. What it cannot write it says once and goes on: a full disk must not cost
/// the training that a later checkpoint may still save. [`Recorder::complete`] says at the end
/// whether all that other people's programs rely on is there.
#[derive(Debug)]
pub(crate) struct Recorder {
    config: Config,
    console: Console,
    progress: Progress,
    metrics: Option<Metrics>,
    board: Option<EventFile>,
    facts: Option<RunFacts>,
    /// The teacher's mass on its signal, in the first steps of this process.
    masses: Vec<f64>,
    /// Of the first steps: the part of the divergence that is that of all unlisted tokens, and all of it.
    rests: Vec<(f64, f64)>,
    /// Whether steps are missing in `metrics.jsonl`.
    metrics_lost: bool,
    /// Whether this run stands alone: then it has a banner and says everything.
    alone: bool,
}

impl Recorder {
    /// Records a run that begins now, under its own banner.
    pub(crate) fn new(config: &Config, console: &Console) -> Self {
        Self { alone: true, ..Self::labelled(config, console, "") }
    }

    /// Records one of several runs: `label` stands before its lines.
    pub(crate) fn labelled(config: &Config, console: &Console, label: &str) -> Self {
        let divergence = config.divergence.heading(config.beta);
        Self {
            config: config.clone(),
            console: console.clone(),
            progress: Progress::new(console.clone(), label, divergence),
            metrics: None,
            board: None,
            facts: None,
            masses: Vec::new(),
            rests: Vec::new(),
            metrics_lost: false,
            alone: false,
        }
    }

    /// Takes the bar off the terminal; to be called when the run has ended, well or not.
    pub(crate) fn ended(&self) {
        self.progress.ended();
    }

    /// To be asked when everything else of the run is safe.
    ///
    /// # Errors
    /// When `metrics.jsonl` lacks steps because they could not be written.
    pub(crate) fn complete(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            !self.metrics_lost,
            "metrics.jsonl in {} is not complete (the reason stands above); model, checkpoints and \
             summary are not concerned",
            self.config.output_dir.display()
        );
        Ok(())
    }

    /// What to say, once, of a signal that holds little of the teacher: after some steps, or the last.
    fn weigh_signal(&mut self, report: &StepReport) -> Option<String> {
        if self.masses.len() == WEIGHED_STEPS {
            return None;
        }
        self.masses.extend(report.teacher_mass);
        self.rests.extend(report.kl_rest.zip(report.kl));
        let last = self.facts.as_ref().is_some_and(|facts| report.step == facts.total_steps);
        if self.masses.is_empty() || (self.masses.len() < WEIGHED_STEPS && !last) {
            return None;
        }
        let mean = self.masses.iter().sum::<f64>() / self.masses.len() as f64;
        let sum = |of: fn(&(f64, f64)) -> f64| self.rests.iter().map(of).sum::<f64>();
        let (rest, all) = (sum(|pair| pair.0), sum(|pair| pair.1));
        let share = (all > 0.0).then(|| rest / all).filter(|share| (0.0..=1.0).contains(share));
        thin_signal(mean, share, &self.config)
    }

    fn kept<T>(&self, what: &str, result: std::io::Result<T>) -> Option<T> {
        let said = |e| self.console.say(&format!("{what} is no longer written: {e}"));
        result.map_err(said).ok()
    }
}

impl Observer for Recorder {
    fn started(&mut self, facts: &RunFacts) {
        let every = self.config.logging_steps as u64;
        let path = facts.output_dir.join("metrics.jsonl");
        self.metrics = self.kept("metrics.jsonl", Metrics::open(&path, facts.start_step, every));
        self.metrics_lost = self.metrics.is_none();
        let runs = facts.output_dir.join("runs");
        self.board = self.kept("runs/", EventFile::create(&runs, facts.start_step, now()));
        if self.alone {
            self.console.tell(&banner(&self.console, facts, &self.config));
        }
        self.progress.started(facts);
        self.facts = Some(facts.clone());
    }

    fn step(&mut self, report: &StepReport) {
        if let Some(mut metrics) = self.metrics.take() {
            let done = metrics.record(report);
            self.metrics = self.kept("metrics.jsonl", done).map(|()| metrics);
            self.metrics_lost = self.metrics.is_none();
        }
        if report.step.is_multiple_of(self.config.logging_steps as u64)
            && let Some(mut board) = self.board.take()
        {
            let done = board.step(report, now());
            self.board = self.kept("runs/", done).map(|()| board);
        }
        self.progress.step(report);
        if let Some(warning) = self.weigh_signal(report) {
            self.console.tell_once(&warning);
        }
    }

    fn evaluated(&mut self, report: &EvalReport) {
        if let Some(mut board) = self.board.take() {
            let done = board.evaluation(report, now());
            self.board = self.kept("runs/", done).map(|()| board);
        }
        self.progress.evaluated(report);
    }

    fn finished(&mut self, summary: &Summary) {
        self.progress.ended();
        let Some(facts) = &self.facts else { return };
        // Steps that could not be written were told of.
        let steps = match &self.metrics {
            Some(_) => metrics::read(&facts.output_dir.join("metrics.jsonl")),
            None => Ok(Vec::new()),
        };
        let written = steps.and_then(|steps| {
            let page = report::of_run(facts, summary, &steps).to_html();
            std::fs::write(facts.output_dir.join("report.html"), page)
        });
        let _ = self.kept("report.html", written);
    }

    fn note(&mut self, text: &str) {
        if self.alone {
            self.console.tell(text);
        } else {
            self.console.tell_once(text);
        }
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::tests::step;
    use crate::progress::tests::{config, facts, summary};
    use student_trainer::config::ProgressKind;

    #[test]
    fn a_run_leaves_metrics_events_and_a_report_and_a_resumed_one_goes_on_with_them() {
        let dir = tempfile::tempdir().unwrap();
        let console = Console::new(ProgressKind::None);
        let mut facts = facts(dir.path());
        let mut first = Recorder::new(&config(), &console);
        first.started(&facts);
        (1..=3).for_each(|n| first.step(&step(n)));
        drop(first);
        facts.start_step = 2;
        let mut second = Recorder::labelled(&config(), &console, "again");
        second.started(&facts);
        (3..=5).for_each(|n| second.step(&step(n)));
        second.finished(&summary());
        let steps = metrics::read(&dir.path().join("metrics.jsonl")).unwrap();
        assert_eq!(steps, [1, 2, 3, 4, 5].map(step));
        assert_eq!(std::fs::read_dir(dir.path().join("runs")).unwrap().count(), 2);
        let page = std::fs::read_to_string(dir.path().join("report.html")).unwrap();
        assert!(page.contains("Training loss") && page.contains("77.60"), "{page}");
    }

    #[test]
    fn a_thin_signal_is_called_so_after_some_steps_or_the_last() {
        let thin = |n| StepReport { teacher_mass: Some(0.05), ..step(n) };
        for (total, told) in [(7380, 8), (3, 3)] {
            let dir = tempfile::tempdir().unwrap();
            let mut recorder = Recorder::new(&config(), &Console::new(ProgressKind::None));
            recorder.started(&RunFacts { total_steps: total, ..facts(dir.path()) });
            let steps = (1..=total.min(12)).filter(|&n| recorder.weigh_signal(&thin(n)).is_some());
            assert_eq!(steps.collect::<Vec<_>>(), [told]);
        }
    }

    #[test]
    fn what_cannot_be_written_does_not_end_the_run_and_is_told_at_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let record = |spoilt: &str| {
            let out = dir.path().join(spoilt);
            std::fs::create_dir_all(out.join(spoilt)).unwrap();
            let mut recorder = Recorder::new(&config(), &Console::new(ProgressKind::None));
            recorder.started(&facts(&out));
            recorder.step(&step(1));
            recorder.finished(&summary());
            recorder.complete()
        };
        let error = record("metrics.jsonl").unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl in out is not complete"), "{error}");
        // The report is for people's eyes: its loss is told, and fails nobody's script.
        record("report.html").unwrap();
    }

    #[test]
    fn a_step_that_cannot_be_written_is_not_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let mut recorder = Recorder::new(&config(), &Console::new(ProgressKind::None));
        recorder.started(&facts(dir.path()));
        recorder.step(&step(1));
        recorder.complete().unwrap();
        recorder.metrics = Some(Metrics::full());
        recorder.step(&step(2));
        recorder.step(&step(3));
        recorder.finished(&summary());
        recorder.complete().unwrap_err();
    }
}
