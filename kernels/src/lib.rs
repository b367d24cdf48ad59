//! What runs on an NVIDIA card: the kernels' sources (`cuda/`), how each is launched, and their emulation on
//! the host (`emulation`), where tests run the same sources without a card.
//!
//! A launch is described once, as a [`Call`] over whatever stands for a buffer; the card and the emulation
//! both carry it out.

pub mod adamw;
pub mod attention;
pub mod bias;
#[cfg(feature = "cuda")]
pub mod card;
pub mod counting;
pub mod draws;
pub mod embed;
#[cfg(feature = "emulation")]
pub mod emulation;
pub mod executor;
pub mod head;
pub mod heads;
pub mod norm;
pub mod program;
pub mod quantised;
pub mod round;
pub mod swiglu;
pub mod topk;

/// Lanes of a warp.
pub(crate) const WARP: u32 = 32;

/// The type in which activations lie between products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// Single precision.
    F32,
    /// Bfloat16.
    Bf16,
}

impl Activations {
    /// The end of the names of kernels for this type.
    pub(crate) fn of(self, [f32, bf16]: [&'static str; 2]) -> &'static str {
        match self {
            Self::F32 => f32,
            Self::Bf16 => bf16,
        }
    }
}

/// What a kernel is given. `B` stands for a buffer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument<B> {
    /// A buffer's start.
    Buffer(B),
    /// A whole number.
    U32(u32),
    /// A number.
    F32(f32),
    /// A number in double precision.
    F64(f64),
}

/// One launch of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Call<B> {
    /// Its name in `cuda/`.
    pub kernel: &'static str,
    /// Blocks along x and y.
    pub blocks: [u32; 2],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of memory of a block.
    pub memory: u32,
    /// In the order of its parameters.
    pub arguments: Vec<Argument<B>>,
}

impl<B> Call<B> {
    /// Threads of a block of [`Self::over_rows`].
    const THREADS: u32 = 256;

    /// A thread an element of `[rows, width]`: rows along x, a row's blocks along y.
    pub(crate) fn over_rows(
        kernel: &'static str,
        [rows, width]: [u32; 2],
        arguments: Vec<Argument<B>>,
    ) -> Self {
        let blocks = [rows, width.div_ceil(Self::THREADS)];
        Self { kernel, blocks, threads: Self::THREADS, memory: 0, arguments }
    }

    /// A thread four elements of a row.
    pub(crate) fn over_fours(
        kernel: &'static str,
        [rows, width]: [u32; 2],
        arguments: Vec<Argument<B>>,
    ) -> Self {
        Self::over_rows(kernel, [rows, width.div_ceil(4)], arguments)
    }
}
