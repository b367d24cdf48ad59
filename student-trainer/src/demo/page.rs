//! The demonstration's report.

use std::path::Path;

use student_trainer::observer::EvalReport;

use super::compare::{AGREEMENT, Comparison, KL, PERPLEXITY, RUNS, Spread, Way};
use super::{HELD_OUT_ROWS, TRAIN_ROWS};
use crate::metrics;
use crate::report::{Chart, Line, Report, Sample, Series, Tile, smoothed};
use crate::table::{Table, duration, maybe, number, percent};

/// The page of a comparison.
pub(super) fn of(
    comparison: &Comparison,
    dir: &Path,
    samples: Vec<Sample>,
    seconds: f64,
) -> Report {
    let seeds = comparison.seeds;
    let lead = format!(
        "The same small student was trained on {TRAIN_ROWS} rows in three ways, {seeds} times each: \
         on the text alone, with the most probable tokens of a larger teacher that answered over gRPC, \
         and with its hidden states, coded. {}",
        comparison.verdict()
    );
    let about = format!(
        "On {HELD_OUT_ROWS} rows that no model was trained on; mean ± standard deviation over \
         {seeds} seeds. Perplexity is over all answer tokens, lower is better; KL(teacher || \
         student) is over the teacher's top tokens and the rest, with hidden states over all tokens; agreement is the share of \
         positions where student and teacher find the same token most probable."
    );
    let first = &comparison.of(Way::Distilled)[0];
    let facts = vec![
        ("time in all", duration(seconds)),
        (
            "rows",
            format!("{TRAIN_ROWS} for training, {HELD_OUT_ROWS} held out, no question in both"),
        ),
        ("steps of a run", first.steps.to_string()),
        (
            "wire",
            format!(
                "{} bytes a token; coded hidden states {}",
                number(first.wire_bytes_per_token),
                number(comparison.of(Way::Coded)[0].wire_bytes_per_token)
            ),
        ),
        ("fingerprint of the teacher", first.fingerprint_teacher.clone().unwrap_or_default()),
    ];
    Report {
        title: "Distillation, and what the teacher was worth".to_owned(),
        lead,
        tiles: tiles(comparison),
        tables: vec![
            ("Before and after".to_owned(), about, comparison.table()),
            ("Seed by seed".to_owned(), String::new(), by_seed(comparison)),
        ],
        charts: charts(comparison, dir),
        samples,
        facts: facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        config: first.config.clone(),
    }
}

/// A sample as text for the terminal.
pub(super) fn sample_text(sample: &Sample) -> String {
    let answers = sample.answers.iter().map(|(who, text)| format!("  {who:<18} {text}\n"));
    format!("Q: {}\n{}", sample.prompt, answers.collect::<String>().trim_end())
}

fn tiles(comparison: &Comparison) -> Vec<Tile> {
    let first = &comparison.of(Way::Distilled)[0];
    let mean = |way, figure| Spread::of(&comparison.values(way, figure)).mean;
    let tile =
        |name: &str, value: String, remark: String| Tile { name: name.into(), value, remark };
    let plain = |text: String| format!("{text} by plain training");
    vec![
        tile(
            "Perplexity, distilled",
            number(mean(Way::Distilled, PERPLEXITY)),
            plain(number(mean(Way::Plain, PERPLEXITY))),
        ),
        tile(
            "Agreement, distilled",
            percent(Some(mean(Way::Distilled, AGREEMENT))),
            plain(percent(Some(mean(Way::Plain, AGREEMENT)))),
        ),
        tile(
            "KL to teacher, distilled",
            number(mean(Way::Distilled, KL)),
            plain(number(mean(Way::Plain, KL))),
        ),
        tile(
            "Teacher's perplexity",
            maybe(first.teacher_perplexity),
            format!("student before: {}", maybe(first.student_perplexity_before)),
        ),
    ]
}

fn by_seed(comparison: &Comparison) -> Table {
    let mut table = Table::new([
        "seed",
        "perplexity, plain",
        "distilled",
        "coded",
        "agreement, plain",
        "distilled",
        "coded",
        "KL, plain",
        "distilled",
        "coded",
    ]);
    let [plain, distilled, coded] = Way::ALL.map(|way| comparison.of(way));
    for (index, ((plain, distilled), coded)) in plain.iter().zip(distilled).zip(coded).enumerate() {
        table.row([
            (index + 1).to_string(),
            maybe(plain.student_perplexity_after),
            maybe(distilled.student_perplexity_after),
            maybe(coded.student_perplexity_after),
            percent(plain.agreement_after),
            percent(distilled.agreement_after),
            percent(coded.agreement_after),
            maybe(plain.eval_kl_after),
            maybe(distilled.eval_kl_after),
            maybe(coded.eval_kl_after),
        ]);
    }
    table
}

/// A curve a way, the mean of its seeds, with each seed behind it.
fn charts(comparison: &Comparison, dir: &Path) -> Vec<Chart> {
    let chart = |title: &str, curves: &dyn Fn(Way) -> Vec<Vec<(f64, f64)>>, marked: bool| Chart {
        title: title.to_owned(),
        x_name: "step".to_owned(),
        series: Way::ALL.map(|way| series(way, curves(way), marked)).to_vec(),
        levels: Vec::new(),
    };
    let held_out = |title: &str, value: fn(&EvalReport) -> Option<f64>| {
        let curve = |evaluations: &[EvalReport]| -> Vec<(f64, f64)> {
            evaluations.iter().filter_map(|e| Some((e.step as f64, value(e)?))).collect()
        };
        let curves =
            |way| comparison.of(way).iter().map(|s| curve(&s.evaluations)).collect::<Vec<_>>();
        chart(title, &curves, true)
    };
    let training = |way: Way| {
        let runs = (1..=comparison.seeds).map(|seed| dir.join(RUNS).join(way.directory(seed)));
        let steps = runs.map(|run| metrics::read(&run.join("metrics.jsonl")).unwrap_or_default());
        steps
            .map(|steps| {
                let points: Vec<_> = steps.iter().map(|s| (s.step as f64, s.ce)).collect();
                smoothed(&points, points.len() / 12)
            })
            .collect::<Vec<_>>()
    };
    let teacher = comparison.of(Way::Distilled)[0].teacher_perplexity;
    vec![
        Chart {
            levels: teacher.map(|p| ("teacher".to_owned(), p)).into_iter().collect(),
            ..held_out("Held-out perplexity", |e| Some(e.student.token))
        },
        held_out("Held-out agreement, %", |e| e.agreement.map(|share| 100.0 * share)),
        held_out("Held-out KL to the teacher", |e| e.kl),
        chart("Cross-entropy on the training rows", &training, false),
    ]
}

/// The mean of several curves over the same steps, before the curves themselves.
fn series(way: Way, curves: Vec<Vec<(f64, f64)>>, marked: bool) -> Series {
    let points = curves.iter().map(Vec::len).min().unwrap_or(0);
    let mean = (0..points).map(|i| {
        let heights: Vec<_> = curves.iter().map(|curve| curve[i].1).collect();
        (curves[0][i].0, Spread::of(&heights).mean)
    });
    let mean = Line { points: mean.collect(), faint: false, marked };
    let each = curves.into_iter().map(|points| Line { points, faint: true, marked: false });
    Series { name: way.name().to_owned(), lines: each.chain([mean]).collect() }
}
