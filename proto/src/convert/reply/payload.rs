//! What a teacher computed as the bytes of a message, and back: the one place of the contract that
//! knows how each signal is laid out.

use std::ops::Range;

use distill::codec::draws::{self, DrawsCodecError, Head, Values};
use distill::codec::{self, CodecError, Ids};
use distill::handshake::SignalKind;
use distill::hidden::{self, HiddenError, HiddenForm, HiddenRows};
use distill::signal::{CodedStates, Computed, Entries, HiddenStates, Signal};

use crate::convert::ScoreJob;

/// How exact entries beside draws are written.
const EXACT: Values = Values::F32;

/// Why a signal is none: it cannot be written, or bytes do not say it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SignalError {
    /// Listed tokens.
    #[error(transparent)]
    Listed(#[from] CodecError),
    /// Draws.
    #[error(transparent)]
    Draws(#[from] DrawsCodecError),
    /// Hidden states.
    #[error(transparent)]
    Hidden(#[from] HiddenError),
    /// Another signal than was asked for.
    #[error("the signal is not the one asked for, {wanted}")]
    Kind {
        /// As asked.
        wanted: SignalKind,
    },
}

/// Bytes of a message's payload before its first row.
pub(super) fn head_bytes(job: &ScoreJob) -> usize {
    match job.entries {
        Entries::Top | Entries::Named(_) => job.layout().head_bytes(),
        Entries::Drawn { .. } => draws::HEAD_BYTES,
        Entries::Hidden(_) => hidden::HEAD_BYTES,
    }
}

/// The most bytes a row takes, that of the next token included; hidden states have `width` numbers.
pub(super) fn row_bytes(job: &ScoreJob, width: usize) -> usize {
    match job.entries {
        Entries::Top | Entries::Named(_) => job.layout().row_bytes(job.k).saturating_add(4),
        Entries::Drawn { draws, .. } => {
            draws::row_bytes_bound(draws, job.k, job.classes, EXACT).saturating_add(4)
        }
        Entries::Hidden(form) => form.row_bytes(width),
    }
}

/// Whether something of the next token travels beside.
pub(super) fn has_next(job: &ScoreJob) -> bool {
    !matches!(job.entries, Entries::Hidden(_))
}

/// Some rows of what was computed for a job.
///
/// # Errors
/// [`SignalError`] when it is not what was asked, or holds a number that cannot be.
pub(super) fn write(
    job: &ScoreJob,
    computed: &Computed,
    rows: Range<usize>,
) -> Result<Vec<u8>, SignalError> {
    match (&job.entries, computed) {
        (Entries::Top | Entries::Named(_), Computed::TopK(signal)) => {
            Ok(codec::encode(signal, rows, job.layout())?)
        }
        (Entries::Drawn { .. }, Computed::Drawn(signal)) => {
            Ok(draws::encode(signal, rows, job.classes, EXACT)?)
        }
        (Entries::Hidden(HiddenForm::Coded { code, rung }), Computed::Coded(coded))
            if coded.code.fingerprint() == *code =>
        {
            let CodedStates { code, numbers, states } = coded;
            let directions = code.directions();
            let numbers = &numbers[rows.start * directions..rows.end * directions];
            Ok(code.encode(*rung, numbers, of_rows(states, rows)))
        }
        (Entries::Hidden(form), Computed::Hidden(states))
            if job.entries.kind() == SignalKind::Full =>
        {
            Ok(hidden::encode(of_rows(states, rows), states.width, *form)?)
        }
        _ => Err(SignalError::Kind { wanted: job.entries.kind() }),
    }
}

fn of_rows(states: &HiddenStates, rows: Range<usize>) -> &[f32] {
    &states.values[rows.start * states.width..rows.end * states.width]
}

/// Reads some rows of the answer to a job.
///
/// # Errors
/// [`SignalError`]; no bytes make it panic.
pub(super) fn read(
    job: &ScoreJob,
    bytes: &[u8],
    rows: Range<usize>,
    width: usize,
) -> Result<Signal, SignalError> {
    match job.entries {
        Entries::Top | Entries::Named(_) => {
            let named = named(job, rows.clone());
            let ids = named.as_deref().map_or(Ids::Sent { classes: job.classes }, Ids::Known);
            Ok(codec::decode(bytes, rows.len(), job.k, job.codec, ids)?.into())
        }
        Entries::Drawn { draws, .. } => {
            let (rows, k, classes) = (rows.len(), job.k, job.classes);
            let wanted = Head { rows, draws, k, classes, values: EXACT };
            Ok(Signal::Drawn(draws::decode(bytes, &wanted)?))
        }
        Entries::Hidden(form) => {
            let mut states = HiddenRows::new(form, width);
            states.push(rows.len(), bytes.to_vec())?;
            Ok(Signal::Hidden(states))
        }
    }
}

/// The ids that were named for these rows, where any were.
fn named(job: &ScoreJob, rows: Range<usize>) -> Option<Vec<u32>> {
    let at = |row| job.entries.named_at(row, job.k).unwrap_or_default();
    matches!(job.entries, Entries::Named(_)).then(|| rows.flat_map(at).copied().collect())
}
