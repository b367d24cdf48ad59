//! Launches that round (`cuda/round.cu`).

use crate::Argument::{Buffer, U32};
use crate::Call;

const THREADS: u32 = 256;

/// `y` = `x` rounded to bfloat16: `x` `[count]` float32, `y` `[count]` bfloat16.
pub fn round<B>([x, y]: [B; 2], count: u32) -> Call<B> {
    Call {
        kernel: "round_bf16",
        blocks: [count.div_ceil(4 * THREADS), 1],
        threads: THREADS,
        memory: 0,
        arguments: vec![Buffer(x), Buffer(y), U32(count)],
    }
}
