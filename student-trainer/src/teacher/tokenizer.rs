//! Whether a vLLM server's tokenizer is the student's. It states no fingerprint, so both are given
//! the same text.

use client::Failure;
use hub::tokenizer::Tokenizer;

use super::{Network, Teacher, TeacherError, Voice};

/// A text in which tokenizers differ: scripts, digits, white space, code, emoji, a special token.
pub(super) const PROBE: &str = "Natalia sold 48/2 = 24 clips in May.\n\n\tif (x != 0x1F) { return \u{3c0} * 1e-6; }  \
                     \u{4f60}\u{597d}\u{ff0c}\u{4e16}\u{754c} \u{d55c}\u{ad6d}\u{c5b4} \u{421}\u{43f}\u{430}\u{441}\u{438}\u{431}\u{43e} \
                     \u{627}\u{644}\u{639} na\u{ef}ve e\u{301} \u{1f600}\u{200d} 1234567890<|im_end|>";

impl Teacher {
    /// Compares tokenizers where the teacher stated none; says what could not be compared.
    ///
    /// # Errors
    /// [`TeacherError::Tokens`] when they differ; [`TeacherError::Silent`] when the server fails.
    pub(crate) fn compare(
        &self,
        network: &Network,
        ours: &Tokenizer,
    ) -> Result<Option<String>, TeacherError> {
        let Voice::Vllm(server) = &self.voice else { return Ok(None) };
        let url = self.url().to_owned();
        let Ok(wanted) = ours.encode(PROBE) else { return Ok(Some(unknown(&url))) };
        let found = network.0.block_on(server.tokens(&self.facts.model, PROBE));
        match found {
            Ok(Some(found)) if found == wanted => Ok(None),
            Ok(Some(found)) => {
                let same = found.iter().zip(&wanted).take_while(|(a, b)| a == b).count();
                let at = |ids: &[u32]| ids.get(same).copied();
                let (found, wanted) = (at(&found), at(&wanted));
                Err(TeacherError::Tokens { url, place: same, found, wanted })
            }
            Ok(None) => Ok(Some(unknown(&url))),
            Err(Failure::Final(error)) => Err(error.into()),
            Err(
                Failure::Passing(reason) | Failure::Garbled(reason) | Failure::Busy { reason, .. },
            ) => Err(TeacherError::Silent { url, reason }),
        }
    }
}

fn unknown(url: &str) -> String {
    format!(
        "teacher {url} does not tell its tokenizer's ids (/tokenize), or the student's cannot encode \
         the text they are compared by: whether both are the same could not be checked; ids of \
         another would teach nonsense"
    )
}
