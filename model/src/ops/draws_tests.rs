//! Draws against the slow way from the same uniforms; what they depend on; what is refused.

use distill::reference;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::ops::tensor;
use crate::ops::testing::{matrix, on_threads, random};
use crate::ops::topk::{Wanted, score_head};
use distill::signal::Entries;

fn key(position: usize) -> DrawKey {
    DrawKey { seed: 11, token_checksum: 22, position: position as u32 }
}

fn keys(rows: usize) -> Vec<DrawKey> {
    (0..rows).map(key).collect()
}

/// Rows that are one column of logits times a factor each.
pub(super) struct Case {
    pub(super) factors: Vec<f32>,
    pub(super) column: Vec<f32>,
    pub(super) temperature: f64,
    pub(super) draws: u32,
    pub(super) k: usize,
}

impl Case {
    pub(super) fn run(&self) -> DrawnScores {
        let (rows, classes) = (self.factors.len(), self.column.len());
        let next: Vec<Option<u32>> = (0..rows).map(|r| (r % 2 == 0).then_some(0)).collect();
        let wanted = WantedDraws {
            classes,
            next: &next,
            temperature: self.temperature,
            draws: self.draws,
            k: self.k,
            keys: &keys(rows),
        };
        draw_head(
            &matrix(&self.factors, rows, 1),
            &matrix(&self.column, classes, 1),
            wanted,
            Precision::F32,
        )
        .expect("draws")
    }

    fn logits(&self, row: usize) -> Vec<f64> {
        self.column.iter().map(|z| f64::from(self.factors[row] * z)).collect()
    }

    /// That every draw is the first class at which the sum exceeds its uniform, up to rounding.
    fn check(&self) {
        let found = self.run();
        found.signal.check(self.column.len()).expect("draws that can be");
        for row in 0..self.factors.len() {
            let (logits, t) = (self.logits(row), self.temperature);
            let mut wanted = Draws::new(self.draws, self.k);
            let uniforms = key(row).uniforms(self.draws);
            wanted.push_exact(&logits, t, &uniforms);
            let of_row = found.signal.slice(row..row + 1);
            assert_eq!(of_row.exact_ids, wanted.exact_ids);
            let near = |found: f32, wanted: f32| {
                found == wanted || (found - wanted).abs() <= 2e-6 * (1.0 + wanted.abs())
            };
            assert!(of_row.exact_log_p.iter().zip(&wanted.exact_log_p).all(|(a, b)| near(*a, *b)));
            assert!(near(of_row.log_rest[0], wanted.log_rest[0]), "{of_row:?} {wanted:?}");
            let drawn = of_row.ids.iter().zip(&of_row.counts);
            let drawn: Vec<u32> = drawn.flat_map(|(&id, &n)| vec![id; n as usize]).collect();
            check_drawn(&drawn, &uniforms, &logits, &wanted.exact_ids, t);
            let at = |t: f64| {
                let scaled: Vec<f64> = logits.iter().map(|z| z / t).collect();
                -reference::cross_entropy(&scaled, 0).value as f32
            };
            if row % 2 == 0 {
                assert!(near(found.next_logprob[row], at(1.0)));
                assert!(near(found.next_logprob_t[row], at(t)));
            } else {
                assert!(found.next_logprob[row].is_nan() && found.next_logprob_t[row].is_nan());
            }
        }
    }
}

/// Draws in ascending order, each against its uniform: they are as many, and in the same order.
fn check_drawn(drawn: &[u32], uniforms: &[f64], logits: &[f64], exact: &[u32], t: f64) {
    let largest = logits.iter().copied().fold(f64::MIN, f64::max);
    let others = || (0..logits.len()).filter(|&id| exact.binary_search(&(id as u32)).is_err());
    if others().next().is_none() {
        return assert!(drawn.is_empty());
    }
    let top = others().fold(f64::MIN, |top, id| top.max(logits[id]));
    let mut ends = vec![0.0; logits.len()];
    let mut sum = 0.0;
    for id in others() {
        sum += ((logits[id] - top) / t).exp();
        ends[id] = sum;
    }
    assert_eq!(drawn.len(), uniforms.len());
    // Exponentials are rounded to float32, and summed in it 1,024 at a time.
    let rounding = 1e-6;
    for (&id, uniform) in drawn.iter().zip(uniforms) {
        let id = id as usize;
        let mass = ((logits[id] - top) / t).exp();
        assert!(exact.binary_search(&(id as u32)).is_err() && mass > 0.0, "{id} of {largest}");
        let (start, end) = ((ends[id] - mass) / sum, ends[id] / sum);
        assert!(
            start - rounding <= *uniform && *uniform < end + rounding,
            "{id}: {start} {uniform} {end}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn draws_are_those_of_the_slow_way_from_the_same_uniforms(
        classes in prop_oneof![1usize..60, 4090usize..4200, Just(3 * 4096)],
        k in 0usize..70,
        draws in prop_oneof![Just(1u32), Just(16), 1u32..200],
        size in prop_oneof![Just(0.0f32), Just(0.1), Just(10.0), Just(1e4)],
        grain: bool,
        temperature in prop_oneof![Just(1.0), 0.5..20.0f64],
        seed: u64,
    ) {
        // Whole multiples of a grain: many ties.
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut one = |size: f32| {
            let z: f32 = rng.random_range(-1.0..=1.0);
            size * if grain { (z * 4.0).round() / 4.0 } else { z }
        };
        let factors: Vec<f32> = (0..3).map(|_| one(size)).collect();
        let column: Vec<f32> = (0..classes).map(|_| one(1.0)).collect();
        Case { factors, column, temperature, draws, k: k.min(classes) }.check();
    }
}

#[test]
fn rising_and_hostile_rows_over_several_blocks() {
    let classes = 2 * BLOCK + 100;
    assert_eq!(blocks(classes).count(), 3);
    // Every block drives out what was the best before it; or all of the mass is at one end.
    let rising: Vec<f32> = (0..classes).map(|i| (i / 2) as f32 * 0.5).collect();
    let mut far: Vec<f32> = vec![-1e4; classes];
    (far[0], far[BLOCK], far[classes - 1]) = (1e4, 1e4, 1e4);
    for column in [rising, far] {
        for k in [0, 1, 3, 64, 5000, classes - 1, classes] {
            for temperature in [1.0, 50.0] {
                let factors = vec![1.0, -1.0, 0.0, 0.015_625];
                Case { factors, column: column.clone(), temperature, draws: 24, k }.check();
            }
        }
    }
}

pub(super) const BLOCK: usize = crate::ops::head::BLOCK_CLASSES;

#[test]
fn next_tokens_and_exact_entries_are_those_of_the_top_k() {
    let (rows, classes, width, k) = (2100, 4099, 4, 5);
    assert!(chunks(rows).count() > 1 && blocks(classes).count() > 1);
    let (x, w) = (
        matrix(&random(1, rows * width), rows, width),
        matrix(&random(2, classes * width), classes, width),
    );
    let next: Vec<Option<u32>> =
        (0..rows).map(|r| (r % 3 > 0).then_some((r % classes) as u32)).collect();
    let temperature = 2.0;
    let keys = keys(rows);
    let wanted = WantedDraws { classes, next: &next, temperature, draws: 16, k, keys: &keys };
    let drawn = draw_head(&x, &w, wanted, Precision::F32).unwrap();
    let wanted = Wanted { classes, next: &next, temperature, k, entries: &Entries::Top };
    let top = score_head(&x, &w, wanted, Precision::F32).unwrap();
    let near = |a: f32, b: f32| a.is_nan() && b.is_nan() || (a - b).abs() <= 1e-6 * (1.0 + b.abs());
    for r in 0..rows {
        assert!(near(drawn.next_logprob[r], top.next_logprob[r]));
        assert!(near(drawn.next_logprob_t[r], top.next_logprob_t[r]));
        assert!(near(drawn.signal.log_rest[r], top.signal.log_rest[r]));
        for (id, log_p) in drawn
            .signal
            .exact(r)
            .map(|at| (drawn.signal.exact_ids[at], drawn.signal.exact_log_p[at]))
        {
            let at =
                (r * k..(r + 1) * k).find(|&at| top.signal.ids[at] == id).expect("one of the k");
            assert!(near(log_p, top.signal.scaled[at] - top.signal.log_z[r]));
        }
    }
}

#[test]
fn draws_depend_on_key_and_logits_alone() {
    let (rows, classes, width) = (2100, 4099, 8);
    let hidden: Vec<f32> = random(3, rows * width).iter().map(|x| 4.0 * x).collect();
    let w = matrix(&random(4, classes * width), classes, width);
    let run = |rows: std::ops::Range<usize>, k: usize, keys: &[DrawKey]| {
        let x = matrix(&hidden[rows.start * width..rows.end * width], rows.len(), width);
        let next = vec![None; rows.len()];
        let wanted = WantedDraws { classes, next: &next, temperature: 1.5, draws: 16, k, keys };
        draw_head(&x, &w, wanted, Precision::F32).unwrap().signal
    };
    for k in [0, 8] {
        let whole = on_threads(1, || run(0..rows, k, &keys(rows)));
        assert!(on_threads(3, || run(0..rows, k, &keys(rows))) == whole);
        // Alone, and in another chunk: the same, to the bit.
        for row in [0, 1049, 1050, 2099] {
            assert_eq!(run(row..row + 1, k, &[key(row)]), whole.slice(row..row + 1));
        }
        // Another seed, other draws.
        let other: Vec<DrawKey> =
            keys(rows).iter().map(|key| DrawKey { seed: 12, ..*key }).collect();
        let other = run(0..rows, k, &other);
        assert_eq!(other.exact_log_p, whole.exact_log_p);
        let same = (0..rows).filter(|&row| other.slice(row..row + 1) == whole.slice(row..row + 1));
        assert!(same.count() < rows / 50);
    }
}

#[test]
fn what_does_not_fit_is_refused_with_both_values() {
    let refused = |draws, k, keys: &[DrawKey], next: &[Option<u32>], temperature, says: &str| {
        let (x, w) = (matrix(&[1.0; 2], 2, 1), matrix(&[1.0; 5], 5, 1));
        let wanted = WantedDraws { classes: 5, next, temperature, draws, k, keys };
        let error = draw_head(&x, &w, wanted, Precision::F32).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    let (two, none) = (keys(2), [None; 2]);
    refused(0, 0, &two, &none, 1.0, "0 draws a position");
    refused(1, 6, &two, &none, 1.0, "k is 6, it must lie in 0 to 5");
    refused(1, 0, &two[..1], &none, 1.0, "keys of draws: 1 elements found, 2 wanted");
    refused(1, 0, &two, &[Some(5), None], 1.0, "next token 5");
    refused(1, 0, &two, &none, 0.0, "temperature is 0");
}

#[test]
fn a_broken_model_does_not_teach() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for (k, classes) in [(0, 100), (4, 100), (0, BLOCK + 9), (4, BLOCK + 9)] {
            let mut column = vec![0.5f32; classes];
            column[classes - 3] = bad;
            let (x, w) =
                (tensor(vec![1.0f32, 2.0], (2, 1)).unwrap(), tensor(column, (classes, 1)).unwrap());
            let wanted = |classes| WantedDraws {
                classes,
                next: &[None; 2],
                temperature: 1.0,
                draws: 3,
                k,
                keys: &[DrawKey { seed: 0, token_checksum: 0, position: 0 }; 2],
            };
            let error = draw_head(&x, &w, wanted(classes), Precision::F32).unwrap_err().to_string();
            let place = format!("row 0: the logit of class {} is {bad}", classes - 3);
            assert!(error.contains(&place) && error.contains("not a finite number"), "{error}");
            // A class that does not take part does no harm.
            assert!(draw_head(&x, &w, wanted(classes - 3), Precision::F32).is_ok());
        }
    }
}
