//! Tests of codes that are made of a drawn teacher, kept and used.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use distill::coded::{Code, Rung};
use distill::fingerprint::Fingerprint;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::ops::Precision;

const WIDTH: usize = 24;
const CLASSES: usize = 300;

fn normal(random: &mut StdRng) -> f32 {
    (0..12).map(|_| random.random::<f32>()).sum::<f32>() - 6.0
}

/// Hidden states whose spread falls from number to number, mixed, and an output matrix.
fn teacher(positions: usize) -> (Tensor, Tensor) {
    let mut random = StdRng::seed_from_u64(1);
    let mix: Vec<f32> = (0..WIDTH * WIDTH).map(|_| normal(&mut random)).collect();
    let mut hidden = Vec::with_capacity(positions * WIDTH);
    for _ in 0..positions {
        let source: Vec<f32> =
            (0..WIDTH).map(|j| normal(&mut random) * (-(j as f32) / 3.0).exp2()).collect();
        let mixed = |row: &[f32]| row.iter().zip(&source).map(|(m, s)| m * s).sum::<f32>();
        hidden.extend(mix.chunks(WIDTH).map(|row| 0.3 + mixed(row)));
    }
    let w: Vec<f32> = (0..CLASSES * WIDTH).map(|_| 0.4 * normal(&mut random)).collect();
    let tensor = |values, rows| Tensor::from_vec(values, (rows, WIDTH), &Device::Cpu).unwrap();
    (tensor(hidden, positions), tensor(w, CLASSES))
}

fn sample<'a>(hidden: &'a Tensor, w: &'a Tensor) -> Sample<'a> {
    Sample { hidden, w, precision: Precision::F32, model: Fingerprint([3; 32]) }
}

fn fitted() -> (Encoder, Tensor, Tensor) {
    let (hidden, w) = teacher(least_positions(WIDTH) + 200);
    (fit(sample(&hidden, &w)).unwrap(), hidden, w)
}

#[test]
fn decoded_states_are_those_of_the_slow_way_to_the_bit_and_near_the_true_ones() {
    let (encoder, hidden, _) = fitted();
    let code = encoder.code();
    let rows = hidden.dim(0).unwrap();
    let mut last = f32::INFINITY;
    for rate in code.rates().iter().rev().step_by(24) {
        let bytes = encoder.encode(&hidden, rate.rung).unwrap();
        let numbers = code.decode(&bytes, rows).unwrap();
        let decoded = Decoder::new(Arc::clone(code), rate.rung).hidden_states(&numbers);
        assert_eq!(decoded, code.reconstruct(rate.rung, &numbers));
        let truth = hidden.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let apart = truth.iter().zip(&decoded.values).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
        assert!(apart < last, "{apart} after {last}");
        last = apart;
    }
    assert!(last / (rows as f32) < 1e-3, "{last}");
}

/// Half the error in every coordinate costs a quarter of the divergence and one bit more.
#[test]
fn rates_rise_and_divergences_fall_as_the_step_says() {
    let (encoder, ..) = fitted();
    let rates = encoder.code().rates();
    assert!(rates.len() > 20);
    assert!(rates.is_sorted_by(|a, b| a.rung < b.rung && a.bytes >= b.bytes));
    let fine = &rates[4];
    let coarse = &rates[20];
    assert_eq!(coarse.rung.0 - fine.rung.0, 16);
    let ratio = coarse.divergence / fine.divergence;
    assert!((2.0..8.0).contains(&ratio), "{ratio}");
    let bits = 8.0 * (fine.bytes - coarse.bytes);
    assert!((0.6 * WIDTH as f32..1.2 * WIDTH as f32).contains(&bits), "{bits}");
}

/// Coordinates are uncorrelated, and their squared error is what an error costs in the metric.
#[test]
fn coordinates_are_white_and_lead_back() {
    let (encoder, hidden, _) = fitted();
    let code = encoder.code();
    let rung = Rung(code.rates()[0].rung.0);
    let numbers = encoder.numbers(&hidden.flatten_all().unwrap().to_vec1().unwrap(), rung).unwrap();
    let rows = numbers.len() / WIDTH;
    let product = |i: usize, j: usize| {
        let of_row = |row: &[i32]| f64::from(row[i]) * f64::from(row[j]);
        numbers.chunks(WIDTH).map(of_row).sum::<f64>() / rows as f64
    };
    for i in 0..6 {
        for j in 0..i {
            let correlation = product(i, j) / (product(i, i) * product(j, j)).sqrt();
            assert!(correlation.abs() < 0.12, "{i} {j} {correlation}");
        }
        assert!(product(i, i) > product(i + 6, i + 6));
    }
}

#[test]
fn a_calibration_is_kept_and_damage_is_found() {
    let (encoder, ..) = fitted();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/model.code");
    let files = || std::fs::read_dir(path.parent().unwrap()).unwrap().count();
    let [model, tokenizer, other] = [3, 5, 4].map(|byte| Fingerprint([byte; 32]));
    let of = [model, tokenizer];
    assert!(Encoder::load(&path, of).unwrap().is_none());
    // What is the same takes nobody's place.
    for _ in 0..2 {
        assert_eq!(encoder.save(&path, tokenizer).unwrap(), None);
    }
    assert_eq!(Encoder::load(&path, of).unwrap().as_ref(), Some(&encoder));
    assert_eq!(files(), 1);
    let refused = |of| Encoder::load(&path, of).unwrap_err().to_string();
    let error = refused([other, tokenizer]);
    assert!(error.contains("model 0303") && error.contains("model 0404"), "{error}");
    let error = refused([model, other]);
    assert!(error.contains("tokenizer 0505") && error.contains("tokenizer 0404"), "{error}");
    let bytes = std::fs::read(&path).unwrap();
    for (at, what) in [(0, "LMBKCALI"), (8, "version is 3"), (20, "checksum"), (100, "checksum")] {
        let mut spoilt = bytes.clone();
        spoilt[at] ^= 1;
        std::fs::write(&path, &spoilt).unwrap();
        let error = refused(of);
        assert!(error.contains(what) && error.contains("move it away"), "{error}");
    }
    for length in [0, 10, 51, 59, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        assert!(Encoder::load(&path, of).is_err(), "{length}");
    }
    // A disk that takes no new one leaves things as they were.
    std::fs::write(&path, &bytes).unwrap();
    let begun = path.with_extension(format!("part-{}", std::process::id()));
    std::fs::create_dir(&begun).unwrap();
    assert!(encoder.save(&path, other).is_err());
    std::fs::remove_dir(&begun).unwrap();
    assert_eq!((std::fs::read(&path).unwrap(), files()), (bytes.clone(), 1));
    // What another has made is kept beside it, to be put back.
    let aside = encoder.save(&path, other).unwrap().unwrap();
    assert_eq!(std::fs::read(&aside).unwrap(), bytes);
    assert!(Encoder::load(&path, [model, other]).unwrap().is_some());
    assert_eq!(files(), 2);
}

#[test]
fn text_that_is_too_short_or_says_nothing_makes_no_code() {
    let (hidden, w) = teacher(least_positions(WIDTH) - 1);
    let refused = fit(sample(&hidden, &w)).unwrap_err().to_string();
    assert!(refused.contains("1535 tokens") && refused.contains("at least 1536"), "{refused}");
    let same = hidden.narrow(0, 0, 1).unwrap().repeat((least_positions(WIDTH), 1)).unwrap();
    let refused = fit(sample(&same, &w)).unwrap_err().to_string();
    assert!(refused.contains("do not vary"), "{refused}");
    let (hidden, w) = teacher(least_positions(WIDTH));
    let flat = w.zeros_like().unwrap();
    let refused = fit(sample(&hidden, &flat)).unwrap_err().to_string();
    assert!(refused.contains("does not depend on its hidden states"), "{refused}");
    let spoilt = (hidden * f64::NAN).unwrap();
    let refused = fit(sample(&spoilt, &w)).unwrap_err().to_string();
    assert!(refused.contains("not finite"), "{refused}");
}

#[test]
fn the_decoder_needs_the_code_alone() {
    let (encoder, hidden, _) = fitted();
    let read = Arc::new(Code::from_bytes(&encoder.code().to_bytes()).unwrap());
    let rung = read.rung_for_bytes(20.0).unwrap().rung;
    let bytes = encoder.encode(&hidden, rung).unwrap();
    let rows = hidden.dim(0).unwrap();
    let there =
        Decoder::new(Arc::clone(&read), rung).hidden_states(&read.decode(&bytes, rows).unwrap());
    let numbers = encoder.code().decode(&bytes, rows).unwrap();
    assert_eq!(there, encoder.code().reconstruct(rung, &numbers));
}
