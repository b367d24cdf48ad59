//! Draws as the student's teacher, against the float64 reference.

use distill::reference;
use distill::signal::{DrawKey, Draws};
use proptest::prelude::*;

use crate::ops::Precision;
use crate::ops::head::{BLOCK_CLASSES, Divergence, LossSettings, Tail, Teaching, head_loss};
use crate::ops::testing::{matrix, random, values, wide, zeros};

/// Draws at each of these rows of teacher logits.
fn draws(teacher: &[f32], classes: usize, n: u32, k: usize, t: f64) -> Draws {
    let mut signal = Draws::new(n, k);
    for (position, y) in teacher.chunks(classes).enumerate() {
        let key = DrawKey { seed: 1, token_checksum: 2, position: position as u32 };
        signal.push_exact(&wide(y), t, &key.uniforms(n));
    }
    signal
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn losses_and_gradients_are_those_of_the_reference(
        classes in prop_oneof![1usize..60, 250usize..300],
        n in 1u32..40,
        k in 0usize..12,
        t in prop_oneof![Just(1.0), 0.5..20.0f64],
        alpha in prop_oneof![Just(0.0), Just(1.0), 0.0..1.0f64],
        size in prop_oneof![Just(0.1f32), Just(3.0), Just(30.0)],
        renormalise: bool,
        seed: u64,
    ) {
        let positions = 3;
        let sized = |seed| random(seed, positions * classes).into_iter().map(|x| x * size).collect();
        let (z, y): (Vec<f32>, Vec<f32>) = (sized(seed), sized(seed ^ 1));
        let signal = draws(&y, classes, n, k.min(classes), t);
        let tail = if renormalise { Tail::Renormalise } else { Tail::Bucket };
        let settings = LossSettings { alpha, temperature: t, divergence: Divergence::ForwardKl, tail, precision: Precision::F32 };
        let targets: Vec<u32> = (0..positions).map(|s| (s * 7 % classes) as u32).collect();
        let mut identity = vec![0.0; classes * classes];
        (0..classes).for_each(|i| identity[i * (classes + 1)] = 1.0);
        let (hidden, w) = (matrix(&z, positions, classes), matrix(&identity, classes, classes));
        let dw = zeros((classes, classes));
        let said = Some(Teaching::Draws(&signal));
        let found = head_loss(&hidden, &w, classes, &targets, said, &settings, 1.0, Some(&dw)).unwrap();
        let gradient = values(found.d_hidden.as_ref().unwrap());
        for (s, z) in z.chunks(classes).enumerate() {
            let kl = reference::kl_draws(&wide(z), &signal, s, t);
            let ce = reference::cross_entropy(&wide(z), targets[s] as usize);
            let near = |found: f32, wanted: f64| (f64::from(found) - wanted).abs() < 2e-6 * (1.0 + wanted.abs());
            prop_assert!(near(found.kl[s], kl.value), "{} {}", found.kl[s], kl.value);
            prop_assert!(near(found.ce[s], ce.value));
            let (ids, _) = signal.estimate(s);
            prop_assert!(near(found.student_mass[s], reference::student_mass(&wide(z), &ids, t)));
            prop_assert!(near(found.teacher_mass[s], 1.0));
            let total = reference::total(&kl, &ce, alpha, t);
            for (found, wanted) in gradient[s * classes..].iter().zip(&total.gradient) {
                let off = (f64::from(*found) - wanted).abs();
                prop_assert!(off < 1e-6 * (1.0 + alpha * t), "{found} {wanted}");
            }
        }
    }
}

#[test]
fn draws_from_several_blocks_of_classes_meet_the_reference() {
    let (positions, classes, t) = (3, 2 * BLOCK_CLASSES + 5, 2.0);
    let (h, column) = (random(3, positions), random(4, classes));
    let teacher: Vec<f32> = random(5, positions * classes).iter().map(|y| 2.0 * y).collect();
    let signal = draws(&teacher, classes, 64, 3, t);
    let settings = LossSettings {
        alpha: 1.0,
        temperature: t,
        divergence: Divergence::ForwardKl,
        tail: Tail::Bucket,
        precision: Precision::F32,
    };
    let (hidden, w, dw) =
        (matrix(&h, positions, 1), matrix(&column, classes, 1), zeros((classes, 1)));
    let said = Some(Teaching::Draws(&signal));
    let found =
        head_loss(&hidden, &w, classes, &[0, 1, 2], said, &settings, 1.0, Some(&dw)).unwrap();
    let mut wanted = vec![0.0; classes];
    for (s, &h) in h.iter().enumerate() {
        let z: Vec<f64> = column.iter().map(|w| f64::from(w * h)).collect();
        let kl = reference::kl_draws(&z, &signal, s, t);
        assert!((f64::from(found.kl[s]) - kl.value).abs() < 2e-6 * kl.value);
        let gradients = wanted.iter_mut().zip(&kl.gradient);
        gradients.for_each(|(sum, g)| *sum += t * t * g * f64::from(h));
    }
    for (found, wanted) in values(&dw).iter().zip(&wanted) {
        assert!((f64::from(*found) - wanted).abs() < 1e-6, "{found} {wanted}");
    }
}

#[test]
fn draws_that_do_not_fit_are_refused() {
    let (hidden, w) = (matrix(&[0.5; 2], 2, 1), matrix(&[0.5; 4], 4, 1));
    let refused = |signal: &Draws, says: &str| {
        let settings = LossSettings {
            alpha: 1.0,
            temperature: 1.0,
            divergence: Divergence::ForwardKl,
            tail: Tail::Bucket,
            precision: Precision::F32,
        };
        let said = Some(Teaching::Draws(signal));
        let error = head_loss(&hidden, &w, 4, &[0, 1], said, &settings, 1.0, None).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    };
    let mut signal = Draws::new(2, 0);
    signal.push([], 0.0, [0, 3]);
    refused(&signal, "signal rows: 1 elements found, 2 wanted");
    signal.push([], 0.0, [0, 4]);
    refused(&signal, "signal row 1: id 4 is not below the number of classes 4");
    signal.ids[3] = 3;
    signal.counts[3] = 2;
    refused(&signal, "signal row 1: 3 draws, wanted 2");
}
