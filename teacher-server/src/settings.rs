//! The server's bounds, as set and as they come out for a particular model.

use distill::codec::{Codec, Layout};
use distill::handshake::{Limits, PROTOCOL_VERSION, SignalKind, TeacherFacts};
use proto::limits::{DEFAULT_LIMITS, MAX_MESSAGE_BYTES, MIN_REPLY_BYTES, TEXT_BYTES_A_TOKEN};

use crate::scorer::Facts;

/// Room in a message beside its arrays: field tags, lengths, checksums, fingerprint, timings.
pub const MESSAGE_OVERHEAD: usize = 512;

/// The bounds a person sets. `GetInfo` tells them; docs/wire.md describes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Longest sequence, in tokens; none means what the model's positions allow.
    pub max_sequence_tokens: Option<u32>,
    /// Longest text, in bytes; none means [`TEXT_BYTES_A_TOKEN`] for each token of the longest
    /// sequence, as far as a request has room.
    pub max_text_bytes: Option<u32>,
    /// The others; the two above stand here once the model is known.
    pub limits: Limits,
}

/// Bounds that cannot hold together for this model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Longer sequences than the model has positions for.
    #[error(
        "--max-sequence-tokens {wanted} is more than the {positions} positions of {model}; lower it"
    )]
    Positions {
        /// What was set.
        wanted: usize,
        /// What the model has.
        positions: usize,
        /// The model.
        model: String,
    },
    /// The longest sequence does not fit into the largest request.
    #[error(
        "a sequence of {tokens} tokens does not fit into --max-request-bytes {bytes}; raise it to \
         {needed} or set --max-sequence-tokens lower"
    )]
    RequestBytes {
        /// Longest sequence.
        tokens: usize,
        /// Largest request.
        bytes: usize,
        /// What the sequence needs.
        needed: usize,
    },
    /// The longest text does not fit into the largest request.
    #[error(
        "--max-text-bytes {wanted} does not fit into --max-request-bytes {bytes}, which has room \
         for {room}; lower it or raise that"
    )]
    TextBytes {
        /// What was set.
        wanted: usize,
        /// Largest request.
        bytes: usize,
        /// What it has room for.
        room: usize,
    },
    /// One position with the largest k does not fit into a reply.
    #[error(
        "a position with k = {k} takes up to {needed} bytes and --max-reply-bytes is {bytes}; \
         raise it or lower --max-top-k"
    )]
    ReplyBytes {
        /// Largest k this model can be asked for.
        k: usize,
        /// Largest reply.
        bytes: usize,
        /// What the position needs.
        needed: usize,
    },
    /// No room for one request to arrive in.
    #[error(
        "--max-unfinished-bytes {unfinished} is less than {flag} {request}: the largest request \
         could never arrive; raise it or lower that"
    )]
    UnfinishedBytes {
        /// What was set.
        unfinished: usize,
        /// Which bound on a request.
        flag: &'static str,
        /// Largest request.
        request: usize,
    },
    /// Less room for all answers than for those of one stream.
    #[error(
        "--max-held-bytes {all} is less than --max-held-bytes-per-stream {stream}; raise it or lower \
         that"
    )]
    HeldBytes {
        /// What was set for all.
        all: usize,
        /// What was set for a stream.
        stream: usize,
    },
    /// A reply size clients do not accept.
    #[error("--max-reply-bytes {bytes}: clients accept {MIN_REPLY_BYTES} to {MAX_MESSAGE_BYTES}")]
    ReplyRange {
        /// What was set.
        bytes: usize,
    },
    /// A tokenizer with ids the model has no row for.
    #[error(
        "the tokenizer of {model} has ids up to {largest_id}, its output matrix {vocab_size} rows; \
         tokenizer and weights are of different models"
    )]
    Tokenizer {
        /// The model.
        model: String,
        /// Largest id.
        largest_id: u32,
        /// Rows.
        vocab_size: u32,
    },
}

impl Settings {
    /// What the flags default to: the contract's numbers where it names any.
    pub const DEFAULT: Self =
        Self { max_sequence_tokens: None, max_text_bytes: None, limits: DEFAULT_LIMITS };

    /// The defaults with some limits changed.
    pub fn with(change: impl FnOnce(&mut Limits)) -> Self {
        let mut settings = Self::DEFAULT;
        change(&mut settings.limits);
        settings
    }

    /// Everything the server states of itself once this model is loaded.
    ///
    /// # Errors
    /// Bounds that cannot hold together.
    pub fn resolve(&self, facts: &Facts) -> Result<TeacherFacts, SettingsError> {
        if facts.tokenizer_size > facts.vocab_size {
            return Err(SettingsError::Tokenizer {
                model: facts.model.clone(),
                largest_id: facts.tokenizer_size - 1,
                vocab_size: facts.vocab_size,
            });
        }
        let max_sequence_tokens = self.longest_sequence(facts)?;
        let max_text_bytes = self.longest_text(max_sequence_tokens)?;
        self.check_reply(facts)?;
        let unfinished = self.limits.max_unfinished_bytes;
        let largest = [
            ("--max-request-bytes", self.limits.max_request_bytes),
            ("--max-http-body-bytes", self.limits.max_http_body_bytes),
        ];
        for (flag, request) in largest {
            if unfinished < request {
                return Err(SettingsError::UnfinishedBytes { unfinished, flag, request });
            }
        }
        let (all, stream) = (self.limits.max_held_bytes, self.limits.max_held_bytes_per_stream);
        if all < stream {
            return Err(SettingsError::HeldBytes { all, stream });
        }
        Ok(TeacherFacts {
            model: facts.model.clone(),
            revision: facts.revision.clone(),
            model_fingerprint: facts.model_fingerprint,
            tokenizer_fingerprint: facts.tokenizer_fingerprint,
            vocab_size: facts.vocab_size as usize,
            tokenizer_size: facts.tokenizer_size as usize,
            hidden_size: facts.hidden_size as usize,
            limits: Limits { max_sequence_tokens, max_text_bytes, ..self.limits },
            signals: signals(facts),
            codecs: Codec::ALL.to_vec(),
            protocol_version: PROTOCOL_VERSION,
            server_version: env!("CARGO_PKG_VERSION").to_owned(),
            dtype: facts.dtype.clone(),
            device: facts.device.clone(),
            parameters: facts.parameters,
        })
    }

    fn longest_sequence(&self, facts: &Facts) -> Result<usize, SettingsError> {
        let positions = facts.max_positions as usize;
        let fits = self.limits.max_request_bytes.saturating_sub(MESSAGE_OVERHEAD) / 4;
        match self.max_sequence_tokens.map(|tokens| tokens as usize) {
            // Nobody asked for the very longest, so the request's bound decides.
            None if fits > 0 => Ok(positions.min(fits)),
            None => Err(self.request_too_small(positions)),
            Some(wanted) if wanted > positions => {
                let model = facts.model.clone();
                Err(SettingsError::Positions { wanted, positions, model })
            }
            Some(wanted) if wanted > fits => Err(self.request_too_small(wanted)),
            Some(wanted) => Ok(wanted),
        }
    }

    fn longest_text(&self, tokens: usize) -> Result<usize, SettingsError> {
        let bytes = self.limits.max_request_bytes;
        let room = bytes.saturating_sub(MESSAGE_OVERHEAD);
        match self.max_text_bytes.map(|bytes| bytes as usize) {
            None => Ok(tokens.saturating_mul(TEXT_BYTES_A_TOKEN).min(room)),
            Some(wanted) if wanted > room => Err(SettingsError::TextBytes { wanted, bytes, room }),
            Some(wanted) => Ok(wanted),
        }
    }

    fn request_too_small(&self, tokens: usize) -> SettingsError {
        let needed = tokens * 4 + MESSAGE_OVERHEAD;
        SettingsError::RequestBytes { tokens, bytes: self.limits.max_request_bytes, needed }
    }

    fn check_reply(&self, facts: &Facts) -> Result<(), SettingsError> {
        let bytes = self.limits.max_reply_bytes;
        if !(MIN_REPLY_BYTES..=MAX_MESSAGE_BYTES).contains(&bytes) {
            return Err(SettingsError::ReplyRange { bytes });
        }
        let k = self.limits.max_top_k.min(facts.vocab_size as usize);
        let classes = Some(facts.vocab_size as usize);
        let row = |codec| Layout { codec, classes }.bytes(1, k);
        let needed = Codec::ALL.map(row).into_iter().max().unwrap_or(0) + 4 + MESSAGE_OVERHEAD;
        if needed > bytes {
            return Err(SettingsError::ReplyBytes { k, bytes, needed });
        }
        Ok(())
    }
}

/// What a model can be asked for.
fn signals(facts: &Facts) -> Vec<SignalKind> {
    let hidden = |kind: &SignalKind| matches!(kind, SignalKind::Full | SignalKind::Coded);
    let all = SignalKind::ALL.into_iter();
    all.filter(|kind| facts.hidden_size > 0 || !hidden(kind)).collect()
}

impl Default for Settings {
    fn default() -> Self {
        Self::DEFAULT
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::facts;

    #[test]
    fn the_models_positions_bound_the_sequence_unless_a_flag_or_the_request_does() {
        let longest = |settings: Settings| {
            settings.resolve(&facts(32)).map(|facts| facts.limits.max_sequence_tokens)
        };
        let with = |max_sequence_tokens, max_request_bytes| Settings {
            max_sequence_tokens,
            ..Settings::with(|limits| limits.max_request_bytes = max_request_bytes)
        };
        let positions = facts(32).max_positions;
        assert_eq!(longest(Settings::DEFAULT), Ok(positions as usize));
        assert_eq!(longest(with(Some(7), 4096)), Ok(7));
        assert_eq!(longest(with(None, 512 + 4 * 9 + 3)), Ok(9));
        let refused = longest(with(Some(positions + 1), 1 << 20)).unwrap_err().to_string();
        assert!(refused.contains("--max-sequence-tokens"), "{refused}");
        assert!(refused.contains(&format!("{} positions", positions)), "{refused}");
        let refused = longest(with(Some(10), 512 + 39)).unwrap_err().to_string();
        assert!(refused.contains("--max-request-bytes 551; raise it to 552"), "{refused}");
    }

    #[test]
    fn a_text_has_16_bytes_a_token_unless_a_flag_or_the_request_says_less() {
        let longest = |max_text_bytes, max_request_bytes| {
            let bounds = Settings::with(|limits| limits.max_request_bytes = max_request_bytes);
            let settings = Settings { max_sequence_tokens: Some(100), max_text_bytes, ..bounds };
            let facts = settings.resolve(&facts(32));
            facts.map(|facts| facts.limits.max_text_bytes).map_err(|refused| refused.to_string())
        };
        assert_eq!(longest(None, 4096), Ok(1600));
        assert_eq!(longest(None, 512 + 1000), Ok(1000));
        assert_eq!(longest(Some(3000), 4096), Ok(3000));
        let refused = longest(Some(3585), 4096).unwrap_err();
        assert!(refused.contains("--max-text-bytes 3585"), "{refused}");
        assert!(refused.contains("--max-request-bytes 4096"), "{refused}");
        assert!(refused.contains("room for 3584"), "{refused}");
    }

    #[test]
    fn one_position_of_the_largest_k_fits_into_a_reply() {
        // Raw, k = 1000: 8 bytes an entry, 8 a position, 4 for the next token, and the overhead.
        let needed = 1000 * 8 + 8 + 4 + MESSAGE_OVERHEAD;
        let with = |max_reply_bytes| {
            let settings = Settings::with(|limits| {
                limits.max_reply_bytes = max_reply_bytes;
                limits.max_top_k = 1000;
            });
            settings.resolve(&facts(2000)).map(|_| ()).map_err(|refused| refused.to_string())
        };
        assert_eq!(with(needed), Ok(()));
        let refused = with(needed - 1).unwrap_err();
        assert!(refused.contains("k = 1000") && refused.contains("--max-top-k"), "{refused}");
        for bytes in [4095, (4 << 20) + 1] {
            let refused = with(bytes).unwrap_err();
            assert!(refused.contains("clients accept 4096 to 4194304"), "{refused}");
        }
    }

    #[test]
    fn the_largest_request_of_either_port_can_arrive() {
        let with = |unfinished, request, body| {
            let settings = Settings::with(|limits| {
                limits.max_unfinished_bytes = unfinished;
                limits.max_request_bytes = request;
                limits.max_http_body_bytes = body;
            });
            settings.resolve(&facts(32)).map(|_| ()).map_err(|refused| refused.to_string())
        };
        assert_eq!(with(5000, 5000, 5000), Ok(()));
        let refused = with(4999, 5000, 10).unwrap_err();
        assert!(refused.contains("4999 is less than --max-request-bytes 5000"), "{refused}");
        let refused = with(4999, 4000, 5000).unwrap_err();
        assert!(refused.contains("4999 is less than --max-http-body-bytes 5000"), "{refused}");
    }

    #[test]
    fn what_a_stream_may_have_held_all_may() {
        let with = |all, stream| {
            let settings = Settings::with(|limits| {
                limits.max_held_bytes = all;
                limits.max_held_bytes_per_stream = stream;
            });
            settings.resolve(&facts(32)).map(|_| ()).map_err(|refused| refused.to_string())
        };
        assert_eq!(with(5000, 5000), Ok(()));
        let refused = with(4999, 5000).unwrap_err();
        assert!(
            refused.contains("4999 is less than --max-held-bytes-per-stream 5000"),
            "{refused}"
        );
    }

    #[test]
    fn a_tokenizer_larger_than_the_output_is_refused() {
        let facts = Facts { tokenizer_size: 33, ..facts(32) };
        let refused = Settings::DEFAULT.resolve(&facts).unwrap_err().to_string();
        assert!(refused.contains("up to 32") && refused.contains("32 rows"), "{refused}");
    }
}
