//! Numbers as a card holds them.

use half::bf16;
use kernels::Activations;
use kernels::emulation::{AVAILABLE, Id, Memory, run};

use crate::ops::testing::{random, wide};

/// Both types of activations, and how far a result of each may be from the exact one: the share that its
/// rounding takes, and of float32 some sums.
pub(super) const BOTH: [(Activations, f64); 2] =
    [(Activations::F32, 5e-7), (Activations::Bf16, 3e-3)];

/// Whether there are kernels to run; without a compiler of C++20 the test is skipped.
pub(super) fn emulated(test: &str) -> bool {
    if !AVAILABLE {
        test_support::skip(test, "c++", "no compiler of C++20 was found (g++ 10 or newer, $CXX)");
    }
    AVAILABLE
}

/// Values that the type holds, uniform in -size..size.
pub(super) fn held(activations: Activations, seed: u64, len: usize, size: f32) -> Vec<f32> {
    let values = random(seed, len).into_iter().map(|x| x * size);
    match activations {
        Activations::F32 => values.collect(),
        Activations::Bf16 => values.map(|x| bf16::from_f32(x).to_f32()).collect(),
    }
}

/// A buffer of values that the type holds.
pub(super) fn buffer(
    memory: &mut Memory,
    name: &str,
    activations: Activations,
    values: &[f32],
) -> Id {
    match activations {
        Activations::F32 => memory.of(name, values),
        Activations::Bf16 => {
            let values = values.iter().map(|&x| bf16::from_f32(x));
            memory.of(name, &values.collect::<Vec<_>>())
        }
    }
}

/// A buffer of the type that was never written.
pub(super) fn unwritten(
    memory: &mut Memory,
    name: &str,
    activations: Activations,
    len: usize,
) -> Id {
    match activations {
        Activations::F32 => memory.unwritten::<f32>(name, len),
        Activations::Bf16 => memory.unwritten::<bf16>(name, len),
    }
}

/// Carries out launches one after another.
pub(super) fn all(calls: &[kernels::Call<Id>], memory: &mut Memory) {
    for call in calls {
        run(call, memory).unwrap();
    }
}

/// What was there and what is added to it, in `f64`.
pub(super) fn added(start: &[f32], exact: &[f64]) -> Vec<f64> {
    wide(start).iter().zip(exact).map(|(start, exact)| start + exact).collect()
}
