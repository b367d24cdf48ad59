//! Kernels on the host: their own sources, compiled as C++ over `emulation/`, one thread block after another.
//!
//! A buffer ends where a page begins that nobody may touch, what is only read cannot be written, and what was
//! never written is not a number. A block's threads give way to each other at barriers and warp operations
//! only, and a warp runs to a barrier ahead of the others, so that launches in several orders of warps, lanes
//! and blocks come to the same bits where nothing races, and as a rule to others where something does.

mod device;
mod executor;
mod memory;
mod raw;
#[cfg(feature = "cuda")]
mod trial;

use std::ffi::{CString, c_void};
use std::sync::{Mutex, PoisonError};

pub use device::TestDevice;
pub use executor::{Emulation, Found};
pub use memory::{Id, Memory};

use crate::{Argument, Call};

/// Whether kernels were compiled for this host: where there was no compiler of C++20 they were not.
pub const AVAILABLE: bool = cfg!(emulated);

/// Orders in which a kernel is run: forwards, backwards, and two shuffles.
const ORDERS: [u64; 4] = [0, 1, 2, 3];
/// Room for what was found, or for the kinds of parameters.
const TEXT_BYTES: usize = 512;

/// One at a time: signals are the process's.
static LAUNCHING: Mutex<()> = Mutex::new(());

/// Carries out a launch, in every order, from the same contents of memory.
///
/// # Errors
/// What was found: no such kernel, other parameters, a touch outside of a buffer or of one that is read only, a
/// barrier or warp operation that some threads never come to, contents that depend on the order.
pub fn run(call: &Call<Id>, memory: &mut Memory) -> Result<(), String> {
    #[cfg(feature = "cuda")]
    if trial::run(call, memory)? {
        return Ok(());
    }
    run_in(call, memory, &ORDERS)
}

/// The same in these orders.
fn run_in(call: &Call<Id>, memory: &Memory, orders: &[u64]) -> Result<(), String> {
    let _one = LAUNCHING.lock().unwrap_or_else(PoisonError::into_inner);
    let wrong = |what: String| format!("{}: {what}", call.kernel);
    let kinds = signature(call).ok_or_else(|| wrong("there is no such kernel".to_owned()))?;
    fits(call, &kinds, memory).map_err(wrong)?;
    let before = memory.contents();
    let mut first = None;
    for &order in orders {
        memory.restore(&before);
        launch(call, &kinds, memory, order).map_err(wrong)?;
        let after = memory.contents();
        let first = first.get_or_insert_with(|| after.clone());
        if let Some(place) = memory.difference(first, &after) {
            return Err(wrong(format!("{place} depends on the order of threads: a race")));
        }
    }
    Ok(())
}

/// The kinds of a kernel's parameters, as `emulate.h` writes them.
fn signature(call: &Call<Id>) -> Option<Vec<String>> {
    let text = raw::signature(&CString::new(call.kernel).ok()?, TEXT_BYTES)?;
    Some(text.split(',').map(str::to_owned).collect())
}

/// Whether the arguments are what the kernel takes.
fn fits(call: &Call<Id>, kinds: &[String], memory: &Memory) -> Result<(), String> {
    let given = call.arguments.iter().map(|argument| match argument {
        Argument::Buffer(id) => memory.letter(*id),
        Argument::U32(_) => 'u',
        Argument::F32(_) => 'f',
        Argument::F64(_) => 'd',
    });
    let given: String = given.collect();
    let wanted: String = kinds.iter().filter_map(|kind| kind.chars().last()).collect();
    let buffers = call.arguments.iter().map(|argument| matches!(argument, Argument::Buffer(_)));
    let same = kinds.iter().map(|kind| kind.len() == 2).eq(buffers);
    if given == wanted && same {
        return Ok(());
    }
    Err(format!("it takes {} and is given {given}", kinds.join(",")))
}

fn launch(call: &Call<Id>, kinds: &[String], memory: &Memory, order: u64) -> Result<(), String> {
    let written = |id: Id| {
        let same = |(argument, _): &(&Argument<Id>, &String)| **argument == Argument::Buffer(id);
        call.arguments.iter().zip(kinds).filter(same).any(|(_, kind)| kind.starts_with('w'))
    };
    let _read_only = memory.read_only(|id| !written(id));
    // What a parameter's address is taken of.
    let mut words: Vec<u64> = call
        .arguments
        .iter()
        .map(|argument| match argument {
            Argument::Buffer(id) => memory.address(*id) as u64,
            Argument::U32(value) => u64::from(*value),
            Argument::F32(value) => u64::from(value.to_bits()),
            Argument::F64(value) => value.to_bits(),
        })
        .collect();
    let arguments: Vec<*mut c_void> =
        words.iter_mut().map(|word| std::ptr::from_mut(word).cast()).collect();
    let name = CString::new(call.kernel).map_err(|e| e.to_string())?;
    let [x, y] = call.blocks;
    let shape = ([x, y, 1], [call.threads, 1, 1], call.memory as usize);
    raw::launch(&name, shape, order, &memory.named(), &arguments, TEXT_BYTES)
}

#[cfg(test)]
#[path = "emulation_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "emulation_mma_tests.rs"]
mod mma_tests;
