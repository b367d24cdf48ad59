//! Draws beside the k largest.

use distill::signal::{DrawKey, Draws};
use kernels::draws::{Drawing, draw};
use kernels::emulation::{Memory, run};
use kernels::topk::{Entry, NOBODY, Named, named, top_k};

use super::elements::emulated;
use super::topk::{near, next, on_card, room};
use crate::ops::testing::{random, wide};

/// What a row is given, in ascending order: exact ids, their log-probabilities; log of the mass of the others; draws.
struct Drawn {
    exact: Vec<(u32, f32)>,
    log_rest: f32,
    drawn: Vec<u32>,
}

fn key(row: usize) -> DrawKey {
    DrawKey { seed: 5, token_checksum: 6, position: row as u32 }
}

/// On the card: the k largest, or with k = 0 no tokens named, and the draws.
fn drawn(rows: &[Vec<f32>], temperature: f64, k: usize, draws: u32) -> Vec<Drawn> {
    let memory = &mut Memory::default();
    let (count, classes) = (rows.len(), rows[0].len());
    let of = on_card(memory, rows, temperature);
    let next = next(memory, count, classes);
    let (ids, said) = room(memory, count, k);
    let call = match k {
        0 => named(of, next, Named { ids, k: 0, each_row: false }, said),
        _ => top_k(of, next, ids, said, k as u32, Entry::LogP),
    };
    run(&call, memory).unwrap();
    let uniforms: Vec<f64> = (0..count).flat_map(|row| key(row).uniforms(draws)).collect();
    let uniforms = memory.of("uniforms", &uniforms);
    let to = memory.unwritten::<u32>("drawn", count * draws as usize);
    let from = Drawing { exact: ids, k: k as u32, broken: said.broken, uniforms, draws };
    run(&draw(of, from, to), memory).unwrap();
    let (ids, log_p) = (memory.words(ids), memory.floats(said.entries));
    let (log_rest, drawn) = (&memory.floats(said.sums)[count..2 * count], memory.words(to));
    let of_row = |row: usize| {
        let at = row * k..(row + 1) * k;
        let mut exact: Vec<_> = ids[at.clone()].iter().copied().zip(log_p[at].to_vec()).collect();
        exact.sort_unstable_by_key(|&(id, _)| id);
        let drawn = drawn[row * draws as usize..][..draws as usize].to_vec();
        Drawn { exact, log_rest: log_rest[row], drawn }
    };
    (0..count).map(of_row).collect()
}

/// That every draw is the first class at which the sum exceeds its uniform, up to rounding, and that the signal they
/// make together can be.
fn check(rows: &[Vec<f32>], temperature: f64, k: usize, draws: u32) {
    let classes = rows[0].len();
    let mut signal = Draws::new(draws, k);
    for (row, found) in drawn(rows, temperature, k, draws).into_iter().enumerate() {
        let name = format!("row {row} of {classes} classes, k {k}, T {temperature}");
        let (z, uniforms) = (wide(&rows[row]), key(row).uniforms(draws));
        let mut wanted = Draws::new(draws, k);
        wanted.push_exact(&z, temperature, &uniforms);
        let ids: Vec<u32> = found.exact.iter().map(|&(id, _)| id).collect();
        assert_eq!(ids, wanted.exact_ids, "{name}");
        for (&(id, log_p), &wanted) in found.exact.iter().zip(&wanted.exact_log_p) {
            assert!(near(log_p, wanted.into()), "{name}, {id}: {log_p}, {wanted}");
        }
        assert!(k == 0 || near(found.log_rest, wanted.log_rest[0].into()), "{name}");
        check_drawn(&found.drawn, &uniforms, &z, &ids, temperature, &name);
        let log_rest = if k == 0 { 0.0 } else { found.log_rest };
        signal.push(found.exact, log_rest, found.drawn.into_iter().filter(|&id| id != NOBODY));
    }
    signal.check(classes).unwrap();
}

fn check_drawn(drawn: &[u32], uniforms: &[f64], z: &[f64], exact: &[u32], t: f64, name: &str) {
    let others: Vec<usize> =
        (0..z.len()).filter(|&id| exact.binary_search(&(id as u32)).is_err()).collect();
    if others.is_empty() {
        return assert!(drawn.iter().all(|&id| id == NOBODY), "{name}");
    }
    let top = others.iter().fold(f64::MIN, |top, &id| top.max(z[id]));
    let mass = |id: usize| ((z[id] - top) / t).exp();
    let (mut ends, mut sum) = (vec![0.0; z.len()], 0.0);
    for &id in &others {
        sum += mass(id);
        ends[id] = sum;
    }
    // Of the exponentials, which are float32.
    let rounding = 1e-6;
    for (&id, &uniform) in drawn.iter().zip(uniforms) {
        let at = id as usize;
        assert!(exact.binary_search(&id).is_err() && mass(at) > 0.0, "{name}: {id}");
        let (start, end) = ((ends[at] - mass(at)) / sum, ends[at] / sum);
        let inside = start - rounding <= uniform && uniform < end + rounding;
        assert!(inside, "{name}, {id}: {start} {uniform} {end}");
    }
}

#[test]
fn draws_are_those_of_the_slow_way_from_the_same_uniforms() {
    if !emulated("draws_are_those_of_the_slow_way_from_the_same_uniforms") {
        return;
    }
    // One segment, one and a class more, more than there are warps.
    for (classes, ks) in [
        (1, vec![0, 1]),
        (7, vec![0, 3, 6, 7]),
        (513, vec![0, 1, 100, 512]),
        (9000, vec![0, 64, 1500]),
    ] {
        for k in ks {
            for (temperature, size) in [(1.0, 8.0), (5.0, 0.0), (0.8, 100.0)] {
                let rows: Vec<Vec<f32>> = (1..3)
                    .map(|seed| random(seed, classes).iter().map(|z| z * size).collect())
                    .collect();
                check(&rows, temperature, k, 19);
            }
        }
    }
}

#[test]
fn rising_and_hostile_rows() {
    if !emulated("rising_and_hostile_rows") {
        return;
    }
    let n = 3 * 512 + 100;
    let mut far = vec![-1e4_f32; n];
    (far[0], far[700], far[n - 1]) = (1e4, 1e4, 1e4);
    let rows = vec![
        (0..n).map(|i| (i / 2) as f32 * 0.5).collect(),
        (0..n).map(|i| (i / 2) as f32 * -0.5).collect(),
        vec![0.0; n],
        far,
        // Segments with nothing, and classes with nothing at both ends of one with all.
        (0..n).map(|i| if i / 100 == 8 { 1e4 } else { -1e4 }).collect(),
    ];
    for k in [0, 1, 3, n - 1, n] {
        for temperature in [1.0, 50.0] {
            check(&rows, temperature, k, 24);
        }
    }
}

#[test]
fn broken_rows_have_no_draws() {
    if !emulated("broken_rows_have_no_draws") {
        return;
    }
    let mut rows: Vec<Vec<f32>> = (1..4).map(|seed| random(seed, 900)).collect();
    rows[1][600] = f32::NAN;
    let found = drawn(&rows, 1.0, 0, 9);
    let nobody = |row: usize| found[row].drawn.iter().filter(|&&id| id == NOBODY).count();
    assert_eq!([0, 1, 2].map(nobody), [0, 9, 0]);
}

/// The draws of one sound row at these uniforms.
fn drawn_at(row: Vec<f32>, exact: &[u32], uniforms: &[f64]) -> Vec<u32> {
    let memory = &mut Memory::default();
    let of = on_card(memory, &[row], 1.0);
    let (exact, k) = (memory.of("exact", exact), exact.len() as u32);
    let (broken, draws) = (memory.of("broken", &[NOBODY, 0]), uniforms.len());
    let (uniforms, to) = (memory.of("uniforms", uniforms), memory.unwritten::<u32>("drawn", draws));
    let from = Drawing { exact, k, broken, uniforms, draws: draws as u32 };
    run(&draw(of, from, to), memory).unwrap();
    memory.words(to)
}

/// Where a draw is made at an end: the first class that has a share, and the last; and the class behind one whose sum
/// is a uniform, for it does not exceed it.
#[test]
fn draws_at_the_ends_of_classes() {
    if !emulated("draws_at_the_ends_of_classes") {
        return;
    }
    let mut row = vec![0.0_f32; 1100];
    // Nothing at all beside the others.
    (row[0], row[1099]) = (-200.0, -200.0);
    let found = drawn_at(row, &[1], &[0.0, 0.5, 1.0_f64.next_down()]);
    // The 1,097 from 2 to 1,098 have equal shares; the half of them ends in the 549th.
    assert_eq!(found, [2, 550, 1098]);
    // Sums that are exact, in a segment and where one ends.
    let uniforms = [0, 1, 127, 128, 511, 512, 513, 1023].map(|id| f64::from(id) / 1024.0);
    let found = drawn_at(vec![3.0; 1024], &[], &uniforms);
    assert_eq!(found, [0, 1, 127, 128, 511, 512, 513, 1023]);
    // Sums that are rounded: wherever they end, nothing is drawn of what has no share.
    for seed in 1..30 {
        let mut row: Vec<f32> = random(seed, 512).iter().map(|z| z * 40.0).collect();
        row[300..].fill(-200.0);
        let found = drawn_at(row, &[], &[1.0_f64.next_down()]);
        assert!(found[0] < 300, "seed {seed}: {found:?}");
    }
}
