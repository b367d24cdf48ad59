//! Text to token ids and back: one model folder's tokenizer.
//!
//! Nothing is ever padded or added: `encode` gives the ids of the text and no others.
//! Special tokens written in the text (`<|im_end|>`) become their ids, as a chat template needs.

#[path = "tokenizer/fingerprint.rs"]
mod fingerprint;
#[path = "tokenizer/prefix.rs"]
mod prefix;
#[path = "tokenizer/special.rs"]
mod special;

pub use prefix::Beginning;
pub use special::SpecialTokens;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crate::files::{self, FileError};

/// A tokenizer, its settings for scoring and its fingerprint.
///
/// Cheap to share by reference between threads.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    file: PathBuf,
    size: u32,
    fingerprint: [u8; 32],
    special: SpecialTokens,
    eos: Option<u32>,
    /// Bytes of text that the longest added token can be read from, at most.
    longest_added: usize,
}

/// Token ids of a text and where in the text each came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids, `[L]`.
    pub ids: Vec<u32>,
    /// For each token the bytes of the text it stands for, as `(start, end)`, `[L]`. The parts of
    /// one character that was split over several tokens all carry that character's bytes.
    pub offsets: Vec<(usize, usize)>,
}

/// Why a tokenizer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file is missing, unreadable or not JSON.
    #[error(transparent)]
    File(#[from] FileError),
    /// The folder has no tokenizer.json.
    #[error(
        "{dir} has no tokenizer.json{found}; save it once with transformers \
         (AutoTokenizer.from_pretrained(..).save_pretrained(..)) to get one"
    )]
    Missing {
        /// The folder.
        dir: PathBuf,
        /// What of a tokenizer it does have, ready to be read after the name.
        found: String,
    },
    /// The library refused the file.
    #[error("{file} is not a tokenizer this program can read: {reason}")]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The library's reason.
        reason: String,
    },
    /// The library panicked on the file: a defect there, reported as an error here.
    #[error("{file} makes the tokenizers library fail while {doing}: {reason}")]
    Panicked {
        /// The file.
        file: PathBuf,
        /// What it was doing.
        doing: &'static str,
        /// The panic's message.
        reason: String,
    },
    /// Random encoding.
    #[error(
        "{file} sets BPE dropout {dropout}: the same text would give different ids each time; \
         set \"dropout\": null"
    )]
    Dropout {
        /// The file.
        file: PathBuf,
        /// The dropout set.
        dropout: f32,
    },
    /// tokenizer_config.json promises a token that tokenizer.json does not have.
    #[error(
        "{dir}: {config} names the token {token:?}{wanted}, but in tokenizer.json it has {found}; \
         save the tokenizer again with transformers (save_pretrained) so that the two agree"
    )]
    Disagree {
        /// The folder.
        dir: PathBuf,
        /// The file that names the token.
        config: &'static str,
        /// The token.
        token: String,
        /// The id wanted, ready to be read after the token.
        wanted: String,
        /// The id found, or that there is none.
        found: String,
    },
    /// A text could not be encoded.
    #[error("{file} cannot encode this text: {reason}")]
    Encode {
        /// The tokenizer's file.
        file: PathBuf,
        /// The library's reason.
        reason: String,
    },
    /// Ids could not be decoded.
    #[error("{file} cannot decode these ids: {reason}")]
    Decode {
        /// The tokenizer's file.
        file: PathBuf,
        /// The library's reason.
        reason: String,
    },
}

impl Tokenizer {
    /// Loads `tokenizer.json` of a model folder, and the special tokens its configuration names.
    ///
    /// # Errors
    /// [`TokenizerError`]; hostile files give errors, never panics.
    pub fn load(dir: &Path) -> Result<Self, TokenizerError> {
        let file = dir.join("tokenizer.json");
        if !file.is_file() {
            return Err(TokenizerError::Missing { dir: dir.to_owned(), found: other_files(dir) });
        }
        let text = files::read_text(&file)?;
        let value: serde_json::Value = serde_json::from_str(&text)
            .map_err(|e| FileError::NotJson { path: file.clone(), reason: e.to_string() })?;
        refuse_dropout(&file, &value)?;
        drop(value);
        let mut inner =
            guarded(&file, "loading", || tokenizers::Tokenizer::from_bytes(&text))?.map_err(
                |e| TokenizerError::Unreadable { file: file.clone(), reason: e.to_string() },
            )?;
        // A post-processor adds tokens and trims offsets; neither is wanted here.
        inner.with_padding(None);
        inner.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        inner.with_truncation(None).map_err(|e| TokenizerError::Unreadable {
            file: file.clone(),
            reason: e.to_string(),
        })?;
        let special = SpecialTokens::load(dir)?;
        special.check_against(dir, &inner)?;
        let fingerprint =
            guarded(&file, "fingerprinting", || fingerprint::of(&inner))?.map_err(|e| {
                TokenizerError::Unreadable { file: file.clone(), reason: e.to_string() }
            })?;
        let largest = inner.get_vocab(true).into_values().max();
        let eos = special.get("eos_token").and_then(|token| inner.token_to_id(token));
        let size = largest.map_or(0, |id| id.saturating_add(1));
        // A normaliser may make it of longer characters.
        let added = inner.get_added_tokens_decoder();
        let longest_added = added.values().map(|token| 4 * token.content.len()).max();
        let longest_added = longest_added.unwrap_or(0);
        Ok(Self { inner, file, size, fingerprint, special, eos, longest_added })
    }

    /// The token ids of a text, `[L]`; an empty text has none.
    ///
    /// # Errors
    /// When the tokenizer has no ids for some of the text (never with byte-level vocabularies).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = guarded(&self.file, "encoding", || self.inner.encode_fast(text, false))?;
        Ok(encoding.map_err(|e| self.cannot_encode(&e))?.get_ids().to_vec())
    }

    /// The token ids of a text and the bytes each stands for.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_offsets(&self, text: &str) -> Result<Encoded, TokenizerError> {
        Ok(Encoded::first(&self.encoding(text)?, usize::MAX))
    }

    fn encoding(&self, text: &str) -> Result<tokenizers::Encoding, TokenizerError> {
        let encoding = guarded(&self.file, "encoding", || self.inner.encode(text, false))?;
        encoding.map_err(|e| self.cannot_encode(&e))
    }

    /// The text of ids, special tokens included; ids the vocabulary does not have give nothing.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.decode_with(ids, false)
    }

    /// The text of ids without special tokens: what a person reads.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn decode_plain(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.decode_with(ids, true)
    }

    /// The text of one id (a part of a character shows as U+FFFD), or `None` when the vocabulary
    /// does not have it, as the ids that pad an embedding matrix.
    pub fn id_to_text(&self, id: u32) -> Option<String> {
        let token = self.inner.id_to_token(id)?;
        Some(self.decode(&[id]).unwrap_or(token))
    }

    /// The id of a token written exactly so in the vocabulary (`<|im_end|>`).
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// One more than the largest id.
    pub fn size(&self) -> usize {
        self.size as usize
    }

    /// BLAKE3 over what decides which ids a text becomes: vocabulary, merges, added tokens,
    /// normaliser and pre-tokeniser, in canonical form. The file's formatting, its padding,
    /// truncation, post-processor and decoder do not enter.
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// The id that ends an answer, as `eos_token` in tokenizer_config.json names it.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The special tokens the folder's configuration names.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }

    fn decode_with(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        let text = guarded(&self.file, "decoding", || self.inner.decode(ids, skip_special))?;
        text.map_err(|e| TokenizerError::Decode { file: self.file.clone(), reason: e.to_string() })
    }

    fn cannot_encode(&self, error: &dyn std::fmt::Display) -> TokenizerError {
        TokenizerError::Encode { file: self.file.clone(), reason: error.to_string() }
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { file, size, eos, .. } = self;
        write!(f, "Tokenizer({}, {size} tokens, eos {eos:?})", file.display())
    }
}

/// Runs the library's code; a panic in it becomes an error, since the file came from a stranger.
fn guarded<T>(
    file: &Path,
    doing: &'static str,
    work: impl FnOnce() -> T,
) -> Result<T, TokenizerError> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| TokenizerError::Panicked {
        file: file.to_owned(),
        doing,
        reason: panic_message(panic.as_ref()),
    })
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic".to_owned())
}

fn refuse_dropout(file: &Path, tokenizer: &serde_json::Value) -> Result<(), TokenizerError> {
    match tokenizer["model"]["dropout"].as_f64() {
        Some(dropout) if dropout != 0.0 => {
            Err(TokenizerError::Dropout { file: file.to_owned(), dropout: dropout as f32 })
        }
        _ => Ok(()),
    }
}

fn other_files(dir: &Path) -> String {
    let known = ["tokenizer.model", "vocab.json", "merges.txt", "tokenizer_config.json"];
    let found: Vec<&str> = known.into_iter().filter(|name| dir.join(name).is_file()).collect();
    if found.is_empty() { String::new() } else { format!(" (only {})", found.join(", ")) }
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
