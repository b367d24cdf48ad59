//! Biases.

use kernels::bias::{add_bias, add_bias_to_f32, bias_backward, shares};
use kernels::emulation::Memory;

use super::elements::{BOTH, all, buffer, emulated, held};
use crate::ops::testing::{error, error_beside, random, wide};

#[test]
fn biases_are_added_and_their_gradients_summed() {
    if !emulated("biases_are_added_and_their_gradients_summed") {
        return;
    }
    for (n, c) in [(1, 1), (3, 255), (2, 257), (300, 5)] {
        for (activations, far) in BOTH {
            let memory = &mut Memory::default();
            let (x, b) = (held(activations, 1, n * c, 1.0), held(activations, 2, c, 1.0));
            let at = [buffer(memory, "x", activations, &x), buffer(memory, "b", activations, &b)];
            let size = [n as u32, c as u32];
            // Of x as it was: sums before the bias is added.
            let db = random(3, c);
            let at_db = memory.of("db", &db);
            let room = memory.unwritten::<f32>("room", shares(n as u32) as usize * c);
            all(&bias_backward([at[0], room, at_db], size, activations), memory);
            let (wide_x, wide_b) = (wide(&x), wide(&b));
            let column = |j: usize| wide_x.iter().skip(j).step_by(c).sum::<f64>();
            let exact: Vec<f64> = (0..c).map(|j| f64::from(db[j]) + column(j)).collect();
            let found = error_beside(((n * c) as f64).sqrt(), &memory.floats(at_db), &exact);
            assert!(found < 2e-6, "{n} x {c}, {activations:?}: {found}");
            all(&[add_bias(at, size, activations)], memory);
            let exact: Vec<f64> =
                wide_x.iter().enumerate().map(|(i, x)| x + wide_b[i % c]).collect();
            let found = error(&memory.floats(at[0]), &exact);
            assert!(found < far, "{n} x {c}, {activations:?}: {found}");
            let residual = memory.of("residual", &x);
            all(&[add_bias_to_f32([residual, at[1]], size, activations)], memory);
            let found = error(&memory.floats(residual), &exact);
            assert!(found < 1e-7, "{n} x {c}, {activations:?}, to float32: {found}");
        }
    }
}
