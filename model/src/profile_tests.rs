//! That a trace is one: it parses, names come back, what holds other spans holds them whole.

use std::time::Duration;

use serde_json::json;

use super::*;
use crate::test_support::{config, student};

fn read(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    let trace: Value = serde_json::from_str(&text).unwrap();
    trace["traceEvents"].as_array().unwrap().clone()
}

/// Row, name, beginning and end of every span.
fn spans(events: &[Value]) -> Vec<(u64, String, f64, f64)> {
    let spans = events.iter().filter(|event| event["ph"] == "X");
    let number = |value: &Value| value.as_f64().unwrap();
    spans
        .map(|event| {
            let (first, name) = (number(&event["ts"]), event["name"].as_str().unwrap());
            let row = event["tid"].as_u64().unwrap();
            (row, name.to_owned(), first, first + number(&event["dur"]))
        })
        .collect()
}

#[test]
fn spans_of_host_and_card_lie_side_by_side() {
    let mut profile = Profile::begin();
    let at = |ms: u64| profile.began + Duration::from_millis(ms);
    let [zero, two, three, nine] = [0, 2, 3, 9].map(at);
    // The one that holds the other is known last.
    profile.span("in \"it\"\n\\", [two, three]);
    profile.span("step 3", [zero, nine]);
    let timed = |name: &str, part: &str, ends| {
        let (name, part) = (name.to_owned(), part.to_owned());
        Timed { name, part, ends }
    };
    let steps = vec![
        timed("zero", "gradients", [0.0, 10.0]),
        timed("norm", "block 0", [12.0, 20.0]),
        timed("copy", "block 0", [25.0, 30.5]),
        timed("norm", "block 1", [31.0, 40.0]),
    ];
    profile.steps(&Times { since: two, steps });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace.json");
    profile.write(&path).unwrap();
    let events = read(&path);
    let span = |row, name: &str, first, last| (row, name.to_owned(), first, last);
    // Microseconds; the card's begin 2 ms later.
    let wanted = [
        span(0, "step 3", 0.0, 9000.0),
        span(0, "in \"it\"\n\\", 2000.0, 3000.0),
        span(1, "gradients", 2000.0, 2010.0),
        span(1, "block 0", 2012.0, 2030.5),
        span(1, "block 1", 2031.0, 2040.0),
        span(2, "zero", 2000.0, 2010.0),
        span(2, "norm", 2012.0, 2020.0),
        span(2, "copy", 2025.0, 2030.5),
        span(2, "norm", 2031.0, 2040.0),
    ];
    assert_eq!(spans(&events), wanted);
    let named = |event: &&Value| event["name"] == "thread_name";
    let rows: Vec<&Value> = events.iter().filter(named).map(|e| &e["args"]["name"]).collect();
    assert_eq!(rows, ["host", "card: parts", "card: steps"]);
}

#[test]
fn the_turns_that_were_asked_for_are_noted_and_written_once() {
    let student = student(&config(json!({})));
    let model: &dyn LanguageModel = student.model();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace.json");
    let mut profiling = Profiling::new(path.clone(), "2..3".parse().unwrap());
    for turn in 1..=5 {
        profiling.begins(turn, model);
        profiling.span(format!("turn {turn}"), Instant::now());
        let wanted = if turn == 3 { Trace::Written } else { Trace::Unchanged };
        assert_eq!(profiling.ends(turn, model).unwrap(), wanted);
    }
    let names: Vec<String> = spans(&read(&path)).into_iter().map(|(_, name, ..)| name).collect();
    assert_eq!(names, ["turn 2", "turn 3"]);
    assert_eq!(profiling.close(model).unwrap(), Trace::Unchanged);
    // A run that ends before the last of them.
    let mut profiling = Profiling::new(path.clone(), "1..9".parse().unwrap());
    profiling.begins(1, model);
    profiling.span("turn 1", Instant::now());
    assert_eq!(profiling.close(model).unwrap(), Trace::Written);
    assert_eq!(spans(&read(&path)).len(), 1);
    // One that ends before the first of them, and one that begins after the last.
    let mut short = Profiling::new(path.clone(), "2..3".parse().unwrap());
    short.begins(1, model);
    assert_eq!(short.ends(1, model).unwrap(), Trace::Unchanged);
    assert_eq!(
        [short.close(model).unwrap(), short.close(model).unwrap()],
        [Trace::Missed, Trace::Unchanged]
    );
    let mut late = Profiling::new(path.clone(), "2..3".parse().unwrap());
    late.begins(7, model);
    assert_eq!(
        [late.ends(7, model).unwrap(), late.close(model).unwrap()],
        [Trace::Missed, Trace::Unchanged]
    );
    let mut nowhere = Profiling::new(dir.path().join("no/dir"), "1..1".parse().unwrap());
    nowhere.begins(1, model);
    assert!(nowhere.ends(1, model).is_err());
}

#[test]
fn turns_are_two_numbers_from_1() {
    assert_eq!("3..8".parse::<Turns>().unwrap().to_string(), "3..8");
    for wrong in ["", "3", "8..3", "0..2", "a..b", "1...2"] {
        assert!(wrong.parse::<Turns>().unwrap_err().contains("as 3..8"), "{wrong}");
    }
}
