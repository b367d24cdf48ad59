//! Where a program's own buffers lie in one piece of memory, each from its first use to its last.

use std::collections::BTreeMap;

use super::{Home, Program};

/// Where buffers begin: a multiple of it, in bytes. Vector loads and the library of products want 16, a card's
/// memory transactions 128.
const ALIGNMENT: usize = 256;

/// Places of the passing buffers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Where each begins, in bytes.
    pub starts: Vec<usize>,
    /// The steps that first and last touch each; none of one that nobody touches.
    pub lives: Vec<Option<[usize; 2]>>,
    /// Memory that holds them all, in bytes.
    pub bytes: usize,
    /// What is held at once, at most, in bytes: no arrangement takes less.
    pub least: usize,
    /// At the step where most is held: how much of it is of each name, in bytes.
    pub at_peak: BTreeMap<&'static str, usize>,
}

impl Places {
    /// Of a program. The largest buffers are placed first, each as low as those that are needed at the same time let
    /// it lie (Pisarchyk and Lee, arXiv 2001.03288, greedy by size).
    pub fn of(program: &Program) -> Self {
        let lives = lives(program);
        let bytes_of = |at: usize| program.passing[at].bytes.next_multiple_of(ALIGNMENT);
        let mut order: Vec<(usize, [usize; 2])> =
            lives.iter().enumerate().filter_map(|(at, life)| Some((at, (*life)?))).collect();
        order.sort_by_key(|&(at, _)| (std::cmp::Reverse(bytes_of(at)), at));
        let mut starts = vec![0; lives.len()];
        // By where they begin.
        let mut placed: Vec<(usize, usize, [usize; 2])> = Vec::new();
        for (at, life) in order {
            let bytes = bytes_of(at);
            let mut start = 0;
            for &(low, high, other) in &placed {
                if other[0] > life[1] || life[0] > other[1] {
                    continue;
                }
                if start + bytes <= low {
                    break;
                }
                start = start.max(high);
            }
            starts[at] = start;
            let index = placed.partition_point(|&(low, ..)| low <= start);
            placed.insert(index, (start, start + bytes, life));
        }
        let bytes = placed.iter().map(|&(_, high, _)| high).max().unwrap_or(0);
        let (least, at_peak) = peak(program, &lives, bytes_of);
        Self { starts, lives, bytes, least, at_peak }
    }
}

/// The first and the last step that touch each buffer.
fn lives(program: &Program) -> Vec<Option<[usize; 2]>> {
    let mut lives: Vec<Option<[usize; 2]>> = vec![None; program.passing.len()];
    for (number, step) in program.steps.iter().enumerate() {
        for view in step.views() {
            if let Home::Passing(at) = view.home {
                lives[at].get_or_insert([number, number])[1] = number;
            }
        }
    }
    lives
}

/// How much is held at the step where most is, and what.
fn peak(
    program: &Program,
    lives: &[Option<[usize; 2]>],
    bytes_of: impl Fn(usize) -> usize,
) -> (usize, BTreeMap<&'static str, usize>) {
    let mut changes = vec![(0_usize, 0_usize); program.steps.len() + 1];
    for (at, life) in lives.iter().enumerate() {
        if let Some([first, last]) = life {
            changes[*first].0 += bytes_of(at);
            changes[last + 1].1 += bytes_of(at);
        }
    }
    let (mut held, mut most, mut step_of_most) = (0, 0, 0);
    for (step, (more, less)) in changes.into_iter().enumerate() {
        held = held + more - less;
        if held > most {
            (most, step_of_most) = (held, step);
        }
    }
    let mut at_peak = BTreeMap::new();
    for (at, life) in lives.iter().enumerate() {
        if life.is_some_and(|[first, last]| (first..=last).contains(&step_of_most)) {
            *at_peak.entry(program.passing[at].name).or_default() += bytes_of(at);
        }
    }
    (most, at_peak)
}

#[cfg(test)]
#[path = "places_tests.rs"]
mod tests;
