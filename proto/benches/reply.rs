//! A whole answer on its way, one thread, without sockets: positions a second of 64 packed entries
//! out of Qwen3's 151,936 classes in one message, step by step (`cargo bench --package proto --bench
//! reply`).

#![allow(missing_docs, reason = "criterion's macros make public items without comments")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use distill::codec::Codec;
use distill::fingerprint::{Fingerprint, payload_checksum};
use distill::handshake::Agreement;
use distill::queue::Priority;
use distill::signal::{Entries, TopK};
use prost::Message as _;
use prost::bytes::{Bytes, BytesMut};
use proto::convert::{ReplyAssembler, ScoreJob, Stamp, score_replies};
use proto::v1::ScoreReply;

const CLASSES: usize = 151_936;
const K: usize = 64;
/// A message of the default job, and as many rows as fill one of 1 MiB.
const ROWS: [usize; 2] = [150, 3_083];

fn job(rows: usize) -> ScoreJob {
    ScoreJob {
        id: 1,
        tokens: (0..rows as u32).collect(),
        ranges: std::iter::once(0..rows as u32).collect(),
        temperature: 2.0,
        entries: Entries::Top,
        k: K,
        codec: Codec::Packed,
        classes: CLASSES,
        priority: Priority::Normal,
    }
}

/// Distinct ids over all classes and falling logits in every row.
fn answer(rows: usize) -> (TopK, Vec<f32>) {
    let entry = |n: usize| (n / K, n % K);
    let id = |(row, i): (usize, usize)| (row * 7_919 + i * 9_973) % CLASSES;
    let logit = |(row, i): (usize, usize)| 20.0 + (row % 9) as f32 - (i as f32 * 0.7 + 0.3).sqrt();
    let signal = TopK {
        k: K,
        ids: (0..rows * K).map(|n| id(entry(n)) as u32).collect(),
        scaled: (0..rows * K).map(|n| logit(entry(n))).collect(),
        log_z: (0..rows).map(|row| 22.0 + (row % 9) as f32).collect(),
        log_rest: (0..rows).map(|row| -1.0 - (row % 7) as f32).collect(),
    };
    let next = (0..rows).map(|row| if row + 1 < rows { -2.5 } else { f32::NAN });
    (signal, next.collect())
}

/// As prost's codec in tonic writes it.
fn wire(reply: &ScoreReply) -> Bytes {
    let mut buffer = BytesMut::with_capacity(8 * 1024);
    reply.encode(&mut buffer).expect("room without end");
    buffer.freeze()
}

fn benches(criterion: &mut Criterion) {
    let fingerprint = Fingerprint([7; 32]);
    let stamp = Stamp {
        model_fingerprint: fingerprint,
        tokenizer_fingerprint: fingerprint,
        max_reply_bytes: 1 << 20,
        queued: Duration::from_millis(1),
        computed: Duration::from_millis(1),
    };
    let agreement = Agreement {
        classes: CLASSES,
        model_fingerprint: fingerprint,
        tokenizer_fingerprint: fingerprint,
        hidden_size: 0,
        max_in_flight: 1,
    };
    let mut group = criterion.benchmark_group("reply");
    for rows in ROWS {
        let (job, (signal, next)) = (job(rows), answer(rows));
        let signal = signal.into();
        let made = || score_replies(&job, &signal, &next, &stamp).expect("a signal to send");
        let [reply] = &made()[..] else { panic!("one message holds the answer") };
        let bytes = wire(reply);
        let mut assembler = ReplyAssembler::new(job.clone(), &agreement);

        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function(format!("1 signal to message/{rows}"), |bencher| bencher.iter(made));
        group.bench_function(format!("2 message to bytes/{rows}"), |bencher| {
            bencher.iter(|| wire(black_box(reply)));
        });
        group.bench_function(format!("3 bytes to message/{rows}"), |bencher| {
            bencher.iter(|| ScoreReply::decode(black_box(bytes.clone())));
        });
        group.bench_function(format!("4 message to answer/{rows}"), |bencher| {
            bencher.iter(|| {
                assembler.restart();
                assembler.push(black_box(reply))
            });
        });
        group.bench_function(format!("checksum, part of 1 and 4/{rows}"), |bencher| {
            bencher.iter(|| payload_checksum(&[black_box(&reply.signal), &reply.next_logprob]));
        });
    }
    group.finish();
}

criterion_group!(reply, benches);
criterion_main!(reply);
