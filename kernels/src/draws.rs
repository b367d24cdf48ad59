//! Launches that draw classes from rows of logits (`cuda/draws.cu`).

use crate::Argument::{Buffer, F64, U32};
use crate::Call;
use crate::topk::{Logits, OF_WARPS, THREADS};

/// Classes that a warp sums at a time.
const SEGMENT: u32 = 512;

/// What draws are made beside, and of.
#[derive(Clone, Copy, Debug)]
pub struct Drawing<B> {
    /// The k classes of each row that are not drawn `[rows, k]` u32, as [`crate::topk::top_k`] has them.
    pub exact: B,
    /// k, 0 or more.
    pub k: u32,
    /// What [`crate::topk::top_k`], or [`crate::topk::named`] where k is 0, has said of broken rows.
    pub broken: B,
    /// Where draws are made `[rows, draws]` float64, in 0..1, as `distill::signal::DrawKey` has them.
    pub uniforms: B,
    /// Draws a row.
    pub draws: u32,
}

/// For each uniform the first class, by id, at which the sum of the probabilities of all classes but the exact ones
/// exceeds it, over their mass: `drawn` `[rows, draws]` u32; [`crate::topk::NOBODY`] where there are no others, or the row
/// is broken.
///
/// # Panics
/// When there are more classes than [`crate::topk::MOST_CLASSES`], or the width does not fit.
pub fn draw<B>(of: Logits<B>, from: Drawing<B>, drawn: B) -> Call<B> {
    let ([classes, width], marks) = (of.sizes(), of.marks());
    let segments = of.classes.div_ceil(SEGMENT);
    let Drawing { exact, k, broken, uniforms, draws } = from;
    let mut arguments: Vec<_> = [of.logits, exact, broken, uniforms, drawn].map(Buffer).into();
    arguments.extend([classes, width, U32(k), U32(draws), F64(of.temperature)]);
    Call {
        kernel: "draw",
        blocks: [of.rows, 1],
        threads: THREADS,
        memory: OF_WARPS + 12 * segments + marks,
        arguments,
    }
}
