//! The demonstration's own text: questions with worked answers from a small invented island.
//!
//! Everything is drawn from a probabilistic grammar with a seed: sums in coins and hours, facts
//! of the island's towns, and short stories that could each have gone many ways. So there is
//! something to know, something to compute and something to be unsure about, and a teacher's
//! whole distribution says more than the one word that was drawn.

mod problems;
mod stories;
mod world;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::Serialize;
use std::collections::HashSet;

/// One question with its answer, as a line of JSONL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Row {
    /// What is asked.
    pub(crate) question: String,
    /// The worked answer.
    pub(crate) answer: String,
}

/// Which rows: no question is in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Split {
    /// For training, of whatever seed.
    Train,
    /// For measuring.
    HeldOut,
}

/// `count` rows with different questions. The split of a question hangs on its text alone, so
/// training rows of any seed and held-out rows of any other are disjoint.
pub(crate) fn rows(seed: u64, count: usize, split: Split) -> Vec<Row> {
    let mut draw = Draw(ChaCha8Rng::seed_from_u64(seed));
    let mut seen = HashSet::new();
    let mut rows = Vec::with_capacity(count);
    // The grammar has millions of questions; the bound only guards against a count beyond them.
    for _ in 0..count * 200 {
        if rows.len() == count {
            break;
        }
        let row = one(&mut draw);
        if split_of(&row.question) == split && seen.insert(row.question.clone()) {
            rows.push(row);
        }
    }
    rows
}

/// The rows as JSONL.
pub(crate) fn to_jsonl(rows: &[Row]) -> serde_json::Result<String> {
    let lines: Result<Vec<_>, _> = rows.iter().map(serde_json::to_string).collect();
    Ok(lines?.join("\n") + "\n")
}

fn one(draw: &mut Draw) -> Row {
    match draw.below(10) {
        0 => problems::shop(draw),
        1 => problems::share(draw),
        2 => problems::boat(draw),
        3..5 => world::fact(draw),
        _ => stories::story(draw),
    }
}

/// One question in eight is held out, by a hash of its text (FNV-1a).
fn split_of(question: &str) -> Split {
    let hash = question.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    if (hash >> 32) % 8 == 0 { Split::HeldOut } else { Split::Train }
}

/// Draws from a seeded generator; the same on every machine.
pub(super) struct Draw(ChaCha8Rng);

impl Draw {
    /// A number below `n`. The bias of the remainder (n / 2³²) is of no consequence here.
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0.next_u32() as usize % n
    }

    /// A number from `low` to `high`, both included.
    pub(super) fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// One of several.
    pub(super) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// One of several, the first ones much more often: item i has weight 1 / (i + 1).
    pub(super) fn favour<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        let weights: Vec<u64> = (1..=items.len() as u64).map(|i| 720_720 / i).collect();
        let mut at = u64::from(self.0.next_u32()) % weights.iter().sum::<u64>();
        let chosen = weights.iter().position(|&w| {
            let here = at < w;
            at = at.saturating_sub(w);
            here
        });
        &items[chosen.unwrap_or(0)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_rows_and_another_gives_others() {
        assert_eq!(rows(1, 50, Split::Train), rows(1, 50, Split::Train));
        assert_ne!(rows(1, 50, Split::Train), rows(2, 50, Split::Train));
    }

    #[test]
    fn no_question_is_both_in_training_and_held_out() {
        let train: HashSet<_> =
            rows(1, 4000, Split::Train).into_iter().map(|row| row.question).collect();
        let held_out = rows(2, 1000, Split::HeldOut);
        assert_eq!((train.len(), held_out.len()), (4000, 1000));
        assert!(held_out.iter().all(|row| !train.contains(&row.question)));
    }

    #[test]
    fn the_sums_in_the_answers_are_right() {
        let mut checked = 0;
        for row in rows(3, 2000, Split::Train) {
            let words: Vec<_> = row.answer.split_whitespace().collect();
            for at in words.windows(5).filter(|w| w[3] == "=") {
                let number = |word: &str| word.trim_end_matches(['.', ',', ';']).parse::<i64>();
                let (Ok(a), Ok(b), Ok(c)) = (number(at[0]), number(at[2]), number(at[4])) else {
                    continue;
                };
                let right = match at[1] {
                    "+" => a + b,
                    "-" => a - b,
                    "x" => a * b,
                    "/" => a / b,
                    other => panic!("{other} in {}", row.answer),
                };
                assert_eq!(right, c, "{}", row.answer);
                checked += 1;
            }
        }
        assert!(checked > 500, "only {checked} sums were found");
    }
}
