//! What is asked of a teacher, and how.

use std::time::Duration;

use distill::codec::{Codec, Layout};
use distill::hidden::HiddenForm;
use distill::signal::Entries;

use crate::config::{SignalConfig, SignalKind};

/// What is wanted of each position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wanted {
    /// The most probable tokens.
    TopK {
        /// How many.
        k: usize,
        /// Layout on the wire.
        codec: Codec,
    },
    /// The same first, and then those beside others that the student holds likely.
    Candidates {
        /// How many of the teacher's, and as many of the student's.
        k: usize,
        /// Layout on the wire.
        codec: Codec,
    },
    /// Draws.
    Sampled {
        /// How many.
        draws: u32,
        /// Of the most probable tokens, how many exactly.
        exact: usize,
        /// What the draws depend on.
        seed: u64,
    },
    /// The hidden state.
    Hidden {
        /// How it is said.
        form: HiddenForm,
        /// Bytes it takes, about.
        bytes: usize,
    },
}

impl Wanted {
    /// What is asked first, in the words of a job: what, how many entries of it, and how they are laid
    /// out.
    pub(crate) fn job(self) -> (Entries, usize, Codec) {
        match self {
            Self::TopK { k, codec } | Self::Candidates { k, codec } => (Entries::Top, k, codec),
            Self::Sampled { draws, exact, seed } => {
                (Entries::Drawn { draws, seed }, exact, Codec::Packed)
            }
            Self::Hidden { form, .. } => (Entries::Hidden(form), 0, Codec::Packed),
        }
    }

    /// Code and step of coded hidden states, in words.
    pub(crate) fn code(self) -> Option<String> {
        match self {
            Self::Hidden { form: HiddenForm::Coded { code, rung }, .. } => {
                Some(format!("{code} at step {rung}"))
            }
            Self::TopK { .. }
            | Self::Candidates { .. }
            | Self::Sampled { .. }
            | Self::Hidden { .. } => None,
        }
    }

    /// What a position takes in memory, about, in bytes.
    pub(crate) fn position_bytes(self) -> usize {
        let next = size_of::<f32>();
        match self {
            // As much as the codec that packs nothing makes of it.
            Self::TopK { k, .. } | Self::Candidates { k, .. } => Layout::PLAIN.row_bytes(k) + next,
            Self::Sampled { draws, exact, .. } => 8 * (draws as usize + exact) + 12 + next,
            Self::Hidden { bytes, .. } => bytes,
        }
    }
}

/// How rows are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// What is wanted of each position.
    pub wanted: Wanted,
    /// Temperature of the signal.
    pub temperature: f32,
    /// Rows asked for and not yet taken by the training loop, at most.
    pub window: usize,
    /// How long a lost teacher is looked for.
    pub give_up_after: Duration,
}

/// How everything is asked that a run asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// Temperature of the signal.
    pub(crate) temperature: f32,
    /// Rows asked for and not yet taken, at most.
    pub(crate) window: usize,
    /// How long a lost teacher is looked for.
    pub(crate) give_up_after: Duration,
}

impl Terms {
    /// As options have them: `teacher_timeout` in seconds.
    pub(crate) fn new(temperature: f64, window: usize, teacher_timeout: f64) -> Self {
        let give_up_after = Duration::from_secs_f64(teacher_timeout);
        Self { temperature: temperature as f32, window, give_up_after }
    }

    /// Asks for this.
    pub(crate) fn ask(self, wanted: Wanted) -> Ask {
        let Self { temperature, window, give_up_after } = self;
        Ask { wanted, temperature, window, give_up_after }
    }

    /// What lists tokens, as the options want it; none of hidden states, for which it takes a teacher to
    /// know.
    pub(crate) fn listing(signal: &SignalConfig, codec: Codec) -> Option<Wanted> {
        match signal.kind {
            SignalKind::TopK => Some(Wanted::TopK { k: signal.top_k, codec }),
            SignalKind::Candidates => Some(Wanted::Candidates { k: signal.top_k, codec }),
            SignalKind::Sampled => {
                // The same for all runs, so that they find each other's answers in a cache.
                let (draws, exact, seed) = (signal.draws, signal.exact, 0);
                Some(Wanted::Sampled { draws, exact, seed })
            }
            SignalKind::Full | SignalKind::Coded => None,
        }
    }
}
