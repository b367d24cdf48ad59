//! What tests of programs and launches run on: the emulation, or the card that `LIMBECK_TEST_DEVICE` names
//! (`cuda:0`), so that a machine with a card runs the tests that one without runs.

use super::{Emulation, Found};
use crate::executor::{Element, Executor, Inputs, Outputs};
use crate::program::{Kind, Program, View};

/// Such a device.
pub enum TestDevice {
    /// The emulation, in one order.
    Emulated(Emulation),
    /// A card.
    #[cfg(feature = "cuda")]
    Card(Box<crate::card::Card>),
}

/// A program that runs on it.
pub enum Running {
    /// In the emulation it has ended.
    Emulated(Outputs),
    /// On a card.
    #[cfg(feature = "cuda")]
    Card(crate::card::Running),
}

/// The card that tests are to run on; none for the emulation.
///
/// # Panics
/// When it cannot be used: who names one means it.
#[cfg(feature = "cuda")]
pub(super) fn card() -> Option<crate::card::Card> {
    let name = std::env::var("LIMBECK_TEST_DEVICE").ok()?;
    let ordinal = name.strip_prefix("cuda:").and_then(|number| number.parse().ok());
    let ordinal = ordinal.unwrap_or_else(|| panic!("LIMBECK_TEST_DEVICE is {name}, not cuda:N"));
    Some(crate::card::Card::open(ordinal).unwrap_or_else(|error| panic!("{error}")))
}

impl Default for TestDevice {
    fn default() -> Self {
        #[cfg(feature = "cuda")]
        if let Some(card) = card() {
            return Self::Card(Box::new(card));
        }
        Self::Emulated(Emulation::new(1))
    }
}

/// The same of either.
macro_rules! of_either {
    ($device:expr, $on:ident => $done:expr) => {
        match $device {
            TestDevice::Emulated($on) => $done,
            #[cfg(feature = "cuda")]
            TestDevice::Card($on) => $done.map_err(|error| Found::new(&error)),
        }
    };
}

impl Executor for TestDevice {
    type Error = Found;
    type Running = Running;

    fn name(&self) -> String {
        match self {
            Self::Emulated(on) => on.name(),
            #[cfg(feature = "cuda")]
            Self::Card(on) => on.name(),
        }
    }

    fn block_memory(&self) -> u32 {
        match self {
            Self::Emulated(on) => on.block_memory(),
            #[cfg(feature = "cuda")]
            Self::Card(on) => on.block_memory(),
        }
    }

    fn is_out_of_memory(_: &Found) -> bool {
        false
    }

    fn is_lost(_: &Found) -> bool {
        false
    }

    fn keep(&mut self, name: &str, kind: Kind, len: usize) -> Result<View, Found> {
        of_either!(self, on => on.keep(name, kind, len))
    }

    fn write<T: Element>(&mut self, view: View, values: &[T]) -> Result<(), Found> {
        of_either!(self, on => on.write(view, values))
    }

    fn read<T: Element>(&mut self, view: View) -> Result<Vec<T>, Found> {
        of_either!(self, on => on.read(view))
    }

    fn start(&mut self, program: &Program, inputs: &Inputs) -> Result<Running, Found> {
        match self {
            Self::Emulated(on) => on.start(program, inputs).map(Running::Emulated),
            #[cfg(feature = "cuda")]
            Self::Card(on) => match on.start(program, inputs) {
                Ok(running) => Ok(Running::Card(running)),
                Err(error) => Err(Found::new(&error)),
            },
        }
    }

    fn has_ended(&mut self, running: &Running) -> Result<bool, Found> {
        match (self, running) {
            (Self::Emulated(on), Running::Emulated(outputs)) => on.has_ended(outputs),
            #[cfg(feature = "cuda")]
            (Self::Card(on), Running::Card(running)) => {
                on.has_ended(running).map_err(|error| Found::new(&error))
            }
            #[cfg(feature = "cuda")]
            (Self::Emulated(_), Running::Card(_)) | (Self::Card(_), Running::Emulated(_)) => {
                unreachable!("a program ends where it began")
            }
        }
    }

    fn finish(&mut self, running: Running) -> Result<Outputs, Found> {
        match (self, running) {
            (Self::Emulated(on), Running::Emulated(outputs)) => on.finish(outputs),
            #[cfg(feature = "cuda")]
            (Self::Card(on), Running::Card(running)) => {
                on.finish(running).map_err(|error| Found::new(&error))
            }
            #[cfg(feature = "cuda")]
            (Self::Emulated(_), Running::Card(_)) | (Self::Card(_), Running::Emulated(_)) => {
                unreachable!("a program ends where it began")
            }
        }
    }
}
