//! A run's way to a teacher, for tests that need no run.

use std::time::Duration;

use candle_core::Device;
use client::Access;
use distill::handshake::StudentFacts;
use hub::tokenizer::Tokenizer;

use crate::asking::{Ask, Terms};
use crate::cache::join::Asker;
use crate::config::{CodecKind, HiddenFormKind, SignalConfig, SignalKind};
use crate::data::RowSet;
use crate::error::TrainError;
use crate::setup::join_teacher;
use crate::stop::Stop;
use crate::teacher::{Network, Teacher};

/// Reaches a teacher as a run does that asks for its top 5 at this temperature.
pub(crate) fn joined(
    reach: (&[String], &Access),
    who: (&Tokenizer, &StudentFacts),
    temperature: f32,
    rows: &RowSet,
    note: &mut dyn FnMut(&str),
) -> Result<Option<(Teacher, Ask)>, TrainError> {
    let (network, stop, said) = (Network::start().unwrap(), Stop::default(), listing(5));
    let terms = Terms { temperature, window: 4, give_up_after: Duration::from_secs(3) };
    let (network, said, device, stop) = (&network, &said, &Device::Cpu, &stop);
    join_teacher(&mut Asker { network, reach, who, said, terms, device, rows, note, stop })
}

/// The options that ask for the top k.
pub(crate) fn listing(top_k: usize) -> SignalConfig {
    SignalConfig {
        signal: SignalKind::TopK,
        top_k,
        codec: CodecKind::Packed,
        draws: 16,
        exact: 0,
        hidden_form: HiddenFormKind::Bf16,
        signal_bytes: None,
        signal_error: None,
        decoder_dir: None,
    }
}
