//! How a run comes to its teacher: reached, compared with the student, proved on rows of the run, and
//! asked for no more than its signal allows.

use crate::asking::{Ask, Terms, Wanted};
use crate::cache::join::Asker;
use crate::config::{DivergenceKind, TailKind};
use crate::decoder::Preparing;
use crate::error::{TrainError, at_row};
use crate::proof::{prove, prove_hidden};
use crate::teacher::Teacher;

/// Entries of the answers that positions are proved on, where the run asks for other ones.
const PROOF_ENTRIES: usize = 16;

/// Above it a few draws say little: 16 of them were 1.6 degrees off at 2, and 35 at 5 (docs/signals.md).
const NOISY_TEMPERATURE: f32 = 2.0;

/// Reaches the teacher, where there is one, checks that it fits the student, and proves on its rows
/// that both speak of the same positions; then brings what its answers are read with. What could not be
/// checked is noted.
pub(crate) fn join_teacher(asker: &mut Asker<'_>) -> Result<Option<(Teacher, Ask)>, TrainError> {
    let Asker { network, reach: (urls, access), who: (tokenizer, facts), rows, stop, .. } = *asker;
    let url = match urls {
        [] => return Ok(None),
        [url] => url,
        several => return Err(TrainError::SeveralTeachers { found: several.len() }),
    };
    let terms = asker.terms;
    let teacher = Teacher::connect(network, url, access, facts, terms.give_up_after, stop)?;
    if let Some(unknown) = teacher.compare(network, tokenizer)? {
        (asker.note)(&unknown);
    }
    let listing = Terms::listing(asker.signal, facts.codec);
    let k = PROOF_ENTRIES.min(teacher.agreement().classes).min(teacher.facts().limits.max_top_k);
    let proved = match listing {
        Some(wanted @ Wanted::TopK { .. }) => wanted,
        Some(Wanted::Candidates { k, codec }) => Wanted::TopK { k, codec },
        _ => Wanted::TopK { k, codec: facts.codec },
    };
    let set = &rows.sequences;
    let plain = prove(network, &teacher, set, terms.ask(proved), stop);
    let plain = plain.map_err(|e| at_row(e, rows))?;
    if let Some(Wanted::Sampled { .. }) = listing {
        (asker.note)(&of_draws(terms.temperature));
    }
    let Some(wanted) = listing else {
        let (signal, note) = (asker.signal, &mut *asker.note);
        let mut preparing = Preparing { network, signal, set, note, stop, there: None };
        let (wanted, reading) = preparing.hidden(&teacher, terms.ask(proved))?;
        let (teacher, ask) = (teacher.read_by(reading), terms.ask(wanted));
        prove_hidden(network, &teacher, rows, (ask, &plain), stop)?;
        return Ok(Some((teacher, ask)));
    };
    Ok(Some((teacher, terms.ask(wanted))))
}

/// What to expect of draws at this temperature. The angles are those of docs/signals.md at 5.
pub(crate) fn of_draws(temperature: f32) -> String {
    let high = match temperature > NOISY_TEMPERATURE {
        true => {
            "; at this temperature it is mostly noise (at 5 the gradient of 50 draws a token lies 20.6 degrees off \
             the true one, that of 16 35.3, of --signal coded 0.3): take --temperature 1 or 2, or --signal coded; \
             `student-trainer signals` measures it on your own data"
        }
        false => "",
    };
    format!(
        "--signal sampled: the KL that is shown is that of the few draws of a position, and so lies above \
         the true one; its gradient is right on average{high}"
    )
}

/// How the loss takes the tokens that are not sent: as wished, or as the teacher's signal allows;
/// notes it when that is less.
///
/// # Errors
/// [`TrainError::Divergence`] where that is too little for the divergence wanted.
pub(crate) fn tail(
    wish: TailKind,
    divergence: DivergenceKind,
    teacher: Option<&(Teacher, Ask)>,
    note: &mut dyn FnMut(&str),
) -> Result<TailKind, TrainError> {
    let Some((teacher, ask)) = teacher else { return Ok(wish) };
    if teacher.knows_mass(f64::from(ask.temperature)) {
        return Ok(wish);
    }
    if divergence != DivergenceKind::ForwardKl {
        let (url, temperature) = (teacher.url().to_owned(), ask.temperature);
        return Err(TrainError::Divergence { url, divergence, temperature });
    }
    note(&format!(
        "teacher {} gives log-probabilities at temperature 1 alone: at --temperature {} the mass of \
         all but the tokens it sends cannot be known, so the loss compares these with each other \
         only (--tail renormalise), which teaches far worse; --temperature 1 keeps the mass, and \
         teacher-server sends it at every temperature",
        teacher.url(),
        ask.temperature
    ));
    Ok(TailKind::Renormalise)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_called_noise_where_they_are() {
        assert!(!of_draws(NOISY_TEMPERATURE).contains("noise"));
        assert!(of_draws(NOISY_TEMPERATURE.next_up()).contains("noise"));
    }
}
