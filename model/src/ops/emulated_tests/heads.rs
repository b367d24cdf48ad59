//! Queries and keys: norm of the heads, rotation.

use kernels::Activations;
use kernels::emulation::Memory;
use kernels::heads::{Back, Heads, Reads, shares, turn, turn_back};

use super::elements::{BOTH, added, all, buffer, emulated, held, unwritten};
use crate::ops::reference::{self, QkvWeights};
use crate::ops::rope::{QkvLayout, RopeScaling, RopeTables};
use crate::ops::testing::{error, error_beside, random, wide};

const EPS: f64 = 1e-6;

/// Of every token the values of its query and key heads.
fn normed<T: Copy>(values: &[T], heads: Heads) -> Vec<T> {
    let (width, kept) = (heads.width() as usize, (heads.normed() * heads.head_dim) as usize);
    values.chunks_exact(width).flat_map(|token| &token[..kept]).copied().collect()
}

#[test]
fn queries_and_keys_agree_with_f64() {
    if !emulated("queries_and_keys_agree_with_f64") {
        return;
    }
    // Heads of fewer pairs than lanes, as many, the largest; more heads than warps; tokens that share a backward pass.
    for (queries, keys, head_dim, row_ends) in [
        (1, 1, 2, vec![1]),
        (4, 2, 30, vec![3, 4, 9]),
        (16, 8, 128, vec![5, 7]),
        (2, 1, 256, vec![2]),
        (3, 1, 134, vec![2, 5]),
        (2, 2, 96, vec![3]),
        (1, 1, 4, vec![40, 80, 120, 160, 200, 240, 270]),
    ] {
        for (activations, far) in BOTH {
            agree(Heads { queries, keys, head_dim }, &row_ends, activations, far);
        }
    }
}

fn agree(heads: Heads, row_ends: &[usize], activations: Activations, far: f64) {
    let (e, width) = (heads.head_dim as usize, heads.width() as usize);
    let layout =
        QkvLayout { heads: heads.queries as usize, kv_heads: heads.keys as usize, head_dim: e };
    let tokens = *row_ends.last().unwrap();
    let tables = RopeTables::new(e, 1e4, &RopeScaling::Default, 40).unwrap();
    let positions: Vec<u32> = reference::positions(row_ends).map(|at| at as u32).collect();
    let memory = &mut Memory::default();
    let raw = held(activations, 1, tokens * width, 1.0);
    let (q, k) = (held(activations, 2, e, 1.0), held(activations, 3, e, 1.0));
    let reads = Reads {
        raw: buffer(memory, "raw", activations, &raw),
        q_norm: buffer(memory, "q_norm", activations, &q),
        k_norm: buffer(memory, "k_norm", activations, &k),
        cos: memory.of("cos", tables.cos()),
        sin: memory.of("sin", tables.sin()),
        positions: memory.of("positions", &positions),
    };
    let (of_heads, count) = (tokens * heads.normed() as usize, tokens as u32);
    let ready = unwritten(memory, "ready", activations, of_heads * e);
    let rstd = memory.unwritten::<f32>("rstd", of_heads);
    all(&[turn(reads, [ready, rstd], heads, count, EPS as f32, activations)], memory);
    let (wq, wk) = (wide(&q), wide(&k));
    let (cos, sin) = (wide(tables.cos()), wide(tables.sin()));
    let weights = QkvWeights { q_norm: &wq, k_norm: &wk, eps: EPS, cos: &cos, sin: &sin };
    let exact = reference::prepare_qkv(&wide(&raw), &weights, &layout, row_ends);
    let found = error(&memory.floats(ready), &normed(&exact, heads));
    assert!(found < far, "{heads:?}, {activations:?}: {found}");

    let d_ready = held(activations, 4, tokens * width, 1.0);
    let start = [random(5, e), random(6, e)];
    let back = Back {
        d_ready: buffer(memory, "d_ready", activations, &normed(&d_ready, heads)),
        rstd,
        d_raw: unwritten(memory, "d_raw", activations, tokens * width),
        room: memory.unwritten::<f32>("room", shares(count) as usize * 2 * e),
        dq_norm: memory.of("dq_norm", &start[0]),
        dk_norm: memory.of("dk_norm", &start[1]),
    };
    all(&turn_back(reads, back, heads, count, activations), memory);
    let (d, raw) = (wide(&d_ready), wide(&raw));
    let (ex, eq, ek) = reference::prepare_qkv_backward(&d, &raw, &weights, &layout, row_ends);
    let found = error(&normed(&memory.floats(back.d_raw), heads), &normed(&ex, heads));
    assert!(found < 4.0 * far, "{heads:?}, {activations:?}, backward: {found}");
    let size = ((tokens * width) as f64).sqrt();
    for (at, start, exact) in [(back.dq_norm, &start[0], eq), (back.dk_norm, &start[1], ek)] {
        let found = error_beside(size, &memory.floats(at), &added(start, &exact));
        assert!(found < 3e-6, "{heads:?}, {activations:?}, norms: {found}");
    }
}
