//! Logits, targets and signals, and how they go through the kernels, in one block of classes or several.

use distill::reference::{Divergence, Tail};
use distill::signal::{DrawKey, Draws, TopK};
use half::bf16;
use kernels::Activations;
use kernels::emulation::{Id, Memory};
use kernels::head::{
    COEFFICIENTS, Classes, HEARD, LOSSES, Listed, Rows, Said, Settings, gradient, heard, listen,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::super::elements::all;
use crate::ops::head::cases::{Shape, draw};
use crate::ops::testing::wide;

/// One of each kind, and both ends.
pub(super) const DIVERGENCES: [Divergence; 6] = [
    Divergence::ForwardKl,
    Divergence::ReverseKl,
    Divergence::Jsd { beta: 0.5 },
    Divergence::Jsd { beta: 0.1 },
    Divergence::Mixture { beta: 0.3 },
    Divergence::Mixture { beta: 1.0 },
];

/// What a teacher says.
pub(super) enum Signal {
    None,
    TopK(TopK, Tail),
    Draws(Draws),
}

/// Positions whose logits are given.
pub(super) struct Case {
    pub(super) classes: usize,
    pub(super) logits: Vec<f32>,
    pub(super) targets: Vec<u32>,
    pub(super) signal: Signal,
    pub(super) divergence: Divergence,
    pub(super) settings: Settings,
}

/// What came of it.
pub(super) struct Found {
    pub(super) losses: [Vec<f32>; LOSSES],
    pub(super) argmax: Vec<u32>,
    /// `[positions, classes]`
    pub(super) gradient: Vec<f32>,
}

/// The divergence in the words of the kernels.
pub(super) fn divergence_of(divergence: Divergence) -> kernels::head::Divergence {
    match divergence {
        Divergence::ForwardKl => kernels::head::Divergence::Forward,
        Divergence::ReverseKl => kernels::head::Divergence::Reverse,
        Divergence::Jsd { beta } => kernels::head::Divergence::Jsd { beta },
        Divergence::Mixture { beta } => kernels::head::Divergence::Mixture { beta },
    }
}

/// Settings of a step of eight scored positions, and the divergence as the reference has it.
pub(super) fn settings(
    alpha: f64,
    temperature: f64,
    divergence: Divergence,
) -> (Settings, Divergence) {
    let of = divergence_of(divergence);
    let renormalise = false;
    (Settings { alpha, temperature, divergence: of, renormalise, scale: 0.125 }, divergence)
}

/// The classes of a block that are there.
pub(super) fn columns(first: usize, width: usize, classes: usize) -> usize {
    width.min(classes - first)
}

/// The logits of a block of classes as a product leaves them: what pads the rows is no number.
pub(super) fn block(
    memory: &mut Memory,
    name: &str,
    logits: &[f32],
    classes: usize,
    first: usize,
    width: usize,
) -> Id {
    let mut padded = Vec::new();
    for row in logits.chunks(classes) {
        padded.extend(&row[first..first + columns(first, width, classes)]);
        padded.resize(padded.len().next_multiple_of(width), f32::NAN);
    }
    memory.of(name, &padded)
}

/// The gradients `[positions, width]` that lie where the logits did: as many columns as the classes have; past them
/// they are 0.
pub(super) fn in_place(
    memory: &Memory,
    logits: Id,
    width: usize,
    columns: usize,
    activations: Activations,
) -> Vec<Vec<f32>> {
    let words = memory.words(logits);
    let rows = words.chunks(width).map(|row| -> Vec<f32> {
        let bits = row.iter().flat_map(|word| [*word as u16, (*word >> 16) as u16]);
        match activations {
            Activations::F32 => row.iter().map(|&word| f32::from_bits(word)).collect(),
            Activations::Bf16 => {
                bits.take(width).map(|bits| bf16::from_bits(bits).to_f32()).collect()
            }
        }
    });
    rows.map(|mut row| {
        assert!(
            row[columns..].iter().all(|&g| g == 0.0),
            "past the classes: {:?}",
            &row[columns..]
        );
        row.truncate(columns);
        row
    })
    .collect()
}

/// Rows of columns `[LOSSES, positions]`.
pub(super) fn losses(memory: &Memory, at: Id, positions: usize) -> [Vec<f32>; LOSSES] {
    let values = memory.floats(at);
    std::array::from_fn(|column| values[column * positions..][..positions].to_vec())
}

impl Case {
    fn new(
        classes: usize,
        shape: Shape,
        rng: &mut ChaCha8Rng,
        (settings, divergence): (Settings, Divergence),
    ) -> Self {
        let positions = 2 + classes % 2;
        let rows = (0..positions).flat_map(|_| draw(shape, classes, rng));
        let logits = rows.collect();
        let targets = (0..positions).map(|s| ((s * 7919 + 5) % classes) as u32).collect();
        Self { classes, logits, targets, signal: Signal::None, divergence, settings }
    }

    pub(super) fn alone(classes: usize, shape: Shape, of: (Settings, Divergence)) -> Self {
        Self::new(classes, shape, &mut ChaCha8Rng::seed_from_u64(classes as u64), of)
    }

    pub(super) fn top_k(
        classes: usize,
        k: usize,
        shapes: [Shape; 2],
        of: (Settings, Divergence),
        tail: Tail,
    ) -> Self {
        let rng = &mut ChaCha8Rng::seed_from_u64((classes * 1009 + k) as u64);
        let mut case = Self::new(classes, shapes[0], rng, of);
        case.settings.renormalise = tail == Tail::Renormalise;
        let mut signal = TopK::new(k);
        for _ in 0..case.targets.len() {
            signal.push_exact(&wide(&draw(shapes[1], classes, rng)), of.0.temperature);
        }
        // A target that is listed.
        case.targets[0] = signal.ids[k - 1];
        case.signal = Signal::TopK(signal, tail);
        case
    }

    pub(super) fn draws(
        classes: usize,
        n: u32,
        k: usize,
        shapes: [Shape; 2],
        of: (Settings, Divergence),
    ) -> Self {
        let rng = &mut ChaCha8Rng::seed_from_u64(classes as u64);
        let mut case = Self::new(classes, shapes[0], rng, of);
        let mut signal = Draws::new(n, k);
        for position in 0..case.targets.len() as u32 {
            let key = DrawKey { seed: 1, token_checksum: 2, position };
            let teacher = wide(&draw(shapes[1], classes, rng));
            signal.push_exact(&teacher, of.0.temperature, &key.uniforms(n));
        }
        case.targets[1] = signal.ids[signal.drawn(1).start];
        case.signal = Signal::Draws(signal);
        case
    }

    pub(super) fn logits_of(&self, position: usize) -> &[f32] {
        &self.logits[position * self.classes..][..self.classes]
    }

    /// Losses and gradients, `width` classes at a time, rounded up to what a row may have; of several blocks the
    /// logits are made again for the gradient, of one they are as they were left.
    pub(super) fn run(&self, width: usize, activations: Activations) -> Found {
        let memory = &mut Memory::default();
        let (classes, count) = (self.classes, self.targets.len());
        let (positions, width) = (count as u32, width.next_multiple_of(4));
        let rows = Rows {
            targets: memory.of("targets", &self.targets),
            heard: memory.unwritten::<f64>("heard", count * HEARD),
            argmax: memory.unwritten::<u32>("argmax", count),
            coefficients: memory.unwritten::<f32>("coefficients", count * COEFFICIENTS),
        };
        let listed = self.listed(memory);
        let at_losses = memory.unwritten::<f32>("losses", count * LOSSES);
        let firsts = || (0..classes).step_by(width);
        let of = |first: usize| Classes {
            first: first as u32,
            width: width as u32,
            all: classes as u32,
        };
        let mut left = None;
        for first in firsts() {
            let logits = block(memory, "logits", &self.logits, classes, first, width);
            all(&[listen(logits, rows, listed, positions, of(first), self.settings)], memory);
            left = Some(logits);
        }
        all(&[heard(rows, listed, at_losses, positions, self.settings)], memory);
        let mut gradients = vec![Vec::new(); count];
        for first in firsts() {
            let logits = match left.filter(|_| firsts().count() == 1) {
                Some(left) => left,
                None => block(memory, "logits", &self.logits, classes, first, width),
            };
            let of = of(first);
            let call = gradient(logits, rows, listed, positions, of, self.settings, activations);
            all(&[call], memory);
            let columns = columns(first, width, classes);
            let here = in_place(memory, logits, width, columns, activations);
            gradients.iter_mut().zip(here).for_each(|(row, here)| row.extend(here));
        }
        Found {
            losses: losses(memory, at_losses, count),
            argmax: memory.words(rows.argmax),
            gradient: gradients.concat(),
        }
    }

    fn listed(&self, memory: &mut Memory) -> Option<Listed<Id>> {
        let (ids, ends, said) = match &self.signal {
            Signal::None => return None,
            Signal::TopK(signal, _) => {
                let said = Said::TopK {
                    scaled: memory.of("scaled", &signal.scaled),
                    log_z: memory.of("log_z", &signal.log_z),
                    log_rest: memory.of("log_rest", &signal.log_rest),
                };
                let ends = (1..=signal.rows()).map(|row| (row * signal.k) as u32);
                (signal.ids.clone(), ends.collect(), said)
            }
            Signal::Draws(signal) => {
                let (mut ids, mut p, mut ends) = (Vec::new(), Vec::new(), Vec::new());
                for row in 0..signal.rows() {
                    let (of_row, their_p) = signal.estimate(row);
                    ids.extend(of_row);
                    p.extend(their_p);
                    ends.push(ids.len() as u32);
                }
                (ids, ends, Said::Draws { p: memory.of("p", &p) })
            }
        };
        let ends: Vec<u32> = ends;
        Some(Listed {
            ends: memory.of("ends", &ends),
            ids: memory.of("ids", &ids),
            z: memory.unwritten::<f32>("z", ids.len()),
            gradient: memory.unwritten::<f32>("gradient", ids.len()),
            said,
        })
    }
}
