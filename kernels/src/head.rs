//! Launches of the output layer's loss over a chunk of logits that a product has written (`cuda/head_*.cu`): the
//! student's alone, or with a teacher that lists tokens; [`full`] is with one that says all. The formulas are those
//! of `model::ops::head`, which does the same on the host.
//!
//! Logits are `[positions, width]` float32, those of a block of classes ([`Classes`]). Each block in turn is
//! [`listen`]ed to, what follows for its positions is then [`heard`], and each block, whose logits are as they were
//! left or made again, is turned into its [`gradient`] in place. Of bfloat16, element j of a row lies at byte 2j of
//! that row, so that the next product reads a matrix with a leading dimension of `2 width`.

pub mod full;

use crate::Argument::{Buffer, F32, F64, U32};
use crate::{Activations, Argument, Call, WARP};

/// Threads of a block that has a row of logits to itself.
const THREADS: u32 = 256;
/// Bytes of its memory: a float64 for each warp.
const MEMORY: u32 = 8 * THREADS / WARP;
/// Threads of a block of [`heard`]: a warp a position.
const HEARD_THREADS: u32 = 128;

/// float64 numbers that are kept of a position.
pub const HEARD: usize = 4;
/// float32 coefficients of a position's gradient.
pub const COEFFICIENTS: usize = 3;
/// Rows of the losses: cross-entropy, divergence, the teacher's mass on what it lists, the student's on the same,
/// what the outcome of all unlisted tokens adds to the divergence, the teacher's entropy, its cross-entropy. Each is
/// as `model::ops::head::HeadLoss` has it; the last is NaN where it is not measured.
pub const LOSSES: usize = 7;

/// Which classes the logits of a chunk are of.
#[derive(Clone, Copy, Debug)]
pub struct Classes {
    /// The first one.
    pub first: u32,
    /// Logits of a row, a multiple of 4: rows are read four at a time.
    pub width: u32,
    /// Classes in all, V. What pads a row past them does not take part, and its gradient is 0.
    pub all: u32,
}

impl Classes {
    /// First, columns that stand for a class, width.
    fn arguments<B>(self) -> [Argument<B>; 3] {
        let Self { first, width, all } = self;
        assert!(width.is_multiple_of(4), "rows of {width} logits: a multiple of 4 is wanted");
        [first, all.saturating_sub(first).min(width), width].map(U32)
    }
}

/// How far the student is from the teacher: `distill::reference::Divergence`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Divergence {
    /// `KL(p || q)`.
    Forward,
    /// `KL(q || p)`.
    Reverse,
    /// The generalised Jensen-Shannon divergence.
    Jsd {
        /// The teacher's share of the middle; at 0 it is the forward divergence, at 1 the reverse one.
        beta: f64,
    },
    /// `(1 - beta) KL(p || q) + beta KL(q || p)`.
    Mixture {
        /// The weight of the reverse divergence.
        beta: f64,
    },
}

impl Divergence {
    /// The same without a `beta` where it is 0 or 1.
    fn simplest(self) -> Self {
        let beta = match self {
            Self::Forward | Self::Reverse => None,
            Self::Jsd { beta } | Self::Mixture { beta } => Some(beta),
        };
        match beta {
            Some(0.0) => Self::Forward,
            Some(1.0) => Self::Reverse,
            Some(_) | None => self,
        }
    }

    /// Kind and beta, as `head_divergence.cuh` has them.
    fn arguments<B>(self) -> [Argument<B>; 2] {
        let (kind, beta) = match self.simplest() {
            Self::Forward => (0, 0.0),
            Self::Reverse => (1, 0.0),
            Self::Jsd { beta } => (2, beta),
            Self::Mixture { beta } => (3, beta),
        };
        [U32(kind), F64(beta)]
    }
}

/// What the loss of a step is: `alpha T² D + (1 - alpha) CE`, and its gradient that times `scale`.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Weight of the divergence.
    pub alpha: f64,
    /// T, above 0.
    pub temperature: f64,
    /// D.
    pub divergence: Divergence,
    /// Whether the k tokens of a signal are made to sum to 1, and there is no outcome beside them; with the forward
    /// divergence only.
    pub renormalise: bool,
    /// 1/N, N the scored positions of the whole step.
    pub scale: f64,
}

impl Settings {
    /// What the gradient of the cross-entropy counts.
    fn ce_weight(self) -> f64 {
        self.scale * (1.0 - self.alpha)
    }

    /// What the gradient of the divergence with respect to `z / T` counts.
    fn kl_weight(self) -> f64 {
        self.scale * self.alpha * self.temperature
    }

    /// Whether a teacher that says all has to be listened to twice before anything follows.
    pub fn asks_twice(self) -> bool {
        matches!(self.divergence.simplest(), Divergence::Jsd { .. })
    }
}

/// What is read and kept of a chunk's positions; `B` stands for a buffer.
#[derive(Clone, Copy, Debug)]
pub struct Rows<B> {
    /// Next tokens `[positions]` u32, each below V.
    pub targets: B,
    /// What was heard so far `[positions, HEARD]` float64.
    pub heard: B,
    /// The student's most probable class `[positions]` u32, the lower id among equals; until [`heard`], of those that
    /// are not listed.
    pub argmax: B,
    /// `[positions, COEFFICIENTS]` float32.
    pub coefficients: B,
}

/// The tokens a signal lists of a chunk's positions, one position behind the other: n entries.
#[derive(Clone, Copy, Debug)]
pub struct Listed<B> {
    /// Where each position's end `[positions]` u32: of k tokens a position, the multiples of k.
    pub ends: B,
    /// `[n]` u32, each below V, those of a position all different.
    pub ids: B,
    /// The student's logits of them `[n]` float32, as [`listen`] finds them.
    pub z: B,
    /// Their gradient `[n]` float32, as [`heard`] leaves it.
    pub gradient: B,
    /// What the teacher says of them.
    pub said: Said<B>,
}

/// What a signal says of the tokens it lists.
#[derive(Clone, Copy, Debug)]
pub enum Said<B> {
    /// As it lies on the wire, `distill::signal::TopK`.
    TopK {
        /// `y / T` `[n]` float32.
        scaled: B,
        /// `[positions]` float32.
        log_z: B,
        /// Log of the mass outside `[positions]` float32.
        log_rest: B,
    },
    /// `distill::signal::Draws::estimate`.
    Draws {
        /// `[n]` float64, summing to 1 at each position.
        p: B,
    },
}

/// Takes note of a block of classes; blocks come in order, and that of class 0 begins anew. The logits of listed
/// tokens are -inf afterwards.
pub fn listen<B>(
    logits: B,
    rows: Rows<B>,
    listed: Option<Listed<B>>,
    positions: u32,
    classes: Classes,
    settings: Settings,
) -> Call<B> {
    let Rows { targets, heard, argmax, .. } = rows;
    let mut arguments = vec![Buffer(logits), Buffer(targets)];
    let is_listed = listed.is_some();
    if let Some(Listed { ends, ids, z, .. }) = listed {
        arguments.extend([ends, ids, z].map(Buffer));
    }
    arguments.extend([heard, argmax].map(Buffer));
    arguments.extend(classes.arguments());
    if is_listed {
        arguments.push(F64(settings.temperature));
    }
    let kernel = if is_listed { "head_listen_listed" } else { "head_listen" };
    of_rows(kernel, positions, arguments)
}

/// What follows once all classes were heard: `losses` `[LOSSES, positions]` float32, the argmax, and what
/// [`gradient`] needs. Without a signal there is no divergence, and `alpha` only says what the cross-entropy counts.
pub fn heard<B>(
    rows: Rows<B>,
    listed: Option<Listed<B>>,
    losses: B,
    positions: u32,
    settings: Settings,
) -> Call<B> {
    let Rows { targets, heard, argmax, coefficients } = rows;
    let mut arguments = vec![Buffer(heard), Buffer(targets)];
    let results = [losses, argmax, coefficients].map(Buffer);
    let [ce, kl, t] = [settings.ce_weight(), settings.kl_weight(), settings.temperature].map(F64);
    let kernel = match listed {
        None => {
            arguments.extend(results);
            arguments.extend([U32(positions), ce]);
            "head_heard"
        }
        Some(Listed { ends, ids, z, gradient, said }) => {
            arguments.extend([ends, ids, z].map(Buffer));
            let (kernel, of_said, how) = match said {
                Said::TopK { scaled, log_z, log_rest } => {
                    let [kind, beta] = settings.divergence.arguments();
                    let how = vec![kind, beta, U32(settings.renormalise.into())];
                    ("head_heard_top_k", vec![scaled, log_z, log_rest], how)
                }
                Said::Draws { p } => ("head_heard_draws", vec![p], vec![]),
            };
            arguments.extend(of_said.into_iter().map(Buffer));
            arguments.extend(results);
            arguments.extend([Buffer(gradient), U32(positions)]);
            arguments.extend(how);
            arguments.extend([t, ce, kl]);
            kernel
        }
    };
    let blocks = [positions.div_ceil(HEARD_THREADS / WARP), 1];
    Call { kernel, blocks, threads: HEARD_THREADS, memory: 0, arguments }
}

/// Turns the logits of a block of classes, as they were heard, into their gradient in `activations`.
pub fn gradient<B>(
    logits: B,
    rows: Rows<B>,
    listed: Option<Listed<B>>,
    positions: u32,
    classes: Classes,
    settings: Settings,
    activations: Activations,
) -> Call<B> {
    let Rows { targets, coefficients, .. } = rows;
    let mut arguments = Vec::from([logits, targets, coefficients].map(Buffer));
    let of_target = F32(settings.ce_weight() as f32);
    let kernels = match listed {
        None => {
            arguments.extend(classes.arguments());
            ["head_gradient_f32", "head_gradient_bf16"]
        }
        Some(Listed { ends, ids, gradient, .. }) => {
            arguments.extend([ends, ids, gradient].map(Buffer));
            arguments.extend(classes.arguments());
            arguments.push(F64(settings.temperature));
            ["head_gradient_listed_f32", "head_gradient_listed_bf16"]
        }
    };
    arguments.push(of_target);
    of_rows(activations.of(kernels), positions, arguments)
}

/// A block a position.
fn of_rows<B>(kernel: &'static str, positions: u32, arguments: Vec<Argument<B>>) -> Call<B> {
    Call { kernel, blocks: [positions, 1], threads: THREADS, memory: MEMORY, arguments }
}
