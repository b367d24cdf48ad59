//! Every divergence on a signal of k tokens against the float64 reference, and what is refused of
//! them. Those under a teacher that says all are in `full_tests`.

use candle_core::DType;
use distill::reference;
use proptest::prelude::*;

use super::cases::{Case, DEFAULTS, Random, Shape, relative_error, shape};
use super::*;
use crate::ops::testing::{device, on_threads, values, wide, zeros};

/// One of each kind.
pub(super) const DIVERGENCES: [Divergence; 5] = [
    Divergence::ForwardKl,
    Divergence::ReverseKl,
    Divergence::Jsd { beta: 0.5 },
    Divergence::Jsd { beta: 0.1 },
    Divergence::Mixture { beta: 0.3 },
];

pub(super) fn divergence() -> impl Strategy<Value = Divergence> {
    let beta = prop_oneof![Just(0.0), Just(1.0), Just(1e-9), Just(0.999), 0.0..=1.0f64];
    prop_oneof![
        Just(Divergence::ForwardKl),
        Just(Divergence::ReverseKl),
        beta.clone().prop_map(|beta| Divergence::Jsd { beta }),
        beta.prop_map(|beta| Divergence::Mixture { beta }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn losses_and_gradients_are_those_of_the_reference(
        classes in prop_oneof![2usize..70, 250usize..300],
        share in 0.0..=1.0f64,
        shapes in [shape(), shape()],
        temperature in prop_oneof![Just(0.5), Just(1.0), Just(2.0), Just(5.0), 0.5..20.0f64],
        alpha in prop_oneof![Just(0.0), Just(1.0), 0.0..1.0f64],
        divergence in divergence(),
    ) {
        let k = 1 + (share * (classes - 1) as f64) as usize;
        let settings = LossSettings { alpha, temperature, divergence, ..DEFAULTS };
        let case = Case::draw(classes, k, shapes, settings);
        let found = case.run(1.0, Some(&case.gradient())).unwrap();
        let d_hidden = values(found.d_hidden.as_ref().unwrap());
        for (s, z) in case.logits.chunks(classes).enumerate() {
            let z = wide(z);
            let kl = reference::divergence_top_k(&z, &case.signal, s, temperature, divergence);
            let ce = reference::cross_entropy(&z, case.targets[s] as usize);
            let total = reference::total(&kl, &ce, alpha, temperature);
            // The sum over the others carries 1e-7 of itself, their slope up to `value` times it.
            let error = (f64::from(found.kl[s]) - kl.value).abs();
            prop_assert!(error <= 1e-6 * (1.0 + kl.value), "{} {}", found.kl[s], kl.value);
            prop_assert!(found.kl[s] >= -1e-12, "{}", found.kl[s]);
            let tolerance = 1e-6 * (1.0 + alpha * temperature * (1.0 + kl.value));
            for (j, wanted) in total.gradient.iter().enumerate() {
                let found = f64::from(d_hidden[s * classes + j]);
                prop_assert!((found - wanted).abs() < tolerance, "{s} {j}: {found}, {wanted}");
            }
        }
        let without = case.run(1.0, None).unwrap();
        prop_assert_eq!((without.ce, without.kl), (found.ce, found.kl));
    }
}

#[test]
fn many_classes_meet_the_reference_through_a_true_product() {
    let (positions, width) = (5, 24);
    for classes in [BLOCK_CLASSES, BLOCK_CLASSES + 1, 2 * BLOCK_CLASSES + 7] {
        let case = Random::new(positions, classes, width, 64, 5.0);
        let (w, hidden) = (wide(&values(&case.w)), wide(&case.hidden));
        for divergence in DIVERGENCES {
            let settings = LossSettings { divergence, ..DEFAULTS };
            let dw = zeros((classes, width));
            let found = case.run(0..positions, &settings, Some(&dw));
            let (mut d_hidden, mut d_w) =
                (vec![0.0; positions * width], vec![0.0; classes * width]);
            for s in 0..positions {
                let h = &hidden[s * width..(s + 1) * width];
                let product = |row: &[f64]| row.iter().zip(h).map(|(a, b)| a * b).sum::<f64>();
                let z: Vec<f64> = w.chunks(width).map(product).collect();
                let kl = reference::divergence_top_k(&z, &case.signal, s, 5.0, divergence);
                assert!((f64::from(found.kl[s]) - kl.value).abs() < 2e-6 * kl.value);
                let ce = reference::cross_entropy(&z, case.targets[s] as usize);
                let total = reference::total(&kl, &ce, 0.7, 5.0);
                for (j, g) in total.gradient.iter().enumerate() {
                    for d in 0..width {
                        d_hidden[s * width + d] += g / 5.0 * w[j * width + d];
                        d_w[j * width + d] += g / 5.0 * h[d];
                    }
                }
            }
            assert!(relative_error(&values(found.d_hidden.as_ref().unwrap()), &d_hidden) < 2e-6);
            assert!(relative_error(&values(&dw), &d_w) < 2e-6);
        }
    }
}

#[test]
fn the_bits_depend_neither_on_threads_nor_on_other_positions() {
    let case = Random::new(333, 5000, 16, 20, 5.0);
    for divergence in DIVERGENCES {
        let settings = LossSettings { divergence, ..DEFAULTS };
        let run = |rows: Range<usize>| {
            let dw = zeros((5000, 16));
            let loss = case.run(rows, &settings, Some(&dw));
            (loss.ce, loss.kl, values(&loss.d_hidden.unwrap()), values(&dw))
        };
        let one = on_threads(1, || run(0..333));
        assert!(on_threads(3, || run(0..333)) == one, "{divergence}");
        let (ce, kl, d_hidden, _) = run(7..8);
        assert_eq!((ce[0], kl[0]), (one.0[7], one.1[7]));
        assert!(d_hidden == one.2[7 * 16..8 * 16], "{divergence}");
    }
}

#[test]
fn a_logit_that_is_no_number_spoils_its_own_position_only() {
    for divergence in DIVERGENCES {
        for (k, bad) in [(1, f32::NAN), (4, f32::NAN), (1, f32::INFINITY), (4, f32::INFINITY)] {
            let settings = LossSettings { divergence, ..DEFAULTS };
            let mut case = Case::draw(7, k, [Shape::Spread(1.0); 2], settings);
            case.logits[7 + 2] = bad;
            let found = case.run(1.0, None).unwrap();
            assert!(found.kl[1].is_nan(), "{divergence} {bad} {k}");
            assert!([0, 2, 3].iter().all(|&s| found.kl[s].is_finite()));
        }
    }
}

#[test]
fn where_a_teacher_rules_the_others_out_the_reverse_divergence_is_infinite_and_jsd_is_not() {
    for divergence in DIVERGENCES {
        let settings = LossSettings { divergence, ..DEFAULTS };
        let mut case = Case::draw(4, 2, [Shape::Spread(1.0); 2], settings);
        case.signal.log_rest = vec![f32::NEG_INFINITY; case.targets.len()];
        let found = case.run(1.0, Some(&case.gradient())).unwrap();
        let d_hidden = values(found.d_hidden.as_ref().unwrap());
        let infinite = matches!(divergence, Divergence::ReverseKl | Divergence::Mixture { .. });
        assert_eq!(found.kl[0] == f32::INFINITY, infinite, "{divergence}");
        assert_eq!(found.kl[0].is_finite(), !infinite, "{divergence}");
        assert_eq!(d_hidden[0].is_finite(), !infinite, "{divergence}");
    }
}

#[test]
fn a_student_that_rules_out_all_others_is_known_by_every_divergence() {
    let signal =
        TopK { k: 1, ids: vec![0], scaled: vec![0.0], log_z: vec![0.2], log_rest: vec![-1.7] };
    let p = signal.probabilities(0).0[0];
    for (divergence, wanted) in [
        (Divergence::ReverseKl, -p.ln()),
        // m = ((1 + p) / 2, (1 - p) / 2)
        (
            Divergence::Jsd { beta: 0.5 },
            0.5 * (p * (2.0 * p / (1.0 + p)).ln() + (1.0 - p) * 2f64.ln())
                + 0.5 * (2.0 / (1.0 + p)).ln(),
        ),
    ] {
        let mut logits = [3.0, f32::NEG_INFINITY, f32::NEG_INFINITY];
        let settings = LossSettings { divergence, ..DEFAULTS };
        let mut row = Row::new(0, Some((Listed::TopK(&signal), 0)), &settings);
        row.listen(&mut logits, 0);
        let heard = row.heard();
        assert!((heard.losses().kl - wanted).abs() < 1e-12, "{divergence}");
        // All it could do is to give of what it has to those it gives nothing: no slope.
        heard.gradient(&mut logits, 0);
        assert_eq!(logits, [0.0; 3], "{divergence}");
    }
}

#[test]
fn what_no_divergence_means_is_refused() {
    let refused = |settings: LossSettings, parts: &[&str]| {
        let case = Case::draw(5, 2, [Shape::Spread(1.0); 2], settings);
        let error = case.run(1.0, None).unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    for divergence in [Divergence::Jsd { beta: 1.5 }, Divergence::Mixture { beta: 1.5 }] {
        refused(LossSettings { divergence, ..DEFAULTS }, &["beta", "1.5", "0 to 1"]);
    }
    let renormalised = LossSettings { tail: Tail::Renormalise, ..DEFAULTS };
    for divergence in DIVERGENCES.into_iter().skip(1) {
        let name = divergence.to_string();
        refused(LossSettings { divergence, ..renormalised }, &[&name, "bucket", "renormalise"]);
    }
    // What means the forward divergence is one.
    let run = |settings| Case::draw(5, 2, [Shape::Spread(1.0); 2], settings).run(1.0, None);
    let found = run(LossSettings { divergence: Divergence::Jsd { beta: 0.0 }, ..renormalised });
    assert_eq!(found.unwrap().kl, run(renormalised).unwrap().kl);
    // A teacher that says all has no tail, and without a teacher there is no divergence.
    let settings = LossSettings { divergence: Divergence::ReverseKl, ..renormalised };
    let hidden = Tensor::zeros((1, 3), DType::F32, &device()).unwrap();
    let w = Tensor::zeros((5, 3), DType::F32, &device()).unwrap();
    let full = Some(Teaching::Full { hidden: &hidden, w: &w });
    for said in [full, None] {
        assert!(head_loss(&hidden, &w, 5, &[1], said, &settings, 1.0, None).is_ok());
    }
}
