//! The k largest or k named tokens, and the mass of the rest.

use distill::signal::{Entries, TopK, log_sum_exp};
use kernels::Call;
use kernels::emulation::{Id, Memory, run};
use kernels::topk::{Entry, Logits, MOST_K, NOBODY, Named, Said, first_broken, named, top_k};

use super::elements::emulated;
use crate::ops::Precision;
use crate::ops::testing::{matrix, random, wide};
use crate::ops::topk::{Wanted, score_head};

/// Rows of logits on the card, wider than they have classes: what is beyond is not a number.
pub(super) fn on_card(memory: &mut Memory, rows: &[Vec<f32>], temperature: f64) -> Logits<Id> {
    let classes = rows[0].len();
    let width = classes.next_multiple_of(4) + 4;
    let mut wider = vec![f32::NAN; rows.len() * width];
    for (to, row) in wider.chunks_mut(width).zip(rows) {
        to[..classes].copy_from_slice(row);
    }
    let logits = memory.of("logits", &wider);
    let [rows, classes, width] = [rows.len(), classes, width].map(|n| n as u32);
    Logits { logits, rows, classes, width, temperature }
}

/// Room for what is said of k tokens a row.
pub(super) fn room(memory: &mut Memory, rows: usize, k: usize) -> (Id, Said<Id>) {
    let ids = memory.unwritten::<u32>("ids", rows * k);
    let entries = memory.unwritten::<f32>("entries", rows * k);
    let sums = memory.unwritten::<f32>("sums", 4 * rows);
    (ids, Said { entries, sums, broken: memory.unwritten::<u32>("broken", 2 * rows) })
}

/// The token that follows each row: none where there is none.
fn following(rows: usize, classes: usize) -> Vec<Option<u32>> {
    (0..rows).map(|row| (row % 3 < 2).then_some((row * 7 % classes) as u32)).collect()
}

pub(super) fn next(memory: &mut Memory, rows: usize, classes: usize) -> Id {
    let next: Vec<u32> =
        following(rows, classes).iter().map(|next| next.unwrap_or(NOBODY)).collect();
    memory.of("next", &next)
}

/// Within `f32` rounding of a sum, or both -inf.
pub(super) fn near(found: f32, wanted: f64) -> bool {
    let wanted = wanted as f32;
    found == wanted || (found - wanted).abs() <= 1e-6 * (1.0 + wanted.abs())
}

/// Compares what was said with `wanted`, and with the log-probabilities of the tokens that follow, from all logits in `f64`.
fn compare(memory: &Memory, said: Said<Id>, rows: &[Vec<f32>], wanted: &TopK, t: f64, of: &str) {
    assert_eq!(memory.floats(said.entries), wanted.scaled, "{of}");
    assert_eq!(first_broken(&memory.words(said.broken)), None);
    let (count, classes) = (rows.len(), rows[0].len());
    let sums = memory.floats(said.sums);
    for (row, next) in following(count, classes).into_iter().enumerate() {
        let [log_z, log_rest, logprob, logprob_t] = [0, 1, 2, 3].map(|i| sums[i * count + row]);
        assert!(near(log_z, wanted.log_z[row].into()), "{of}: {log_z}, {}", wanted.log_z[row]);
        let rest = wanted.log_rest[row];
        assert!(near(log_rest, rest.into()), "{of}, row {row}: {log_rest}, {rest}");
        let Some(next) = next else {
            assert!(logprob.is_nan() && logprob_t.is_nan());
            continue;
        };
        let z = wide(&rows[row]);
        for (found, t) in [(logprob, 1.0), (logprob_t, t)] {
            let exact = z[next as usize] / t - log_sum_exp(z.iter().map(|z| z / t));
            assert!(near(found, exact), "{of}, row {row}: {found}, {exact}");
        }
    }
}

/// The k largest of these rows against the slow way in `f64`.
fn check(rows: &[Vec<f32>], temperature: f64, k: usize) {
    let memory = &mut Memory::default();
    let of = on_card(memory, rows, temperature);
    let next = next(memory, rows.len(), rows[0].len());
    let (ids, said) = room(memory, rows.len(), k);
    run(&top_k(of, next, ids, said, k as u32, Entry::Scaled), memory).unwrap();
    let mut wanted = TopK::new(k);
    // f64 keeps the order of f32, -0 and +0 included.
    rows.iter().for_each(|row| wanted.push_exact(&wide(row), temperature));
    let name = format!("{} classes, k {k}, T {temperature}", rows[0].len());
    assert_eq!(memory.words(ids), wanted.ids, "{name}");
    compare(memory, said, rows, &wanted, temperature, &name);
}

fn uniform(seed: u64, classes: usize, size: f32) -> Vec<f32> {
    random(seed, classes).into_iter().map(|z| z * size).collect()
}

#[test]
fn the_k_largest_of_few_and_many_classes_agree_with_f64() {
    if !emulated("the_k_largest_of_few_and_many_classes_agree_with_f64") {
        return;
    }
    for (classes, ks) in [
        (1, vec![1]),
        (3, vec![1, 3]),
        (130, vec![1, 64, 129, 130]),
        // Around a tile, and more than there are groups.
        (2047, vec![1, 64, 2047]),
        (2049, vec![5, 2048]),
        (8191, vec![64]),
        (8197, vec![64, 1024]),
    ] {
        for k in ks {
            for (temperature, size) in [(1.0, 10.0), (0.7, 0.1)] {
                let rows: Vec<Vec<f32>> = (1..3).map(|seed| uniform(seed, classes, size)).collect();
                check(&rows, temperature, k);
            }
        }
    }
}

/// As many classes as Qwen3 has, and the largest k that is taken.
#[test]
fn a_real_vocabulary() {
    if !emulated("a_real_vocabulary") {
        return;
    }
    let sum = |seed: u64| -> Vec<f32> {
        let parts = [1, 2, 3, 4].map(|part| uniform(10 * seed + part, 151_936, 4.0));
        (0..151_936).map(|i| parts.iter().map(|part| part[i]).sum()).collect()
    };
    for k in [1, 64, 1024, MOST_K as usize] {
        check(&[sum(1), sum(2)], 5.0, k);
    }
}

#[test]
fn rows_that_mean_harm() {
    if !emulated("rows_that_mean_harm") {
        return;
    }
    // More than there is room for, so that equal values and full groups are searched digit by digit.
    let n = 9000;
    let rows: Vec<Vec<f32>> = vec![
        vec![0.0; n],
        vec![-1e4; n],
        (0..n).map(|i| if i == n - 1 { 1e4 } else { -1e4 }).collect(),
        (0..n).map(|i| if i % 2 == 0 { 1e4 } else { -1e4 }).collect(),
        (0..n).map(|i| i as f32 * 1e-3).collect(),
        (0..n).map(|i| -(i as f32)).collect(),
        // Three values, -0 below +0 among them.
        (0..n).map(|i| [0.0, -0.0, -1.0][i % 3]).collect(),
        // Steps of a coarse type, most of them equal to many others.
        (0..n).map(|i| ((i * 7919 % n) as f32 / n as f32 * 8.0).floor()).collect(),
        // The largest are one thread's, all others equal.
        (0..n).map(|i| if i % 4096 < 4 { i as f32 } else { -3.0 }).collect(),
        // Next to each other as numbers: they differ in the last digits only.
        (0..n).map(|i| f32::from_bits(0x4120_0000 + (i * 7919 % n) as u32)).collect(),
        // Of all sizes a float has.
        (0..n)
            .map(|i| f32::MAX * if i % 3 == 0 { -1.0 } else { 1.0 } / (i * i + 1) as f32)
            .collect(),
        vec![f32::MIN; n],
    ];
    for (k, temperature) in [(1, 1.0), (64, 5.0), (1024, 20.0), (2048, 0.5)] {
        check(&rows, temperature, k);
    }
}

/// What the operation of the CPU selects: to the bit.
#[test]
fn the_k_largest_are_those_of_the_cpu() {
    if !emulated("the_k_largest_are_those_of_the_cpu") {
        return;
    }
    let (classes, temperature) = (9001, 3.0);
    // Few values, many ties.
    let column: Vec<f32> = random(7, classes).iter().map(|z| (z * 200.0).round() * 0.25).collect();
    let factors = [1.0_f32, -0.5, 0.015_625, 0.0];
    let rows: Vec<Vec<f32>> =
        factors.iter().map(|f| column.iter().map(|z| f * z).collect()).collect();
    let (hidden, w) = (matrix(&factors, 4, 1), matrix(&column, classes, 1));
    for k in [1, 50, 1500] {
        let next = following(4, classes);
        let wanted = Wanted { classes, next: &next, temperature, k, entries: &Entries::Top };
        let cpu = score_head(&hidden, &w, wanted, Precision::F32).unwrap();
        let memory = &mut Memory::default();
        let of = on_card(memory, &rows, temperature);
        let next = super::topk::next(memory, 4, classes);
        let (ids, said) = room(memory, 4, k);
        run(&top_k(of, next, ids, said, k as u32, Entry::Scaled), memory).unwrap();
        assert_eq!(memory.words(ids), cpu.signal.ids);
        compare(memory, said, &rows, &cpu.signal, temperature, &format!("k {k}"));
    }
}

#[test]
fn named_tokens_agree_with_f64() {
    if !emulated("named_tokens_agree_with_f64") {
        return;
    }
    for (classes, k, size) in [
        (1, 1, 1.0),
        (5, 5, 1e4),
        (130, 0, 10.0),
        (2049, 40, 10.0),
        (8197, 3, 1e4),
        (8200, 700, 0.1),
    ] {
        for (each_row, temperature) in [(true, 1.0), (false, 2.5)] {
            let rows: Vec<Vec<f32>> = (1..6).map(|seed| uniform(seed, classes, size)).collect();
            // Different ones in no order: a step that has no divisor in common with the classes.
            let step = [7, 3, 1].into_iter().find(|&step| classes % step != 0 || step == 1);
            let id = |row: usize, i: usize| ((row * 11 + i * step.unwrap()) % classes) as u32;
            let count = if each_row { rows.len() } else { 1 };
            let ids: Vec<u32> =
                (0..count).flat_map(|row| (0..k).map(move |i| id(row, i))).collect();
            let memory = &mut Memory::default();
            let of = on_card(memory, &rows, temperature);
            let next = next(memory, rows.len(), classes);
            let (_, said) = room(memory, rows.len(), k);
            let names = Named { ids: memory.of("ids", &ids), k: k as u32, each_row };
            run(&named(of, next, names, said), memory).unwrap();
            let entries = Entries::Named(ids);
            let mut wanted = TopK::new(k);
            for (number, row) in rows.iter().enumerate() {
                let named = entries.named_at(number, k).unwrap();
                wanted.push_exact_named(named, &wide(row), temperature);
            }
            let name = format!("{classes} classes, k {k}");
            compare(memory, said, &rows, &wanted, temperature, &name);
        }
    }
}

#[test]
fn broken_rows_are_named_and_say_nothing() {
    if !emulated("broken_rows_are_named_and_say_nothing") {
        return;
    }
    let classes = 8197;
    for (at, bad) in
        [(0, f32::NAN), (5, -f32::NAN), (4096, f32::INFINITY), (8196, f32::NEG_INFINITY)]
    {
        let mut rows: Vec<Vec<f32>> = (1..4).map(|seed| uniform(seed, classes, 9.0)).collect();
        rows[1][at] = bad;
        // Not the first by class.
        rows[1][8196] = f32::INFINITY.copysign(bad);
        let call = |memory: &mut Memory, said: Said<Id>, ids: Id, kind: &str| -> Call<Id> {
            let of = on_card(memory, &rows, 2.0);
            let next = next(memory, 3, classes);
            match kind {
                "top-k" => top_k(of, next, ids, said, 4, Entry::Scaled),
                _ => named(of, next, Named { ids, k: 4, each_row: false }, said),
            }
        };
        for kind in ["top-k", "named"] {
            let memory = &mut Memory::default();
            let (mut ids, said) = room(memory, 3, 4);
            if kind == "named" {
                ids = memory.of("named", &[0_u32, 5, 8196, 1]);
            }
            let call = call(memory, said, ids, kind);
            run(&call, memory).unwrap();
            let (row, id, value) = first_broken(&memory.words(said.broken)).unwrap();
            assert_eq!((row, id as usize), (1, at), "{kind}");
            assert_eq!(value.to_bits(), rows[1][at].to_bits());
            let sums = memory.floats(said.sums);
            for (place, sum) in sums.iter().enumerate() {
                // Row 2 is followed by none.
                let none = place % 3 == 1 || place % 3 == 2 && place >= 6;
                assert_eq!(sum.is_nan(), none, "{kind}, {place}");
            }
        }
    }
}

#[test]
fn log_probabilities_are_those_of_the_sums() {
    if !emulated("log_probabilities_are_those_of_the_sums") {
        return;
    }
    // So large that z / T and log_z have no digits left for their difference in float32.
    let rows = vec![uniform(1, 3000, 1e-3).iter().map(|z| z + 16_000.0).collect::<Vec<f32>>()];
    let (memory, k, t) = (&mut Memory::default(), 20, 0.01);
    let of = on_card(memory, &rows, t);
    let next = next(memory, 1, 3000);
    let (ids, said) = room(memory, 1, k);
    run(&top_k(of, next, ids, said, k as u32, Entry::LogP), memory).unwrap();
    let scaled: Vec<f64> = wide(&rows[0]).iter().map(|z| z / t).collect();
    let log_z = log_sum_exp(scaled.iter().copied());
    for (&id, found) in memory.words(ids).iter().zip(memory.floats(said.entries)) {
        assert!(near(found, scaled[id as usize] - log_z), "{id}: {found}");
    }
}

#[test]
#[should_panic(expected = "k is 2049, it must lie in 1 to 2048")]
fn more_than_a_block_can_sort_is_refused() {
    let of = Logits { logits: 0, rows: 1, classes: 9000, width: 9000, temperature: 1.0 };
    let said = Said { entries: 0, sums: 0, broken: 0 };
    drop(top_k(of, 0, 0, said, MOST_K + 1, Entry::Scaled));
}
