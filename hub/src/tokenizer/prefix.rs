//! The first tokens of a text, without encoding all of it: a row of 20 MB of which 1,024 tokens are
//! kept would cost 185 bytes of memory a byte.
//!
//! Only a beginning of the text is encoded, and of its tokens only those are taken that the rest of
//! the text cannot change. A tokenizer first cuts a text into added tokens and words, looking at
//! most a few characters past the end of a word, and then encodes each word by itself. So what is
//! settled is every word but those near the cut; where that is not enough, more is encoded.
//!
//! A single word may be as long as the text (one letter a million times). Within a word a merge
//! depends on its neighbours, theirs on theirs, but each link of such a chain is a merge of higher
//! rank: a cut is felt a few tokens back. So a token of a long word is taken when it lies
//! [`LONG_WORD`] bytes before the cut and a cut at half the length gave the same.

use super::{Encoded, Tokenizer, TokenizerError};

/// Bytes encoded at first: this many for each token wanted (ordinary text has about 4) and these.
const BYTES_PER_TOKEN: usize = 16;
const FIRST_BYTES: usize = 4096;
/// Bytes past its end that may decide where a word ends: a few characters.
const LOOK_AHEAD: usize = 32;
/// Bytes of one word beyond which its beginning is settled.
const LONG_WORD: usize = 64 << 10;

/// The first tokens of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beginning {
    /// The tokens, at most as many as were asked for.
    pub encoded: Encoded,
    /// Whether the text has more.
    pub more: bool,
    /// Bytes of the text that were encoded for it.
    pub bytes_read: usize,
}

impl Tokenizer {
    /// The first `max_tokens` tokens of a text, as [`Tokenizer::encode_with_offsets`] gives them,
    /// in memory bounded by `max_tokens` and not by the text (by the text's longest word in
    /// vocabularies that take a long word for one unknown token).
    ///
    /// # Errors
    /// As [`Tokenizer::encode`]; what lies behind the tokens wanted is not looked at.
    pub fn encode_first(&self, text: &str, max_tokens: usize) -> Result<Beginning, TokenizerError> {
        let cut = max_tokens.saturating_mul(BYTES_PER_TOKEN).saturating_add(FIRST_BYTES);
        self.beginning(text, max_tokens, cut, LONG_WORD)
    }

    fn beginning(
        &self,
        text: &str,
        max_tokens: usize,
        mut length: usize,
        long_word: usize,
    ) -> Result<Beginning, TokenizerError> {
        let mut before = Vec::new();
        while length < text.len() {
            let cut = text.floor_char_boundary(length);
            let encoding = self.encoding(&text[..cut])?;
            let ids = encoding.get_ids();
            // One token beyond those wanted shows that there are more.
            let enough = max_tokens.saturating_add(1);
            let far = encoding.get_offsets().partition_point(|&(_, end)| end + long_word <= cut);
            let confirmed = far >= enough && before.get(..enough) == Some(&ids[..enough]);
            if confirmed || self.settled(&encoding, cut) >= enough {
                let encoded = Encoded::first(&encoding, max_tokens);
                return Ok(Beginning { encoded, more: true, bytes_read: cut });
            }
            before = ids.to_vec();
            length = length.saturating_mul(2).max(1);
        }
        let encoding = self.encoding(text)?;
        Ok(Beginning {
            encoded: Encoded::first(&encoding, max_tokens),
            more: encoding.len() > max_tokens,
            bytes_read: text.len(),
        })
    }

    /// Leading tokens that no continuation of the text changes, when it was cut after `cut` bytes.
    fn settled(&self, encoding: &tokenizers::Encoding, cut: usize) -> usize {
        let words = encoding.get_word_ids();
        let starts: Vec<usize> =
            (0..words.len()).filter(|&i| i == 0 || words[i] != words[i - 1]).collect();
        // Words are cut by what follows them at once; and an added token that the cut went through
        // was taken for words, of which the first begins this far before it.
        let near = cut.saturating_sub(LOOK_AHEAD + self.longest_added);
        let end_of = |word: usize| {
            let end = starts.get(word + 1).map_or(words.len(), |&next| next);
            encoding.get_offsets()[end - 1].1
        };
        let whole = (0..starts.len()).take_while(|&word| end_of(word) < near).count();
        starts.get(whole).copied().unwrap_or(words.len())
    }
}

impl Encoded {
    /// At most `count` leading tokens.
    pub(super) fn first(encoding: &tokenizers::Encoding, count: usize) -> Self {
        let count = count.min(encoding.len());
        Self {
            ids: encoding.get_ids()[..count].to_vec(),
            offsets: encoding.get_offsets()[..count].to_vec(),
        }
    }
}

#[cfg(test)]
#[path = "prefix_tests.rs"]
mod tests;
