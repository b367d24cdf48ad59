//! The server's bounds, as set and as they come out for a particular model.

use std::time::Duration;

use distill::codec::{Codec, Layout};
use distill::handshake::{Limits, PROTOCOL_VERSION, SignalKind, TeacherFacts};
use proto::limits::{DEFAULT_LIMITS, MAX_MESSAGE_BYTES, MIN_REPLY_BYTES, TEXT_BYTES_A_TOKEN};

use crate::scorer::Facts;

/// Room in a message beside its arrays: field tags, lengths, checksums, fingerprint, timings.
pub const MESSAGE_OVERHEAD: u32 = 512;

/// The bounds a person sets. `GetInfo` tells them; docs/wire.md describes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Longest sequence, in tokens; none means what the model's positions allow.
    pub max_sequence_tokens: Option<u32>,
    /// Tokens computed at once; a longer sequence is computed alone.
    pub max_batch_tokens: u32,
    /// Largest k.
    pub max_top_k: u32,
    /// Sequences that may wait, over all clients.
    pub max_queued_sequences: u32,
    /// Tokens that may wait, over all clients.
    pub max_queued_tokens: u32,
    /// Unanswered requests of one stream before the server stops reading it.
    pub max_in_flight_per_stream: u32,
    /// Largest reply message, in bytes.
    pub max_reply_bytes: u32,
    /// Largest request message, in bytes.
    pub max_request_bytes: u32,
    /// Longest text, in bytes; none means [`TEXT_BYTES_A_TOKEN`] for each token of the longest
    /// sequence, as far as a request has room.
    pub max_text_bytes: Option<u32>,
    /// How long the first sequence of a batch waits for company.
    pub batch_wait: Duration,
    /// Connections open at a time, on each port.
    pub max_connections: u32,
    /// Calls open at a time on one connection.
    pub max_streams_per_connection: u32,
    /// Bytes of answers one stream may have the server hold before it is read no further.
    pub max_held_bytes_per_stream: u32,
    /// Bytes of unfinished request messages held, over all clients.
    pub max_unfinished_bytes: u32,
    /// Texts encoded at a time or waiting for it, over all clients.
    pub max_encoding_texts: u32,
    /// How long a stream may be open.
    pub stream_timeout: Duration,
    /// How long a stream may be open without a request and without an answer owed.
    pub stream_idle_timeout: Duration,
    /// Time in which a message that has begun must be complete.
    pub message_timeout: Duration,
    /// How long an answer may be left unread before its stream is cut.
    pub reader_timeout: Duration,
    /// How long a connection may be without an open call.
    pub idle_timeout: Duration,
    /// How long admitted work may take after the server was told to stop.
    pub drain_timeout: Duration,
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
        wanted: u32,
        /// What the model has.
        positions: u32,
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
        tokens: u32,
        /// Largest request.
        bytes: u32,
        /// What the sequence needs.
        needed: u64,
    },
    /// The longest text does not fit into the largest request.
    #[error(
        "--max-text-bytes {wanted} does not fit into --max-request-bytes {bytes}, which has room \
         for {room}; lower it or raise that"
    )]
    TextBytes {
        /// What was set.
        wanted: u32,
        /// Largest request.
        bytes: u32,
        /// What it has room for.
        room: u32,
    },
    /// One position with the largest k does not fit into a reply.
    #[error(
        "a position with k = {k} takes up to {needed} bytes and --max-reply-bytes is {bytes}; \
         raise it or lower --max-top-k"
    )]
    ReplyBytes {
        /// Largest k this model can be asked for.
        k: u32,
        /// Largest reply.
        bytes: u32,
        /// What the position needs.
        needed: u64,
    },
    /// No room for one request to arrive in.
    #[error(
        "--max-unfinished-bytes {unfinished} is less than --max-request-bytes {request}: the \
         largest request could never arrive; raise it"
    )]
    UnfinishedBytes {
        /// What was set.
        unfinished: u32,
        /// Largest request.
        request: u32,
    },
    /// A reply size clients do not accept.
    #[error("--max-reply-bytes {bytes}: clients accept {MIN_REPLY_BYTES} to {MAX_MESSAGE_BYTES}")]
    ReplyRange {
        /// What was set.
        bytes: u32,
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
    pub const DEFAULT: Self = Self {
        max_sequence_tokens: None,
        max_batch_tokens: DEFAULT_LIMITS.max_batch_tokens as u32,
        max_top_k: DEFAULT_LIMITS.max_top_k as u32,
        max_queued_sequences: DEFAULT_LIMITS.max_queued_sequences as u32,
        max_queued_tokens: DEFAULT_LIMITS.max_queued_tokens as u32,
        max_in_flight_per_stream: DEFAULT_LIMITS.max_in_flight_per_stream as u32,
        max_reply_bytes: DEFAULT_LIMITS.max_reply_bytes as u32,
        max_request_bytes: DEFAULT_LIMITS.max_request_bytes as u32,
        max_text_bytes: None,
        batch_wait: Duration::from_millis(2),
        max_connections: DEFAULT_LIMITS.max_connections as u32,
        max_streams_per_connection: DEFAULT_LIMITS.max_streams_per_connection as u32,
        max_held_bytes_per_stream: DEFAULT_LIMITS.max_held_bytes_per_stream as u32,
        max_unfinished_bytes: DEFAULT_LIMITS.max_unfinished_bytes as u32,
        max_encoding_texts: DEFAULT_LIMITS.max_encoding_texts as u32,
        stream_timeout: Duration::from_secs(DEFAULT_LIMITS.max_stream_seconds as u64),
        stream_idle_timeout: Duration::from_secs(DEFAULT_LIMITS.idle_stream_seconds as u64),
        message_timeout: Duration::from_secs(DEFAULT_LIMITS.message_seconds as u64),
        reader_timeout: Duration::from_secs(DEFAULT_LIMITS.stalled_reader_seconds as u64),
        idle_timeout: Duration::from_secs(60),
        drain_timeout: Duration::from_secs(45),
    };

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
        if self.max_unfinished_bytes < self.max_request_bytes {
            let (unfinished, request) = (self.max_unfinished_bytes, self.max_request_bytes);
            return Err(SettingsError::UnfinishedBytes { unfinished, request });
        }
        Ok(TeacherFacts {
            model: facts.model.clone(),
            revision: facts.revision.clone(),
            model_fingerprint: facts.model_fingerprint,
            tokenizer_fingerprint: facts.tokenizer_fingerprint,
            vocab_size: facts.vocab_size as usize,
            tokenizer_size: facts.tokenizer_size as usize,
            limits: Limits {
                max_sequence_tokens: max_sequence_tokens as usize,
                max_top_k: self.max_top_k as usize,
                max_reply_bytes: self.max_reply_bytes as usize,
                max_request_bytes: self.max_request_bytes as usize,
                max_in_flight_per_stream: self.max_in_flight_per_stream as usize,
                max_batch_tokens: self.max_batch_tokens as usize,
                max_queued_sequences: self.max_queued_sequences as usize,
                max_queued_tokens: self.max_queued_tokens as usize,
                max_text_bytes: max_text_bytes as usize,
                max_connections: self.max_connections as usize,
                max_streams_per_connection: self.max_streams_per_connection as usize,
                max_held_bytes_per_stream: self.max_held_bytes_per_stream as usize,
                max_unfinished_bytes: self.max_unfinished_bytes as usize,
                max_encoding_texts: self.max_encoding_texts as usize,
                max_stream_seconds: seconds(self.stream_timeout),
                idle_stream_seconds: seconds(self.stream_idle_timeout),
                message_seconds: seconds(self.message_timeout),
                stalled_reader_seconds: seconds(self.reader_timeout),
            },
            signals: vec![SignalKind::TopK, SignalKind::Candidates],
            codecs: vec![Codec::Packed, Codec::Raw],
            protocol_version: PROTOCOL_VERSION,
            server_version: env!("CARGO_PKG_VERSION").to_owned(),
            dtype: facts.dtype.clone(),
            device: facts.device.clone(),
            parameters: facts.parameters,
        })
    }

    fn longest_sequence(&self, facts: &Facts) -> Result<u32, SettingsError> {
        let positions = facts.max_positions;
        let fits = self.max_request_bytes.saturating_sub(MESSAGE_OVERHEAD) / 4;
        match self.max_sequence_tokens {
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

    fn longest_text(&self, tokens: u32) -> Result<u32, SettingsError> {
        let bytes = self.max_request_bytes;
        let room = bytes.saturating_sub(MESSAGE_OVERHEAD);
        match self.max_text_bytes {
            None => Ok(tokens.saturating_mul(TEXT_BYTES_A_TOKEN as u32).min(room)),
            Some(wanted) if wanted > room => Err(SettingsError::TextBytes { wanted, bytes, room }),
            Some(wanted) => Ok(wanted),
        }
    }

    fn request_too_small(&self, tokens: u32) -> SettingsError {
        let needed = u64::from(tokens) * 4 + u64::from(MESSAGE_OVERHEAD);
        SettingsError::RequestBytes { tokens, bytes: self.max_request_bytes, needed }
    }

    fn check_reply(&self, facts: &Facts) -> Result<(), SettingsError> {
        let bytes = self.max_reply_bytes;
        if !(MIN_REPLY_BYTES..=MAX_MESSAGE_BYTES).contains(&(bytes as usize)) {
            return Err(SettingsError::ReplyRange { bytes });
        }
        let k = self.max_top_k.min(facts.vocab_size);
        let row = [Codec::Packed, Codec::Raw]
            .map(|codec| Layout { codec, ids: true }.row_bytes(k as usize));
        let needed = row[0].max(row[1]) as u64 + 4 + u64::from(MESSAGE_OVERHEAD);
        if needed > u64::from(bytes) {
            return Err(SettingsError::ReplyBytes { k, bytes, needed });
        }
        Ok(())
    }
}

/// Whole seconds, at least one.
fn seconds(duration: Duration) -> usize {
    usize::try_from(duration.as_secs().max(1)).unwrap_or(usize::MAX)
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
            max_request_bytes,
            ..Settings::DEFAULT
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
            let max_sequence_tokens = Some(100);
            let bounds = Settings { max_text_bytes, max_request_bytes, ..Settings::DEFAULT };
            let facts = Settings { max_sequence_tokens, ..bounds }.resolve(&facts(32));
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
            let settings = Settings { max_reply_bytes, max_top_k: 1000, ..Settings::DEFAULT };
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
    fn a_tokenizer_larger_than_the_output_is_refused() {
        let facts = Facts { tokenizer_size: 33, ..facts(32) };
        let refused = Settings::DEFAULT.resolve(&facts).unwrap_err().to_string();
        assert!(refused.contains("up to 32") && refused.contains("32 rows"), "{refused}");
    }
}
