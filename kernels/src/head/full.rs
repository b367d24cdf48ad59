//! The same where the teacher says all: its logits lie beside the student's, of the same classes and the same width
//! (`cuda/head_full_*.cu`). Jensen-Shannon's divergence wants every block listened to twice ([`Settings::asks_twice`]).

use super::{Classes, Settings, THREADS, of_rows};
use crate::Argument::{Buffer, F32, F64, U32};
use crate::{Activations, Call};

/// float64 numbers that are kept of a position.
pub const HEARD: usize = 14;
/// float32 coefficients of a position's gradient.
pub const COEFFICIENTS: usize = 8;

/// The logits of a block of classes, `[positions, width]` float32; `B` stands for a buffer.
#[derive(Clone, Copy, Debug)]
pub struct Logits<B> {
    /// The student's, over which the gradient is written.
    pub student: B,
    /// The teacher's.
    pub teacher: B,
}

/// What is read and kept of a chunk's positions.
#[derive(Clone, Copy, Debug)]
pub struct Rows<B> {
    /// Next tokens `[positions]` u32, each below V.
    pub targets: B,
    /// What was heard so far `[positions, HEARD]` float64.
    pub heard: B,
    /// The student's most probable classes and, where it is measured, the teacher's, `[2, positions]` u32; the lower
    /// id among equals.
    pub argmax: B,
    /// `[positions, COEFFICIENTS]` float32.
    pub coefficients: B,
}

/// Takes note of a block of classes; blocks come in order, and that of class 0 begins anew. It `measures` the
/// teacher's own loss and most probable class too.
pub fn listen<B>(
    logits: Logits<B>,
    rows: Rows<B>,
    positions: u32,
    classes: Classes,
    settings: Settings,
    measures: bool,
) -> Call<B> {
    let (Logits { student, teacher }, Rows { targets, heard, argmax, .. }) = (logits, rows);
    let mut arguments = Vec::from([student, teacher, targets, heard, argmax].map(Buffer));
    arguments.extend(classes.arguments());
    arguments.push(F64(settings.temperature));
    let kernel = if measures { "head_full_listen_measured" } else { "head_full_listen" };
    of_rows(kernel, positions, arguments)
}

/// Takes note of a block of classes once more, all of them heard, where the divergence asks for it.
pub fn listen_again<B>(
    logits: Logits<B>,
    rows: Rows<B>,
    positions: u32,
    classes: Classes,
    settings: Settings,
) -> Call<B> {
    let mut arguments = Vec::from([logits.student, logits.teacher, rows.heard].map(Buffer));
    arguments.extend(classes.arguments());
    let [_, beta] = settings.divergence.arguments();
    arguments.extend([F64(settings.temperature), beta]);
    of_rows("head_full_listen_again", positions, arguments)
}

/// What follows once all classes were heard: `losses` `[super::LOSSES, positions]` float32 and what [`gradient`] needs.
pub fn heard<B>(
    rows: Rows<B>,
    losses: B,
    positions: u32,
    settings: Settings,
    measures: bool,
) -> Call<B> {
    let mut arguments = Vec::from([rows.heard, losses, rows.coefficients].map(Buffer));
    arguments.push(U32(positions));
    arguments.extend(settings.divergence.arguments());
    arguments.push(U32(measures.into()));
    let weights = [settings.temperature, settings.ce_weight(), settings.kl_weight()];
    arguments.extend(weights.map(F64));
    let blocks = [positions.div_ceil(THREADS), 1];
    Call { kernel: "head_full_heard", blocks, threads: THREADS, memory: 0, arguments }
}

/// Turns the student's logits of a block of classes, as they were heard with the teacher's, into their gradient in
/// `activations`.
pub fn gradient<B>(
    logits: Logits<B>,
    rows: Rows<B>,
    positions: u32,
    classes: Classes,
    settings: Settings,
    activations: Activations,
) -> Call<B> {
    let (Logits { student, teacher }, Rows { targets, heard, coefficients, .. }) = (logits, rows);
    let buffers = [student, teacher, targets, heard, coefficients];
    let mut arguments = Vec::from(buffers.map(Buffer));
    arguments.extend(classes.arguments());
    arguments.extend(settings.divergence.arguments());
    arguments.extend([F64(settings.temperature), F32(settings.ce_weight() as f32)]);
    let kernel = activations.of(["head_full_gradient_f32", "head_full_gradient_bf16"]);
    of_rows(kernel, positions, arguments)
}
