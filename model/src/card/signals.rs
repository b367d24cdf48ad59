//! What a teacher says and what is made of it, in the words and buffers of the kernels.

use std::ops::Range;

use distill::reference::{Divergence as Compared, Tail};
use distill::signal::{Draws, TopK};
use kernels::head::{Divergence, Listed, Said, Settings};
use kernels::program::{Kind, View};

use super::network::Making;
use crate::ops::head::LossSettings;

/// What a teacher says, where a card can read it.
#[derive(Clone, Copy)]
pub(super) enum Teacher<'a> {
    TopK(&'a TopK),
    Draws(&'a Draws),
    /// Its hidden states `[S, E]`, and its output matrix `[V', E]`, both in the activations' type.
    Full {
        hidden: View,
        w: View,
        width: usize,
    },
}

/// What a signal lists of these positions.
pub(super) fn listed(
    making: &mut Making,
    teacher: Option<Teacher<'_>>,
    these: &Range<usize>,
) -> Option<Listed<View>> {
    let (ids, ends, said) = match teacher? {
        Teacher::Full { .. } => return None,
        Teacher::TopK(signal) => {
            let entries = these.start * signal.k..these.end * signal.k;
            let ends: Vec<u32> = (1..=these.len()).map(|row| (row * signal.k) as u32).collect();
            let said = Said::TopK {
                scaled: making.send(&signal.scaled[entries.clone()]),
                log_z: making.send(&signal.log_z[these.clone()]),
                log_rest: making.send(&signal.log_rest[these.clone()]),
            };
            (signal.ids[entries].to_vec(), ends, said)
        }
        Teacher::Draws(signal) => {
            let (mut ids, mut ends, mut p) = (Vec::new(), Vec::new(), Vec::new());
            for row in these.clone() {
                let (of_row, of_p) = signal.estimate(row);
                ids.extend(of_row);
                p.extend(of_p);
                ends.push(ids.len() as u32);
            }
            (ids, ends, Said::Draws { p: making.send(&p) })
        }
    };
    let n = ids.len();
    Some(Listed {
        ends: making.send(&ends),
        ids: making.send(&ids),
        z: making.program.passing("listed tokens", Kind::F32, n),
        gradient: making.program.passing("listed tokens", Kind::F32, n),
        said,
    })
}

/// The kernels' words for a loss's settings.
pub(super) fn settings(of: &LossSettings, scale: f64) -> Settings {
    Settings {
        alpha: of.alpha,
        temperature: of.temperature,
        divergence: match of.divergence {
            Compared::ForwardKl => Divergence::Forward,
            Compared::ReverseKl => Divergence::Reverse,
            Compared::Jsd { beta } => Divergence::Jsd { beta },
            Compared::Mixture { beta } => Divergence::Mixture { beta },
        },
        renormalise: of.tail == Tail::Renormalise,
        scale,
    }
}
