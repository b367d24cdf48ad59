//! At its limits: what is no number, infinite, equal, or ruled out is taken as the host takes it.

use distill::reference::{Divergence, Tail};
use distill::signal::TopK;
use kernels::Activations;
use kernels::head::Settings;

use super::cases::{self, Found, Signal, settings};
use super::full;
use crate::ops::Precision;
use crate::ops::emulated_tests::elements::emulated;
use crate::ops::head::LossSettings;
use crate::ops::head::cases::{Position, full_position, listed_position};

const NONE: f32 = f32::NEG_INFINITY;
/// One of each kind.
const KINDS: [Divergence; 4] = [
    Divergence::ForwardKl,
    Divergence::ReverseKl,
    Divergence::Jsd { beta: 0.3 },
    Divergence::Mixture { beta: 0.3 },
];

/// Rows of eleven logits, the largest of them so large.
fn rows(huge: f32) -> Vec<[f32; 11]> {
    let plain = [0.5, -1.0, 2.0, 0.0, -3.0, 1.5, 2.0, -0.5, 1.0, 0.25, -2.0];
    let with = |changes: &[(usize, f32)]| {
        let mut row = plain;
        changes.iter().for_each(|&(at, value)| row[at] = value);
        row
    };
    vec![
        plain,
        with(&[(3, f32::NAN)]),
        with(&[(4, f32::INFINITY)]),
        with(&[(0, f32::NAN), (9, f32::INFINITY)]),
        // Ruled out: a listed one, one that is not, the target, all but the first three, all.
        with(&[(0, NONE)]),
        with(&[(4, NONE), (5, NONE)]),
        with(&[0, 1, 2, 3].map(|at| (at, NONE))),
        with(&[(8, NONE)]),
        with(&[3, 4, 5, 6, 7, 8, 9, 10].map(|at| (at, NONE))),
        [NONE; 11],
        // Equal.
        [2.0; 11],
        with(&[(1, 2.0), (10, 2.0)]),
        [-0.0; 11],
        // Huge.
        with(&[(2, huge), (6, -huge)]),
        with(&[(7, 1e29), (8, 1.0001e29)]),
        [-huge; 11],
        with(&[(1, 1e4), (5, 1e4)]),
        with(&[(9, -1e4)]),
    ]
}

/// The same number, or none on either side.
fn same(found: f32, wanted: f64, size: f64) -> bool {
    let narrow = wanted as f32;
    let close = (f64::from(found) - wanted).abs() <= 2e-6 * (size + wanted.abs());
    found.is_nan() && narrow.is_nan() || found == narrow || close
}

/// `apart`: gradients too are made of differences of logits.
fn agrees(rows: &[[f32; 11]], found: &Found, wanted: &[Position], apart: bool, about: &str) {
    let classes = rows[0].len();
    for (s, (losses, argmax, gradient)) in wanted.iter().enumerate() {
        let about = format!("{about}, {:?}", rows[s]);
        // Divergences are differences of logits.
        let finite = rows[s].into_iter().filter(|z| z.is_finite());
        let size = finite.fold(1.0, |size, z| f64::from(z.abs()).max(size));
        for (column, wanted) in losses.iter().enumerate() {
            let found = found.losses[column][s];
            assert!(same(found, *wanted, size), "{about}, {column}: {found} {wanted}");
        }
        assert_eq!(found.argmax[s], *argmax, "{about}");
        let beside = found.gradient[s * classes..].iter().zip(gradient).enumerate();
        for (j, (found, wanted)) in beside {
            let size = if apart { 5.0 * size } else { 5.0 };
            assert!(same(*found, f64::from(*wanted), size), "{about}, class {j}: {found} {wanted}");
        }
    }
}

/// Settings of the kernels and of the host.
fn both(divergence: Divergence, t: f64) -> (Settings, LossSettings) {
    let (alpha, tail, precision) = (0.7, Tail::Bucket, Precision::F32);
    let on_host = LossSettings { alpha, temperature: t, divergence, tail, precision };
    (Settings { scale: 1.0, ..settings(alpha, t, divergence).0 }, on_host)
}

fn targets(count: usize) -> Vec<u32> {
    (0..count).map(|s| [8, 0, 3][s % 3]).collect()
}

#[test]
fn listed_tokens_are_taken_as_the_host_takes_them() {
    if !emulated("listed_tokens_are_taken_as_the_host_takes_them") {
        return;
    }
    let rows = rows(f32::MAX);
    let count = rows.len();
    let of_row = |row: &[f32], times: usize| row.repeat(times);
    let signals = [
        TopK {
            k: 3,
            ids: [2, 0, 1].repeat(count),
            scaled: of_row(&[1.0, 0.5, 0.0], count),
            log_z: vec![2.0; count],
            log_rest: vec![-0.7; count],
        },
        // Mass that is nowhere else, below the smallest float64, and less than nothing.
        TopK {
            k: 2,
            ids: [10, 6].repeat(count),
            scaled: of_row(&[0.5, -1000.0], count),
            log_z: vec![0.5; count],
            log_rest: vec![NONE; count],
        },
    ];
    for signal in &signals {
        for (at, divergence) in KINDS.into_iter().enumerate() {
            let (settings, on_host) = both(divergence, [5.0, 1.0][at % 2]);
            let case = cases::Case {
                classes: 11,
                logits: rows.concat(),
                targets: targets(count),
                signal: Signal::TopK(signal.clone(), Tail::Bucket),
                divergence,
                settings,
            };
            let of =
                |s: usize| listed_position(&rows[s], case.targets[s], Some((signal, s)), &on_host);
            let wanted: Vec<Position> = (0..count).map(of).collect();
            let about = format!("{divergence}, {} listed", signal.k);
            // One block of classes, and three.
            let width = [4, 11][at % 2];
            agrees(&rows, &case.run(width, Activations::F32), &wanted, false, &about);
        }
    }
}

#[test]
fn a_position_without_a_signal_is_taken_as_the_host_takes_it() {
    if !emulated("a_position_without_a_signal_is_taken_as_the_host_takes_it") {
        return;
    }
    let rows = rows(f32::MAX);
    let count = rows.len();
    let (settings, on_host) = both(Divergence::ForwardKl, 5.0);
    let case = cases::Case {
        classes: 11,
        logits: rows.concat(),
        targets: targets(count),
        signal: Signal::None,
        divergence: Divergence::ForwardKl,
        settings,
    };
    let of = |s: usize| listed_position(&rows[s], case.targets[s], None, &on_host);
    let wanted: Vec<Position> = (0..count).map(of).collect();
    agrees(&rows, &case.run(11, Activations::F32), &wanted, false, "no signal");
}

#[test]
fn a_full_teacher_is_taken_as_the_host_takes_it() {
    if !emulated("a_full_teacher_is_taken_as_the_host_takes_it") {
        return;
    }
    // Sums of differences of logits are float32 on both sides, and differences in other orders overflow elsewhere.
    let rows = rows(1e30);
    let count = rows.len();
    let plain = vec![[0.1, 0.7, 1.0, -2.0, 0.3, 1.2, 0.0, 2.5, -1.0, 0.4, 0.9]; count];
    for (at, divergence) in KINDS.into_iter().enumerate() {
        let (settings, on_host) = both(divergence, [5.0, 1.0][at % 2]);
        let pairs = [(&rows, &plain), (&plain, &rows), (&rows, &rows)];
        for (student, teacher) in [pairs[at % 3], pairs[(at + 1) % 3]] {
            let case = full::Case {
                classes: 11,
                student: student.concat(),
                teacher: teacher.concat(),
                targets: targets(count),
                settings,
            };
            let of = |s: usize| full_position(&student[s], &teacher[s], case.targets[s], &on_host);
            let wanted: Vec<Position> = (0..count).map(of).collect();
            let found = case.run(11, Activations::F32, false);
            agrees(&rows, &found, &wanted, true, &divergence.to_string());
        }
    }
}
