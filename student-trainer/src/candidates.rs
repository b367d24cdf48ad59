//! Candidates: what a teacher says of the tokens that it or the student holds likely.
//!
//! A top-k lists where the teacher's mass is. Where the student's is, among tokens that the teacher
//! gives next to nothing, only their sum is known; that is where reverse KL and JSD look. So the k
//! likeliest of both are asked for: the teacher's k come first, as any top-k; then the student's k
//! likeliest of all others are named beside them, and of these 2k the teacher says everything, and of the
//! rest its mass. Which tokens they are depends on the student as it is at the time, so a step asks for
//! them when it comes to its rows, all of these at once, and nothing of it is kept.

use distill::batch::{Sequence, TokenBatch};
use model::language_model::LanguageModel;

use crate::asking::Wanted;
use crate::at_once::AtOnce;
use crate::data::RowSet;
use crate::error::TrainError;
use crate::feed::{Question, Scored};
use crate::reading::ReadingError;

/// Bytes of a request beside tokens, candidates and ranges, at most.
const ENVELOPE_BYTES: usize = 128;

/// Entries of a position, k of them the teacher's.
pub(crate) fn entries(k: usize, classes: usize) -> usize {
    k.saturating_mul(2).min(classes)
}

/// Whether the ids of the longest row go into a request of at most `limit` bytes.
///
/// # Errors
/// [`TrainError::CandidatesTooMany`] where they do not.
pub(crate) fn fit(rows: &RowSet, k: usize, classes: usize, limit: usize) -> Result<(), TrainError> {
    let width = entries(k, classes);
    let bytes = |row: &Sequence| {
        let ids = 4 * (row.len() + row.scored().count() * width);
        // Two positions below the row's length, with what tells where they are.
        let range = 4 + 2 * prost::length_delimiter_len(row.len());
        ids + range * row.scored_ranges().len() + ENVELOPE_BYTES
    };
    let sizes = rows.sequences.iter().map(bytes).enumerate();
    match sizes.max_by_key(|(_, bytes)| *bytes) {
        Some((row, bytes)) if bytes > limit => {
            let place = rows.place(row);
            Err(TrainError::CandidatesTooMany { k, place, bytes, limit })
        }
        _ => Ok(()),
    }
}

/// Who else holds tokens likely.
#[derive(Clone, Copy)]
pub(crate) struct Own<'a> {
    pub(crate) model: &'a dyn LanguageModel,
    pub(crate) classes: usize,
    /// What is computed at once.
    pub(crate) at_once: AtOnce,
}

impl Own<'_> {
    /// What is to be asked about rows (with their indices) whose top-k came: the teacher's ids, then of
    /// all others those likeliest to the student.
    ///
    /// # Errors
    /// When an operation fails, a logit of the student that is no number among it.
    pub(crate) fn questions(
        &self,
        rows: &[(usize, &Sequence)],
        answers: &[Scored],
        wanted: Wanted,
    ) -> Result<Vec<Question>, TrainError> {
        let Wanted::Candidates { k, .. } = wanted else {
            return Err(ReadingError::Other.into());
        };
        let width = entries(k, self.classes);
        let mut questions = Vec::with_capacity(rows.len());
        for these in self.at_once.groups(rows.iter().map(|(_, row)| row.len())) {
            let (rows, answers) = (&rows[these.clone()], &answers[these]);
            let own = self.at_once.in_parts(0..rows.len(), &mut |part| {
                let batch = TokenBatch::pack(rows[part].iter().map(|(_, row)| *row));
                Ok(self.model.likeliest(&batch, self.classes, width)?)
            })?;
            let mut own = own.iter().flat_map(|own| own.chunks_exact(width));
            for (&(row, _), answer) in rows.iter().zip(answers) {
                let teacher = answer.signal.top_k().ok_or(ReadingError::Other)?;
                let mut ids = Vec::with_capacity(teacher.rows() * width);
                for (theirs, own) in teacher.ids.chunks_exact(teacher.k).zip(own.by_ref()) {
                    ids.extend(theirs);
                    let others = own.iter().filter(|id| !theirs.contains(id));
                    ids.extend(others.take(width - theirs.len()));
                }
                questions.push(Question { row, named: Some((ids, width)) });
            }
        }
        Ok(questions)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use candle_core::Device;
    use distill::codec::Codec;
    use distill::queue::Priority;
    use distill::signal::{Entries, TopK};
    use model::ops::embed::gather_rows;
    use model::ops::head::{LossSettings, head_loss};
    use model::student::{Student, Training};

    use prost::Message as _;
    use proto::convert::{ScoreJob, score_request};

    use super::*;
    use crate::testing::{CLASSES, row_set, rows, tiny_source};

    /// What is counted is what a request takes, and a little; that much goes in, and a byte less does not.
    #[test]
    fn a_request_that_just_fits_is_let_through() {
        // Every other token: as many ranges as there can be.
        let ids: Vec<u32> = (0..301).map(|t| t % CLASSES as u32).collect();
        let row = Sequence::new(ids, (0..301).map(|t| t % 2 == 0).collect()).unwrap();
        let set = row_set("train.jsonl", vec![row.clone()].into());
        let refused = |limit| fit(&set, 4, CLASSES, limit).err().map(|error| error.to_string());
        let least = (0..100_000).find(|&limit| refused(limit).is_none()).unwrap();
        let said = refused(least - 1).unwrap();
        for piece in ["train.jsonl, line 1", "--top-k 4", "--max-request-bytes", "--max-length"] {
            assert!(said.contains(piece), "no {piece:?} in {said}");
        }
        assert!(said.contains(&least.to_string()) && said.contains(&(least - 1).to_string()));
        let job = ScoreJob {
            id: u64::MAX,
            tokens: row.ids.clone(),
            ranges: row.scored_ranges(),
            temperature: 2.0,
            entries: Entries::Named(vec![u32::MAX; 8 * row.scored().count()]),
            k: 8,
            codec: Codec::Raw,
            classes: 151_936,
            priority: Priority::Normal,
        };
        let taken = score_request(&job).encoded_len();
        assert!((least * 9 / 10..=least).contains(&taken), "{taken} of {least}");
    }

    /// The ids are the teacher's, then those likeliest to the student beside them: as its losses on each
    /// class in turn say.
    #[test]
    fn the_likeliest_of_both_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let source = tiny_source(dir.path());
        let student = Student::random(source.config, 3, Training::default(), &Device::Cpu).unwrap();
        let set = rows(5, 0);
        let sequences: Vec<_> = set.iter().enumerate().map(|(row, all)| (row + 7, all)).collect();
        let theirs = |position: usize| [3, 0, 7].map(|id| (id + position as u32) % CLASSES as u32);
        let answer = |row: &Sequence| {
            let count = row.scored().count();
            let mut signal = TopK::new(3);
            signal.ids = (0..count).flat_map(theirs).collect();
            Scored { signal: signal.into(), next_logprob: Vec::new(), wire_bytes: 0 }
        };
        let answers: Vec<_> = set.iter().map(answer).collect();
        let (model, wanted) = (student.model(), Wanted::Candidates { k: 3, codec: Codec::Raw });
        let own = Own { model, classes: CLASSES, at_once: AtOnce::rows(2) };
        let questions = own.questions(&sequences, &answers, wanted).unwrap();
        for ((row, sequence), question) in sequences.iter().zip(&questions) {
            assert_eq!(question.row, *row);
            let Some((ids, 6)) = &question.named else { panic!("{question:?}") };
            let losses = losses_of_each_class(model, sequence);
            for (position, ids) in ids.chunks_exact(6).enumerate() {
                assert_eq!(ids[..3], theirs(position));
                let mut others: Vec<u32> = (0..CLASSES as u32).collect();
                others.retain(|id| !ids[..3].contains(id));
                others.sort_by(|&a, &b| {
                    losses[a as usize][position].total_cmp(&losses[b as usize][position])
                });
                assert_eq!(ids[3..], others[..3]);
            }
        }
        // All classes where there are no more.
        let wanted = Wanted::Candidates { k: 20, codec: Codec::Raw };
        let questions = own.questions(&sequences[..1], &answers[..1], wanted).unwrap();
        let Some((ids, CLASSES)) = &questions[0].named else { panic!("{questions:?}") };
        assert!(
            ids.chunks_exact(CLASSES)
                .all(|ids| ids.iter().collect::<BTreeSet<_>>().len() == CLASSES)
        );
    }

    /// What a model loses on each class at each position, were that the next token.
    fn losses_of_each_class(model: &model::qwen3::Qwen3, sequence: &Sequence) -> Vec<Vec<f32>> {
        let alone = LossSettings::cross_entropy_alone();
        let batch = TokenBatch::pack([sequence]);
        let hidden = model.forward_hidden(&batch).unwrap();
        let hidden = gather_rows(&hidden, batch.scored()).unwrap();
        let of = |class: u32| {
            let targets = vec![class; batch.scored().len()];
            head_loss(&hidden, model.head(), CLASSES, &targets, None, &alone, 1.0, None).unwrap().ce
        };
        (0..CLASSES as u32).map(of).collect()
    }
}
