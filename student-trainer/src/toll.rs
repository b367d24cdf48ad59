//! What coded hidden states really take, beside what their code was said to take.
//!
//! A code is made of some text, and its figures are measured on that. Of text of another kind a state
//! takes more, and where it is strange enough goes as it is: a wish for so many bytes is then not kept,
//! which a person should know.

use distill::batch::Sequence;
use distill::hidden::HiddenForm;

use crate::asking::Wanted;
use crate::feed::Scored;

/// Positions after which the mean means something.
const ENOUGH: u64 = 1000;

/// The count of a run.
#[derive(Debug)]
pub(crate) struct Toll {
    /// Bytes a position that were said.
    said: usize,
    bytes: u64,
    positions: u64,
    told: bool,
}

impl Toll {
    /// Of what is asked; none of what is in no code.
    pub(crate) fn of(wanted: Wanted) -> Option<Self> {
        let Wanted::Hidden { form: HiddenForm::Coded { .. }, bytes: said } = wanted else {
            return None;
        };
        Some(Self { said, bytes: 0, positions: 0, told: false })
    }

    /// Takes note of an answer that came; the tokens it was asked about are no part of it.
    pub(crate) fn count(&mut self, row: &Sequence, answer: &Scored) {
        self.bytes += answer.wire_bytes.saturating_sub(4 * row.len() as u64);
        self.positions += answer.signal.rows() as u64;
    }

    /// What to say, once, where it is more than twice what was said.
    pub(crate) fn surprise(&mut self) -> Option<String> {
        let each = self.bytes as f64 / self.positions.max(1) as f64;
        // Short answers have their envelopes to carry.
        let dear = each > 2.0 * self.said as f64 + 32.0;
        if self.told || self.positions < ENOUGH || !dear {
            return None;
        }
        self.told = true;
        Some(format!(
            "coded hidden states take {each:.0} bytes a position on these rows, {} were said: the teacher's \
             code was made of other text, and says less of these too. Make one of text like yours with \
             `teacher-server calibrate`, or take --signal full --hidden-form int8",
            self.said
        ))
    }
}

#[cfg(test)]
mod tests {
    use distill::coded::Rung;
    use distill::fingerprint::Fingerprint;
    use distill::hidden::HiddenRows;
    use distill::signal::Signal;

    use super::*;
    use crate::testing::rows;

    #[test]
    fn twice_what_was_said_is_told_once_and_not_too_soon() {
        let form = HiddenForm::Coded { code: Fingerprint([1; 32]), rung: Rung(0) };
        let set = rows(1, 0);
        let row = &set[0];
        let said = |each: u64, count: usize| {
            let mut toll = Toll::of(Wanted::Hidden { form, bytes: 40 }).unwrap();
            let mut signal = HiddenRows::new(form, 4);
            signal.parts.push((100, Vec::new()));
            let wire_bytes = 4 * row.len() as u64 + 100 * each;
            let answer =
                Scored { signal: Signal::Hidden(signal), next_logprob: Vec::new(), wire_bytes };
            (0..count)
                .filter_map(|_| {
                    toll.count(row, &answer);
                    toll.surprise()
                })
                .collect::<Vec<_>>()
        };
        // Twice 40 and 32, and a thousand positions.
        assert_eq!(said(112, 30), Vec::<String>::new());
        assert_eq!(said(113, 10).len(), 1);
        assert_eq!(said(300, 9), Vec::<String>::new());
        let told = said(300, 30);
        assert!(
            told.len() == 1 && told[0].contains("300 bytes") && told[0].contains("40 were"),
            "{told:?}"
        );
        let form = HiddenForm::Int8;
        assert!(Toll::of(Wanted::Hidden { form, bytes: 40 }).is_none());
    }
}
