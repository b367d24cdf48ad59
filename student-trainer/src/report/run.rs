//! The report of one training run.

use student_trainer::observer::{RunFacts, StepReport};
use student_trainer::summary::Summary;

use super::chart::smoothed;
use super::{Chart, Line, Report, Series, Tile};
use crate::progress::results;
use crate::table::{duration, grouped, machine, maybe, number, percent, short};

/// The page of a run from its facts, its numbers and its steps.
pub(crate) fn of_run(facts: &RunFacts, summary: &Summary, steps: &[StepReport]) -> Report {
    let teacher = facts.teacher.as_ref();
    let lead = match teacher {
        Some(t) => {
            format!("{} learned from {} in {} steps.", facts.student, t.model, summary.steps)
        }
        None => {
            format!("{} was trained without a teacher, {} steps.", facts.student, summary.steps)
        }
    };
    let divergence = match summary.divergence() {
        kl if kl == "KL" => "KL(teacher || student)".to_owned(),
        other => format!("the divergence {other}"),
    };
    let about = format!(
        "Perplexity on held-out rows (lower is better), over all tokens and as the mean of rows; \
         {divergence} on the signal; and the share of positions where both find the same token most \
         probable."
    );
    Report {
        title: "Training report".to_owned(),
        lead,
        tiles: tiles(summary),
        tables: vec![("Before and after".to_owned(), about, results(summary))],
        charts: charts(summary, steps),
        samples: Vec::new(),
        facts: facts_of(facts, summary),
        config: summary.config.clone(),
    }
}

fn tiles(s: &Summary) -> Vec<Tile> {
    let tile =
        |name: &str, value: String, remark: String| Tile { name: name.into(), value, remark };
    let mut tiles = Vec::new();
    if let Some(after) = s.student_perplexity_after {
        let before = maybe(s.student_perplexity_before);
        let remark = format!("{before} before; teacher {}", maybe(s.teacher_perplexity));
        tiles.push(tile("Perplexity after", number(after), remark));
    }
    if s.agreement_after.is_some() {
        let remark = format!("{} before", percent(s.agreement_before));
        tiles.push(tile("Agreement with teacher", percent(s.agreement_after), remark));
    }
    let speed = grouped(s.tokens_per_second.round() as i64);
    let wait = percent(Some(s.teacher_wait_fraction));
    tiles.push(tile(
        "Tokens a second",
        speed,
        format!("{wait} of the time waiting for the teacher"),
    ));
    let tokens = format!("{} tokens in {} steps", short(s.tokens), grouped(s.steps as i64));
    tiles.push(tile("Training time", duration(s.train_seconds), tokens));
    tiles
}

fn charts(summary: &Summary, steps: &[StepReport]) -> Vec<Chart> {
    let curve = |name: &str, value: &dyn Fn(&StepReport) -> Option<f64>| {
        let point = |s: &StepReport| value(s).map(|v| (s.step as f64, v));
        let points: Vec<_> = steps.iter().filter_map(point).collect();
        let mean = smoothed(&points, points.len() / 25);
        let raw = Line { points, faint: true, marked: false };
        let mean = Line { points: mean, ..Line::default() };
        Series { name: name.to_owned(), lines: vec![raw, mean] }
    };
    let loss = vec![
        curve("loss", &|s| Some(s.loss)),
        curve("cross-entropy", &|s| s.kl.map(|_| s.ce)),
        curve(&format!("T² {}", summary.divergence()), &|s| s.kl),
    ];
    let evaluated = |value: &dyn Fn(&student_trainer::observer::EvalReport) -> Option<f64>| {
        let point = |e| value(e).map(|v| (e.step as f64, v));
        let points = summary.evaluations.iter().filter_map(point).collect();
        vec![Line { points, marked: true, faint: false }]
    };
    let student =
        Series { name: "student".to_owned(), lines: evaluated(&|e| Some(e.student.token)) };
    let teacher = summary.teacher_perplexity.map(|p| ("teacher".to_owned(), p));
    let chart = |title: &str, series: Vec<Series>| Chart {
        title: title.to_owned(),
        x_name: "step".to_owned(),
        series: series.into_iter().filter(|s| !s.lines[0].points.is_empty()).collect(),
        levels: Vec::new(),
    };
    let perplexity = chart("Held-out perplexity", vec![student]);
    vec![
        Chart { levels: teacher.into_iter().collect(), ..perplexity },
        chart("Training loss", loss),
        chart(
            &format!("Held-out {} to the teacher", summary.divergence()),
            vec![Series { name: "student".to_owned(), lines: evaluated(&|e| e.kl) }],
        ),
        chart(
            "Mass of the signal",
            vec![curve("teacher", &|s| s.teacher_mass), curve("student", &|s| s.student_mass)],
        ),
    ]
}

fn facts_of(facts: &RunFacts, s: &Summary) -> Vec<(String, String)> {
    let mut list = vec![(
        "student",
        format!(
            "{}, {} parameters, {} on {}",
            facts.student,
            short(facts.student_parameters),
            facts.dtype,
            facts.device
        ),
    )];
    if let Some(t) = &facts.teacher {
        let machine = machine(t);
        let model = [t.model.as_str(), t.revision.as_str()].join(" ");
        list.push(("teacher", format!("{}, {machine}, at {}", model.trim_end(), t.url)));
        list.push(("fingerprint of the teacher", t.fingerprint.clone()));
        list.push(("wire", format!("{} bytes a token", number(s.wire_bytes_per_token))));
    }
    let rows = format!("{} for training, {} held out", facts.train_rows, facts.eval_rows);
    list.push(("rows", rows));
    let means: Vec<_> = s.epoch_loss.iter().map(|loss| number(*loss)).collect();
    list.push(("mean loss of each epoch", means.join(", ")));
    if let Some(bytes) = s.peak_rss_bytes {
        list.push(("peak memory", format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20))));
    }
    list.push(("seed", s.seed.to_string()));
    if s.stopped_early {
        list.push(("stopped", "before its last step".to_owned()));
    }
    list.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
