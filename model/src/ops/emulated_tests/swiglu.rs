//! The gated activation.

use kernels::emulation::Memory;
use kernels::swiglu::{swiglu, swiglu_backward};

use super::elements::{BOTH, all, buffer, emulated, held, unwritten};
use crate::ops::reference;
use crate::ops::testing::{error, wide};

#[test]
fn gated_activations_agree_with_f64() {
    if !emulated("gated_activations_agree_with_f64") {
        return;
    }
    for (n, i) in [(1, 1), (3, 255), (2, 256), (5, 257), (300, 3), (2, 1028), (2, 1030)] {
        for (activations, far) in BOTH {
            let memory = &mut Memory::default();
            let gate_up = held(activations, 1, n * 2 * i, 6.0);
            let at = buffer(memory, "gate_up", activations, &gate_up);
            let a = unwritten(memory, "a", activations, n * i);
            let shape = [n as u32, i as u32];
            all(&[swiglu([at, a], shape, activations)], memory);
            let found = error(&memory.floats(a), &reference::swiglu(&wide(&gate_up), i));
            assert!(found < far, "{n} x {i}, {activations:?}: {found}");

            let da = held(activations, 2, n * i, 1.0);
            let at_da = buffer(memory, "da", activations, &da);
            all(&[swiglu_backward([at_da, at], shape, activations)], memory);
            let exact = reference::swiglu_backward(&wide(&da), &wide(&gate_up), i);
            let found = error(&memory.floats(at), &exact);
            assert!(found < far, "{n} x {i}, {activations:?}, backward: {found}");
            assert_eq!(memory.floats(at_da), memory.floats(a), "{n} x {i}, {activations:?}");
        }
    }
}

#[test]
fn gates_far_out_are_shut_or_open_and_never_nan() {
    if !emulated("gates_far_out_are_shut_or_open_and_never_nan") {
        return;
    }
    let memory = &mut Memory::default();
    let gate_up = memory.of("gate_up", &[-1e4_f32, 0.0, 1e4, 3.0, 3.0, 3.0]);
    let a = memory.unwritten::<f32>("a", 3);
    all(&[swiglu([gate_up, a], [1, 3], kernels::Activations::F32)], memory);
    assert_eq!(memory.floats(a), [0.0, 0.0, 3e4]);
    let da = memory.of("da", &[1.0_f32; 3]);
    all(&[swiglu_backward([da, gate_up], [1, 3], kernels::Activations::F32)], memory);
    assert_eq!(memory.floats(gate_up), [0.0, 1.5, 3.0, 0.0, 0.0, 1e4]);
    assert_eq!(memory.floats(da), [0.0, 0.0, 3e4]);
}
