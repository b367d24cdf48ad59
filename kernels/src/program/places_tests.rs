//! Tests of where buffers lie.

use super::*;
use crate::program::{Kind, Step, View};

/// A program of buffers of these bytes, each touched at its first and last step; names in turn.
fn program(buffers: &[(usize, [usize; 2])]) -> Program {
    let mut program = Program::default();
    let views: Vec<View> =
        buffers.iter().map(|&(bytes, _)| program.passing("some", Kind::U32, bytes / 4)).collect();
    let steps = buffers.iter().map(|(_, life)| life[1] + 1).max().unwrap_or(0);
    for step in 0..steps {
        let here = buffers.iter().zip(&views).filter(|((_, life), _)| life.contains(&step));
        let views: Vec<View> = here.map(|(_, view)| *view).collect();
        // A step that touches them all: a launch of any name.
        let call = crate::Call {
            kernel: "touch",
            blocks: [1, 1],
            threads: 1,
            memory: 0,
            arguments: views.into_iter().map(crate::Argument::Buffer).collect(),
        };
        program.steps.push(Step::Call(call));
    }
    program
}

#[test]
fn buffers_that_are_needed_at_once_lie_apart_and_others_share() {
    // One after another: all in the place of the largest.
    let places = Places::of(&program(&[(1000, [0, 1]), (512, [2, 3]), (100, [4, 4])]));
    assert_eq!((places.starts, places.bytes, places.least), (vec![0, 0, 0], 1024, 1024));
    // A kept one beside two that take turns.
    let places = Places::of(&program(&[(256, [0, 3]), (1024, [0, 1]), (512, [2, 3])]));
    assert_eq!((places.starts, places.bytes), (vec![1024, 0, 0], 1280));
    // The last step of one and the first of another may be the same: the step reads one and writes the other.
    assert_eq!(Places::of(&program(&[(256, [0, 1]), (256, [1, 2])])).bytes, 512);
}

#[test]
fn nobody_touches_it_nobody_keeps_it() {
    let mut program = program(&[(256, [0, 1])]);
    program.passing("never", Kind::F64, 1000);
    let places = Places::of(&program);
    assert_eq!((places.bytes, places.lives[1]), (256, None));
    assert_eq!(Places::of(&Program::default()).bytes, 0);
}

#[test]
fn what_is_held_at_most_is_named() {
    let mut program = program(&[(256, [0, 1]), (1024, [1, 2]), (512, [1, 3]), (256, [3, 3])]);
    program.passing[1].name = "other";
    let places = Places::of(&program);
    assert_eq!(places.least, 1792);
    assert_eq!(places.at_peak, BTreeMap::from([("other", 1024), ("some", 768)]));
}

#[test]
fn of_any_program_no_two_that_live_together_overlap() {
    // Numbers of a congruential generator (Knuth, MMIX).
    let mut state = 7_u64;
    let mut below = |n: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    for _ in 0..50 {
        let buffers: Vec<(usize, [usize; 2])> = (0..40)
            .map(|_| {
                let first = below(60);
                (4 * (1 + below(2000)), [first, first + below(20)])
            })
            .collect();
        let places = Places::of(&program(&buffers));
        for (i, (bytes, life)) in buffers.iter().enumerate() {
            let (start, end) = (places.starts[i], places.starts[i] + bytes);
            assert!(start % ALIGNMENT == 0 && end <= places.bytes);
            for (j, (other_bytes, other)) in buffers.iter().enumerate().skip(i + 1) {
                let apart = life[1] < other[0] || other[1] < life[0];
                let other_start = places.starts[j];
                assert!(apart || end <= other_start || other_start + other_bytes <= start);
            }
        }
        let held = |step: usize| -> usize {
            let here = buffers.iter().filter(|(_, life)| (life[0]..=life[1]).contains(&step));
            here.map(|(bytes, _)| bytes.next_multiple_of(ALIGNMENT)).sum()
        };
        assert_eq!(places.least, (0..80).map(held).max().unwrap());
        // Greedy by size comes close to what no arrangement can undercut.
        assert!(places.bytes as f64 <= 1.25 * places.least as f64);
    }
}
