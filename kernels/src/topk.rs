//! Launches that say of rows of logits what a teacher teaches: the k largest or k named ones, and the mass of the rest
//! (`cuda/topk.cu`).

use crate::Argument::{Buffer, F64, U32};
use crate::{Call, WARP};

/// Threads of a block, which has a row.
pub(crate) const THREADS: u32 = 512;
/// Bytes in which the warps of a block put one number each together.
pub(crate) const OF_WARPS: u32 = 8 * THREADS / WARP;
/// Largest k of [`top_k`]: its candidates, twice as many, are sorted in the memory of a block.
pub const MOST_K: u32 = 2048;
/// Most classes of [`named`] and of draws, which mark classes by a bit each in the memory of a block.
pub const MOST_CLASSES: u32 = 1 << 18;
/// Room for candidates at least: more than a small k gathers of any row but a flat one.
const LEAST_ROOM: u32 = 1024;
/// Counts behind the candidates: of a digit's 256 values, and what is found in them.
const COUNTS: u32 = 256 + 4;

/// In place of a token that follows none, of a class that is not finite where all are, and of a draw where there is
/// nothing to draw from.
pub const NOBODY: u32 = u32::MAX;

/// Rows of logits as a product has written them; `B` stands for a buffer.
#[derive(Clone, Copy, Debug)]
pub struct Logits<B> {
    /// `[rows, width]` float32.
    pub logits: B,
    /// Rows.
    pub rows: u32,
    /// Classes that take part: the first columns.
    pub classes: u32,
    /// Columns in memory: a multiple of 4, so that four are read together.
    pub width: u32,
    /// The logits are divided by it.
    pub temperature: f64,
}

impl<B> Logits<B> {
    /// A block a row, which begins with the classes and the width.
    pub(crate) fn sizes(&self) -> [crate::Argument<B>; 2] {
        let &Self { classes, width, .. } = self;
        assert!(
            width.is_multiple_of(4) && width >= classes,
            "{classes} classes in rows of {width}"
        );
        [U32(classes), U32(width)]
    }

    /// Bytes of a bit for each class.
    ///
    /// # Panics
    /// When there are more classes than [`MOST_CLASSES`].
    pub(crate) fn marks(&self) -> u32 {
        assert!(self.classes <= MOST_CLASSES, "{} classes, at most {MOST_CLASSES}", self.classes);
        4 * self.classes.div_ceil(32)
    }
}

/// What is said of the rows.
#[derive(Clone, Copy, Debug)]
pub struct Said<B> {
    /// What [`Entry`] says of each of the k `[rows, k]` float32.
    pub entries: B,
    /// `[4, rows]` float32: `log_z` and `log_rest` as the signal has them, and the log-probabilities at T = 1 and at T of
    /// the token that follows; those are NaN where none does.
    pub sums: B,
    /// `[rows, 2]` u32, see [`first_broken`].
    pub broken: B,
}

/// What is written of each of the k.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// z / T.
    Scaled,
    /// Log-probability at T.
    LogP,
}

/// The `k` largest of each row in descending order, ties to the lower id: `ids` `[rows, k]` u32. `next` `[rows]` u32: the
/// token that follows, or [`NOBODY`].
///
/// # Panics
/// When k is 0, above `classes` or above [`MOST_K`], or the width does not fit.
pub fn top_k<B>(of: Logits<B>, next: B, ids: B, said: Said<B>, k: u32, entry: Entry) -> Call<B> {
    let most = MOST_K.min(of.classes);
    assert!((1..=most).contains(&k), "k is {k}, it must lie in 1 to {most}");
    let room = (2 * k).next_power_of_two().max(LEAST_ROOM);
    let ([classes, width], Said { entries, sums, broken }) = (of.sizes(), said);
    let mut arguments: Vec<_> = [of.logits, next, ids, entries, sums, broken].map(Buffer).into();
    arguments.extend([classes, width, U32(k), U32(room), F64(of.temperature)]);
    arguments.push(U32(u32::from(entry == Entry::LogP)));
    Call {
        kernel: "top_k",
        blocks: [of.rows, 1],
        threads: THREADS,
        memory: OF_WARPS + 8 * room + 4 * COUNTS,
        arguments,
    }
}

/// What is said with tokens that somebody named.
#[derive(Clone, Copy, Debug)]
pub struct Named<B> {
    /// Their ids, u32: `[k]`, or `[rows, k]` where they are `each_row`'s own. Below `classes` and all different in a row:
    /// the caller's to check.
    pub ids: B,
    /// How many, 0 or more.
    pub k: u32,
    /// Whether every row has its own.
    pub each_row: bool,
}

/// Of each row the `named` tokens' z / T in their order, and the mass of all others; `next` as in [`top_k`]. With k = 0
/// it says `log_z` and what follows, and entries are not written.
///
/// # Panics
/// When there are more classes than [`MOST_CLASSES`], or the width does not fit.
pub fn named<B>(of: Logits<B>, next: B, named: Named<B>, said: Said<B>) -> Call<B> {
    let ([classes, width], marks) = (of.sizes(), of.marks());
    let (Named { ids, k, each_row }, Said { entries, sums, broken }) = (named, said);
    let mut arguments: Vec<_> = [of.logits, next, ids, entries, sums, broken].map(Buffer).into();
    let stride = if each_row { k } else { 0 };
    arguments.extend([classes, width, U32(k), U32(stride), F64(of.temperature)]);
    Call {
        kernel: "named",
        blocks: [of.rows, 1],
        threads: THREADS,
        memory: OF_WARPS + marks,
        arguments,
    }
}

/// The first row of which a logit is NaN or infinite, the first such class and the logit, as [`Said::broken`] has it:
/// such a row must not be taught.
pub fn first_broken(broken: &[u32]) -> Option<(usize, u32, f32)> {
    let rows = broken.chunks_exact(2).enumerate();
    let mut found = rows.filter(|(_, row)| row[0] != NOBODY);
    found.next().map(|(row, of_row)| (row, of_row[0], f32::from_bits(of_row[1])))
}
