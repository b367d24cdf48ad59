//! The coded hidden state, one thread: positions a second to bytes and back (`cargo bench --package model
//! --bench coding`). `put` and `get` are the entropy coder alone: what is left of it on a processor where
//! the two matrix products are done elsewhere.
//!
//! The states are drawn: independent coordinates whose spread falls from direction to direction as
//! exp(-5 j / width), about as the small trained models' do, turned by a reflection. At a step of 1 a state of
//! 256 numbers takes 48 bytes, at one of 2 half of that.

#![allow(missing_docs, reason = "criterion's macros make public items without comments")]

use std::hint::black_box;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use distill::coded::{Code, Parts, Rung};
use distill::fingerprint::Fingerprint;
use model::coding::{Decoder, Encoder};
use rand::SeedableRng as _;

const WIDTHS: [usize; 3] = [256, 1024, 2560];
const ROWS: usize = 1024;
/// Spread of the first direction.
const FIRST_SPREAD: f64 = 5.5;
/// Steps of 1 and of 2.
const RUNGS: [Rung; 2] = [Rung(0), Rung(16)];

fn normal(random: &mut impl rand::Rng) -> f32 {
    (0..12).map(|_| random.random::<f32>()).sum::<f32>() - 6.0
}

/// An encoder, and states `[ROWS, width]`.
fn drawn(width: usize) -> (Encoder, Tensor) {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(width as u64);
    let axis: Vec<f64> = (0..width).map(|_| f64::from(normal(&mut random))).collect();
    let square: f64 = axis.iter().map(|x| x * x).sum();
    // A reflection is its own inverse.
    let entry = |at: usize| {
        let (row, column) = (at / width, at % width);
        f64::from(u8::from(row == column)) - 2.0 * axis[row] * axis[column] / square
    };
    let matrix: Vec<f64> = (0..width * width).map(entry).collect();
    let spread = |j: usize| FIRST_SPREAD * (-5.0 * j as f64 / width as f64).exp();
    let spreads: Vec<f64> = (0..width).map(spread).collect();
    let mut states = Vec::with_capacity(ROWS * width);
    for _ in 0..ROWS {
        let z: Vec<f64> = spreads.iter().map(|s| s * f64::from(normal(&mut random))).collect();
        let along: f64 = axis.iter().zip(&z).map(|(a, z)| a * z).sum::<f64>() * 2.0 / square;
        states.extend(axis.iter().zip(&z).map(|(a, z)| (z - a * along) as f32));
    }
    let code = Code::new(Parts {
        model: Fingerprint([0; 32]),
        mean: vec![0.0; width],
        spreads: &spreads,
        matrix: &matrix,
        standardised: (0..100_000).map(|_| normal(&mut random)).collect(),
    })
    .expect("a code");
    let matrix = matrix.iter().map(|&x| x as f32).collect();
    let encoder = Encoder::new(Arc::new(code), matrix).expect("an encoder");
    (encoder, Tensor::from_vec(states, (ROWS, width), &Device::Cpu).expect("states"))
}

#[expect(clippy::print_stdout, reason = "the bytes a state takes are part of the figure")]
fn benches(criterion: &mut Criterion) {
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    let mut group = criterion.benchmark_group("coding");
    group.throughput(Throughput::Elements(ROWS as u64)).sample_size(10);
    for width in WIDTHS {
        let (encoder, states) = drawn(width);
        let flat: Vec<f32> = states.flatten_all().expect("flat").to_vec1().expect("f32");
        for rung in RUNGS {
            let bytes = encoder.encode(&states, rung).expect("bytes");
            let numbers = encoder.numbers(&flat, rung).expect("numbers");
            let bound = encoder.code().information(rung, &numbers) / 8.0;
            let taken = bytes.len() as f64;
            let (each, over) = (taken / ROWS as f64, 100.0 * (taken / bound - 1.0));
            let at = format!("{width}/step {}", rung.step());
            println!("{at}: {each:.1} bytes a position, {over:.1} % above the tables' entropy");
            group.bench_function(format!("put/{at}"), |bencher| {
                bencher.iter(|| encoder.code().encode(rung, black_box(&numbers), &flat));
            });
            group.bench_function(format!("get/{at}"), |bencher| {
                bencher.iter(|| encoder.code().decode(black_box(&bytes), ROWS));
            });
            group.bench_function(format!("encode/{at}"), |bencher| {
                one.install(|| bencher.iter(|| encoder.encode(black_box(&states), rung)));
            });
            let decoder = Decoder::new(Arc::clone(encoder.code()), rung);
            group.bench_function(format!("decode/{at}"), |bencher| {
                one.install(|| {
                    bencher.iter(|| {
                        let read = encoder.code().decode(black_box(&bytes), ROWS).expect("rows");
                        decoder.hidden_states(&read)
                    });
                });
            });
        }
    }
    group.finish();
}

criterion_group!(coding, benches);
criterion_main!(coding);
