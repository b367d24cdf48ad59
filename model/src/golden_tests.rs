//! The shared golden folders pass, and a wrong number would not.

use super::*;
use crate::test_support::golden;

fn passes(name: &str) {
    let Some(folder) = golden(name) else { return };
    let report = run(&folder).unwrap();
    assert!(report.passes(), "{report:#?}");
    let counts = |kind| report.worst.iter().find(|worst| worst.kind == kind).unwrap().count;
    // Two models, three signals of four settings, two runs of ten steps.
    assert_eq!((counts(Kind::Logits), counts(Kind::Losses)), (2, 36));
    assert_eq!((counts(Kind::StepLosses), counts(Kind::StepNorms)), (60, 20));
}

#[test]
fn golden_a_tied_grouped() {
    passes("a");
}

#[test]
fn golden_b_untied_wide_heads() {
    passes("b");
}

#[test]
fn golden_c_tied_with_biases() {
    passes("c");
}

#[test]
fn a_wrong_number_or_none_at_all_does_not_pass() {
    let mut report = Report::new();
    assert!(!report.passes(), "nothing was compared");
    Kind::ALL.iter().for_each(|&kind| report.add(kind, kind.tolerance(), String::new));
    assert!(report.passes());
    let mut wrong = report.clone();
    wrong.add(Kind::Losses, Kind::Losses.tolerance() * 1.01, || "here".to_owned());
    assert!(!wrong.passes());
    assert_eq!(wrong.worst[2].place, "here");
    report.add(Kind::Gradients, f64::NAN, String::new);
    assert!(!report.passes());
}

#[test]
fn a_changed_golden_value_is_found() {
    let Some(folder) = golden("a") else { return };
    let copy = tempfile::tempdir().unwrap();
    let link = |name: &str| {
        std::os::unix::fs::symlink(folder.join(name), copy.path().join(name)).unwrap();
    };
    ["teacher", "student", "golden.safetensors"].iter().for_each(|name| link(name));
    let text = std::fs::read_to_string(folder.join("golden.json")).unwrap();
    let mut numbers: serde_json::Value = serde_json::from_str(&text).unwrap();
    let kl = numbers["losses"][4]["kl"].as_f64().unwrap();
    numbers["losses"][4]["kl"] = (kl * (1.0 + 1e-5)).into();
    std::fs::write(copy.path().join("golden.json"), numbers.to_string()).unwrap();
    let report = run(copy.path()).unwrap();
    let failed: Vec<_> = report.worst.iter().filter(|worst| !worst.passes()).collect();
    assert_eq!(failed.len(), 1, "{report:#?}");
    assert_eq!(failed[0].place, "kl, tail alpha 0.7 T 5");
}

#[test]
fn a_folder_that_is_none_is_refused_by_name() {
    let empty = tempfile::tempdir().unwrap();
    let message = run(empty.path()).unwrap_err().to_string();
    assert!(message.contains("golden.json"), "{message}");
}
