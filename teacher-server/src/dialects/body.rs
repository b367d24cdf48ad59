//! The bodies: a request's read whole within bounds, an answer's written piece by piece.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::Stream;
use proto::convert::Times;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::Problem;
use crate::shutdown::Call;

/// Bytes of a piece of an answer, about.
const PIECE: usize = 64 << 10;
/// How long a job took, by the W3C's recommendation of that name.
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// What a request's body says.
///
/// # Errors
/// [`Problem`]: not UTF-8, not JSON, no object, or not the object wanted.
pub fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Problem> {
    // First, since what is passed over would not be looked at.
    let text = std::str::from_utf8(body).map_err(|error| Problem::invalid(error.to_string()))?;
    let read = serde_json::from_str(text).map_err(|error| Problem::invalid(error.to_string()))?;
    // serde takes a list for the values of the fields, in their order here.
    match text.trim_start().starts_with('{') {
        true => Ok(read),
        false => Err(Problem::invalid("the body is a list, wanted an object")),
    }
}

/// The temperature of a request: none, or 0, is how one says that the distribution is wanted as it is. A
/// number that is 0 to float32 alone stays one, to be refused.
pub fn temperature(said: Option<f64>) -> f32 {
    said.filter(|&t| t != 0.0).unwrap_or(1.0) as f32
}

/// The reader of an answer left, or read nothing for too long.
#[derive(Debug)]
pub struct Gone;

/// An answer being written; what is not read yet holds the writing up.
pub struct Answer {
    piece: String,
    /// Bytes that do not fill a group of base64's yet.
    pending: Vec<u8>,
    pieces: mpsc::Sender<Bytes>,
    /// Whether all of it was handed on: told before the sender goes, since its end is looked at then.
    whole: Arc<AtomicBool>,
    patience: Duration,
}

impl Answer {
    /// Starts an answer of JSON that `write` writes as it is read; `call` counts as running until
    /// then. A reader that reads nothing for `patience` is left.
    pub fn start<F>(
        times: Times,
        patience: Duration,
        call: Call,
        write: impl FnOnce(Self) -> F + Send + 'static,
    ) -> Response
    where
        F: Future<Output = Result<(), Gone>> + Send + 'static,
    {
        let (pieces, receiver) = mpsc::channel(1);
        let whole = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&whole);
        let answer = Self { piece: String::new(), pending: vec![], pieces, whole: told, patience };
        tokio::spawn(async move {
            let _call = call;
            // Who is gone is told nothing.
            let _ = write(answer).await;
        });
        let body = Body::from_stream(Pieces { receiver, whole, failed: OnceLock::new() });
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let timing =
            format!("queue;dur={:.3}, compute;dur={:.3}", ms(times.queued), ms(times.computed));
        let mut response = (StatusCode::OK, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Ok(timing) = HeaderValue::try_from(timing) {
            headers.insert(SERVER_TIMING, timing);
        }
        response
    }

    /// Adds text.
    pub fn push(&mut self, text: &str) {
        self.piece.push_str(text);
    }

    /// Adds a number. JSON has no infinities: those of a log-probability are -9999, as vLLM has it.
    pub fn number(&mut self, value: f32) {
        let value = if value.is_finite() { value } else { -9999.0 };
        self.formatted(format_args!("{value:?}"));
    }

    /// Adds what is formatted.
    pub fn formatted(&mut self, text: fmt::Arguments<'_>) {
        // Writing to a String does not fail.
        let _ = fmt::Write::write_fmt(&mut self.piece, text);
    }

    /// Adds a text as JSON writes it.
    pub fn quoted(&mut self, text: &str) {
        self.push(&serde_json::Value::from(text).to_string());
    }

    /// Adds bytes to a text in base64, which [`Self::end_base64`] ends.
    pub fn base64(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
        let whole = self.pending.len() / 3 * 3;
        STANDARD.encode_string(&self.pending[..whole], &mut self.piece);
        self.pending.drain(..whole);
    }

    /// Ends a text in base64.
    pub fn end_base64(&mut self) {
        STANDARD.encode_string(&self.pending, &mut self.piece);
        self.pending.clear();
    }

    /// Hands on what was added, once it is enough for a piece.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn flow(&mut self) -> Result<(), Gone> {
        if self.piece.len() < PIECE { Ok(()) } else { self.send().await }
    }

    /// Hands on the rest.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn end(mut self) -> Result<(), Gone> {
        self.send().await?;
        self.whole.store(true, Ordering::Release);
        Ok(())
    }

    async fn send(&mut self) -> Result<(), Gone> {
        let piece = std::mem::take(&mut self.piece).into();
        let sent = tokio::time::timeout(self.patience, self.pieces.send(piece)).await;
        sent.map_err(|_| Gone)?.map_err(|_| Gone)
    }
}

/// The pieces as axum takes them: an answer that stops in the middle must not seem whole.
struct Pieces {
    receiver: mpsc::Receiver<Bytes>,
    whole: Arc<AtomicBool>,
    failed: OnceLock<()>,
}

impl Stream for Pieces {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.receiver.poll_recv(cx) {
            Poll::Ready(None) if !self.whole.load(Ordering::Acquire) => {
                let first = self.failed.set(()).is_ok();
                let cut = || Err(axum::Error::new("the answer was cut"));
                Poll::Ready(first.then(cut))
            }
            Poll::Ready(piece) => Poll::Ready(piece.map(Ok)),
            Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shutdown::Calls;

    #[test]
    fn a_body_is_utf_8_where_it_is_passed_over_too() {
        #[derive(Debug, Deserialize)]
        struct Asked {
            prompt: Vec<u32>,
        }
        let body = |odd: &[u8]| [b"{\"prompt\":[1],\"x\":\"", odd, b"\"}"].concat();
        assert_eq!(read::<Asked>(&body("\u{e9}".as_bytes())).unwrap().prompt, [1]);
        let problem = read::<Asked>(&body(&[0xcb, b'k'])).unwrap_err();
        assert!(problem.status == 400 && problem.message.contains("utf-8"), "{}", problem.message);
    }

    fn started<F>(write: impl FnOnce(Answer) -> F + Send + 'static) -> (Response, Calls)
    where
        F: Future<Output = Result<(), Gone>> + Send + 'static,
    {
        let calls = Calls::default();
        let call = calls.begin().unwrap();
        let patience = Duration::from_millis(50);
        (Answer::start(Times::default(), patience, call, write), calls)
    }

    async fn endless(mut answer: Answer) -> Result<(), Gone> {
        loop {
            answer.push(&"x".repeat(PIECE));
            answer.flow().await?;
        }
    }

    #[tokio::test]
    async fn an_answer_nobody_reads_is_given_up_and_does_not_seem_whole() {
        let (response, calls) = started(endless);
        assert!(calls.all_done(Duration::from_secs(5)).await, "it still waits for its reader");
        let read = axum::body::to_bytes(response.into_body(), usize::MAX).await;
        assert!(read.is_err(), "{} bytes that end well", read.unwrap().len());
    }

    #[tokio::test]
    async fn an_answer_whose_reader_left_or_whose_writing_fails_is_over() {
        let (response, calls) = started(endless);
        drop(response);
        assert!(calls.all_done(Duration::from_secs(5)).await, "it is written for nobody");
        let (response, _) = started(async |mut answer: Answer| {
            answer.push("[1,");
            answer.send().await?;
            panic!("a bug in the writing");
        });
        let read = axum::body::to_bytes(response.into_body(), usize::MAX).await;
        assert!(read.is_err(), "half an answer ended well");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_whole_answer_ends_well_however_long_its_writer_takes_to_tidy_up() {
        struct Slow;
        impl Drop for Slow {
            fn drop(&mut self) {
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        let (response, _) = started(async move |mut answer: Answer| {
            let _scores = Slow;
            answer.push("[1]");
            answer.end().await
        });
        let read = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        assert_eq!(read, "[1]");
    }

    #[tokio::test]
    async fn bytes_that_come_in_any_parts_are_the_same_base64() {
        // RFC 4648, section 10.
        for parts in [&["f", "oo", "bar"][..], &["foobar"], &["foob", "", "ar"]] {
            let parts: Vec<&str> = parts.to_vec();
            let (response, _) = started(async move |mut answer: Answer| {
                parts.iter().for_each(|part| answer.base64(part.as_bytes()));
                answer.end_base64();
                answer.push(" ");
                answer.base64(b"foob");
                answer.end_base64();
                answer.end().await
            });
            let read = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
            assert_eq!(read, "Zm9vYmFy Zm9vYg==");
        }
    }

    #[tokio::test]
    async fn numbers_are_jsons() {
        let (response, _) = started(async |mut answer: Answer| {
            for value in [-0.1, f32::NEG_INFINITY, f32::NAN, 1e-20, -3.0e30] {
                answer.number(value);
                answer.push(" ");
            }
            answer.quoted("a\"\n\u{1}é");
            answer.end().await
        });
        let read = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let text = String::from_utf8(read.to_vec()).unwrap();
        let words: Vec<serde_json::Value> =
            text.split(' ').map(|word| serde_json::from_str(word).unwrap()).collect();
        let wanted = serde_json::json!([-0.1, -9999.0, -9999.0, 1e-20, -3e30, "a\"\n\u{1}é"]);
        assert_eq!(serde_json::Value::from(words), wanted);
    }
}
