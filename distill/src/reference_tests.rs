//! The reference losses against the golden values, against finite differences of themselves, and
//! at the extremes.

use proptest::prelude::*;
use safetensors::SafeTensors;

use super::*;

/// Central difference of `f` with respect to each logit.
fn finite_differences(z: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let step = 1e-4;
    (0..z.len())
        .map(|j| {
            let mut moved = z.to_vec();
            moved[j] = z[j] + step;
            let above = f(&moved);
            moved[j] = z[j] - step;
            (above - f(&moved)) / (2.0 * step)
        })
        .collect()
}

fn assert_close(found: &[f64], wanted: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), wanted.len());
    for (j, (a, b)) in found.iter().zip(wanted).enumerate() {
        assert!((a - b).abs() <= tolerance, "{what}: class {j}: {a} against {b}");
    }
}

#[test]
fn two_classes_by_hand() {
    // z = (ln 3, 0): softmax is (3/4, 1/4).
    let z = [3f64.ln(), 0.0];
    let ce = cross_entropy(&z, 1);
    assert!((ce.value - 4f64.ln()).abs() < 1e-14);
    assert_close(&ce.gradient, &[0.75, -0.75], 1e-14, "ce");

    // Teacher (1/2, 1/2): KL = 1/2 ln(2/3) + 1/2 ln 2, at T = 1; at T = 2 the student is
    // (s, 1) / (s + 1) with s = sqrt 3.
    let kl = kl_full(&z, &[5.0, 5.0], 1.0);
    assert!((kl.value - 0.5 * (4f64 / 3.0).ln()).abs() < 1e-14);
    assert_close(&kl.gradient, &[0.25, -0.25], 1e-14, "kl");
    let s = 3f64.sqrt();
    let kl = kl_full(&z, &[5.0, 5.0], 2.0);
    assert_close(&kl.gradient[..1], &[(s / (s + 1.0) - 0.5) / 2.0], 1e-14, "kl at T = 2");
}

#[test]
fn three_classes_in_a_bucket_by_hand() {
    // Teacher (1/2, 1/4, 1/4), student (1/4, 1/4, 1/2), k = 1: outcomes (1/2, 1/2) and (1/4, 3/4).
    let z = [0.0, 0.0, 2f64.ln()];
    let bucket = kl_bucket(&z, &[0], &[0.5], 0.5, 1.0);
    assert!((bucket.value - (0.5 * 2f64.ln() + 0.5 * (2.0f64 / 3.0).ln())).abs() < 1e-14);
    // The bucket's half goes to the others as the student shares it between them, 1 to 2.
    let wanted = [0.25 - 0.5, 0.25 - 0.5 / 3.0, 0.5 - 1.0 / 3.0];
    assert_close(&bucket.gradient, &wanted, 1e-14, "bucket");

    // Renormalised, the one token of k = 1 is certain for the teacher.
    let renormalised = kl_renormalised(&z, &[0], &[0.5], 1.0);
    assert!((renormalised.value - 4f64.ln()).abs() < 1e-14);
    assert_close(&renormalised.gradient, &[-0.75, 0.25, 0.5], 1e-14, "renormalised");
    assert!((student_mass(&z, &[0, 2], 1.0) - 0.75).abs() < 1e-14);
}

#[test]
fn what_the_teacher_rules_out_costs_nothing_and_what_the_student_rules_out_is_infinite() {
    let none = f64::NEG_INFINITY;
    // Teacher without a rest, student with one.
    let loss = kl_bucket(&[1.0, 0.0, -1.0], &[0], &[1.0], 0.0, 1.0);
    assert!(loss.value.is_finite() && loss.gradient.iter().all(|g| g.is_finite()));
    // Both without: k = V.
    let all = kl_bucket(&[1.0, 0.0], &[1, 0], &[0.5, 0.5], 0.0, 3.0);
    assert_close(&[all.value], &[kl_full(&[1.0, 0.0], &[2.0, 2.0], 3.0).value], 1e-14, "k = V");
    // The student rules out all others, the teacher does not.
    let loss = kl_bucket(&[1.0, none, none], &[0], &[0.9], 0.1, 1.0);
    assert_eq!(loss.value, f64::INFINITY);
    assert!(loss.gradient.iter().all(|g| g.is_finite()));
    // A part of weight 0 does not spoil the other.
    let ce = cross_entropy(&[1.0, none, none], 0);
    assert_eq!(total(&loss, &ce, 0.0, 1.0), ce);
    // A class that neither knows.
    let full = kl_full(&[0.0, 1.0, none], &[0.0, 1.0, none], 1.0);
    assert_eq!((full.value, full.gradient), (0.0, vec![0.0; 3]));
}

#[test]
fn a_rest_of_almost_nothing_keeps_a_finite_gradient_that_knows_its_way() {
    // q_rest = e^-9000: q_rest itself and p_rest / q_rest are beyond float64.
    let z = [9000.0, 0.0, 1.0];
    let loss = kl_bucket(&z, &[0], &[0.5], 0.5, 1.0);
    assert!((loss.value - (-(2f64.ln()) + 0.5 * (9000.0 - (1f64.exp() + 1.0).ln()))).abs() < 1e-9);
    let s = 1.0 / (1.0 + 1f64.exp());
    assert_close(&loss.gradient, &[0.5, -0.5 * s, -0.5 * (1.0 - s)], 1e-12, "gradient");
}

/// A loss as a function of the student's logits.
type LossOf<'a> = &'a dyn Fn(&[f64]) -> Loss;

/// A position: student logits, teacher logits, target, k, T, alpha.
type Position = (Vec<f64>, Vec<f64>, usize, usize, f64, f64);

fn position() -> impl Strategy<Value = Position> {
    let spread = prop_oneof![Just(0.01), Just(1.0), Just(10.0), Just(300.0), Just(1e4)];
    (2usize..40, spread.clone(), spread).prop_flat_map(|(classes, spread_z, spread_y)| {
        let logits = |spread: f64| proptest::collection::vec(-spread..=spread, classes);
        let alpha = prop_oneof![Just(0.0), Just(1.0), 0.0..1.0f64];
        (logits(spread_z), logits(spread_y), 0..classes, 1..=classes, 0.5..20.0f64, alpha)
    })
}

const CASES: u32 = 400;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn every_total_is_finite_not_negative_and_has_the_gradient_it_says(
        (z, y, target, k, t, alpha) in position(),
    ) {
        let mut signal = TopK::new(k);
        signal.push_exact(&y, t);
        let bucket = |z: &[f64]| kl_top_k(z, &signal, 0, t, Tail::Bucket);
        let renormalised = |z: &[f64]| kl_top_k(z, &signal, 0, t, Tail::Renormalise);
        let full = |z: &[f64]| kl_full(z, &y, t);
        let losses: [(&str, LossOf<'_>); 3] =
            [("bucket", &bucket), ("renormalised", &renormalised), ("full", &full)];
        for (name, kl) in losses {
            let loss_of = |z: &[f64]| total(&kl(z), &cross_entropy(z, target), alpha, t);
            let loss = loss_of(&z);
            prop_assert!(loss.value.is_finite(), "{name}: {}", loss.value);
            prop_assert!(loss.gradient.iter().all(|g| g.is_finite()), "{name}");
            // Rounding alone may take it below zero, by digits of the largest term.
            prop_assert!(loss.value > -1e-13 * t * t, "{name}: {}", loss.value);
            // Truncation, and rounding: u = z / T carries an error of 2e-16 |z| / T, the loss T²
            // times that in each of a few places, and the difference is divided by 2e-4.
            let largest = z.iter().fold(1.0f64, |m, z| m.max(z.abs()));
            let tolerance = 1e-7 + 1e-9 * t * t + 4e-11 * t.max(1.0 / t) * largest;
            let differences = finite_differences(&z, |z| loss_of(z).value);
            for (g, d) in loss.gradient.iter().zip(&differences) {
                prop_assert!((g - d).abs() < tolerance, "{name}: {g} against {d}");
            }
        }
    }

    #[test]
    fn the_bucket_is_at_most_the_full_divergence_and_reaches_it_at_k_equal_to_v(
        (z, y, _, k, t, _) in position(),
    ) {
        // Probabilities in float64, not through the signal's float32.
        let log_p = log_softmax(&y, t);
        let mut order: Vec<u32> = (0..y.len() as u32).collect();
        order.sort_by(|&a, &b| y[b as usize].total_cmp(&y[a as usize]));
        let bucket_of = |k: usize| {
            let (ids, others) = order.split_at(k);
            let p: Vec<f64> = ids.iter().map(|&i| log_p[i as usize].exp()).collect();
            let rest = others.iter().map(|&i| log_p[i as usize].exp()).sum();
            kl_bucket(&z, ids, &p, rest, t)
        };
        let full = kl_full(&z, &y, t);
        let rounding = 1e-12 * (1.0 + full.value);
        prop_assert!(bucket_of(k).value <= full.value + rounding);
        let whole = bucket_of(y.len());
        prop_assert!((whole.value - full.value).abs() <= rounding);
        for (a, b) in whole.gradient.iter().zip(&full.gradient) {
            prop_assert!((a - b).abs() < 1e-12);
        }
    }

    #[test]
    fn a_student_like_its_teacher_has_no_divergence((_, y, _, k, t, _) in position()) {
        let mut signal = TopK::new(k);
        signal.push_exact(&y, t);
        // The signal rounds y / T to float32: the teacher it describes is that much off.
        let ulp = y.iter().fold(1.0f64, |m, v| m.max(v.abs())) / t * 1.2e-7;
        prop_assert!(kl_top_k(&y, &signal, 0, t, Tail::Bucket).value <= 4.0 * ulp * ulp + 1e-12);
        prop_assert!(kl_full(&y, &y, t).value.abs() < 1e-12);
    }
}

/// A golden case; `None`, with a word, where the shared files are not at hand.
fn golden(case: &str, test: &str) -> Option<(Vec<u8>, serde_json::Value)> {
    let dir = test_support::shared(&format!("oracle/{case}"), test)?;
    let read = |name: &str| std::fs::read(dir.join(name)).expect("a file of the golden case");
    let json = serde_json::from_slice(&read("golden.json")).expect("golden.json is JSON");
    Some((read("golden.safetensors"), json))
}

fn floats(tensors: &SafeTensors<'_>, name: &str) -> Vec<f64> {
    let view = tensors.tensor(name).expect("a golden tensor");
    let four_bytes = |b: &[u8]| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    view.data().chunks_exact(4).map(four_bytes).collect()
}

fn integers(tensors: &SafeTensors<'_>, name: &str) -> Vec<i64> {
    let view = tensors.tensor(name).expect("a golden tensor");
    let eight = |b: &[u8]| i64::from_le_bytes(b.try_into().expect("eight bytes"));
    view.data().chunks_exact(8).map(eight).collect()
}

#[test]
fn golden_losses_of_three_signals_at_four_settings() {
    for case in ["a", "b", "c"] {
        let test = "golden_losses_of_three_signals_at_four_settings";
        let Some((bytes, json)) = golden(case, test) else { continue };
        let tensors = SafeTensors::deserialize(&bytes).expect("golden.safetensors");
        let shape = tensors.tensor("student_logits").expect("student_logits").shape().to_vec();
        let (length, classes) = (shape[1], shape[2]);
        let student = floats(&tensors, "student_logits");
        let teacher = floats(&tensors, "teacher_logits");
        let ids = integers(&tensors, "input_ids");
        let mask = integers(&tensors, "loss_mask");
        // Position t is scored from t - 1 when token t is a target.
        let scored: Vec<usize> =
            (1..mask.len()).filter(|t| t % length > 0 && mask[*t] == 1).collect();
        let mut checked = 0;
        for wanted in json["losses"].as_array().expect("losses") {
            let number = |key: &str| wanted[key].as_f64().expect("a number");
            let (alpha, t) = (number("alpha"), number("temperature"));
            let mut sums = [0.0; 3];
            for &next in &scored {
                let row = (next - 1) * classes..next * classes;
                let (z, y) = (&student[row.clone()], &teacher[row]);
                let kl = match wanted["mode"].as_str().expect("a mode") {
                    "full" => kl_full(z, y, t),
                    mode => {
                        let mut signal = TopK::new(wanted["k"].as_u64().expect("k") as usize);
                        signal.push_exact(y, t);
                        let renormalise = mode == "renorm";
                        let tail = if renormalise { Tail::Renormalise } else { Tail::Bucket };
                        kl_top_k(z, &signal, 0, t, tail)
                    }
                };
                let ce = cross_entropy(z, ids[next] as usize);
                sums[0] += total(&kl, &ce, alpha, t).value;
                sums[1] += t * t * kl.value;
                sums[2] += ce.value;
            }
            for (sum, name) in sums.iter().zip(["total", "kl", "ce"]) {
                let (found, wanted_value) = (sum / scored.len() as f64, number(name));
                let error = (found - wanted_value).abs() / wanted_value.abs();
                assert!(error < 2e-6, "case {case} {wanted} {name}: {found}, error {error:e}");
                checked += 1;
            }
        }
        assert_eq!(checked, 36, "three signals at four settings, three values each");
    }
}
