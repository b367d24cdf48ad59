//! The bounds as flags.

use std::time::Duration;

use clap::Args;
use distill::handshake::Limits;
use proto::limits::DEFAULT_LIMITS;

use crate::settings::Settings;

/// The server's bounds; `GetInfo` tells them to clients.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Bounds")]
pub struct BoundArgs {
    /// Longest sequence, in tokens [default: what the model's positions allow].
    #[arg(long, value_name = "N", env = "TEACHER_SERVER_MAX_SEQUENCE_TOKENS")]
    #[arg(value_parser = at_least_1)]
    pub max_sequence_tokens: Option<u32>,
    /// Tokens computed at once; a longer sequence is computed alone.
    #[arg(long, value_name = "N", env = "TEACHER_SERVER_MAX_BATCH_TOKENS")]
    #[arg(default_value_t = DEFAULT_LIMITS.max_batch_tokens as u32, value_parser = at_least_1)]
    pub max_batch_tokens: u32,
    /// Largest k of a top-k signal; on a card at most 2048.
    #[arg(long, value_name = "K", env = "TEACHER_SERVER_MAX_TOP_K")]
    #[arg(default_value_t = DEFAULT_LIMITS.max_top_k as u32, value_parser = at_least_1)]
    pub max_top_k: u32,
    /// Sequences that may wait for the device, over all clients.
    #[arg(long, value_name = "N", env = "TEACHER_SERVER_MAX_QUEUED_SEQUENCES")]
    #[arg(default_value_t = DEFAULT_LIMITS.max_queued_sequences as u32, value_parser = at_least_1)]
    pub max_queued_sequences: u32,
    /// Tokens that may wait for the device, over all clients.
    #[arg(long, value_name = "N", env = "TEACHER_SERVER_MAX_QUEUED_TOKENS")]
    #[arg(default_value_t = DEFAULT_LIMITS.max_queued_tokens as u32, value_parser = at_least_1)]
    pub max_queued_tokens: u32,
    /// Unanswered requests of one stream before the server stops reading it.
    #[arg(long, value_name = "N", env = "TEACHER_SERVER_MAX_IN_FLIGHT_PER_STREAM")]
    #[arg(default_value_t = DEFAULT_LIMITS.max_in_flight_per_stream as u32, value_parser = at_least_1)]
    pub max_in_flight_per_stream: u32,
    /// Largest reply message, in bytes; `KiB` and `MiB` are understood.
    #[arg(long, value_name = "BYTES", env = "TEACHER_SERVER_MAX_REPLY_BYTES")]
    #[arg(default_value_t = DEFAULT_LIMITS.max_reply_bytes as u32, value_parser = bytes)]
    pub max_reply_bytes: u32,
    /// Largest request message, in bytes; `KiB` and `MiB` are understood.
    #[arg(long, value_name = "BYTES", env = "TEACHER_SERVER_MAX_REQUEST_BYTES")]
    #[arg(default_value_t = DEFAULT_LIMITS.max_request_bytes as u32, value_parser = bytes)]
    pub max_request_bytes: u32,
    /// Longest text of `ScoreText`, in bytes [default: 16 for each token of the longest sequence, as
    /// far as a request has room].
    #[arg(long, value_name = "BYTES", env = "TEACHER_SERVER_MAX_TEXT_BYTES", value_parser = bytes)]
    pub max_text_bytes: Option<u32>,
    /// Milliseconds the first sequence of a batch waits for company while the device is idle.
    #[arg(long, value_name = "MS", env = "TEACHER_SERVER_BATCH_WAIT")]
    #[arg(default_value_t = DEFAULT_LIMITS.batch_wait.as_millis() as u32)]
    pub batch_wait: u32,
    /// Calls open at a time on one connection.
    #[arg(long, value_name = "N", env = "TEACHER_SERVER_MAX_STREAMS_PER_CONNECTION")]
    #[arg(default_value_t = DEFAULT_LIMITS.max_streams_per_connection as u32)]
    #[arg(value_parser = at_least_1)]
    pub max_streams_per_connection: u32,
    /// Bytes of answers one stream may have the server hold before it is read no further.
    #[arg(long, value_name = "BYTES", env = "TEACHER_SERVER_MAX_HELD_BYTES_PER_STREAM")]
    #[arg(default_value_t = DEFAULT_LIMITS.max_held_bytes_per_stream as u32, value_parser = bytes)]
    pub max_held_bytes_per_stream: u32,
    /// Bytes of answers that are not computed or not read yet, over all clients; a client may have as
    /// many as are still free.
    #[arg(long, value_name = "BYTES", env = "TEACHER_SERVER_MAX_HELD_BYTES")]
    #[arg(default_value_t = DEFAULT_LIMITS.max_held_bytes as u32, value_parser = bytes)]
    pub max_held_bytes: u32,
    /// Bytes of request messages that have begun and are not complete, over all clients.
    #[arg(long, value_name = "BYTES", env = "TEACHER_SERVER_MAX_UNFINISHED_BYTES")]
    #[arg(default_value_t = DEFAULT_LIMITS.max_unfinished_bytes as u32, value_parser = bytes)]
    pub max_unfinished_bytes: u32,
    /// Largest body of a request on the HTTP port, in bytes; `KiB` and `MiB` are understood.
    #[arg(long, value_name = "BYTES", env = "TEACHER_SERVER_MAX_HTTP_BODY_BYTES")]
    #[arg(default_value_t = DEFAULT_LIMITS.max_http_body_bytes as u32, value_parser = bytes)]
    pub max_http_body_bytes: u32,
    /// Texts of `ScoreText` encoded at a time or waiting for it, over all clients.
    #[arg(long, value_name = "N", env = "TEACHER_SERVER_MAX_ENCODING_TEXTS")]
    #[arg(default_value_t = DEFAULT_LIMITS.max_encoding_texts as u32, value_parser = at_least_1)]
    pub max_encoding_texts: u32,
    /// Seconds a stream may be open; what was admitted is answered, then it ends.
    #[arg(long, value_name = "SECONDS", env = "TEACHER_SERVER_STREAM_TIMEOUT")]
    #[arg(default_value_t = DEFAULT_LIMITS.stream_timeout.as_secs() as u32)]
    #[arg(value_parser = at_least_1)]
    pub stream_timeout: u32,
    /// Seconds a stream may be open without a request and without an answer owed.
    #[arg(long, value_name = "SECONDS", env = "TEACHER_SERVER_STREAM_IDLE_TIMEOUT")]
    #[arg(default_value_t = DEFAULT_LIMITS.stream_idle_timeout.as_secs() as u32)]
    #[arg(value_parser = at_least_1)]
    pub stream_idle_timeout: u32,
    /// Seconds in which a request message that has begun must be complete.
    #[arg(long, value_name = "SECONDS", env = "TEACHER_SERVER_MESSAGE_TIMEOUT")]
    #[arg(default_value_t = DEFAULT_LIMITS.message_timeout.as_secs() as u32)]
    #[arg(value_parser = at_least_1)]
    pub message_timeout: u32,
    /// Seconds a client may leave an answer unread before its stream is cut.
    #[arg(long, value_name = "SECONDS", env = "TEACHER_SERVER_READER_TIMEOUT")]
    #[arg(default_value_t = DEFAULT_LIMITS.reader_timeout.as_secs() as u32)]
    #[arg(value_parser = at_least_1)]
    pub reader_timeout: u32,
    /// Connections open at a time, on each of the two ports; an address may have as many as are still
    /// free, alone half of them.
    #[arg(long, value_name = "N", env = "TEACHER_SERVER_MAX_CONNECTIONS")]
    #[arg(default_value_t = DEFAULT_LIMITS.max_connections as u32, value_parser = at_least_1)]
    pub max_connections: u32,
    /// Seconds a connection may be open without a call on it, an open stream being one; the HTTP
    /// port allows at most 20.
    #[arg(long, value_name = "SECONDS", env = "TEACHER_SERVER_IDLE_TIMEOUT")]
    #[arg(default_value_t = DEFAULT_LIMITS.idle_timeout.as_secs() as u32)]
    #[arg(value_parser = at_least_1)]
    pub idle_timeout: u32,
    /// Seconds after SIGTERM in which admitted work may finish; then the process ends.
    #[arg(long, value_name = "SECONDS", env = "TEACHER_SERVER_DRAIN_TIMEOUT")]
    #[arg(default_value_t = DEFAULT_LIMITS.drain_timeout.as_secs() as u32)]
    pub drain_timeout: u32,
}

impl From<&BoundArgs> for Settings {
    fn from(args: &BoundArgs) -> Self {
        let seconds = |count: u32| Duration::from_secs(count.into());
        let limits = Limits {
            max_top_k: args.max_top_k as usize,
            max_reply_bytes: args.max_reply_bytes as usize,
            max_request_bytes: args.max_request_bytes as usize,
            max_in_flight_per_stream: args.max_in_flight_per_stream as usize,
            max_batch_tokens: args.max_batch_tokens as usize,
            max_queued_sequences: args.max_queued_sequences as usize,
            max_queued_tokens: args.max_queued_tokens as usize,
            max_connections: args.max_connections as usize,
            max_streams_per_connection: args.max_streams_per_connection as usize,
            max_held_bytes_per_stream: args.max_held_bytes_per_stream as usize,
            max_held_bytes: args.max_held_bytes as usize,
            max_unfinished_bytes: args.max_unfinished_bytes as usize,
            max_http_body_bytes: args.max_http_body_bytes as usize,
            max_encoding_texts: args.max_encoding_texts as usize,
            stream_timeout: seconds(args.stream_timeout),
            stream_idle_timeout: seconds(args.stream_idle_timeout),
            message_timeout: seconds(args.message_timeout),
            reader_timeout: seconds(args.reader_timeout),
            idle_timeout: seconds(args.idle_timeout),
            drain_timeout: seconds(args.drain_timeout),
            batch_wait: Duration::from_millis(args.batch_wait.into()),
            ..DEFAULT_LIMITS
        };
        Self {
            max_sequence_tokens: args.max_sequence_tokens,
            max_text_bytes: args.max_text_bytes,
            limits,
        }
    }
}

pub(super) fn at_least_1(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(0) => Err("must be at least 1".into()),
        Ok(n) => Ok(n),
        Err(_) => Err(format!("must be a whole number from 1 to {}", u32::MAX)),
    }
}

fn bytes(text: &str) -> Result<u32, String> {
    let (number, unit) = [("KiB", 10), ("MiB", 20), ("GiB", 30)]
        .into_iter()
        .find_map(|(suffix, shift)| Some((text.strip_suffix(suffix)?.trim_end(), 1u32 << shift)))
        .unwrap_or((text, 1));
    match number.parse::<u32>().map(|number| number.checked_mul(unit)) {
        Ok(Some(0)) => Err("must be at least 1 byte: there is no 0 for no bound".into()),
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(format!("must be at most {} bytes (4 GiB less 1)", u32::MAX)),
        Err(_) => Err("must be a number of bytes, as 1048576, 1024KiB, 1MiB or 1GiB".into()),
    }
}
