//! The codecs alone, one thread: positions a second of 64 entries out of Qwen3's 151,936 classes
//! (`cargo bench --package distill --bench codec`).

#![allow(missing_docs, reason = "criterion's macros make public items without comments")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use distill::codec::{Codec, Ids, decode, encode, repeated};
use distill::signal::TopK;
use rand::seq::index;
use rand::{Rng as _, SeedableRng as _};

const CLASSES: usize = 151_936;
const K: usize = 64;
/// A message of the default job, and as many packed rows as fill one of 1 MiB.
const ROWS: [usize; 2] = [150, 3_083];

/// Distinct ids and falling logits in every row.
fn signal(rows: usize) -> TopK {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(64);
    let mut signal = TopK::new(K);
    for _ in 0..rows {
        let ids = index::sample(&mut random, CLASSES, K);
        signal.ids.extend(ids.into_iter().map(|id| id as u32));
        let mut logits: Vec<f32> = (0..K).map(|_| random.random_range(-5.0..25.0)).collect();
        logits.sort_by(|a, b| b.total_cmp(a));
        signal.log_z.push(logits[0] + 1.0);
        signal.log_rest.push(random.random_range(-9.0..-1.0));
        signal.scaled.extend(logits);
    }
    signal
}

fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec");
    for rows in ROWS {
        let signal = signal(rows);
        group.throughput(Throughput::Elements(rows as u64));
        for codec in Codec::ALL {
            let ids = Ids::Sent { classes: CLASSES };
            let layout = ids.layout(codec);
            let bytes = encode(&signal, 0..rows, layout).expect("a signal that can travel");
            group.bench_function(format!("encode/{codec}/{rows}"), |bencher| {
                bencher.iter(|| encode(black_box(&signal), 0..rows, layout));
            });
            group.bench_function(format!("decode/{codec}/{rows}"), |bencher| {
                bencher.iter(|| decode(black_box(&bytes), rows, K, codec, ids));
            });
        }
        group.bench_function(format!("repeated/{rows}"), |bencher| {
            bencher.iter(|| repeated(black_box(&signal.ids), K, CLASSES));
        });
    }
    group.finish();
}

criterion_group!(codec, benches);
criterion_main!(codec);
