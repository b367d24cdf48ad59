//! Launches that widen matrices which lie quantised in a card's memory, as GGUF files hold them (`cuda/quantised.cu`).

use crate::Argument::{Buffer, U32};
use crate::{Activations, Call};

const THREADS: u32 = 256;

/// How numbers are quantised: the names are ggml's. The last dimension of a matrix is whole blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Quantised {
    /// 32 numbers in 34 bytes.
    Q8_0,
    /// 256 numbers in 144 bytes.
    Q4K,
    /// 256 numbers in 210 bytes.
    Q6K,
}

impl Quantised {
    /// Numbers of a block.
    pub fn values(self) -> usize {
        match self {
            Self::Q8_0 => 32,
            Self::Q4K | Self::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub fn bytes(self) -> usize {
        match self {
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q6K => 210,
        }
    }

    /// Bytes of so many numbers.
    ///
    /// # Panics
    /// When they are not whole blocks.
    pub fn bytes_of(self, numbers: usize) -> usize {
        assert!(numbers.is_multiple_of(self.values()), "{numbers} numbers in {self:?}");
        numbers / self.values() * self.bytes()
    }

    /// Threads of a block of numbers.
    fn parts(self) -> u32 {
        match self {
            Self::Q8_0 => 8,
            Self::Q4K => 32,
            Self::Q6K => 16,
        }
    }
}

/// `y` = the numbers of `x`: `x` bytes of whole blocks, `y` `[count]` in `activations`, which begins at a multiple of 16
/// bytes.
///
/// # Panics
/// When they are not whole blocks.
pub fn widen<B>([x, y]: [B; 2], of: Quantised, count: usize, activations: Activations) -> Call<B> {
    let blocks = (of.bytes_of(count) / of.bytes()) as u32;
    let names = match of {
        Quantised::Q8_0 => ["widen_q8_0_f32", "widen_q8_0_bf16"],
        Quantised::Q4K => ["widen_q4_k_f32", "widen_q4_k_bf16"],
        Quantised::Q6K => ["widen_q6_k_f32", "widen_q6_k_bf16"],
    };
    Call {
        kernel: activations.of(names),
        blocks: [blocks.div_ceil(THREADS / of.parts()), 1],
        threads: THREADS,
        memory: 0,
        arguments: vec![Buffer(x), Buffer(y), U32(blocks)],
    }
}

/// `y[j] = w[ids[j]]`: `w` bytes of `[R, width]` numbers, `ids` `[rows]` u32, `y` `[rows, width]` float32. Ids are the
/// caller's to check.
///
/// # Panics
/// When rows are not whole blocks.
pub fn gather<B>([w, ids, y]: [B; 3], of: Quantised, [rows, width]: [u32; 2]) -> Call<B> {
    let blocks = (of.bytes_of(width as usize) / of.bytes()) as u32;
    Call {
        kernel: match of {
            Quantised::Q8_0 => "gather_q8_0",
            Quantised::Q4K => "gather_q4_k",
            Quantised::Q6K => "gather_q6_k",
        },
        blocks: [rows, blocks.div_ceil(THREADS / of.parts())],
        threads: THREADS,
        memory: 0,
        arguments: vec![Buffer(w), Buffer(ids), Buffer(y), U32(blocks)],
    }
}
