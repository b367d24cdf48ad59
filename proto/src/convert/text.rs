//! `ScoreText`: text in, plain repeated fields out.

use std::time::Duration;

use distill::handshake::TeacherFacts;
use distill::signal::TopK;

use super::RequestError;
use super::reply::nanoseconds;
use super::request::{check_temperature, check_top_k};
use crate::limits::{DEFAULT_TEXT_TOP_K, MAX_TEXT_TOP_K};
use crate::v1;

/// A text to score: what a `ScoreTextRequest` means. The tokens' number is checked after encoding,
/// by [`TextJob::check_tokens`].
#[derive(Clone, Debug, PartialEq)]
pub struct TextJob {
    /// The text: not empty, at most `max_text_bytes` long.
    pub text: String,
    /// The logits are divided by it.
    pub temperature: f32,
    /// Candidates a position.
    pub k: usize,
}

/// What a request asks, defaults filled in and bounds checked.
///
/// # Errors
/// [`RequestError`].
pub fn text_job(
    request: v1::ScoreTextRequest,
    server: &TeacherFacts,
) -> Result<TextJob, RequestError> {
    if request.text.is_empty() {
        return Err(RequestError::EmptyText);
    }
    let (found, limit) = (request.text.len(), server.limits.max_text_bytes);
    if found > limit {
        return Err(RequestError::TextBytes { found, limit });
    }
    let temperature = if request.temperature == 0.0 { 1.0 } else { request.temperature };
    check_temperature(temperature)?;
    let classes = server.vocab_size;
    let most = MAX_TEXT_TOP_K.min(server.limits.max_top_k);
    let k = match request.top_k as usize {
        0 => DEFAULT_TEXT_TOP_K.min(most).min(classes),
        found if found > MAX_TEXT_TOP_K => {
            return Err(RequestError::TopKLimit { found, limit: most });
        }
        found => found,
    };
    check_top_k(k, classes, server)?;
    Ok(TextJob { text: request.text, temperature, k })
}

impl TextJob {
    /// Whether the text's tokens can be scored.
    ///
    /// # Errors
    /// [`RequestError::EmptyText`] without tokens, [`RequestError::TooLong`] with too many.
    pub fn check_tokens(&self, tokens: usize, server: &TeacherFacts) -> Result<(), RequestError> {
        let limit = server.limits.max_sequence_tokens;
        match tokens {
            0 => Err(RequestError::EmptyText),
            found if found > limit => Err(RequestError::TooLong { found, limit }),
            _ => Ok(()),
        }
    }
}

/// How long an answer took on the server's side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Waiting for the device.
    pub queued: Duration,
    /// Its batch on the device.
    pub computed: Duration,
}

/// The answer: for each token of the text its id and text, and what the teacher expects next.
/// `signal` and `next_logprob` hold one row a token; `next_logprob` is NaN where none follows.
pub fn text_reply(
    job: &TextJob,
    tokens: &[u32],
    (signal, next_logprob): (&TopK, &[f32]),
    times: Times,
    server: &TeacherFacts,
    text_of: impl Fn(u32) -> String,
) -> v1::ScoreTextReply {
    let entries = signal.ids.chunks_exact(signal.k).zip(signal.scaled.chunks_exact(signal.k));
    let rows = entries.zip(&signal.log_z).zip(next_logprob);
    let token = |(&id, (((ids, scaled), &log_z), &next)): (&u32, _)| {
        let (ids, scaled): (&[u32], &[f32]) = (ids, scaled);
        let next_token = |(&id, &scaled): (&u32, &f32)| v1::NextToken {
            id,
            text: text_of(id),
            logprob: scaled - log_z,
            logit: scaled * job.temperature,
        };
        let next_logprob: f32 = next;
        v1::TextToken {
            id,
            text: text_of(id),
            next: ids.iter().zip(scaled).map(next_token).collect(),
            log_z,
            next_logprob: Some(next_logprob).filter(|logprob| !logprob.is_nan()),
        }
    };
    v1::ScoreTextReply {
        tokens: tokens.iter().zip(rows).map(token).collect(),
        temperature: job.temperature,
        model_fingerprint: server.model_fingerprint.to_string(),
        tokenizer_fingerprint: server.tokenizer_fingerprint.to_string(),
        queue_ns: nanoseconds(times.queued),
        compute_ns: nanoseconds(times.computed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::request::tests::server;

    fn request(text: &str, temperature: f32, top_k: u32) -> v1::ScoreTextRequest {
        v1::ScoreTextRequest { text: text.to_string(), temperature, top_k }
    }

    #[test]
    fn absent_fields_have_defaults() {
        let wanted = TextJob { text: "hi".to_string(), temperature: 1.0, k: 5 };
        assert_eq!(text_job(request("hi", 0.0, 0), &server()), Ok(wanted));
        let tiny = TeacherFacts { vocab_size: 3, tokenizer_size: 3, ..server() };
        assert_eq!(text_job(request("hi", 0.0, 0), &tiny).unwrap().k, 3);
    }

    #[test]
    fn bounds_are_those_of_the_contract_and_of_the_server() {
        let refused = |request| text_job(request, &server()).unwrap_err();
        assert_eq!(refused(request("", 1.0, 1)), RequestError::EmptyText);
        let error = refused(request("hi", -1.0, 1));
        assert_eq!(error, RequestError::Temperature { found: -1.0 });
        let error = refused(request("hi", 1.0, 17));
        assert_eq!(error, RequestError::TopKLimit { found: 17, limit: 16 });
        let mut short = server();
        short.limits.max_text_bytes = 5;
        // Bytes, not characters: these are 3 of 2 bytes each.
        let error = text_job(request("äöü", 1.0, 1), &short).unwrap_err();
        assert_eq!(error, RequestError::TextBytes { found: 6, limit: 5 });
        assert!(text_job(request("hallo", 1.0, 1), &short).is_ok());
        let mut large = TeacherFacts { vocab_size: 151_936, ..server() };
        large.limits.max_top_k = 100_000;
        assert_eq!(text_job(request("hi", 1.0, 1024), &large).unwrap().k, 1024);
        let error = text_job(request("hi", 1.0, 1025), &large).unwrap_err();
        assert_eq!(error, RequestError::TopKLimit { found: 1025, limit: 1024 });
        let job = text_job(request("hi", 1.0, 1), &server()).unwrap();
        assert_eq!(job.check_tokens(0, &server()), Err(RequestError::EmptyText));
        let wanted = RequestError::TooLong { found: 13, limit: 12 };
        assert_eq!(job.check_tokens(13, &server()), Err(wanted));
        assert_eq!(job.check_tokens(12, &server()), Ok(()));
    }

    #[test]
    fn the_answer_shows_logits_and_log_probabilities() {
        let job = TextJob { text: "hi".to_string(), temperature: 2.0, k: 2 };
        let mut signal = TopK::new(2);
        signal.push_exact(&[1.0, 3.0, 0.0], 2.0);
        signal.push_exact(&[4.0, 0.0, 2.0], 2.0);
        let next = [-0.25, f32::NAN];
        let (queued, computed) = (Duration::from_nanos(5), Duration::from_micros(7));
        let (scores, times) = ((&signal, &next[..]), Times { queued, computed });
        let reply = text_reply(&job, &[2, 1], scores, times, &server(), |id| format!("<{id}>"));
        assert_eq!((reply.queue_ns, reply.compute_ns), (5, 7000));
        assert_eq!((reply.temperature, reply.tokens.len()), (2.0, 2));
        assert_eq!(reply.model_fingerprint, "07".repeat(32));
        assert_eq!(reply.tokenizer_fingerprint, "09".repeat(32));
        let [first, last] = &reply.tokens[..] else { panic!("two tokens") };
        assert_eq!((first.id, first.text.as_str(), first.next_logprob), (2, "<2>", Some(-0.25)));
        assert_eq!((last.id, last.next_logprob), (1, None));
        let best = &first.next[0];
        assert_eq!((best.id, best.text.as_str(), best.logit), (1, "<1>", 3.0));
        // 1.5 - ln(e^0.5 + e^1.5 + e^0)
        assert!((best.logprob - -0.464_368_6).abs() < 1e-6, "{}", best.logprob);
        assert!((first.log_z - 1.964_368_6).abs() < 1e-6, "{}", first.log_z);
        assert_eq!(last.next.iter().map(|next| next.id).collect::<Vec<_>>(), [0, 2]);
    }
}
