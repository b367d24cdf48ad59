//! Sizes both sides must agree on, and a server's bounds where nobody sets others.

use std::time::Duration;

use distill::handshake::Limits;

/// Largest reply, in bytes: stock clients of every language accept 4 MiB.
pub const MAX_REPLY_BYTES: usize = 1 << 20;

/// Most draws a position.
pub const MAX_DRAWS: u32 = 1024;

/// Smallest bound a server may set on its replies, in bytes.
pub const MIN_REPLY_BYTES: usize = 4 << 10;

/// Largest message either side reads, in bytes: tonic's own default, so that a stock peer's limit
/// and ours are the same. A teacher that announces larger replies is refused.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// Lowest temperature: below it `logit / T` leaves the range in which float32 tells logits apart.
pub const MIN_TEMPERATURE: f32 = 1e-4;

/// Highest temperature: above it every distribution is flat to float32.
pub const MAX_TEMPERATURE: f32 = 1e6;

/// Candidates a position that `ScoreText` shows where none is asked for.
pub const DEFAULT_TEXT_TOP_K: usize = 5;

/// Most candidates a position that `ScoreText` shows.
pub const MAX_TEXT_TOP_K: usize = 1024;

/// Bytes of text `ScoreText` takes for each token of the longest sequence where nobody sets another
/// bound. Every token of a byte-level tokenizer is at least one byte; prose and code have 3 to 5 a
/// token, so a text beyond this bound has too many tokens unless it consists of long runs of blanks
/// or dashes. It is refused before the tokenizer, which takes hundreds of bytes for each of the
/// text's, has seen it.
pub const TEXT_BYTES_A_TOKEN: usize = 16;

/// A server's bounds where nobody sets others. Beside these a sequence is never longer than the
/// model's positions: here Qwen3's.
pub const DEFAULT_LIMITS: Limits = Limits {
    max_sequence_tokens: 40_960,
    max_top_k: 1024,
    max_reply_bytes: MAX_REPLY_BYTES,
    max_request_bytes: MAX_MESSAGE_BYTES,
    max_in_flight_per_stream: 64,
    max_batch_tokens: 16_384,
    max_queued_sequences: 512,
    max_queued_tokens: 65_536,
    max_text_bytes: 655_360,
    max_connections: 256,
    max_streams_per_connection: 128,
    max_held_bytes_per_stream: 64 << 20,
    max_held_bytes: 1 << 30,
    max_unfinished_bytes: 64 << 20,
    max_http_body_bytes: 16 << 20,
    max_encoding_texts: 64,
    stream_timeout: Duration::from_secs(86_400),
    stream_idle_timeout: Duration::from_secs(600),
    message_timeout: Duration::from_secs(30),
    reader_timeout: Duration::from_secs(60),
    batch_wait: Duration::from_millis(2),
    idle_timeout: Duration::from_secs(60),
    drain_timeout: Duration::from_secs(45),
};

#[cfg(test)]
mod tests {
    use super::*;

    /// A number with a comma between thousands.
    fn grouped(number: usize) -> String {
        let digits = number.to_string();
        let groups = digits.as_bytes().rchunks(3).rev();
        let texts: Vec<String> = groups.map(|g| String::from_utf8_lossy(g).to_string()).collect();
        texts.join(",")
    }

    #[test]
    fn the_contract_and_wire_md_name_these_numbers() {
        let contract = include_str!("../distill/v1/teacher.proto");
        let wire = include_str!("../../docs/wire.md");
        let temperatures = format!("{MIN_TEMPERATURE} to {}", grouped(MAX_TEMPERATURE as usize));
        let text_default = format!("absent means {DEFAULT_TEXT_TOP_K};");
        let text_most = format!("at most {}", grouped(MAX_TEXT_TOP_K));
        for number in [&temperatures, &text_default, &text_most] {
            assert!(contract.contains(number.as_str()), "teacher.proto does not say {number:?}");
        }
        let limits = DEFAULT_LIMITS;
        for (name, number) in [
            ("max_top_k", limits.max_top_k),
            ("max_reply_bytes", limits.max_reply_bytes),
            ("max_request_bytes", limits.max_request_bytes),
            ("max_in_flight_per_stream", limits.max_in_flight_per_stream),
            ("max_batch_tokens", limits.max_batch_tokens),
            ("max_queued_sequences", limits.max_queued_sequences),
            ("max_queued_tokens", limits.max_queued_tokens),
            ("max_connections", limits.max_connections),
            ("max_streams_per_connection", limits.max_streams_per_connection),
            ("max_held_bytes_per_stream", limits.max_held_bytes_per_stream),
            ("max_held_bytes", limits.max_held_bytes),
            ("max_unfinished_bytes", limits.max_unfinished_bytes),
            ("max_http_body_bytes", limits.max_http_body_bytes),
            ("max_encoding_texts", limits.max_encoding_texts),
            ("max_stream_seconds", limits.stream_timeout.as_secs() as usize),
            ("idle_stream_seconds", limits.stream_idle_timeout.as_secs() as usize),
            ("message_seconds", limits.message_timeout.as_secs() as usize),
            ("stalled_reader_seconds", limits.reader_timeout.as_secs() as usize),
            ("batch_wait_ms", limits.batch_wait.as_millis() as usize),
            ("idle_connection_seconds", limits.idle_timeout.as_secs() as usize),
            ("drain_seconds", limits.drain_timeout.as_secs() as usize),
        ] {
            let row = format!("| `{name}` | {} |", grouped(number));
            assert!(wire.contains(&row), "docs/wire.md has no row {row:?}");
        }
        assert!(wire.contains(&temperatures));
        let text = format!("| `max_text_bytes` | {TEXT_BYTES_A_TOKEN} · `max_sequence_tokens`");
        assert!(wire.contains(&text), "docs/wire.md does not say {text:?}");
        let of_tokens = TEXT_BYTES_A_TOKEN * limits.max_sequence_tokens;
        assert_eq!(limits.max_text_bytes, of_tokens);
    }
}
