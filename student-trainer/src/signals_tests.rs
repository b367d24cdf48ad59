//! Answers kept and asked for, with a teacher over loopback that counts.

use std::sync::atomic::Ordering::Relaxed;

use distill::codec::Codec;

use super::*;
use crate::testing::{FakeTeacher, Served, listing, rows, tiny_source};
use client::Access;

/// What the bench asks for.
const WANTED: Wanted = Wanted::TopK { k: 5, codec: Codec::Raw };

const ROWS: usize = 12;

struct Bench {
    _dir: tempfile::TempDir,
    network: Network,
    served: Served,
    signals: Signals,
}

impl Bench {
    fn new(budget: impl FnOnce(&[Sequence]) -> u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = tiny_source(dir.path());
        let network = Network::start().unwrap();
        let served = FakeTeacher::of(&source).serve();
        let set = rows(ROWS, 3);
        let ask = Ask {
            temperature: 2.0,
            wanted: WANTED,
            window: 4,
            give_up_after: Duration::from_secs(3),
        };
        let facts = source.student_facts([&set, &[]], &listing(5));
        let patience = ask.give_up_after;
        let stop = Stop::default();
        let teacher =
            Teacher::connect(&network, &served.url, &Access::default(), &facts, patience, &stop)
                .unwrap();
        let budget = budget(&set);
        let signals = Signals::new(teacher, ask, set, budget);
        Self { _dir: dir, network, served, signals }
    }

    /// Takes the rows of an order three at a time; gives their answers.
    fn take(&mut self, order: &[usize]) -> Vec<Scored> {
        let asked: Vec<usize> = order.to_vec();
        self.signals.follow(&self.network, asked.into_iter());
        let take = |rows: &[usize]| self.signals.take(rows, &Stop::default()).unwrap().unwrap();
        order.chunks(3).flat_map(take).collect()
    }

    fn answered(&self) -> usize {
        self.served.teacher.mischief.answered.load(Relaxed)
    }
}

fn without_bytes(answers: &[Scored]) -> Vec<Scored> {
    answers.iter().map(|scored| Scored { wire_bytes: 0, ..scored.clone() }).collect()
}

const ORDER: [usize; ROWS] = [7, 0, 11, 3, 8, 1, 2, 10, 9, 4, 6, 5];

#[test]
fn a_second_epoch_asks_nothing_even_of_a_teacher_that_has_gone() {
    let mut bench = Bench::new(|_| 1 << 20);
    let first = bench.take(&ORDER);
    assert_eq!(bench.answered(), ROWS);
    assert!(first.iter().all(|scored| scored.wire_bytes > 0));
    bench.served.end();
    let mut again = ORDER;
    again.reverse();
    let mut second = bench.take(&again);
    second.reverse();
    assert_eq!(second, without_bytes(&first));
    assert_eq!(bench.answered(), ROWS);
}

#[test]
fn a_row_that_comes_twice_in_one_order_is_asked_for_once() {
    let mut bench = Bench::new(|_| 1 << 20);
    let answers = bench.take(&[5, 5, 1, 5]);
    assert_eq!(bench.answered(), 2);
    assert_eq!(without_bytes(&answers[1..2]), without_bytes(&answers[..1]));
    assert_eq!(answers[3], answers[1]);
}

#[test]
fn what_found_no_room_is_asked_for_again() {
    // Room for the first five rows but for one byte of the fifth.
    let four_rows =
        |set: &[Sequence]| set[..5].iter().map(|row| kept_bytes(row, WANTED)).sum::<u64>();
    let mut bench = Bench::new(|set| four_rows(set) - 1);
    assert_eq!(bench.signals.coverage(), [4, ROWS]);
    let first = bench.take(&ORDER);
    let second = bench.take(&ORDER);
    assert_eq!(bench.answered(), ROWS + (ROWS - 4));
    assert_eq!(without_bytes(&second), without_bytes(&first));
    let free: Vec<usize> =
        ORDER.into_iter().zip(&second).filter(|(_, s)| s.wire_bytes == 0).map(|(r, _)| r).collect();
    assert_eq!(free, [0, 3, 1, 2]);
}

#[test]
fn the_memory_to_come_is_known_beforehand() {
    let set = rows(ROWS, 3);
    let all: u64 = set.iter().map(|row| kept_bytes(row, WANTED)).sum();
    assert_eq!(bytes_to_keep(&set, WANTED, u64::MAX), all);
    assert_eq!(bytes_to_keep(&set, WANTED, all - 1), all - 1);
    // Rows of 5 to 11 tokens of which the first two are not scored: an entry takes 8 bytes.
    let entries: usize = set.iter().map(|row| row.scored().count() * 5 * 8).sum();
    assert!(all > entries as u64 && all < 4 * entries as u64, "{all}, {entries}");
}

#[test]
fn no_room_keeps_nothing() {
    let mut bench = Bench::new(|_| 0);
    bench.take(&ORDER);
    bench.take(&ORDER);
    assert_eq!(bench.answered(), 2 * ROWS);
}
