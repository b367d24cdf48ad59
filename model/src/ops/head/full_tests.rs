//! A teacher that says all, against the float64 reference and against itself.

use candle_core::{DType, Tensor};
use distill::reference;
use proptest::prelude::*;

use super::cases::DEFAULTS;
use super::divergence_tests::{DIVERGENCES, divergence};
use crate::ops::head::{
    BLOCK_CLASSES, Divergence, HeadLoss, LossSettings, Teaching, blocks, chunks, head_loss,
};
use crate::ops::testing::{device, matrix, on_threads, random, values, zeros};

/// Hidden states and output matrices of both sides, of different widths.
struct Case {
    positions: usize,
    classes: usize,
    widths: [usize; 2],
    hidden: [Vec<f32>; 2],
    w: [Vec<f32>; 2],
    targets: Vec<u32>,
}

impl Case {
    fn new(positions: usize, classes: usize, widths: [usize; 2], seed: u64, size: f32) -> Self {
        let drawn = |seed, n: usize| -> Vec<f32> {
            random(seed, n).into_iter().map(|value| value * size).collect()
        };
        let targets = (0..positions).map(|s| ((s * 7919 + 3) % classes) as u32).collect();
        let [d, e] = widths;
        Self {
            positions,
            classes,
            widths,
            hidden: [drawn(seed, positions * d), drawn(seed ^ 1, positions * e)],
            w: [random(seed ^ 2, classes * d), random(seed ^ 3, classes * e)],
            targets,
        }
    }

    fn run(&self, settings: &LossSettings, scale: f64, dw: Option<&Tensor>) -> HeadLoss {
        let [d, e] = self.widths;
        let hidden = matrix(&self.hidden[1], self.positions, e);
        let w = matrix(&self.w[1], self.classes, e);
        head_loss(
            &matrix(&self.hidden[0], self.positions, d),
            &matrix(&self.w[0], self.classes, d),
            self.classes,
            &self.targets,
            Some(Teaching::Full { hidden: &hidden, w: &w }),
            settings,
            scale,
            dw,
        )
        .unwrap()
    }

    /// Logits of a position, the student's (0) or the teacher's (1).
    fn logits(&self, side: usize, position: usize) -> Vec<f64> {
        let width = self.widths[side];
        let h = &self.hidden[side][position * width..][..width];
        let dot = |row: &[f32]| row.iter().zip(h).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        self.w[side].chunks(width).map(dot).collect()
    }

    /// Checks losses and both gradients against the reference.
    fn agrees(&self, settings: &LossSettings) -> Result<(), TestCaseError> {
        let (scale, t, alpha) = (0.25, settings.temperature, settings.alpha);
        let dw = zeros((self.classes, self.widths[0]));
        let found = self.run(settings, scale, Some(&dw));
        let without = self.run(settings, scale, None);
        prop_assert_eq!((&without.ce, &without.kl), (&found.ce, &found.kl));
        prop_assert!(found.teacher.is_none());
        let width = self.widths[0];
        let mut wanted_d = vec![0.0; self.positions * width];
        let mut wanted_dw = vec![0.0; self.classes * width];
        let mut largest = 0f64;
        for s in 0..self.positions {
            let (z, y) = (self.logits(0, s), self.logits(1, s));
            largest = z.iter().chain(&y).fold(largest, |m, v| m.max(v.abs()));
            let kl = reference::divergence_full(&z, &y, t, settings.divergence);
            let ce = reference::cross_entropy(&z, self.targets[s] as usize);
            // Logits are sums in float32: off by some 1e-7 of their terms.
            let tolerance = 1e-6 * (1.0 + largest / t);
            prop_assert!(
                (f64::from(found.kl[s]) - kl.value).abs() < tolerance * (1.0 + kl.value),
                "kl {} {}",
                found.kl[s],
                kl.value
            );
            let tolerance = 1e-6 * (1.0 + largest);
            prop_assert!((f64::from(found.ce[s]) - ce.value).abs() < tolerance);
            let best = (0..self.classes).max_by(|&a, &b| z[a].total_cmp(&z[b])).unwrap();
            prop_assert!(z[best] - z[found.argmax[s] as usize] < tolerance);
            let of_teacher = reference::cross_entropy(&y, self.targets[s] as usize);
            let measured = without.teacher.as_ref().unwrap();
            prop_assert!((f64::from(measured.ce[s]) - of_teacher.value).abs() < tolerance);
            let best = (0..self.classes).max_by(|&a, &b| y[a].total_cmp(&y[b])).unwrap();
            prop_assert!(y[best] - y[measured.argmax[s] as usize] < tolerance);
            let log_z = distill::signal::log_sum_exp(y.iter().map(|y| y / t));
            let entropy: f64 = y.iter().map(|y| (y / t - log_z).exp() * (log_z - y / t)).sum();
            let off = (f64::from(found.teacher_entropy[s]) - entropy).abs();
            prop_assert!(off < 1e-6 * (1.0 + largest / t) * (1.0 + entropy), "{off} of {entropy}");
            prop_assert_eq!(found.kl_rest[s], 0.0);
            let total = reference::total(&kl, &ce, alpha, t);
            for (j, g) in total.gradient.iter().enumerate() {
                for d in 0..width {
                    wanted_d[s * width + d] += scale * g * f64::from(self.w[0][j * width + d]);
                    wanted_dw[j * width + d] +=
                        scale * g * f64::from(self.hidden[0][s * width + d]);
                }
            }
        }
        // Of a difference of two probabilities of about 1: what cancels leaves its rounding.
        let limit = 1e-6 * (1.0 + largest) * (1.0 + alpha * t);
        let near = |found: &[f32], wanted: &[f64], factor: f64| {
            let square = |x: f64| x * x;
            let off: f64 = found.iter().zip(wanted).map(|(a, b)| square(f64::from(*a) - b)).sum();
            let size: f64 = wanted.iter().map(|b| square(*b)).sum();
            off.sqrt() <= limit * (size.sqrt() + scale * factor)
        };
        prop_assert!(near(&values(found.d_hidden.as_ref().unwrap()), &wanted_d, 1.0), "d_hidden");
        let factor = self.hidden[0].iter().fold(1f32, |m, h| m.max(h.abs()));
        prop_assert!(near(&values(&dw), &wanted_dw, f64::from(factor)), "dw");
        Ok(())
    }
}

fn settings(alpha: f64, temperature: f64, divergence: Divergence) -> LossSettings {
    LossSettings { alpha, temperature, divergence, ..DEFAULTS }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn losses_and_gradients_are_those_of_the_reference(
        positions in 1usize..5,
        classes in prop_oneof![1usize..40, 250usize..300],
        widths in [1usize..20, 1usize..20],
        size in prop_oneof![Just(0.01f32), Just(1.0), Just(30.0), Just(1000.0)],
        t in prop_oneof![Just(0.5), Just(1.0), Just(2.0), Just(5.0), 0.5..20.0f64],
        alpha in prop_oneof![Just(0.0), Just(1.0), 0.0..1.0f64],
        divergence in divergence(),
        seed: u64,
    ) {
        let settings = settings(alpha, t, divergence);
        Case::new(positions, classes, widths, seed, size).agrees(&settings)?;
    }
}

#[test]
fn blocks_of_classes_are_put_together_as_the_reference_says() {
    // One block, one and a little, two and a little; the teacher's largest logit at the end.
    for (classes, count) in [(4096, 1), (4097, 2), (2 * BLOCK_CLASSES + 7, 3)] {
        assert_eq!(blocks(classes).count(), count);
        let mut case = Case::new(4, classes, [24, 16], 5, 1.0);
        case.w[1][(classes - 2) * 16..(classes - 1) * 16].copy_from_slice(&[3.0; 16]);
        for divergence in DIVERGENCES {
            case.agrees(&settings(0.7, 5.0, divergence)).unwrap();
            case.agrees(&settings(0.7, 1.0, divergence)).unwrap();
        }
    }
}

#[test]
fn a_student_like_its_teacher_is_left_alone() {
    let mut case = Case::new(9, 5000, [16, 16], 7, 1.0);
    case.hidden[1] = case.hidden[0].clone();
    case.w[1] = case.w[0].clone();
    for divergence in DIVERGENCES {
        let dw = zeros((5000, 16));
        let found = case.run(&settings(1.0, 5.0, divergence), 1.0, Some(&dw));
        assert!(found.kl.iter().all(|kl| (0.0..1e-6).contains(kl)), "{:?}", found.kl);
        assert!(values(&dw).iter().all(|g| g.abs() < 2e-6), "{divergence}");
        assert_eq!((found.teacher_mass[0], found.student_mass[0]), (1.0, 1.0));
    }
}

#[test]
fn the_bits_depend_neither_on_threads_nor_on_other_positions() {
    assert!(chunks(2100).count() > 1 && blocks(4099).count() > 1);
    for (positions, classes) in [(2100, 300), (40, 4099)] {
        for divergence in DIVERGENCES {
            let settings = settings(0.7, 5.0, divergence);
            let case = Case::new(positions, classes, [8, 8], 3, 1.0);
            let run = || {
                let dw = zeros((classes, 8));
                let loss = case.run(&settings, 1.0, Some(&dw));
                (loss.ce, loss.kl, values(&loss.d_hidden.unwrap()), values(&dw))
            };
            let one = on_threads(1, run);
            assert!(on_threads(3, run) == one, "{divergence}");
            let mut alone = Case::new(positions, classes, [8, 8], 3, 1.0);
            alone.positions = 1;
            alone.targets.truncate(1);
            alone.hidden.iter_mut().for_each(|hidden| hidden.truncate(8));
            let loss = alone.run(&settings, 1.0, Some(&zeros((classes, 8))));
            assert_eq!((loss.ce[0], loss.kl[0]), (one.0[0], one.1[0]));
            assert!(values(&loss.d_hidden.unwrap()) == one.2[..8], "{divergence}");
        }
    }
}

/// Of many positions the first blocks stay only, and the others are computed again: both ways lead to
/// the same.
#[test]
fn what_is_kept_is_what_is_computed_again() {
    let all = Case::new(2048, 6 * BLOCK_CLASSES - 5, [3, 5], 11, 0.5);
    let [d, e] = all.widths;
    let settings = settings(0.7, 2.0, Divergence::Jsd { beta: 0.3 });
    let half = |first: usize| Case {
        positions: 1024,
        hidden: [
            all.hidden[0][first * d..(first + 1024) * d].to_vec(),
            all.hidden[1][first * e..(first + 1024) * e].to_vec(),
        ],
        w: all.w.clone(),
        targets: all.targets[first..first + 1024].to_vec(),
        ..all
    };
    let gradient = |case: &Case, dw: &Tensor| {
        let loss = case.run(&settings, 1.0, Some(dw));
        (loss.kl, values(&loss.d_hidden.unwrap()))
    };
    let [whole, halves] = [(); 2].map(|()| zeros((all.classes, d)));
    let (kl, d_hidden) = gradient(&all, &whole);
    let parts = [0, 1024].map(|first| gradient(&half(first), &halves));
    assert!(kl == parts.each_ref().map(|part| part.0.clone()).concat());
    assert!(d_hidden == parts.map(|part| part.1).concat());
    let (whole, halves) = (values(&whole), values(&halves));
    let pairs = whole.iter().zip(&halves);
    let (apart, size) = pairs.fold((0.0, 0.0), |(apart, size): (f32, f32), (a, b)| {
        (apart.max((a - b).abs()), size.max(a.abs()))
    });
    assert!(apart < 1e-5 * size, "{apart} of {size}");
}

#[test]
fn a_logit_that_is_no_number_spoils_its_own_position_only() {
    for classes in [50, 4099] {
        for (bad, side) in [(f32::NAN, 0), (f32::NAN, 1), (f32::INFINITY, 0), (f32::INFINITY, 1)] {
            let mut case = Case::new(4, classes, [6, 5], 3, 1.0);
            let width = case.widths[side];
            case.hidden[side][width] = bad;
            for divergence in DIVERGENCES {
                let settings = settings(0.7, 2.0, divergence);
                let found = case.run(&settings, 1.0, Some(&zeros((classes, 6))));
                assert!(found.kl[1].is_nan(), "{divergence} {bad} {side}");
                let d_hidden = values(&found.d_hidden.unwrap());
                assert!(d_hidden[6..12].iter().all(|g| g.is_nan()), "{divergence} {bad} {side}");
                for s in [0, 2, 3] {
                    assert!(found.ce[s].is_finite() && found.kl[s].is_finite());
                    assert!(d_hidden[s * 6..(s + 1) * 6].iter().all(|g| g.is_finite()));
                }
            }
        }
    }
}

#[test]
fn a_teacher_that_does_not_fit_is_refused() {
    let hidden = matrix(&[0.5; 6], 2, 3);
    let w = matrix(&[0.5; 12], 4, 3);
    let error = |teacher: &Tensor, matrix: &Tensor| {
        let said = Some(Teaching::Full { hidden: teacher, w: matrix });
        let settings = settings(0.7, 5.0, Divergence::ForwardKl);
        head_loss(&hidden, &w, 4, &[0, 1], said, &settings, 1.0, None).unwrap_err().to_string()
    };
    let three = Tensor::zeros((3, 5), DType::F32, &device()).unwrap();
    assert!(error(&three, &three).contains("the teacher's hidden states: shape [3, 5] found"));
    let two = Tensor::zeros((2, 5), DType::F32, &device()).unwrap();
    assert!(error(&two, &w).contains("the teacher's output matrix: width 3 found, 5 wanted"));
    assert!(error(&two, &three).contains("the teacher's output matrix: 4 classes asked for"));
}
