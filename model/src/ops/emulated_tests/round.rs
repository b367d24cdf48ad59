//! Rounding.

use half::bf16;
use kernels::emulation::Memory;
use kernels::round::round;

use super::elements::{all, emulated};
use crate::ops::testing::random;

#[test]
fn float32_is_rounded_to_nearest() {
    if !emulated("float32_is_rounded_to_nearest") {
        return;
    }
    for n in [1, 3, 4, 1023, 1025] {
        let mut x = random(1, n);
        // Halfway between two: to the even one.
        x[0] = f32::from_bits(0x3f80_8000);
        let memory = &mut Memory::default();
        let at = [memory.of("x", &x), memory.unwritten::<bf16>("y", n)];
        all(&[round(at, n as u32)], memory);
        let exact: Vec<f32> = x.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
        assert_eq!(memory.floats(at[1]), exact);
        assert_eq!(exact[0], 1.0);
    }
}
