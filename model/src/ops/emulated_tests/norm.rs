//! The norm.

use kernels::emulation::Memory;
use kernels::norm::{Backward, norm, norm_backward, shares};

use super::elements::{BOTH, added, all, buffer, emulated, held, unwritten};
use crate::ops::reference;
use crate::ops::testing::{error, error_beside, random, wide};

const EPS: f64 = 1e-6;

#[test]
fn norms_agree_with_f64() {
    if !emulated("norms_agree_with_f64") {
        return;
    }
    // Columns: fewer than threads, as many, more, and more than threads that take four each; in fours and not. Rows: fewer and
    // more than share a backward pass.
    for (n, d, size) in [
        (1, 1, 1.0),
        (3, 77, 1e-3),
        (5, 256, 2.0),
        (2, 1000, 2.0),
        (2, 1301, 2.0),
        (2, 1500, 2.0),
        (270, 40, 2.0),
    ] {
        for (activations, far) in BOTH {
            let memory = &mut Memory::default();
            let x: Vec<f32> = random(1, n * d).iter().map(|x| x * size).collect();
            let w = held(activations, 2, d, 1.0);
            let ids @ [at_x, at_w, at_y, at_rstd] = [
                memory.of("x", &x),
                buffer(memory, "w", activations, &w),
                unwritten(memory, "y", activations, n * d),
                memory.unwritten::<f32>("rstd", n),
            ];
            let shape = [n as u32, d as u32];
            all(&[norm(ids, shape, EPS as f32, activations)], memory);
            let exact = reference::rms_norm(&wide(&x), &wide(&w), EPS);
            let found = error(&memory.floats(at_y), &exact);
            assert!(found < far, "{n} x {d}, {activations:?}: {found}");

            let dy = held(activations, 3, n * d, 1.0);
            let (start_x, start_w) = (random(4, n * d), random(5, d));
            let of = Backward {
                dy: buffer(memory, "dy", activations, &dy),
                x: at_x,
                w: at_w,
                rstd: at_rstd,
                dx: memory.of("dx", &start_x),
                dw: memory.of("dw", &start_w),
                room: memory.unwritten::<f32>("room", shares(n as u32) as usize * d),
            };
            all(&norm_backward(of, shape, activations), memory);
            let (ex, ew) = reference::rms_norm_backward(&wide(&dy), &wide(&x), &wide(&w), EPS);
            // Gradients are float32 whatever the activations are.
            let found = error(&memory.floats(of.dx), &added(&start_x, &ex));
            assert!(found < 3e-6, "{n} x {d}, {activations:?}, dx: {found}");
            let size = ((n * d) as f64).sqrt();
            let found = error_beside(size, &memory.floats(of.dw), &added(&start_w, &ew));
            assert!(found < 3e-6, "{n} x {d}, {activations:?}, dw: {found}");
        }
    }
}
