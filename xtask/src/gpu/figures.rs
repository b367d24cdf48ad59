//! The figures: ours and PyTorch's in the same run, and what is wanted of them.

use std::fmt::Write as _;

use serde_json::Value;

use super::{Outcome, Run};
use crate::run::say;

/// Ours in order of their weight, with seconds each may take, and the peer's line of the same name.
const LINES: [(&str, u64, Option<&str>); 7] = [
    ("rate", 30, Some("matrix rate")),
    ("copy", 20, None),
    ("adamw", 30, Some("AdamW")),
    ("attention", 30, Some("attention, both ways")),
    ("output-layer", 60, None),
    ("student", 90, Some("student's step")),
    ("teacher", 90, None),
];

/// Epochs of the job over gRPC, in which the teacher is asked once.
pub(super) const EPOCHS: f64 = 3.0;

/// Measures what time allows.
pub(super) fn measure(run: &mut Run) {
    if !run.has_card() {
        run.note("figures", Outcome::Absent("no card in a rehearsal".to_owned()), 0.0);
        return;
    }
    let has_peer = run.has_peer();
    for (line, limit, peer) in LINES {
        let mut command = run.program("card_bench");
        command.arg(run.device()).arg(line);
        let ours = run.line(&format!("figures: {line}"), limit, &mut command);
        hear(run, "ours", ours.as_deref());
        if let Some(peer) = peer.filter(|_| has_peer) {
            let mut command = run.peer();
            let theirs = run.line(&format!("PyTorch: {peer}"), 150, command.arg(peer));
            hear(run, "PyTorch", theirs.as_deref());
        }
    }
}

/// Keeps what a program said, and says it here.
fn hear(run: &mut Run, who: &str, said: Option<&str>) {
    let heard = said_by(who, said);
    heard.iter().for_each(|figure| say(format!("    {figure}")));
    run.figures.extend(heard);
}

/// The figures among a program's lines.
fn said_by(who: &str, said: Option<&str>) -> Vec<Value> {
    let parsed = said.into_iter().flat_map(str::lines).filter_map(|line| {
        let mut figure: Value = serde_json::from_str(line).ok()?;
        figure["name"].as_str()?;
        figure["of"] = who.into();
        Some(figure)
    });
    parsed.collect()
}

fn find<'a>(figures: &'a [Value], of: &str, name: &str) -> Option<&'a Value> {
    figures.iter().find(|figure| figure["of"] == of && figure["name"] == name)
}

fn number(figure: &Value, field: &str) -> f64 {
    figure[field].as_f64().unwrap_or(f64::NAN)
}

/// What is wanted: of ours, a share, beside what; and how much.
struct Wanted {
    what: &'static str,
    share: Option<f64>,
    at_least: f64,
}

fn wanted(figures: &[Value]) -> Vec<Wanted> {
    let rate = |figure: &Value| number(figure, "operations") / number(figure, "seconds");
    let speed = |figure: &Value| number(figure, "bytes") / number(figure, "seconds");
    let seconds = |figure: &Value| number(figure, "seconds");
    let ours = |name: &str| find(figures, "ours", name);
    let theirs = |name: &str| find(figures, "PyTorch", name);
    let of_rate = |name| Some(rate(ours(name)?) / rate(ours("matrix rate")?));
    let faster = |name| Some(seconds(theirs(name)?) / seconds(ours(name)?));
    let step = "student's step";
    let memory = || Some(number(theirs(step)?, "memory") / number(ours(step)?, "memory"));
    let planned =
        || Some(number(ours("its memory by plan")?, "memory") / number(ours(step)?, "memory"));
    let job = || {
        // One card does both: the teacher's batch once in so many epochs, the step in each.
        let alone = seconds(ours("teacher's batch")?) / EPOCHS + seconds(ours(step)?);
        Some(alone / seconds(ours("job over gRPC")?))
    };
    let layer =
        || Some(seconds(ours("its products alone")?) / seconds(ours("output layer and loss")?));
    vec![
        Wanted {
            what: "teacher's batch, of the matrix rate",
            share: of_rate("teacher's batch"),
            at_least: 0.55,
        },
        Wanted { what: "student's step, of the matrix rate", share: of_rate(step), at_least: 0.4 },
        Wanted {
            what: "student's step, times PyTorch's speed",
            share: faster(step),
            at_least: 1.0,
        },
        Wanted {
            what: "student's step, PyTorch's memory over ours",
            share: memory(),
            at_least: 1.0 / 0.6,
        },
        Wanted {
            what: "student's step, memory by plan over taken",
            share: planned(),
            at_least: 0.95,
        },
        Wanted {
            what: "products alone over output layer and loss",
            share: layer(),
            at_least: 1.0 / 1.3,
        },
        Wanted {
            what: "1 GiB over output layer and loss's memory",
            share: ours("output layer and loss")
                .map(|figure| f64::from(1 << 30) / number(figure, "memory")),
            at_least: 1.0,
        },
        Wanted {
            what: "attention, times PyTorch's speed",
            share: faster("attention, both ways"),
            at_least: 0.8,
        },
        Wanted {
            what: "job over gRPC, of both sides one after another",
            share: job(),
            at_least: 0.9,
        },
        Wanted {
            what: "AdamW, of the copy bandwidth",
            share: Some(()).and_then(|()| Some(speed(ours("AdamW")?) / speed(ours("copy")?))),
            at_least: 0.7,
        },
    ]
}

/// One table for people.
pub(super) fn table(figures: &[Value]) -> String {
    let mut table = format!(
        "{:<26} {:<8} {:>10} {:>9} {:>9} {:>9}\n",
        "figure", "of", "ms", "TFLOP/s", "GB/s", "GiB"
    );
    for figure in figures {
        let seconds = number(figure, "seconds");
        let unless_none = |value: f64| {
            if value > 0.0 { format!("{value:.1}") } else { "-".to_owned() }
        };
        let _ = writeln!(
            table,
            "{:<26} {:<8} {:>10.3} {:>9} {:>9} {:>9}",
            figure["name"].as_str().unwrap_or_default(),
            figure["of"].as_str().unwrap_or_default(),
            1e3 * seconds,
            unless_none(1e-12 * number(figure, "operations") / seconds),
            unless_none(1e-9 * number(figure, "bytes") / seconds),
            unless_none(number(figure, "memory") / f64::from(1 << 30)),
        );
    }
    let _ = writeln!(table, "\n{:<46} {:>8} {:>8}", "wanted", "found", "at least");
    for Wanted { what, share, at_least } in wanted(figures) {
        let (found, word) = match share {
            None => ("-".to_owned(), "not measured"),
            Some(share) if share >= at_least => (format!("{share:.2}"), ""),
            Some(share) => (format!("{share:.2}"), "BELOW"),
        };
        let _ = writeln!(table, "{what:<46} {found:>8} {at_least:>8.2} {word}");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_and_held_against_what_is_wanted() {
        let ours = "noise\n\
            {\"name\": \"matrix rate\", \"seconds\": 0.001, \"operations\": 7e11, \"bytes\": 0, \"memory\": 0}\n\
            {\"name\": \"output layer and loss\", \"seconds\": 0.1, \"operations\": 1, \"bytes\": 0, \"memory\": 268435456}\n\
            {\"name\": \"student's step\", \"seconds\": 0.1, \"operations\": 3.5e13, \"bytes\": 0, \"memory\": 1073741824}\n\
            {\"name\": \"its memory by plan\", \"seconds\": 0.1, \"operations\": 0, \"bytes\": 0, \"memory\": 966367641}\n";
        let theirs = "{\"name\": \"student's step\", \"seconds\": 0.08, \"operations\": 0, \"bytes\": 0, \"memory\": 2147483648}";
        let mut figures = said_by("ours", Some(ours));
        figures.extend(said_by("PyTorch", Some(theirs)));
        assert_eq!((figures.len(), said_by("ours", None).len()), (5, 0));
        let table = table(&figures);
        let line =
            |what: &str| table.lines().find(|line| line.starts_with(what)).unwrap().to_owned();
        assert!(line("student's step, of the matrix rate").contains("0.50"));
        assert!(
            line("student's step, times").contains("0.80")
                && line("student's step, times").contains("BELOW")
        );
        assert!(line("student's step, PyTorch's memory").contains("2.00"));
        let plan = line("student's step, memory by plan");
        assert!(plan.contains("0.90") && plan.contains("BELOW"), "{plan}");
        assert!(line("AdamW, of").contains("not measured"));
        assert!(line("1 GiB over output layer").contains("4.00"));
        assert!(line("matrix rate").contains("700.0"));
    }
}
