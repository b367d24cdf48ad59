//! Attention: tensor cores and plain sums.

use half::bf16;
use kernels::Activations;
use kernels::attention::{Back, Reads, Tiles, attention, attention_backward};
use kernels::emulation::Memory;
use kernels::heads::Heads;

use super::elements::{all, buffer, emulated, held, unwritten};
use crate::ops::reference;
use crate::ops::rope::QkvLayout;
use crate::ops::testing::{ends, error, wide};

/// How far results may be from the exact ones, of their norm: out, lse, and the gradients of queries, keys and values.
/// In float32 what some sums take.
const FAR_F32: [f64; 5] = [1e-6, 1e-6, 3e-6, 3e-6, 3e-6];
/// Rounding to bfloat16 takes at most U of a value. Twice rounded are out and dv: their weights, and they themselves;
/// thrice dq and dk: the out that delta is formed of, ds, and they themselves. Nothing that lse is made of is.
const U: f64 = 1.0 / 512.0;
const FAR_BF16: [f64; 5] = [2.0 * U, 1e-6, 3.0 * U, 3.0 * U, 2.0 * U];

/// What the card gives, in `[N, (H + 2G)E]` where it is a gradient.
struct Found {
    out: Vec<f32>,
    lse: Vec<f32>,
    d: Vec<f32>,
}

/// `columns` of every row of `width`.
fn columns(values: &[f32], width: usize, columns: std::ops::Range<usize>) -> Vec<f32> {
    values.chunks_exact(width).flat_map(|row| &row[columns.clone()]).copied().collect()
}

fn launch(
    qkv: &[f32],
    d_out: &[f32],
    heads: Heads,
    row_ends: &[usize],
    (activations, room): (Activations, u32),
) -> Found {
    let (width, e) = (heads.width() as usize, heads.head_dim as usize);
    let (of_ready, of_out) = (heads.normed() as usize * e, heads.queries as usize * e);
    let (n, row_ends) = (qkv.len() / width, row_ends.iter().map(|&end| end as u32));
    let tiles = Tiles::of(&row_ends.collect::<Vec<_>>(), heads, activations);
    let memory = &mut Memory::default();
    // Of raw only the values are looked at.
    let mut raw = qkv.to_vec();
    raw.chunks_exact_mut(width).for_each(|token| token[..of_ready].fill(f32::NAN));
    let reads = Reads {
        ready: buffer(memory, "ready", activations, &columns(qkv, width, 0..of_ready)),
        raw: buffer(memory, "raw", activations, &raw),
        query_tiles: memory.of("query_tiles", &tiles.queries),
    };
    let heads_of_tokens = n * heads.queries as usize;
    let back = Back {
        key_tiles: memory.of("key_tiles", &tiles.keys),
        d_out: buffer(memory, "d_out", activations, d_out),
        out: unwritten(memory, "out", activations, n * of_out),
        lse: memory.unwritten::<f32>("lse", heads_of_tokens),
        delta: memory.unwritten::<f32>("delta", heads_of_tokens),
        d_ready: unwritten(memory, "d_ready", activations, n * of_ready),
        d_raw: unwritten(memory, "d_raw", activations, n * width),
    };
    let counts = tiles.counts();
    all(&[attention(reads, [back.out, back.lse], heads, counts, activations)], memory);
    let calls = attention_backward(reads, back, heads, n as u32, counts, activations, room);
    all(&calls, memory);
    let (d_ready, d_raw) = (memory.floats(back.d_ready), memory.floats(back.d_raw));
    let d =
        d_ready.chunks_exact(of_ready).zip(d_raw.chunks_exact(width)).flat_map(|(ready, raw)| {
            assert!(raw[..of_ready].iter().all(|d| d.is_nan()), "of d_raw the values' only");
            [ready, &raw[of_ready..]].concat()
        });
    Found { out: memory.floats(back.out), lse: memory.floats(back.lse), d: d.collect() }
}

fn layout(heads: Heads) -> QkvLayout {
    let Heads { queries, keys, head_dim } = heads;
    QkvLayout { heads: queries as usize, kv_heads: keys as usize, head_dim: head_dim as usize }
}

fn agree(heads: Heads, lengths: &[usize], activations: Activations, far: [f64; 5]) {
    agree_within(heads, lengths, (activations, u32::MAX), far);
}

/// On a card that gives a block so many bytes.
fn agree_within(
    heads: Heads,
    lengths: &[usize],
    (activations, room): (Activations, u32),
    far: [f64; 5],
) {
    let (layout, row_ends) = (layout(heads), ends(lengths));
    let n = *row_ends.last().unwrap();
    let qkv = held(activations, 1, n * heads.width() as usize, 2.0);
    let d_out = held(activations, 2, n * layout.heads * layout.head_dim, 1.0);
    let found = launch(&qkv, &d_out, heads, &row_ends, (activations, room));
    let (out, lse) = reference::attention(&wide(&qkv), &layout, &row_ends);
    let d = reference::attention_backward(&wide(&d_out), &wide(&qkv), &layout, &row_ends);
    // Queries', keys' and values' gradients apart: the largest would hide the others.
    let (h, g, e) = (layout.heads, layout.kv_heads, layout.head_dim);
    let of = |heads: std::ops::Range<usize>| {
        let columns = heads.start * e..heads.end * e;
        let tokens = d.chunks_exact(layout.width());
        let exact: Vec<f64> = tokens.flat_map(|token| &token[columns.clone()]).copied().collect();
        error(&self::columns(&found.d, layout.width(), columns.clone()), &exact)
    };
    let errors = [
        error(&found.out, &out) / far[0],
        error(&found.lse, &lse) / far[1],
        of(0..h) / far[2],
        of(h..h + g) / far[3],
        of(h + g..h + 2 * g) / far[4],
    ];
    // NaN is not below.
    let near = errors.iter().all(|error| *error < 1.0);
    assert!(near, "{heads:?} {lengths:?} {activations:?}: out, lse, dq, dk, dv {errors:?}");
}

/// Heads of all three sizes, whole and cut off in a chunk of 16 bytes and between; groups of 1, 2, 3 and 4; rows of
/// one token, of a tile and of one more.
#[test]
fn attention_on_tensor_cores_agrees_with_f64() {
    if !emulated("attention_on_tensor_cores_agrees_with_f64") {
        return;
    }
    for (queries, keys, head_dim, lengths) in [
        (1, 1, 2, vec![1]),
        (2, 2, 30, vec![64, 1, 65]),
        (2, 1, 64, vec![3, 0, 33, 130]),
        (3, 1, 40, vec![129]),
        (4, 1, 128, vec![32, 70]),
        (2, 1, 128, vec![65]),
        (2, 1, 90, vec![7]),
        (1, 1, 256, vec![64, 33]),
        (4, 2, 130, vec![17]),
    ] {
        agree(Heads { queries, keys, head_dim }, &lengths, Activations::Bf16, FAR_BF16);
    }
}

/// Cards of capability 8.6 and 8.9 give a block 99 KiB.
#[test]
fn attention_in_little_memory_agrees_with_f64() {
    if !emulated("attention_in_little_memory_agrees_with_f64") {
        return;
    }
    for (queries, keys, head_dim, lengths) in
        [(2, 1, 128, vec![32, 1, 65]), (4, 2, 90, vec![33, 64]), (2, 2, 64, vec![40])]
    {
        let (heads, on) = (Heads { queries, keys, head_dim }, (Activations::Bf16, 99 << 10));
        agree_within(heads, &lengths, on, FAR_BF16);
    }
}

#[test]
fn attention_in_float32_agrees_with_f64() {
    if !emulated("attention_in_float32_agrees_with_f64") {
        return;
    }
    for (queries, keys, head_dim, lengths) in [
        (1, 1, 2, vec![1]),
        (2, 2, 30, vec![8, 1, 9]),
        (4, 2, 66, vec![3, 0, 33, 40]),
        (3, 1, 40, vec![65]),
        (4, 1, 256, vec![5]),
    ] {
        agree(Heads { queries, keys, head_dim }, &lengths, Activations::F32, FAR_F32);
    }
}

/// To the bit, whatever stands beside it in the batch.
#[test]
fn a_row_gives_the_same_alone_and_among_others() {
    if !emulated("a_row_gives_the_same_alone_and_among_others") {
        return;
    }
    let heads = Heads { queries: 2, keys: 1, head_dim: 16 };
    let (width, of_out) = (heads.width() as usize, 32);
    for activations in [Activations::F32, Activations::Bf16] {
        let qkv = held(activations, 5, 90 * width, 2.0);
        let d_out = held(activations, 6, 90 * of_out, 1.0);
        let on = (activations, u32::MAX);
        let together = launch(&qkv, &d_out, heads, &[13, 83, 90], on);
        let alone = launch(
            &qkv[13 * width..83 * width],
            &d_out[13 * of_out..83 * of_out],
            heads,
            &[70],
            on,
        );
        assert_eq!(together.out[13 * of_out..83 * of_out], alone.out);
        assert_eq!(together.lse[13 * 2..83 * 2], alone.lse);
        assert_eq!(together.d[13 * width..83 * width], alone.d);
    }
}

/// Scores of ±4000: the softmax is a choice of one key.
#[test]
fn scores_far_apart_neither_overflow_nor_vanish() {
    if !emulated("scores_far_apart_neither_overflow_nor_vanish") {
        return;
    }
    let heads = Heads { queries: 1, keys: 1, head_dim: 2 };
    let size = bf16::from_f32((4000.0 * 2.0_f32.sqrt()).sqrt()).to_f32();
    let token = |q: f32, k: f32, v: f32| [q * size, 0.0, k * size, 0.0, v, -v];
    let qkv = [token(1.0, 1.0, 5.0), token(1.0, -1.0, 6.0), token(-1.0, 0.0, 7.0)].concat();
    for activations in [Activations::F32, Activations::Bf16] {
        let on = (activations, u32::MAX);
        let found = launch(&qkv, &[5.0, -5.0, 5.0, -5.0, 6.0, -6.0], heads, &[3], on);
        assert_eq!(found.out, [5.0, -5.0, 5.0, -5.0, 6.0, -6.0]);
        let lse = size * size / 2.0_f32.sqrt();
        assert!(found.lse.iter().all(|found| (found - lse).abs() < 0.01), "{:?}", found.lse);
        assert!(found.d.iter().all(|d| d.is_finite()));
    }
}
