//! A run's way to a teacher, for tests that need no run.

use client::Access;
use distill::handshake::StudentFacts;
use hub::tokenizer::Tokenizer;

use crate::asking::{Ask, Terms};
use crate::cache::join::Asker;
use crate::config::{SignalConfig, SignalKind};
use crate::data::RowSet;
use crate::error::TrainError;
use crate::joining::join_teacher;
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
    let (network, stop, signal) = (Network::start().unwrap(), Stop::default(), listing(5));
    let terms = Terms::new(f64::from(temperature), 4, 3.0);
    let (network, signal, stop) = (&network, &signal, &stop);
    join_teacher(&mut Asker {
        network,
        reach,
        who,
        signal,
        terms,
        thorough: false,
        rows,
        note,
        stop,
    })
}

/// The options that ask for the top k.
pub(crate) fn listing(top_k: usize) -> SignalConfig {
    SignalConfig { top_k, ..SignalConfig::of(SignalKind::TopK) }
}
