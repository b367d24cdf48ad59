//! Under a teacher that says all.

use distill::reference::{self, Divergence};
use distill::signal::log_sum_exp;
use kernels::Activations;
use kernels::emulation::Memory;
use kernels::head::full::{
    COEFFICIENTS, HEARD, Logits, Rows, gradient, heard, listen, listen_again,
};
use kernels::head::{Classes, LOSSES, Settings};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::KINDS;
use super::cases::{DIVERGENCES, Found, block, columns, in_place, losses, settings};
use crate::ops::emulated_tests::elements::{all, emulated};
use crate::ops::head::cases::{Shape, draw};
use crate::ops::testing::wide;

/// Positions whose logits of both sides are given.
pub(super) struct Case {
    pub(super) classes: usize,
    pub(super) student: Vec<f32>,
    pub(super) teacher: Vec<f32>,
    pub(super) targets: Vec<u32>,
    pub(super) settings: Settings,
}

impl Case {
    fn new(classes: usize, shapes: [Shape; 2], settings: Settings) -> Self {
        let rng = &mut ChaCha8Rng::seed_from_u64(classes as u64);
        let positions = 1 + classes % 2;
        let mut side = |shape| (0..positions).flat_map(|_| draw(shape, classes, rng)).collect();
        let [student, teacher] = shapes.map(&mut side);
        let targets = (0..positions).map(|s| ((s * 7919 + 5) % classes) as u32).collect();
        Self { classes, student, teacher, targets, settings }
    }

    /// Losses and gradients, as [`super::cases::Case::run`] makes them; the most probable classes of both sides where
    /// the teacher is measured too.
    pub(super) fn run(&self, width: usize, activations: Activations, measures: bool) -> Found {
        let memory = &mut Memory::default();
        let (classes, count, settings) = (self.classes, self.targets.len(), self.settings);
        let (positions, width) = (count as u32, width.next_multiple_of(4));
        let rows = Rows {
            targets: memory.of("targets", &self.targets),
            heard: memory.unwritten::<f64>("heard", count * HEARD),
            argmax: memory.unwritten::<u32>("argmax", 2 * count),
            coefficients: memory.unwritten::<f32>("coefficients", count * COEFFICIENTS),
        };
        let at_losses = memory.unwritten::<f32>("losses", count * LOSSES);
        let firsts = || (0..classes).step_by(width);
        let of = |first: usize| Classes {
            first: first as u32,
            width: width as u32,
            all: classes as u32,
        };
        let blocks: Vec<Logits<_>> = firsts()
            .map(|first| Logits {
                student: block(memory, "student", &self.student, classes, first, width),
                teacher: block(memory, "teacher", &self.teacher, classes, first, width),
            })
            .collect();
        for (logits, first) in blocks.iter().zip(firsts()) {
            all(&[listen(*logits, rows, positions, of(first), settings, measures)], memory);
        }
        if settings.asks_twice() {
            for (logits, first) in blocks.iter().zip(firsts()) {
                all(&[listen_again(*logits, rows, positions, of(first), settings)], memory);
            }
        }
        all(&[heard(rows, at_losses, positions, settings, measures)], memory);
        let mut gradients = vec![Vec::new(); count];
        for (logits, first) in blocks.iter().zip(firsts()) {
            let call = gradient(*logits, rows, positions, of(first), settings, activations);
            all(&[call], memory);
            let columns = columns(first, width, classes);
            let here = in_place(memory, logits.student, width, columns, activations);
            gradients.iter_mut().zip(here).for_each(|(row, here)| row.extend(here));
        }
        Found {
            losses: losses(memory, at_losses, count),
            argmax: memory.words(rows.argmax),
            gradient: gradients.concat(),
        }
    }

    /// Checks what was found of every position against the reference.
    fn agrees(
        &self,
        divergence: Divergence,
        found: &Found,
        activations: Activations,
        measures: bool,
        about: &str,
    ) {
        let Settings { alpha, temperature: t, scale, .. } = self.settings;
        let (classes, count) = (self.classes, self.targets.len());
        for s in 0..count {
            let about = format!("{about}, position {s}");
            let target = self.targets[s] as usize;
            let [z, y] =
                [&self.student, &self.teacher].map(|side| wide(&side[s * classes..][..classes]));
            let largest = z.iter().chain(&y).fold(0f64, |largest, x| largest.max(x.abs()));
            let kl = reference::divergence_full(&z, &y, t, divergence);
            let [ce, teacher_ce] = [&z, &y].map(|side| reference::cross_entropy(side, target));
            // Of differences of logits in float32, divided by T.
            let near = |what: &str, found: f32, wanted: f64, size: f64| {
                let off = (f64::from(found) - wanted).abs();
                let limit = 1e-6 * (1.0 + size) * (1.0 + wanted.abs());
                assert!(off <= limit, "{about}, {what}: {found} {wanted}");
            };
            let [of_ce, of_kl, masses @ .., of_rest, of_entropy, of_teacher] =
                found.losses.each_ref().map(|column| column[s]);
            near("ce", of_ce, ce.value, 0.0);
            near("kl", of_kl, kl.value, largest / t);
            assert!(of_kl >= 0.0 && masses == [1.0; 2] && of_rest == 0.0, "{about}");
            let log_z = log_sum_exp(y.iter().map(|y| y / t));
            let entropy: f64 = y.iter().map(|y| (y / t - log_z).exp() * (log_z - y / t)).sum();
            near("entropy", of_entropy, entropy, 0.0);
            let best = |x: &[f64]| {
                let largest = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                x.iter().position(|&x| x == largest).unwrap() as u32
            };
            assert_eq!(found.argmax[s], best(&z), "{about}");
            if measures {
                near("teacher's ce", of_teacher, teacher_ce.value, 0.0);
                assert_eq!(found.argmax[count + s], best(&y), "{about}");
            } else {
                assert!(of_teacher.is_nan(), "{about}");
            }
            let total = reference::total(&kl, &ce, alpha, t);
            let tolerance = 1e-6 * (1.0 + alpha * t * (1.0 + largest / t));
            let rounding = if activations == Activations::Bf16 { 2f64.powi(-8) } else { 1e-6 };
            let gradients = found.gradient[s * classes..].iter().zip(&total.gradient);
            for (j, (found, wanted)) in gradients.enumerate() {
                let off = (f64::from(*found) - scale * wanted).abs();
                let limit = scale * (tolerance + rounding * wanted.abs());
                assert!(off <= limit, "{about}, class {j}: {found} {}", scale * wanted);
            }
        }
    }
}

fn checked(case: &Case, divergence: Divergence, about: &str) {
    let few = case.classes.div_ceil(2);
    for (width, activations, measures) in
        [(case.classes, Activations::Bf16, false), (few, Activations::F32, true)]
    {
        let about = format!("{about}, {divergence}, {width} a block, {activations:?}");
        let found = case.run(width, activations, measures);
        case.agrees(divergence, &found, activations, measures, &about);
    }
}

#[test]
fn losses_and_gradients_under_a_full_teacher_are_those_of_the_reference() {
    if !emulated("losses_and_gradients_under_a_full_teacher_are_those_of_the_reference") {
        return;
    }
    for (number, (shapes, t, alpha)) in KINDS.into_iter().enumerate() {
        for other in [0, 3] {
            let divergence = DIVERGENCES[(number + other) % DIVERGENCES.len()];
            let classes = [1, 38, 71, 262][(number + other) % 4];
            let case = Case::new(classes, shapes, settings(alpha, t, divergence).0);
            checked(&case, divergence, &format!("{shapes:?}"));
        }
    }
}

#[test]
fn many_classes_beside_a_teachers_are_those_of_the_reference() {
    if !emulated("many_classes_beside_a_teachers_are_those_of_the_reference") {
        return;
    }
    for (at, divergence) in DIVERGENCES.into_iter().take(5).enumerate() {
        let (classes, t) = [(2048, 5.0), (4 * 2048 + 526, 2.0), (3 * 2048 - 4, 1.0)][at % 3];
        // Wide, so that the largest logit so far moves far up on either side.
        let shapes = [Shape::Spread(20.0), Shape::Spread(30.0)];
        let case = Case::new(classes, shapes, settings(0.7, t, divergence).0);
        checked(&case, divergence, &format!("{classes}, {t}"));
    }
}

/// What is subtracted is what was added, to the last digits.
#[test]
fn a_student_like_its_teacher_is_left_alone() {
    if !emulated("a_student_like_its_teacher_is_left_alone") {
        return;
    }
    for divergence in DIVERGENCES {
        for shape in [Shape::Spread(3.0), Shape::Peaked(1e4)] {
            let of = Settings { scale: 1.0, ..settings(1.0, 5.0, divergence).0 };
            let mut case = Case::new(1031, [shape; 2], of);
            case.teacher = case.student.clone();
            let found = case.run(1031, Activations::F32, false);
            assert!(found.losses[1].iter().all(|kl| (0.0..1e-6).contains(kl)), "{divergence}");
            assert!(found.gradient.iter().all(|g| g.abs() < 2e-6), "{divergence}, {shape:?}");
        }
    }
}
