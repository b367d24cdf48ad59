//! A launch of a test on a card, in place of the emulation.

use std::sync::{Mutex, PoisonError};

use super::{Id, Memory};
use crate::card::Card;
use crate::executor::{Executor as _, Inputs};
use crate::program::{Program, View};
use crate::{Argument, Call};

/// The card, opened by the first launch; none where tests are emulated.
static CARD: Mutex<Option<Card>> = Mutex::new(None);

/// Carries out a launch on the card that tests are to run on, if there is one: whether there was.
pub(super) fn run(call: &Call<Id>, memory: &Memory) -> Result<bool, String> {
    if std::env::var_os("LIMBECK_TEST_DEVICE").is_none() {
        return Ok(false);
    }
    let mut card = CARD.lock().unwrap_or_else(PoisonError::into_inner);
    if card.is_none() {
        *card = super::device::card();
    }
    let Some(card) = &mut *card else { return Ok(false) };
    let done = launch(card, call, memory).map_err(|error| error.to_string());
    card.forget_kept();
    done.map(|()| true)
}

fn launch(card: &mut Card, call: &Call<Id>, memory: &Memory) -> Result<(), crate::card::CardError> {
    let mut sent: Vec<(Id, View)> = Vec::new();
    for argument in &call.arguments {
        let Argument::Buffer(id) = argument else { continue };
        if sent.iter().any(|(other, _)| other == id) {
            continue;
        }
        let bytes = memory.bytes_of(*id);
        // As bytes: what they stand for is the kernel's to know.
        let view = card.keep("an argument", crate::program::Kind::Bytes, bytes.len())?;
        card.write(view, &bytes)?;
        sent.push((*id, view));
    }
    let of = |id: &Id| sent.iter().find(|(other, _)| other == id).map(|(_, view)| *view);
    let arguments = call.arguments.iter().map(|argument| match argument {
        Argument::Buffer(id) => Argument::Buffer(of(id).expect("every buffer was sent")),
        Argument::U32(value) => Argument::U32(*value),
        Argument::F32(value) => Argument::F32(*value),
        Argument::F64(value) => Argument::F64(*value),
    });
    let call = Call {
        kernel: call.kernel,
        blocks: call.blocks,
        threads: call.threads,
        memory: call.memory,
        arguments: arguments.collect(),
    };
    let mut program = Program::default();
    program.call(call);
    card.run(&program, &Inputs::default())?;
    for (id, view) in sent {
        memory.write_bytes(id, &card.read::<u8>(view)?);
    }
    Ok(())
}
