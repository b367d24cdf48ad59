//! The output layer's loss under a teacher that lists tokens, or none.

mod cases;
mod full;
mod limits;

use distill::reference::{self, Divergence, Tail};
use distill::signal::{TopK, log_sum_exp};
use kernels::Activations;

use super::elements::emulated;
use crate::ops::head::cases::Shape;
use crate::ops::testing::wide;
use cases::{Case, DIVERGENCES, Found, Signal, settings};

/// What a position is to give: the loss of the signal and, beside it, the columns that belong to it.
struct Wanted {
    kl: reference::Loss,
    masses: [f64; 2],
    rest: f64,
    entropy: f64,
}

fn wanted(case: &Case, position: usize) -> Wanted {
    let (z, t) = (wide(case.logits_of(position)), case.settings.temperature);
    let of_student = |ids: &[u32]| reference::student_mass(&z, ids, t);
    match &case.signal {
        Signal::None => Wanted {
            kl: reference::Loss { value: 0.0, gradient: vec![0.0; z.len()] },
            masses: [0.0; 2],
            rest: 0.0,
            entropy: f64::NAN,
        },
        Signal::TopK(signal, tail) => of_top_k(case, signal, *tail, position),
        Signal::Draws(signal) => {
            let (ids, _) = signal.estimate(position);
            let kl = reference::kl_draws(&z, signal, position, t);
            Wanted { kl, masses: [1.0, of_student(&ids)], rest: 0.0, entropy: f64::NAN }
        }
    }
}

fn of_top_k(case: &Case, signal: &TopK, tail: Tail, position: usize) -> Wanted {
    let (z, t) = (wide(case.logits_of(position)), case.settings.temperature);
    let ids = &signal.ids[position * signal.k..(position + 1) * signal.k];
    let (p, p_rest) = signal.probabilities(position);
    let (log_p, log_p_rest) = signal.log_probabilities(position);
    let divergence = case.divergence;
    let kl = match tail {
        Tail::Renormalise => reference::kl_top_k(&z, signal, position, t, tail),
        Tail::Bucket => reference::divergence_top_k(&z, signal, position, t, divergence),
    };
    let others = (0..z.len() as u32).filter(|id| !ids.contains(id));
    let log_others = log_sum_exp(others.map(|id| z[id as usize] / t));
    let log_q_rest = log_others - log_sum_exp(z.iter().map(|z| z / t));
    let of_rest = if p_rest > 0.0 { p_rest * (log_p_rest - log_q_rest) } else { 0.0 };
    let rest = match (divergence.simplest(), tail) {
        (_, Tail::Renormalise) => 0.0,
        (Divergence::ForwardKl, Tail::Bucket) => of_rest,
        _ => f64::NAN,
    };
    let pairs = p.iter().zip(&log_p).chain([(&p_rest, &log_p_rest)]);
    let entropy = -pairs.filter(|(p, _)| **p > 0.0).map(|(p, log_p)| p * log_p).sum::<f64>();
    let masses = [p.iter().sum(), reference::student_mass(&z, ids, t)];
    Wanted { kl, masses, rest, entropy }
}

/// Checks what was found of every position against the reference.
fn agrees(case: &Case, found: &Found, activations: Activations, about: &str) {
    let settings = case.settings;
    let (alpha, t, scale) = (settings.alpha, settings.temperature, settings.scale);
    for s in 0..case.targets.len() {
        let about = format!("{about}, position {s}");
        let z = wide(case.logits_of(s));
        let Wanted { kl, masses, rest, entropy } = wanted(case, s);
        let ce = reference::cross_entropy(&z, case.targets[s] as usize);
        let [of_ce, of_kl, of_teacher, of_student, of_rest, of_entropy, none] =
            found.losses.each_ref().map(|column| f64::from(column[s]));
        let near = |what: &str, found: f64, wanted: f64| {
            let same = found.is_nan() && wanted.is_nan() || found == wanted;
            let off = (found - wanted).abs();
            assert!(
                same || off <= 1e-6 * (1.0 + wanted.abs()),
                "{about}, {what}: {found} {wanted}"
            );
        };
        near("ce", of_ce, ce.value);
        near("kl", of_kl, kl.value);
        assert!(of_kl >= -1e-12, "{about}: {of_kl}");
        near("teacher's mass", of_teacher, masses[0]);
        near("student's mass", of_student, masses[1]);
        near("rest", of_rest, rest);
        near("entropy", of_entropy, entropy);
        assert!(none.is_nan(), "{about}");
        let largest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let best = z.iter().position(|&z| z == largest).unwrap();
        assert_eq!(found.argmax[s] as usize, best, "{about}");
        let total = reference::total(&kl, &ce, alpha, t);
        // The sums over the others carry 1e-7 of themselves, their slope up to `value` times it.
        let tolerance = 1e-6 * (1.0 + alpha * t * (1.0 + kl.value));
        let rounding = if activations == Activations::Bf16 { 2f64.powi(-8) } else { 1e-6 };
        let gradients = found.gradient[s * z.len()..].iter().zip(&total.gradient);
        for (j, (found, wanted)) in gradients.enumerate() {
            let off = (f64::from(*found) - scale * wanted).abs();
            let limit = scale * (tolerance + rounding * wanted.abs());
            assert!(off <= limit, "{about}, class {j}: {found} {}", scale * wanted);
        }
    }
}

/// In one block of classes and rounded to bfloat16, and in a few blocks as float32.
fn checked(case: &Case, about: &str) {
    let few = case.classes.div_ceil(3);
    for (width, activations) in [(case.classes, Activations::Bf16), (few, Activations::F32)] {
        let found = case.run(width, activations);
        agrees(case, &found, activations, &format!("{about}, {width} a block, {activations:?}"));
    }
}

/// Shapes of the student's and the teacher's logits, and the temperature and alpha to go with them.
const KINDS: [([Shape; 2], f64, f64); 7] = [
    ([Shape::Spread(1.0), Shape::Spread(8.0)], 5.0, 0.7),
    ([Shape::Spread(8.0), Shape::Spread(1.0)], 1.0, 0.5),
    ([Shape::Peaked(100.0), Shape::Spread(1.0)], 2.0, 1.0),
    ([Shape::Spread(8.0), Shape::Peaked(100.0)], 7.3, 0.2),
    ([Shape::Split(100.0), Shape::Split(8.0)], 5.0, 0.9),
    ([Shape::Spread(1e4), Shape::Spread(100.0)], 0.5, 0.3),
    ([Shape::Spread(0.01), Shape::Spread(0.01)], 1.0, 0.0),
];

#[test]
fn losses_and_gradients_of_listed_tokens_are_those_of_the_reference() {
    if !emulated("losses_and_gradients_of_listed_tokens_are_those_of_the_reference") {
        return;
    }
    for (number, (shapes, t, alpha)) in KINDS.into_iter().enumerate() {
        for other in [0, 2, 3] {
            let divergence = DIVERGENCES[(number + other) % DIVERGENCES.len()];
            // Fewer classes than a group of four; one token to all of them.
            let classes = [3, 37, 71, 261][(number + other) % 4];
            let k = [1, 2, classes / 2, classes][(number + other / 2) % 4];
            let of = settings(alpha, t, divergence);
            let case = Case::top_k(classes, k, shapes, of, Tail::Bucket);
            checked(&case, &format!("{shapes:?}, {divergence}, {k} of {classes}"));
        }
    }
}

#[test]
fn a_renormalised_tail_is_that_of_the_reference() {
    if !emulated("a_renormalised_tail_is_that_of_the_reference") {
        return;
    }
    for (shapes, t, alpha) in KINDS {
        let of = settings(alpha, t, Divergence::ForwardKl);
        let case = Case::top_k(51, 7, shapes, of, Tail::Renormalise);
        checked(&case, &format!("{shapes:?}"));
    }
}

#[test]
fn draws_are_those_of_the_reference() {
    if !emulated("draws_are_those_of_the_reference") {
        return;
    }
    for (number, (shapes, t, alpha)) in KINDS.into_iter().enumerate() {
        // Draws alone, and beside exact entries; of one position more tokens than of another.
        let (n, k) = [(1, 0), (40, 0), (12, 5)][number % 3];
        let of = settings(alpha, t, Divergence::ForwardKl);
        let case = Case::draws(45 + number, n, k, shapes, of);
        checked(&case, &format!("{shapes:?}, {n} and {k}"));
    }
}

#[test]
fn cross_entropy_alone_is_that_of_the_reference() {
    if !emulated("cross_entropy_alone_is_that_of_the_reference") {
        return;
    }
    for (shapes, _, _) in KINDS {
        let case = Case::alone(51, shapes[0], settings(0.0, 1.0, Divergence::ForwardKl));
        checked(&case, &format!("{shapes:?}"));
    }
}

/// Many more classes than the threads of a block read at once: what is written in place lies over what others still
/// have to read.
#[test]
fn many_classes_are_those_of_the_reference() {
    if !emulated("many_classes_are_those_of_the_reference") {
        return;
    }
    for (classes, t) in [(4096, 5.0), (4 * 4096 + 1027, 2.0), (2 * 4096 + 4, 1.0)] {
        let shapes = [Shape::Spread(8.0), Shape::Spread(3.0)];
        let of = settings(0.7, t, Divergence::ForwardKl);
        let case = Case::top_k(classes, 64, shapes, of, Tail::Bucket);
        checked(&case, &format!("{classes}, {t}"));
    }
}
