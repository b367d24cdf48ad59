//! The tensor loss against the float64 reference, however its positions are split.

use candle_core::DType;
use distill::reference;
use proptest::prelude::*;

use super::cases::*;
use super::*;
use crate::ops::Precision;
use crate::ops::testing::{device, score_top};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn losses_and_gradients_are_those_of_the_reference(
        classes in prop_oneof![2usize..70, 250usize..300],
        share in 0.0..=1.0f64,
        shapes in [shape(), shape()],
        temperature in prop_oneof![Just(1.0), (2..=9u32).prop_map(f64::from), 0.5..20.0f64],
        alpha in prop_oneof![Just(0.0), Just(1.0), 0.0..1.0f64],
        renormalise in any::<bool>(),
    ) {
        let tail = if renormalise { Tail::Renormalise } else { Tail::Bucket };
        let k = 1 + (share * (classes - 1) as f64) as usize;
        let settings = LossSettings { alpha, temperature, tail, ..DEFAULTS };
        let case = Case::draw(classes, k, shapes, settings);
        let rows = classes + SPARE_ROWS;
        let dw = Tensor::full(0.125f32, (rows, classes), &device()).unwrap();
        let scale = 0.2;
        let found = case.run(scale, Some(&dw)).unwrap();
        let d_hidden = values(found.d_hidden.as_ref().unwrap());

        let mut wanted_dw = vec![0.0f64; rows * classes];
        for (s, z) in case.logits.chunks(classes).enumerate() {
            let z = wide(z);
            let kl = reference::kl_top_k(&z, &case.signal, s, temperature, tail);
            let ce = reference::cross_entropy(&z, case.targets[s] as usize);
            let total = reference::total(&kl, &ce, alpha, temperature);
            let near = |found: f32, wanted: f64| {
                (f64::from(found) - wanted).abs() <= 1e-6 * (1.0 + wanted)
            };
            prop_assert!(near(found.ce[s], ce.value), "ce {} {}", found.ce[s], ce.value);
            prop_assert!(near(found.kl[s], kl.value), "kl {} {}", found.kl[s], kl.value);
            // Both sides sum to 1 in float64: only its last digits can fall below zero.
            prop_assert!(found.kl[s] >= -1e-12 && found.ce[s] >= -1e-6);
            let ids = &case.signal.ids[s * k..(s + 1) * k];
            let mass = reference::student_mass(&z, ids, temperature);
            prop_assert!(near(found.student_mass[s], mass));
            prop_assert!(near(found.teacher_mass[s], case.signal.probabilities(s).0.iter().sum()));
            // Entropy and the rest's part, over the k + 1 outcomes as the tail has them.
            let (p, rest) = case.signal.probabilities(s);
            let of = |p: f64| if p > 0.0 { -p * p.ln() } else { 0.0 };
            let entropy = p.iter().copied().chain([rest]).map(of).sum::<f64>();
            prop_assert!(near(found.teacher_entropy[s], entropy) || tail == Tail::Renormalise);
            let others = (0..classes).filter(|&j| !ids.contains(&(j as u32)));
            let log_z = |classes: &mut dyn Iterator<Item = usize>| {
                let scaled: Vec<f64> = classes.map(|j| z[j] / temperature).collect();
                distill::signal::log_sum_exp(scaled.into_iter())
            };
            let log_q = log_z(&mut others.into_iter()) - log_z(&mut (0..classes));
            let of_rest = match tail {
                Tail::Bucket if rest > 0.0 => rest * (rest.ln() - log_q),
                Tail::Bucket | Tail::Renormalise => 0.0,
            };
            prop_assert!((f64::from(found.kl_rest[s]) - of_rest).abs() <= 1e-6 * (1.0 + of_rest.abs()));
            let best = (0..classes).rev().max_by(|&a, &b| z[a].total_cmp(&z[b]));
            prop_assert_eq!(Some(found.argmax[s] as usize), best);

            let tolerance = scale * 1e-6 * (1.0 + alpha * temperature);
            for (j, wanted) in total.gradient.iter().enumerate() {
                let found = f64::from(d_hidden[s * classes + j]);
                prop_assert!((found - scale * wanted).abs() < tolerance,
                    "d_hidden {s} {j}: {found}, {}", scale * wanted);
                for d in 0..classes {
                    wanted_dw[j * classes + d] += scale * wanted * z[d];
                }
            }
        }
        // Added to what was there (0.125), which takes its digits; the spare rows stay.
        let found_dw = values(&dw);
        let size = case.logits.iter().fold(1.0f64, |m, z| m.max(f64::from(z.abs())));
        let tolerance = size * 2e-6 * (1.0 + alpha * temperature);
        for (i, (found, wanted)) in found_dw.iter().zip(&wanted_dw).enumerate() {
            let found = f64::from(*found) - 0.125;
            prop_assert!((found - wanted).abs() <= tolerance, "dw {i}: {found}, {wanted}");
        }
        prop_assert!(found_dw[classes * classes..].iter().all(|&v| v == 0.125));

        // The same losses, to the bit, without a gradient.
        let without = case.run(scale, None).unwrap();
        prop_assert!(without.d_hidden.is_none());
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
        prop_assert!(close(&without.ce, &found.ce) && close(&without.kl, &found.kl));
        prop_assert_eq!(without.argmax, found.argmax);
    }
}

#[test]
fn however_positions_are_split_over_calls_and_chunks_the_gradient_is_the_same() {
    let (positions, classes) = (2100, 4099);
    assert!(chunks(positions).count() > 1 && blocks(classes).count() > 1);
    let case = Random::new(positions, classes, 8, 16, 5.0);
    let zeros = || Tensor::zeros((classes, 8), DType::F32, &device()).unwrap();
    let dw = zeros();
    let whole = case.run(0..positions, &DEFAULTS, Some(&dw));
    let parts_dw = zeros();
    let (mut ce, mut kl, mut d_hidden) = (Vec::new(), Vec::new(), Vec::new());
    for rows in [0..1, 1..400, 400..401, 401..2000, 2000..2100] {
        let part = case.run(rows, &DEFAULTS, Some(&parts_dw));
        ce.extend(part.ce);
        kl.extend(part.kl);
        d_hidden.extend(values(part.d_hidden.as_ref().unwrap()));
    }
    assert!(relative_error(&ce, &wide(&whole.ce)) < 1e-6);
    assert!(relative_error(&kl, &wide(&whole.kl)) < 1e-6);
    assert!(relative_error(&d_hidden, &wide(&values(whole.d_hidden.as_ref().unwrap()))) < 1e-6);
    assert!(relative_error(&values(&parts_dw), &wide(&values(&dw))) < 1e-6);
}

#[test]
fn many_classes_meet_the_reference_through_a_true_product() {
    // Two blocks of classes and a little of a third.
    let (positions, classes, width) = (5, 2 * BLOCK_CLASSES + 7, 24);
    let case = Random::new(positions, classes, width, 64, 5.0);
    let dw = Tensor::zeros((classes, width), DType::F32, &device()).unwrap();
    let found = case.run(0..positions, &DEFAULTS, Some(&dw));
    let (w, hidden) = (wide(&values(&case.w)), wide(&case.hidden));
    let mut d_hidden = vec![0.0; positions * width];
    let mut d_w = vec![0.0; classes * width];
    for s in 0..positions {
        let h = &hidden[s * width..(s + 1) * width];
        let product = |row: &[f64]| row.iter().zip(h).map(|(a, b)| a * b).sum::<f64>();
        let z: Vec<f64> = w.chunks(width).map(product).collect();
        let kl = reference::kl_top_k(&z, &case.signal, s, 5.0, Tail::Bucket);
        let ce = reference::cross_entropy(&z, case.targets[s] as usize);
        assert!((f64::from(found.kl[s]) - kl.value).abs() < 2e-6 * kl.value);
        assert!((f64::from(found.ce[s]) - ce.value).abs() < 2e-6 * ce.value);
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

#[test]
fn a_student_like_its_teacher_is_left_alone() {
    for (k, t) in [(1, 1.0), (64, 5.0), (300, 0.5)] {
        let mut case = Random::new(9, 300, 16, k, t);
        let hidden = matrix(&case.hidden, 16);
        let next = vec![None; 9];
        case.signal = score_top(&hidden, &case.w, 300, &next, t, k, Precision::F32).unwrap().0;
        let settings = LossSettings { alpha: 1.0, temperature: t, ..DEFAULTS };
        let dw = Tensor::zeros((300, 16), DType::F32, &device()).unwrap();
        let found = case.run(0..9, &settings, Some(&dw));
        assert!(
            found.kl.iter().all(|kl| (-1e-12..1e-11).contains(&f64::from(*kl))),
            "{:?}",
            found.kl
        );
        assert!(values(&dw).iter().all(|g| g.abs() < 2e-6));
        for (a, b) in found.teacher_mass.iter().zip(&found.student_mass) {
            assert!((a - b).abs() < 1e-6);
        }
    }
}

#[test]
fn without_a_signal_there_is_cross_entropy_alone() {
    let case = Random::new(6, 500, 16, 1, 1.0);
    let hidden = matrix(&case.hidden, 16);
    let run = |alpha: f64, signal: Option<&TopK>, dw: Option<&Tensor>| {
        let settings = LossSettings { alpha, ..DEFAULTS };
        let said = signal.map(Teaching::TopK);
        head_loss(&hidden, &case.w, 500, &case.targets, said, &settings, 1.0, dw)
    };
    let zeros = || Tensor::zeros((500, 16), DType::F32, &device()).unwrap();
    let (alone, beside) = (zeros(), zeros());
    let found = run(0.0, None, Some(&alone)).unwrap();
    let with = run(0.0, Some(&case.signal), Some(&beside)).unwrap();
    assert_eq!(found.kl, [0.0; 6]);
    // A signal of weight 0 is measured, and moves nothing.
    assert!(with.kl.iter().all(|&kl| kl > 0.0));
    assert!(relative_error(&with.ce, &wide(&found.ce)) < 1e-6);
    assert!(relative_error(&values(&beside), &wide(&values(&alone))) < 1e-6);
    // To measure needs no weight; to teach does.
    assert_eq!(run(0.7, None, None).unwrap().ce, found.ce);
    let error = run(0.7, None, Some(&alone)).unwrap_err().to_string();
    assert!(error.contains("alpha is 0.7") && error.contains("no signal"), "{error}");
}

#[test]
fn rounded_operands_give_what_they_would_have_given_in_full() {
    let case = Random::new(20, 700, 32, 32, 5.0);
    for (precision, limit) in [(Precision::Bf16, 1e-2), (Precision::F16, 2e-3)] {
        let settings = LossSettings { precision, ..DEFAULTS };
        let dw = Tensor::zeros((700, 32), DType::F32, &device()).unwrap();
        let found = case.run(0..20, &settings, Some(&dw));
        // The same operands, rounded beforehand and stored as such.
        let hidden = matrix(&case.hidden, 32).to_dtype(precision.dtype()).unwrap();
        let w = case.w.to_dtype(precision.dtype()).unwrap();
        let full_dw = Tensor::zeros((700, 32), DType::F32, &device()).unwrap();
        let full = head_loss(
            &hidden,
            &w,
            700,
            &case.targets,
            Some(Teaching::TopK(&case.signal)),
            &DEFAULTS,
            1.0 / 20.0,
            Some(&full_dw),
        )
        .unwrap();
        assert!(relative_error(&found.ce, &wide(&full.ce)) < 1e-6);
        assert!(relative_error(&found.kl, &wide(&full.kl)) < 1e-6);
        // The gradient of the logits is an operand too, and rounded in one of the two.
        let d_hidden = wide(&values(full.d_hidden.as_ref().unwrap()));
        let error = relative_error(&values(found.d_hidden.as_ref().unwrap()), &d_hidden);
        assert!(error > 1e-7 && error < limit, "{error}");
        assert!(relative_error(&values(&dw), &wide(&values(&full_dw))) < limit);
    }
}
