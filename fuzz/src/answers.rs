//! Answers to jobs, made up, and what every answer has to be.

use distill::handshake::Agreement;
use distill::signal::{Entries, TopK};
use proto::convert::{ScoreJob, Scored, Stamp};
use std::collections::BTreeSet;
use std::time::Duration;

use crate::teachers::{MODEL, TOKENIZER};

/// What a client agreed on with the teacher of a job.
pub(crate) fn agreement(job: &ScoreJob) -> Agreement {
    Agreement {
        classes: job.classes,
        model_fingerprint: MODEL,
        tokenizer_fingerprint: TOKENIZER,
        hidden_size: 0,
        max_in_flight: 1,
    }
}

pub(crate) fn stamp(max_reply_bytes: usize) -> Stamp {
    Stamp {
        model_fingerprint: MODEL,
        tokenizer_fingerprint: TOKENIZER,
        max_reply_bytes,
        queued: Duration::from_nanos(5),
        computed: Duration::from_secs(1),
    }
}

/// Different ids and falling values in each row; NaN where no token follows.
pub(crate) fn answer(job: &ScoreJob) -> (TopK, Vec<f32>) {
    let mut signal = TopK::new(job.k);
    for row in 0..job.rows() {
        match job.entries.named_at(row, job.k) {
            Some(ids) => signal.ids.extend(ids),
            None => signal.ids.extend((0..job.k).map(|i| ((row + i) % job.classes) as u32)),
        }
        signal.scaled.extend((0..job.k).map(|i| row as f32 - i as f32 / 7.0));
        signal.log_z.push(row as f32 + 2.0);
        signal.log_rest.push(if row % 2 == 0 { -(row as f32) } else { f32::NEG_INFINITY });
    }
    let next = job.next_tokens().map(|token| token.map_or(f32::NAN, |id| -(id as f32)));
    (signal, next.collect())
}

/// What a trainer relies on in an answer.
///
/// # Panics
/// When it may not.
pub(crate) fn assert_sound(scored: &Scored, job: &ScoreJob) {
    let signal = scored.signal.top_k().expect("listed tokens");
    assert_eq!((scored.id, signal.k, signal.rows()), (job.id, job.k, job.rows()));
    assert_eq!(signal.ids.len(), job.rows() * job.k);
    assert_eq!(signal.scaled.len(), job.rows() * job.k);
    assert_eq!(signal.log_rest.len(), job.rows());
    assert!(signal.scaled.iter().chain(&signal.log_z).all(|number| number.is_finite()));
    let mass = |&number: &f32| number.is_finite() || number == f32::NEG_INFINITY;
    assert!(signal.log_rest.iter().all(mass));
    assert_eq!(scored.next_logprob.len(), job.rows());
    for (token, logprob) in job.next_tokens().zip(&scored.next_logprob) {
        let sound = if token.is_some() { logprob.is_finite() } else { logprob.is_nan() };
        assert!(sound, "{token:?} {logprob}");
    }
    match &job.entries {
        Entries::Top => assert_distinct(&signal.ids, job.k, job.classes),
        Entries::Named(_) => {
            let named = (0..job.rows()).filter_map(|row| job.entries.named_at(row, job.k));
            assert_eq!(signal.ids, named.flatten().copied().collect::<Vec<_>>());
        }
        Entries::Drawn { .. } | Entries::Hidden(_) => panic!("listed tokens were asked for"),
    }
}

/// Ids are classes, none twice in a row.
///
/// # Panics
/// When they are not.
pub(crate) fn assert_distinct(ids: &[u32], k: usize, classes: usize) {
    for row in ids.chunks(k) {
        assert!(row.iter().all(|&id| (id as usize) < classes), "{row:?} of {classes}");
        assert_eq!(row.iter().collect::<BTreeSet<_>>().len(), k, "{row:?}");
    }
}
