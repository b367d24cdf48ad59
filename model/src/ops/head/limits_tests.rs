//! The tensor loss at its limits: what is no number, ties, no positions, what does not fit.

use candle_core::DType;

use super::cases::{Case, DEFAULTS, Shape};
use super::*;
use crate::ops::testing::device;

#[test]
fn a_logit_that_is_no_number_spoils_its_own_position_only() {
    for k in [1, 4] {
        for bad in [f32::NAN, f32::INFINITY] {
            let shapes = [Shape::Spread(1.0); 2];
            let mut case = Case::draw(7, k, shapes, DEFAULTS);
            assert_eq!(case.targets.len(), 4);
            case.logits[7 + 2] = bad;
            // The identity would carry NaN · 0 to the neighbours of the same row only.
            let found = case.run(1.0, None).unwrap();
            assert!(found.ce[1].is_nan(), "{bad}");
            assert!([0, 2, 3].iter().all(|&s| found.ce[s].is_finite() && found.kl[s].is_finite()));
        }
    }
}

#[test]
fn the_lower_id_is_the_argmax_among_equals() {
    let settings = LossSettings { temperature: 1.0, ..DEFAULTS };
    let mut case = Case::draw(4, 1, [Shape::Spread(1.0); 2], settings);
    case.logits = vec![1.0, 3.0, 3.0, 0.0];
    case.targets = vec![0];
    for (id, wanted) in [(0, 1), (1, 1), (2, 1), (3, 1)] {
        case.signal =
            TopK { k: 1, ids: vec![id], scaled: vec![0.0], log_z: vec![1.0], log_rest: vec![-0.5] };
        assert_eq!(case.run(1.0, None).unwrap().argmax, [wanted]);
    }
    // All equal, and of those taken out the second is listed first.
    case.logits = vec![2.0; 4];
    case.signal = TopK {
        k: 2,
        ids: vec![3, 2],
        scaled: vec![0.0; 2],
        log_z: vec![1.4],
        log_rest: vec![-0.7],
    };
    assert_eq!(case.run(1.0, None).unwrap().argmax, [0]);
    case.logits = vec![1.0, 1.0, 2.0, 2.0];
    assert_eq!(case.run(1.0, None).unwrap().argmax, [2]);
}

#[test]
fn a_student_that_rules_out_all_others_has_an_infinite_loss_and_a_finite_gradient() {
    let signal =
        TopK { k: 1, ids: vec![0], scaled: vec![0.0], log_z: vec![0.2], log_rest: vec![-1.7] };
    let mut logits = [3.0, f32::NEG_INFINITY, f32::NEG_INFINITY];
    let mut row = Row::new(0, Some((Listed::TopK(&signal), 0)), &DEFAULTS);
    row.listen(&mut logits, 0);
    let heard = row.heard();
    let loss = heard.losses();
    heard.gradient(&mut logits, 0);
    assert_eq!((loss.ce, loss.kl), (0.0, f64::INFINITY));
    let wanted = 0.7 * 5.0 * (1.0 - signal.probabilities(0).0[0]);
    assert!((f64::from(logits[0]) - wanted).abs() < 1e-6, "{logits:?}, {wanted}");
    assert_eq!(logits[1..], [0.0; 2]);
}

#[test]
fn no_positions_give_no_losses() {
    let hidden = Tensor::zeros((0, 3), DType::F32, &device()).unwrap();
    let w = Tensor::zeros((5, 3), DType::F32, &device()).unwrap();
    let settings = LossSettings { alpha: 0.0, ..DEFAULTS };
    let found =
        head_loss(&hidden, &w, 5, &[], None, &settings, 1.0, Some(&w.zeros_like().unwrap()));
    let found = found.unwrap();
    assert!(found.ce.is_empty());
    assert_eq!(found.d_hidden.unwrap().dims(), [0, 3]);
}

#[test]
fn what_does_not_fit_is_refused_with_both_values() {
    let settings = LossSettings { temperature: 2.0, ..DEFAULTS };
    let base = || Case::draw(5, 2, [Shape::Spread(1.0); 2], settings);
    let refused = |case: &Case, parts: &[&str]| {
        let error = case.run(1.0, None).unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    let mut case = base();
    case.targets[1] = 5;
    refused(&case, &["position 1", "target 5", "5 classes"]);
    let mut case = base();
    case.targets.pop();
    refused(&case, &["targets", "1", "2"]);
    let mut case = base();
    case.signal.ids[3] = 6;
    refused(&case, &["signal row 1", "id 6", "5 classes"]);
    let mut case = base();
    case.signal = case.signal.slice(0..1);
    refused(&case, &["signal rows", "1", "2"]);
    let mut case = base();
    case.signal = TopK { k: 6, ..case.signal };
    refused(&case, &["k is 6", "1 to 5"]);
    let mut case = Case::draw(5, 5, [Shape::Spread(1.0); 2], settings);
    case.signal.log_rest[1] = -3.0;
    refused(&case, &["signal row 1", "all the classes"]);
    for (alpha, temperature, part) in [
        (1.5, 2.0, "alpha is 1.5"),
        (f64::NAN, 2.0, "alpha is NaN"),
        (0.5, 0.0, "temperature is 0"),
    ] {
        let settings = LossSettings { alpha, temperature, ..settings };
        refused(&Case { settings, ..base() }, &[part]);
    }
    let case = base();
    let narrow = Tensor::zeros((8, 4), DType::F32, &device()).unwrap();
    let error = case.run(1.0, Some(&narrow)).unwrap_err().to_string();
    assert!(error.contains("gradient") && error.contains('4') && error.contains('5'), "{error}");
}
