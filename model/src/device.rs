//! Where a model computes, from what a person wrote, and how it gets there.

use std::fmt;
use std::path::Path;

use candle_core::Device as Tensors;

use crate::config::Qwen3Config;
use crate::language_model::LanguageModel;
use crate::learner::Learner;
use crate::ops::Precision;
use crate::qwen3::Qwen3;
use crate::state_file::load_state;
use crate::student::{Student, StudentError, Training};
use crate::weights::{Weights, WeightsError};

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Not one of the names below.
    #[error("unknown device `{found}`; accepted: auto, cpu, cuda:N (N from 0; cuda is cuda:0)")]
    Unknown {
        /// What was asked for.
        found: String,
    },
    /// A card was asked for, and this program was built without kernels for one.
    #[error(
        "device `{found}` cannot be used: this program was built for the CPU only; build it with \
         --features cuda, or choose --device cpu (or auto)"
    )]
    NotBuilt {
        /// What was asked for.
        found: String,
    },
}

/// Where a model computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// This machine's processor.
    Cpu,
    /// The NVIDIA card of this number.
    Cuda(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// Refuses a name that [`choose`] would refuse; no card is looked for.
///
/// # Errors
/// As [`choose`].
pub fn check(name: &str) -> Result<(), DeviceError> {
    named(name).map(drop)
}

/// The device for `auto`, `cpu` or `cuda:N`. `auto` is the first card where there is one that can be used, and the
/// processor where not: `note` is then told why, where this program has kernels for cards.
///
/// # Errors
/// [`DeviceError::Unknown`] for any other name, [`DeviceError::NotBuilt`] for a card where there are no kernels for it.
pub fn choose(name: &str, note: impl FnOnce(&str)) -> Result<Device, DeviceError> {
    Ok(named(name)?.unwrap_or_else(|| best(note)))
}

/// The device a name stands for, whether it can be used here or not; none for `auto`.
///
/// # Errors
/// [`DeviceError::Unknown`].
pub fn parse(name: &str) -> Result<Option<Device>, DeviceError> {
    let ordinal = match name {
        "auto" => return Ok(None),
        "cpu" => return Ok(Some(Device::Cpu)),
        "cuda" => Some(0),
        _ => name.strip_prefix("cuda:").and_then(|n| n.parse::<u16>().ok()),
    };
    match ordinal {
        None => Err(DeviceError::Unknown { found: name.to_owned() }),
        Some(ordinal) => Ok(Some(Device::Cuda(ordinal.into()))),
    }
}

/// None for `auto`.
fn named(name: &str) -> Result<Option<Device>, DeviceError> {
    match parse(name)? {
        Some(Device::Cuda(_)) if !cfg!(feature = "cuda") => {
            Err(DeviceError::NotBuilt { found: name.to_owned() })
        }
        other => Ok(other),
    }
}

/// The first card, or the processor where it cannot be used.
#[cfg(feature = "cuda")]
fn best(note: impl FnOnce(&str)) -> Device {
    match kernels::card::Card::open(0) {
        Ok(_) => Device::Cuda(0),
        Err(error) => {
            note(&format!("--device auto is the processor, no card can be used: {error}"));
            Device::Cpu
        }
    }
}

/// Without kernels for cards it is the processor.
#[cfg(not(feature = "cuda"))]
fn best(_: impl FnOnce(&str)) -> Device {
    Device::Cpu
}

impl Device {
    /// Bytes of a card's memory that are free, and all; none for the processor, whose memory is the machine's.
    ///
    /// # Errors
    /// What is wrong with the card.
    pub fn memory(self) -> Result<Option<[u64; 2]>, WeightsError> {
        match self {
            Self::Cpu => Ok(None),
            Self::Cuda(ordinal) => on_card::memory(ordinal).map(Some),
        }
    }

    /// The arithmetic `auto` means: 16-bit products are slower than 32-bit ones on many processors, and
    /// many times faster on a card.
    pub fn auto_precision(self) -> Precision {
        match self {
            Self::Cpu => Precision::F32,
            Self::Cuda(_) => Precision::Bf16,
        }
    }

    /// The model of a directory or a GGUF file, ready to answer. On a card quantised matrices stay as they are.
    ///
    /// # Errors
    /// [`WeightsError`], naming file and tensor, or what is wrong with the device.
    pub fn load(
        self,
        place: &Path,
        config: Qwen3Config,
        precision: Precision,
    ) -> Result<Box<dyn LanguageModel>, WeightsError> {
        match self {
            Self::Cpu => {
                let weights = Weights::load(place, &config, precision.dtype(), &Tensors::Cpu)?;
                Ok(Box::new(Qwen3::new(config, weights, precision)?))
            }
            Self::Cuda(ordinal) => on_card::load(ordinal, place, config, precision),
        }
    }

    /// The model of a directory, ready to learn, moments 0.
    ///
    /// # Errors
    /// As [`Student::load`], or what is wrong with the device.
    pub fn learner(
        self,
        dir: &Path,
        config: Qwen3Config,
        training: Training,
    ) -> Result<Box<dyn Learner>, StudentError> {
        self.learn(|| Student::load(dir, config, training, &Tensors::Cpu))
    }

    /// A model of random weights, ready to learn.
    ///
    /// # Errors
    /// As [`Student::random`], or what is wrong with the device.
    pub fn random_learner(
        self,
        config: Qwen3Config,
        seed: u64,
        training: Training,
    ) -> Result<Box<dyn Learner>, StudentError> {
        self.learn(|| Student::random(config, seed, training, &Tensors::Cpu))
    }

    /// A learner as it was saved.
    ///
    /// # Errors
    /// As [`load_state`], or what is wrong with the device.
    pub fn saved_learner(
        self,
        path: &Path,
        config: Qwen3Config,
        training: Training,
    ) -> Result<Box<dyn Learner>, StudentError> {
        self.learn(|| load_state(path, config, training, &Tensors::Cpu))
    }

    /// A student where it is to learn. What is wrong with the device is said before it is read.
    fn learn(
        self,
        student: impl FnOnce() -> Result<Student, StudentError>,
    ) -> Result<Box<dyn Learner>, StudentError> {
        match self {
            Self::Cpu => Ok(Box::new(student()?)),
            Self::Cuda(ordinal) => on_card::learner(ordinal, student),
        }
    }
}

#[cfg(not(feature = "cuda"))]
mod on_card {
    //! No card: [`choose`](super::choose) gives none either.

    use std::path::Path;

    use super::{Device, DeviceError};
    use crate::config::Qwen3Config;
    use crate::language_model::LanguageModel;
    use crate::learner::Learner;
    use crate::ops::Precision;
    use crate::student::{Student, StudentError};
    use crate::weights::WeightsError;

    fn none(ordinal: usize) -> WeightsError {
        let found = Device::Cuda(ordinal).to_string();
        WeightsError::Card(DeviceError::NotBuilt { found }.to_string())
    }

    pub(super) fn memory(ordinal: usize) -> Result<[u64; 2], WeightsError> {
        Err(none(ordinal))
    }

    pub(super) fn load(
        ordinal: usize,
        _: &Path,
        _: Qwen3Config,
        _: Precision,
    ) -> Result<Box<dyn LanguageModel>, WeightsError> {
        Err(none(ordinal))
    }

    pub(super) fn learner(
        ordinal: usize,
        _: impl FnOnce() -> Result<Student, StudentError>,
    ) -> Result<Box<dyn Learner>, StudentError> {
        Err(none(ordinal).into())
    }
}

#[cfg(feature = "cuda")]
mod on_card {
    //! NVIDIA cards.

    use std::path::Path;

    use candle_core::Device as Tensors;
    use kernels::card::Card;

    use crate::card::{CardLearner, CardModel};
    use crate::config::Qwen3Config;
    use crate::language_model::LanguageModel;
    use crate::learner::Learner;
    use crate::load::is_gguf;
    use crate::ops::Precision;
    use crate::student::{Student, StudentError};
    use crate::weights::{Weights, WeightsError};

    fn open(ordinal: usize) -> Result<Card, WeightsError> {
        Card::open(ordinal).map_err(|error| WeightsError::Card(error.to_string()))
    }

    pub(super) fn memory(ordinal: usize) -> Result<[u64; 2], WeightsError> {
        let found = kernels::card::memory(ordinal);
        let found = found.map_err(|error| WeightsError::Card(error.to_string()))?;
        Ok(found.map(|bytes| bytes as u64))
    }

    pub(super) fn load(
        ordinal: usize,
        place: &Path,
        config: Qwen3Config,
        precision: Precision,
    ) -> Result<Box<dyn LanguageModel>, WeightsError> {
        let on = open(ordinal)?;
        if is_gguf(place) {
            return Ok(Box::new(CardModel::quantised(on, place, config, precision)?));
        }
        let weights = Weights::load(place, &config, precision.dtype(), &Tensors::Cpu)?;
        let model = CardModel::new(on, config, &weights, precision);
        Ok(Box::new(model.map_err(|error| WeightsError::Card(error.to_string()))?))
    }

    pub(super) fn learner(
        ordinal: usize,
        student: impl FnOnce() -> Result<Student, StudentError>,
    ) -> Result<Box<dyn Learner>, StudentError> {
        let on = open(ordinal)?;
        Ok(Box::new(CardLearner::new(on, &student()?)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_accepted_or_refused_with_the_names_that_are() {
        let cpu = choose("cpu", |_| {}).unwrap();
        assert_eq!((cpu.to_string(), cpu.auto_precision()), ("cpu".to_owned(), Precision::F32));
        assert_eq!(Device::Cuda(3).to_string(), "cuda:3");
        assert!(check("auto").is_ok());
        // What cannot be used here can be planned for.
        assert_eq!(parse("cuda:3").unwrap(), Some(Device::Cuda(3)));
        assert_eq!(parse("cpu").unwrap().map(|device| device.memory().unwrap()), Some(None));
        for wrong in ["", "gpu", "CPU", "cuda:", "cuda:-1", "cuda:x", "cuda:99999999999"] {
            let message = check(wrong).unwrap_err().to_string();
            assert!(message.contains("accepted: auto, cpu, cuda:N"), "{message}");
            assert!(message.contains("cuda is cuda:0"), "{message}");
        }
        assert_eq!(parse("cuda").unwrap(), Some(Device::Cuda(0)));
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn where_no_card_can_be_used_auto_is_the_processor_and_says_why() {
        let mut said = String::new();
        let found = choose("auto", |why| why.clone_into(&mut said)).unwrap();
        let why = kernels::card::Card::open(0).err().map(|error| error.to_string());
        match why {
            None => assert_eq!((found, &said[..]), (Device::Cuda(0), "")),
            Some(why) => {
                assert_eq!(found, Device::Cpu);
                assert!(said.contains("--device auto is the processor") && said.contains(&why));
            }
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn without_kernels_for_cards_the_processor_is_the_best_there_is() {
        assert_eq!(choose("auto", |_| panic!("it never had")).unwrap(), Device::Cpu);
        for name in ["cuda", "cuda:0"] {
            let message = check(name).unwrap_err().to_string();
            assert!(message.contains("--features cuda") && message.contains("--device cpu"));
        }
    }
}
