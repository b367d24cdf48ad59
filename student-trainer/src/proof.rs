//! The alignment proof: before any update, a sample goes through the wire and is held against what
//! the student's own tokens say.
//!
//! A teacher whose positions were off by one, whose targets were not shifted, or that forgot the
//! temperature would give a loss that looks healthy. Checksums cannot see that; this does: at
//! T = 1 the log-probability of the token that really follows, which the teacher computes from
//! *its* idea of the next token, must be the signal's entry for *our* next token, or lie below
//! every entry when ours is not among them; and logits must be the same at both temperatures.

use std::sync::Arc;

use distill::batch::Sequence;
use distill::codec::Codec;
use distill::signal::TopK;
use model::ops::head::{LossSettings, head_loss};

use crate::asking::{Ask, Wanted};
use crate::data::RowSet;
use crate::error::{TrainError, at_row};
use crate::feed::{Feed, Scored};
use crate::reading::{ReadingError, Said};
use crate::stop::Stop;
use crate::teacher::{Network, Teacher, TeacherError};

/// Rows of the sample.
const SAMPLE_ROWS: usize = 2;
/// Allowed difference of two log-probabilities beyond what the codec costs, in nats.
const TOLERANCE: f64 = 2e-3;
/// Allowed difference of a logit between two requests. A server of another make may compute them in
/// batches of different sizes, which in 16-bit arithmetic changes the last digits; a temperature
/// forgotten changes logits by whole numbers.
const LOGIT_TOLERANCE: f64 = 0.5;
/// Allowed mean difference of the log-probabilities that follow from hidden states, in nats: a teacher that
/// computes in 16 bits is off by a tenth of it, and other positions by several.
const HIDDEN_TOLERANCE: f64 = 0.1;

/// Scores a sample of `set`, listing tokens as `ask` says, and compares positions, targets and
/// temperature. Gives what came at T = 1.
///
/// # Errors
/// [`TeacherError::Alignment`] with row, position and both values; or the feed's own.
pub fn prove(
    network: &Network,
    teacher: &Teacher,
    set: &Arc<[Sequence]>,
    ask: Ask,
    stop: &Stop,
) -> Result<Vec<Scored>, TeacherError> {
    let rows = 0..set.len().min(SAMPLE_ROWS);
    let score = |temperature: f32| -> Result<Vec<Scored>, TeacherError> {
        let ask = Ask { temperature, ..ask };
        let mut feed = Feed::start(network.handle(), teacher, Arc::clone(set), rows.clone(), ask);
        let mut answers = Vec::new();
        while let Some(scored) = feed.next(stop)? {
            answers.push(scored);
        }
        Ok(answers)
    };
    let plain = score(1.0)?;
    let softened = score(ask.temperature)?;
    let t = f64::from(ask.temperature);
    let codec = if let Wanted::TopK { codec, .. } = ask.wanted { codec } else { Codec::Packed };
    for (row, (plain, softened)) in plain.iter().zip(&softened).enumerate() {
        let (Some(signal), Some(softened)) = (plain.signal.top_k(), softened.signal.top_k()) else {
            continue;
        };
        let found = targets_agree(&set[row], (signal, &plain.next_logprob), codec)
            .or_else(|| logits_agree(signal, softened, t));
        if let Some((index, reason)) = found {
            let position = set[row].scored().nth(index).unwrap_or(index);
            let url = teacher.url().to_owned();
            return Err(TeacherError::Alignment { url, row, position, reason });
        }
    }
    Ok(plain)
}

/// Reads hidden states of the rows that were proved, said as finely as the form that the run asks for
/// can say them, and holds the log-probabilities of the next tokens that follow from them against those
/// the teacher computed (`plain`): positions, output matrix and code are then the right ones.
///
/// # Errors
/// [`TeacherError::Alignment`] with row and both means; the feed's; when hidden states cannot be read.
pub(crate) fn prove_hidden(
    network: &Network,
    teacher: &Teacher,
    rows: &RowSet,
    (ask, plain): (Ask, &[Scored]),
    stop: &Stop,
) -> Result<(), TrainError> {
    let set = &rows.sequences;
    let Wanted::Hidden { form, bytes } = ask.wanted else { return Err(ReadingError::Other.into()) };
    let ask = Ask { wanted: Wanted::Hidden { form: teacher.reading().finest(form), bytes }, ..ask };
    let mut feed = Feed::start(network.handle(), teacher, Arc::clone(set), 0..plain.len(), ask);
    for (row, plain) in plain.iter().enumerate() {
        let came = feed.next(stop).map_err(|e| at_row(e, rows))?.ok_or(TrainError::Stopped)?;
        let Some(Said::Full { hidden, matrix }) = teacher.reading().said(&[came])? else {
            return Err(ReadingError::Other.into());
        };
        let sequence = &set[row];
        let targets: Vec<u32> = sequence.scored().map(|t| sequence.ids[t + 1]).collect();
        let alone = LossSettings::cross_entropy_alone();
        let classes = teacher.agreement().classes;
        let loss = head_loss(&hidden, &matrix, classes, &targets, None, &alone, 1.0, None)?;
        if let Some(reason) = followers_disagree(&loss.ce, &plain.next_logprob) {
            let (url, position) = (teacher.url().to_owned(), sequence.scored().next().unwrap_or(0));
            return Err(at_row(TeacherError::Alignment { url, row, position, reason }, rows));
        }
    }
    Ok(())
}

/// Why hidden states are not those that the log-probabilities are of, from both for the tokens that
/// follow: what is lost on them by the hidden states (`ce`), and what the teacher computed; in nats.
fn followers_disagree(ce: &[f32], next_logprob: &[f32]) -> Option<String> {
    let apart = ce.iter().zip(next_logprob).map(|(ce, logprob)| f64::from((ce + logprob).abs()));
    let apart = apart.sum::<f64>() / ce.len().max(1) as f64;
    // What lacks cannot agree.
    let apart = if ce.len() == next_logprob.len() { apart } else { f64::NAN };
    // NaN is no agreement.
    (apart.is_nan() || apart >= HIDDEN_TOLERANCE).then(|| {
        format!(
            "what follows from its hidden states is off the log-probabilities of the next tokens by \
             {apart:.3} nats on average: they are of other positions, or read with another output \
             matrix or code than it has"
        )
    })
}

/// The first scored position whose next-token log-probability contradicts the signal at T = 1.
fn targets_agree(
    sequence: &Sequence,
    (signal, next_logprob): (&TopK, &[f32]),
    codec: Codec,
) -> Option<(usize, String)> {
    for (index, position) in sequence.scored().enumerate() {
        let next = sequence.ids[position + 1];
        let entries = index * signal.k..(index + 1) * signal.k;
        let ids = &signal.ids[entries.clone()];
        let log_p = |scaled: f32| f64::from(scaled) - f64::from(signal.log_z[index]);
        let values = &signal.scaled[entries];
        let (largest, smallest) = (log_p(values[0]), log_p(values[values.len() - 1]));
        // Twice what one value may be off by, as the range is made of two.
        let tolerance = TOLERANCE + (largest - smallest) * 2.0 * codec.error_share();
        let found = f64::from(*next_logprob.get(index)?);
        match ids.iter().position(|&id| id == next) {
            Some(rank) => {
                let wanted = log_p(values[rank]);
                if (found - wanted).abs() > tolerance {
                    let reason = format!(
                        "the log-probability of the next token {next} is {found:.5}, but its \
                         entry in the signal says {wanted:.5}: positions or targets are shifted"
                    );
                    return Some((index, reason));
                }
            }
            None if found > smallest + tolerance => {
                let reason = format!(
                    "the next token {next} is not among the {} most probable, yet its \
                     log-probability {found:.5} is above theirs ({smallest:.5}): positions or \
                     targets are shifted",
                    signal.k
                );
                return Some((index, reason));
            }
            None => {}
        }
    }
    None
}

/// The first position whose logits differ between temperature 1 and `t` (after `z = scaled · t`).
fn logits_agree(plain: &TopK, softened: &TopK, t: f64) -> Option<(usize, String)> {
    let k = plain.k;
    let rows = plain.scaled.chunks_exact(k).zip(softened.scaled.chunks_exact(k));
    for (index, (at_one, at_t)) in rows.enumerate() {
        let (wanted, found) = (f64::from(at_one[0]), f64::from(at_t[0]) * t);
        if (wanted - found).abs() > LOGIT_TOLERANCE {
            let reason = format!(
                "the largest logit is {wanted:.4} when asked at temperature 1 and {found:.4} when \
                 asked at {t}: the temperature was not applied as it was echoed"
            );
            return Some((index, reason));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits over 8 classes that depend on the position.
    fn logits(position: usize) -> Vec<f64> {
        (0..8).map(|class| ((class * 5 + position * 3) % 8) as f64).collect()
    }

    fn scored(sequence: &Sequence, k: usize, temperature: f64, shift: usize) -> (TopK, Vec<f32>) {
        let mut signal = TopK::new(k);
        let mut next_logprob = Vec::new();
        for position in sequence.scored() {
            let y = logits(position);
            signal.push_exact(&y, temperature);
            let next = sequence.ids[(position + 1 + shift).min(sequence.len() - 1)] as usize;
            let z = distill::signal::log_sum_exp(y.iter().copied());
            next_logprob.push((y[next] - z) as f32);
        }
        (signal, next_logprob)
    }

    #[test]
    fn a_right_answer_passes_and_a_shifted_one_is_found_for_every_k() {
        // Each token is the most probable one after the position before it.
        let most_probable = |t: usize| {
            let y = logits(t);
            (0..8).max_by(|&a, &b| y[a].total_cmp(&y[b])).unwrap_or(0) as u32
        };
        let ids = std::iter::once(3).chain((0..9).map(most_probable)).collect();
        let sequence = Sequence::all_scored(ids).unwrap();
        for k in 1..=8 {
            let agree = |shift| {
                let (signal, next) = scored(&sequence, k, 1.0, shift);
                targets_agree(&sequence, (&signal, &next), Codec::Raw)
            };
            assert_eq!(agree(0), None);
            let (_, reason) = agree(1).unwrap();
            assert!(reason.contains("shifted"), "{reason}");
        }
    }

    #[test]
    fn hidden_states_of_other_positions_or_that_are_no_numbers_are_found() {
        let logprobs = [-0.5, -3.0, -1.25, -7.0];
        let losses = logprobs.map(|l: f32| -l);
        assert_eq!(followers_disagree(&losses, &logprobs), None);
        // As far as 16 bits are off.
        assert_eq!(followers_disagree(&losses.map(|l| l + 0.02), &logprobs), None);
        let mut shifted = losses;
        shifted.rotate_left(1);
        // (2.5 + 1.75 + 5.75 + 6.5) / 4
        let said = followers_disagree(&shifted, &logprobs).unwrap();
        assert!(said.contains("4.125 nats"), "{said}");
        // One far off among many that fit, and one that is none.
        assert!(followers_disagree(&[0.5, 3.5, 1.25, 7.0], &logprobs).is_some());
        assert!(followers_disagree(&[0.5, f32::NAN, 1.25, 7.0], &logprobs).is_some());
        assert!(followers_disagree(&losses, &[]).is_some());
    }

    #[test]
    fn a_forgotten_temperature_is_found() {
        let sequence = Sequence::all_scored(vec![3, 1, 6, 0]).unwrap();
        let (plain, _) = scored(&sequence, 4, 1.0, 0);
        assert_eq!(logits_agree(&plain, &scored(&sequence, 4, 5.0, 0).0, 5.0), None);
        assert!(logits_agree(&plain, &plain, 5.0).is_some());
    }
}
