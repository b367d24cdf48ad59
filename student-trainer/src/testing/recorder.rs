//! What a run tells, kept.

use crate::observer::{EvalReport, Observer, RunFacts, StepReport};
use crate::stop::Stop;
use crate::summary::Summary;

/// Keeps everything it is told; asks for a stop after a step.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) steps: Vec<StepReport>,
    pub(crate) evaluations: Vec<EvalReport>,
    pub(crate) notes: Vec<String>,
    pub(crate) facts: Option<RunFacts>,
    pub(crate) stop_after: Option<(u64, Stop)>,
}

impl Observer for Recorder {
    fn started(&mut self, facts: &RunFacts) {
        self.facts = Some(facts.clone());
    }
    fn step(&mut self, report: &StepReport) {
        if let Some((step, stop)) = &self.stop_after
            && *step == report.step
        {
            stop.request();
        }
        self.steps.push(report.clone());
    }
    fn evaluated(&mut self, report: &EvalReport) {
        self.evaluations.push(report.clone());
    }
    fn finished(&mut self, _: &Summary) {}
    fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }
}
