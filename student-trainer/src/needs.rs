//! Memory by plan: what training takes of a device, said before anything is taken, and what becomes of a batch that
//! does not fit.

mod command;

use model::config::Qwen3Config;
use model::device::Device;
pub use model::needs::amount;
use model::needs::{self, Batch, Needs, Taught};
use model::recompute::Recompute;
use model::student::Training;
use serde::Serialize;

use crate::candidates;
use crate::config::{OnMemory, RecomputeChoice, SignalConfig, SignalKind};
use crate::error::TrainError;
use crate::memory;
pub use command::plan;

/// Of a card's free memory what is left alone, in bytes: its driver gives memory in pieces of 2 MiB, and kernels and the
/// library of products take some. An allowance, not measured.
const SPARE_OF_CARD: u64 = 256 << 20;
/// What a process opens on a card before it takes any memory, in bytes, where nobody asked how much is free then. An
/// allowance, not measured.
const CONTEXT: u64 = 512 << 20;
/// Of the machine's free memory what is left alone for what the estimate does not know: one part in so many.
const SPARE_OF_MACHINE: u64 = 32;

/// Memory there is for training, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Room {
    /// The device's; none where it is not known.
    pub all: Option<u64>,
    /// Of it free.
    pub free: u64,
    /// Of that for training.
    pub usable: u64,
}

impl Room {
    /// Of a device of which somebody said how much it has.
    pub(crate) fn said(device: Device, all: u64) -> Self {
        let spare = match device {
            Device::Cpu => all / SPARE_OF_MACHINE,
            Device::Cuda(_) => CONTEXT + SPARE_OF_CARD,
        };
        Self { all: Some(all), free: all, usable: all.saturating_sub(spare) }
    }

    /// Of a device as it is; `of_machine` is free on the machine. None where the system does not say.
    pub(crate) fn found(
        device: Device,
        of_machine: Option<u64>,
    ) -> Result<Option<Self>, TrainError> {
        if let Some([free, all]) = device.memory()? {
            let usable = free.saturating_sub(SPARE_OF_CARD);
            return Ok(Some(Self { all: Some(all), free, usable }));
        }
        let usable = |free: u64| free - free / SPARE_OF_MACHINE;
        Ok(of_machine.map(|free| Self { all: memory::total(), free, usable: usable(free) }))
    }
}

/// What is to be trained, as far as it takes memory.
#[derive(Clone, Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) device: Device,
    pub(crate) config: &'a Qwen3Config,
    /// What is computed again is chosen here.
    pub(crate) training: Training,
    /// Lengths of the largest batch's rows, the longest first.
    pub(crate) rows: Vec<usize>,
    pub(crate) taught: Taught,
    /// Whether an optimiser step takes one batch only.
    pub(crate) alone: bool,
    pub(crate) recompute: RecomputeChoice,
    pub(crate) on_memory: OnMemory,
}

/// What training takes with one way to recompute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Choice {
    /// What is computed again.
    #[serde(serialize_with = "word")]
    pub recompute: Recompute,
    /// In bytes.
    #[serde(flatten)]
    pub needs: Needs,
    /// All of it.
    pub total: u64,
    /// Whether the largest batch fits; none where it is not known how much there is.
    pub fits: Option<bool>,
}

fn word<S: serde::Serializer>(choice: &Recompute, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(choice)
}

/// What becomes of the largest batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fit {
    /// It is computed at once.
    Whole,
    /// It is computed in parts of at most so many tokens.
    Parts {
        /// Tokens of a part.
        tokens: usize,
        /// What training takes with such parts, in bytes.
        total: u64,
    },
    /// It is tried although it may be too large: what is known of the processor's memory is an estimate.
    Tried,
}

/// The plan of a run's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// In the words of `--device`.
    pub device: String,
    /// Type of the products' operands.
    pub dtype: String,
    /// Rows of the largest batch.
    pub rows: usize,
    /// Its tokens.
    pub tokens: usize,
    /// What there is; none where the system does not say.
    pub room: Option<Room>,
    /// Every way to recompute that there is, from the fastest to the leanest.
    pub choices: Vec<Choice>,
    /// The one that is taken.
    #[serde(serialize_with = "word")]
    pub recompute: Recompute,
    /// What becomes of the largest batch with it; none where it is refused.
    pub fit: Option<Fit>,
    /// Why it is refused.
    pub refusal: Option<String>,
}

impl Plan {
    /// Whether the figures are about right, not exact.
    pub fn is_estimate(&self) -> bool {
        self.device == Device::Cpu.to_string()
    }

    /// What training takes with the choice that is taken.
    pub fn chosen(&self) -> Option<&Choice> {
        self.choices.iter().find(|choice| choice.recompute == self.recompute)
    }
}

/// What a signal of these options says of a position; of one that says everything `width` is the teacher's and `classes`
/// the rows of its output matrix.
pub(crate) fn taught(signal: &SignalConfig, width: usize, classes: usize) -> Taught {
    let k = signal.top_k;
    match signal.kind {
        SignalKind::TopK => Taught::Listed { k, own: 0 },
        SignalKind::Candidates => {
            let both = candidates::entries(k, classes);
            Taught::Listed { k: both, own: both }
        }
        SignalKind::Sampled => {
            Taught::Listed { k: (signal.draws as usize + signal.exact).min(classes), own: 0 }
        }
        SignalKind::Full | SignalKind::Coded => Taught::All { width, classes },
    }
}

impl Subject<'_> {
    fn needs(&self, recompute: Recompute, rows: &[usize]) -> Result<Needs, TrainError> {
        let training = Training { recompute, ..self.training };
        let batch = Batch { rows, taught: self.taught };
        Ok(needs::training(self.device, self.config, &training, batch)?)
    }

    /// What training takes, in each way there is, and which is taken.
    ///
    /// # Errors
    /// When the device cannot do what is asked.
    pub(crate) fn plan(&self, room: Option<Room>) -> Result<Plan, TrainError> {
        let choices: Result<Vec<_>, TrainError> = needs::choices(self.device, self.alone)
            .iter()
            .map(|&choice| Ok((choice, self.needs(choice, &self.rows)?)))
            .collect();
        let mut choices = choices?;
        let usable = room.map_or(u64::MAX, |room| room.usable);
        let mut recompute = match self.recompute {
            RecomputeChoice::Auto => needs::choose(&choices, usable),
            RecomputeChoice::None => Recompute::None,
            RecomputeChoice::Blocks => Recompute::Blocks,
            RecomputeChoice::Gradients => Recompute::Gradients,
        };
        let needs = self.needs(recompute, &self.rows)?;
        if choices.iter().all(|(choice, _)| *choice != recompute) {
            choices.push((recompute, needs));
        }
        let needed = needs.total();
        let fit = match needed <= usable {
            true => Some(Fit::Whole),
            false if self.on_memory == OnMemory::Refuse => None,
            // What computes gradients again takes one batch a step: there are no parts, unless gradients are kept.
            false if recompute == Recompute::Gradients => {
                let auto = self.recompute == RecomputeChoice::Auto;
                let kept = if auto { self.parts(Recompute::Blocks, usable)? } else { None };
                match kept {
                    Some(Fit::Parts { .. }) => {
                        recompute = Recompute::Blocks;
                        kept
                    }
                    Some(Fit::Whole | Fit::Tried) | None => Some(Fit::Tried),
                }
            }
            false => self.parts(recompute, usable)?,
        };
        let choice = |(recompute, needs): (Recompute, Needs)| {
            let total = needs.total();
            Choice { recompute, needs, total, fits: room.map(|room| total <= room.usable) }
        };
        let refusal = match fit {
            Some(_) => None,
            None => Some(self.refusal(recompute, usable)?.to_string()),
        };
        Ok(Plan {
            device: self.device.to_string(),
            dtype: self.training.precision.to_string(),
            rows: self.rows.len(),
            tokens: self.rows.iter().sum(),
            room,
            choices: choices.into_iter().map(choice).collect(),
            recompute,
            fit,
            refusal,
        })
    }

    /// The largest parts of the largest batch that fit: between its longest row alone and all of it.
    fn parts(&self, recompute: Recompute, usable: u64) -> Result<Option<Fit>, TrainError> {
        let longest = self.rows.first().copied().unwrap_or(1).max(1);
        let total = |tokens: usize| {
            let mut rows = vec![longest; tokens / longest];
            rows.extend(Some(tokens % longest).filter(|&rest| rest > 0));
            Ok::<_, TrainError>(self.needs(recompute, &rows)?.total())
        };
        let fits = |tokens: usize| Ok::<_, TrainError>(total(tokens)? <= usable);
        if !fits(longest)? {
            return Ok((self.device == Device::Cpu).then_some(Fit::Tried));
        }
        let (mut most, mut too_many) = (longest, self.rows.iter().sum::<usize>());
        while too_many - most > 1 {
            let middle = most.midpoint(too_many);
            *(if fits(middle)? { &mut most } else { &mut too_many }) = middle;
        }
        Ok(Some(Fit::Parts { tokens: most, total: total(most)? }))
    }

    /// The plan of a run that is about to begin; says what is not as a person would expect it.
    ///
    /// # Errors
    /// [`TrainError::Memory`] where the run cannot, or is not to, begin.
    pub(crate) fn settle(
        &self,
        room: Option<Room>,
        note: &mut dyn FnMut(&str),
    ) -> Result<Plan, TrainError> {
        let plan = self.plan(room)?;
        let recompute = plan.recompute;
        let total = |choice| Ok::<_, TrainError>(self.needs(choice, &self.rows)?.total());
        let (needed, usable) = (total(recompute)?, room.map_or(u64::MAX, |room| room.usable));
        let chosen = self.recompute == RecomputeChoice::Auto && recompute != Recompute::None;
        if chosen {
            let otherwise = total(Recompute::None)?;
            note(&format!(
                "--recompute {recompute}: training would take {} otherwise, {} are free; it takes {} now",
                amount(otherwise),
                amount(usable),
                amount(needed)
            ));
        }
        match plan.fit {
            Some(Fit::Whole) => {}
            Some(Fit::Tried) => note(&format!(
                "training takes about {}, more than the {} that are free: it may be ended for want of memory; \
                 a smaller --per-device-train-batch-size or --max-length takes less",
                amount(needed),
                amount(usable)
            )),
            Some(Fit::Parts { tokens, .. }) => note(&format!(
                "the largest batch ({}) takes {}, more than the {} that are free: batches are computed in parts of at \
                 most {tokens} tokens, with the same loss and gradient (--on-memory split)",
                self.batch(),
                amount(needed),
                amount(usable)
            )),
            None => return Err(self.refusal(recompute, usable)?),
        }
        Ok(plan)
    }

    /// The largest batch in words.
    fn batch(&self) -> String {
        let (rows, tokens) = (self.rows.len(), self.rows.iter().sum::<usize>());
        format!("{rows} rows, {tokens} tokens")
    }

    /// What there is too little memory for, and what to do.
    fn refusal(&self, recompute: Recompute, usable: u64) -> Result<TrainError, TrainError> {
        let longest = self.rows.first().copied().unwrap_or(1);
        let (all, alone) = (self.needs(recompute, &self.rows)?, self.needs(recompute, &[longest])?);
        let shorter = match recompute {
            Recompute::None => "a smaller --max-length, --recompute blocks, or another device",
            Recompute::Blocks | Recompute::Gradients => "a smaller --max-length, or another device",
        };
        let (what, wanted, remedy) = if alone.lasting() > usable {
            let what = "a student of this size, before any batch,".to_owned();
            (what, alone.lasting(), "a smaller student, or another device".to_owned())
        } else if alone.total() > usable {
            let what = format!("training with a row of {longest} tokens alone");
            (what, alone.total(), shorter.to_owned())
        } else {
            let what = format!("training with the largest batch ({})", self.batch());
            let fewer = "--on-memory split, a smaller --per-device-train-batch-size";
            (what, all.total(), format!("{fewer}, {shorter}"))
        };
        Ok(TrainError::Memory {
            what,
            wanted,
            free: usable,
            device: self.device.to_string(),
            remedy,
        })
    }
}

#[cfg(test)]
#[path = "needs_tests.rs"]
mod tests;
