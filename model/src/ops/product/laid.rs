//! The second operand of many products, rounded to bfloat16 and laid out for the processor once.

#[cfg(target_arch = "x86_64")]
use rayon::prelude::*;

use super::{MatMut, MatRef, Threads};

/// Columns of a panel.
#[cfg(target_arch = "x86_64")]
const COLUMNS: usize = bf16::UNITS[1];
#[cfg(target_arch = "x86_64")]
use super::{bf16, share};

/// `b` [k, n] of products `a·b`, as the bfloat16 kernel reads it: 2 bytes an element.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Laid {
    depth: usize,
    cols: usize,
    /// Of as many columns each as the kernel takes.
    panels: Vec<Vec<u32>>,
}

#[cfg(target_arch = "x86_64")]
impl Laid {
    /// None where the processor does not multiply bfloat16 faster than `f32`.
    pub(crate) fn out(b: MatRef<'_>) -> Option<Self> {
        if !bf16::available() {
            return None;
        }
        let columns = (0..b.cols()).step_by(COLUMNS);
        let panel = |at: usize| bf16::laid_out(b.columns(at..b.cols().min(at + COLUMNS)));
        Some(Self { depth: b.rows(), cols: b.cols(), panels: columns.map(panel).collect() })
    }

    /// `dst = alpha·a·b`, both operands rounded. Every element is one chain of sums in the order of the
    /// depth: the rows beside it and the number of threads do not change its bits.
    pub(crate) fn product(&self, dst: MatMut<'_>, alpha: f32, a: MatRef<'_>, threads: Threads) {
        let shapes = (dst.rows(), dst.cols(), a.cols());
        assert_eq!(shapes, (a.rows(), self.cols, self.depth), "shapes of a product");
        let parts = threads.parts(dst.rows() * dst.cols() * a.cols());
        let run = |part: usize| {
            let panels = share(part, parts, self.panels.len(), 1);
            let end = self.cols.min(panels.end * COLUMNS);
            let columns = panels.start * COLUMNS..end;
            if columns.is_empty() {
                return;
            }
            #[expect(unsafe_code, reason = "disjoint blocks of one matrix")]
            // SAFETY: different parts have other columns.
            let dst = unsafe { dst.block(0..dst.rows(), columns) };
            bf16::with_panels(&dst, alpha, a, self.panels[panels].iter().map(Vec::as_slice));
        };
        match parts {
            1 => run(0),
            _ => (0..parts).into_par_iter().for_each(run),
        }
    }
}

/// There is none: no kernel for this processor.
#[cfg(not(target_arch = "x86_64"))]
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Laid {}

#[cfg(not(target_arch = "x86_64"))]
impl Laid {
    /// None.
    pub(crate) fn out(_: MatRef<'_>) -> Option<Self> {
        None
    }

    /// Never called.
    pub(crate) fn product(&self, _: MatMut<'_>, _: f32, _: MatRef<'_>, _: Threads) {
        match *self {}
    }
}
