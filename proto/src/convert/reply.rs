//! Replies: cut into messages by the server, put together and checked by the client.

use std::time::Duration;

use distill::codec::{self, CodecError};
use distill::fingerprint::{Fingerprint, payload_checksum, token_checksum};
use distill::handshake::{Agreement, TeacherFacts};
use distill::signal::{CodedStates, Computed, Signal};
use prost::Message as _;
use tonic::Code;

use super::{ScoreJob, codec_from_wire, codec_to_wire, printable};
use crate::v1;

mod error;
mod payload;
pub use error::ReplyError;
pub use payload::SignalError;

/// Most bytes of a reply beside its packed arrays: every other field at its longest.
const ENVELOPE_BYTES: usize = 160;

/// What the server adds to each message of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The model that computed it.
    pub model_fingerprint: Fingerprint,
    /// The tokenizer its ids belong to.
    pub tokenizer_fingerprint: Fingerprint,
    /// Largest message, in bytes.
    pub max_reply_bytes: usize,
    /// How long the sequence waited for the device.
    pub queued: Duration,
    /// How long its batch took on the device.
    pub computed: Duration,
}

/// An upper bound of the encoded size of a reply with `rows` positions of the answer to a job.
pub(super) fn message_bytes(rows: usize, job: &ScoreJob, server: &TeacherFacts) -> usize {
    let of_rows = rows.saturating_mul(payload::row_bytes(job, server.hidden_size));
    of_rows.saturating_add(payload::head_bytes(job)).saturating_add(ENVELOPE_BYTES)
}

/// The answer to a job as messages in position order, each of at most `stamp.max_reply_bytes`. A
/// job that [`super::score_job`] let pass always fits.
///
/// `computed` and `next_logprob` hold one row a position wanted; `next_logprob` is NaN where no token
/// follows, and empty beside hidden states.
///
/// # Errors
/// [`SignalError`] when the signal is not the one asked for or holds a number that is not finite:
/// the model is at fault, not the client.
pub fn score_replies(
    job: &ScoreJob,
    computed: &Computed,
    next_logprob: &[f32],
    stamp: &Stamp,
) -> Result<Vec<v1::ScoreReply>, SignalError> {
    check_computed(job, computed, next_logprob)?;
    let width = match computed {
        Computed::Hidden(states) | Computed::Coded(CodedStates { states, .. }) => states.width,
        Computed::TopK(_) | Computed::Drawn(_) => 0,
    };
    let rows = job.rows();
    let room = stamp.max_reply_bytes.saturating_sub(ENVELOPE_BYTES + payload::head_bytes(job));
    let rows_a_message = (room / payload::row_bytes(job, width)).max(1);
    let checksum = token_checksum(&job.tokens);
    let code_fingerprint =
        job.entries.code().map(|code| code.prefix().to_vec()).unwrap_or_default();
    let positions: Vec<u32> = job.positions().collect();
    let starts = (0..rows).step_by(rows_a_message);
    starts
        .map(|start| {
            let end = (start + rows_a_message).min(rows);
            let payload = payload::write(job, computed, start..end)?;
            let next = codec::float_bytes(next_logprob.get(start..end).unwrap_or_default());
            Ok(v1::ScoreReply {
                id: job.id,
                first_position: positions[start],
                rows: (end - start) as u32,
                last: end == rows,
                temperature: job.temperature,
                top_k: job.k as u32,
                codec: codec_to_wire(job.codec).into(),
                token_checksum: checksum,
                model_fingerprint: stamp.model_fingerprint.prefix().to_vec().into(),
                tokenizer_fingerprint: stamp.tokenizer_fingerprint.prefix().to_vec().into(),
                code_fingerprint: code_fingerprint.clone().into(),
                payload_checksum: payload_checksum(&[&payload, &next]),
                signal: payload.into(),
                next_logprob: next.into(),
                queue_ns: nanoseconds(stamp.queued),
                compute_ns: nanoseconds(stamp.computed),
                error: None,
            })
        })
        .collect()
}

/// Whether what was computed has the shape of what was asked.
fn check_computed(
    job: &ScoreJob,
    computed: &Computed,
    next_logprob: &[f32],
) -> Result<(), SignalError> {
    let (rows, k) = (job.rows(), job.k);
    let shape =
        |array, wanted, found| Err(CodecError::Shape { rows, k, array, wanted, found }.into());
    let of_k = match computed {
        Computed::TopK(signal) => signal.k,
        Computed::Drawn(signal) => signal.k,
        Computed::Hidden(_) | Computed::Coded(_) => 0,
    };
    if of_k != k {
        return shape("entries a row", k, of_k);
    }
    if computed.rows() != rows {
        return shape("rows", rows, computed.rows());
    }
    let next = if payload::has_next(job) { rows } else { 0 };
    if next_logprob.len() != next {
        return shape("log-probabilities of the next token", next, next_logprob.len());
    }
    check_next(next_logprob, job).map_err(|(row, found)| {
        let what = "the log-probability of the next token";
        CodecError::NotFinite { row, what, found }.into()
    })
}

/// A whole answer, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// The request's id.
    pub id: u64,
    /// One row a position wanted, in order.
    pub signal: Signal,
    /// Log-probability (T = 1) of the token that follows each position; NaN where none does. Empty beside
    /// hidden states.
    pub next_logprob: Vec<f32>,
    /// Encoded bytes of all its messages.
    pub wire_bytes: usize,
    /// How long the sequence waited for the device.
    pub queued: Duration,
    /// How long its batch took on the device.
    pub computed: Duration,
}

/// Puts the messages of one answer together and proves that they answer what was asked.
#[derive(Clone, Debug)]
pub struct ReplyAssembler {
    job: ScoreJob,
    model: Fingerprint,
    tokenizer: Fingerprint,
    /// Numbers of a hidden state.
    width: usize,
    checksum: u64,
    positions: Vec<u32>,
    signal: Signal,
    next_logprob: Vec<f32>,
    wire_bytes: usize,
    done: bool,
}

impl ReplyAssembler {
    /// Nothing received yet for this job, sent to the teacher this was agreed with.
    pub fn new(job: ScoreJob, agreement: &Agreement) -> Self {
        Self {
            checksum: token_checksum(&job.tokens),
            positions: job.positions().collect(),
            signal: Signal::new(&job.entries, job.k, agreement.hidden_size),
            next_logprob: Vec::new(),
            wire_bytes: 0,
            done: false,
            width: agreement.hidden_size,
            model: agreement.model_fingerprint,
            tokenizer: agreement.tokenizer_fingerprint,
            job,
        }
    }

    /// What was asked: to ask it again.
    pub fn job(&self) -> &ScoreJob {
        &self.job
    }

    /// Forgets what has come so far: the request is asked again, perhaps of another teacher.
    pub fn restart(&mut self) {
        self.signal = self.nothing();
        self.next_logprob.clear();
        self.wire_bytes = 0;
        self.done = false;
    }

    fn nothing(&self) -> Signal {
        Signal::new(&self.job.entries, self.job.k, self.width)
    }

    /// Takes the next message of the answer; gives the answer when it was the last.
    ///
    /// # Errors
    /// [`ReplyError`] when the message refuses the request or is not what was asked.
    pub fn push(&mut self, reply: &v1::ScoreReply) -> Result<Option<Scored>, ReplyError> {
        let id = self.job.id;
        if reply.id != id {
            return Err(ReplyError::Id { found: reply.id, wanted: id });
        }
        if let Some(error) = &reply.error {
            let (code, message) = (Code::from(error.code), printable(&error.message, 2_000));
            let pause = Duration::from_millis(error.retry_after_ms.into());
            return Err(ReplyError::Refused { id, code, message, pause });
        }
        self.check_terms(reply)?;
        let rows = self.check_rows(reply)?;
        let (signal, next) = self.check_payload(reply, rows)?;
        if self.signal.rows() == 0 {
            self.signal = signal;
        } else {
            self.signal.append(signal);
        }
        self.next_logprob.extend(next);
        self.wire_bytes += reply.encoded_len();
        if !reply.last {
            return Ok(None);
        }
        self.done = true;
        let nothing = self.nothing();
        Ok(Some(Scored {
            id,
            signal: std::mem::replace(&mut self.signal, nothing),
            next_logprob: std::mem::take(&mut self.next_logprob),
            wire_bytes: self.wire_bytes,
            queued: Duration::from_nanos(reply.queue_ns),
            computed: Duration::from_nanos(reply.compute_ns),
        }))
    }

    /// The same model, tokenizer, tokens, temperature and layout as agreed and asked.
    fn check_terms(&self, reply: &v1::ScoreReply) -> Result<(), ReplyError> {
        let (job, id) = (&self.job, self.job.id);
        if reply.model_fingerprint != self.model.prefix() {
            let (found, wanted) = (hex(&reply.model_fingerprint), hex(self.model.prefix()));
            return Err(ReplyError::Model { id, found, wanted });
        }
        if reply.tokenizer_fingerprint != self.tokenizer.prefix() {
            let (found, wanted) = (hex(&reply.tokenizer_fingerprint), hex(self.tokenizer.prefix()));
            return Err(match found.is_empty() {
                true => ReplyError::NoTokenizer { id, wanted },
                false => ReplyError::Tokenizer { id, found, wanted },
            });
        }
        if reply.token_checksum != self.checksum {
            let (found, wanted) = (reply.token_checksum, self.checksum);
            return Err(ReplyError::Tokens { id, found, wanted });
        }
        // Bit for bit: what was sent is what must come back.
        if reply.temperature.to_bits() != job.temperature.to_bits() {
            let (found, wanted) = (reply.temperature, job.temperature);
            return Err(ReplyError::Temperature { id, found, wanted });
        }
        if reply.top_k as usize != job.k {
            return Err(ReplyError::TopK { id, found: reply.top_k as usize, wanted: job.k });
        }
        if let Some(code) = job.entries.code()
            && reply.code_fingerprint != code.prefix()
        {
            let (found, wanted) = (hex(&reply.code_fingerprint), hex(code.prefix()));
            return Err(ReplyError::Code { id, found, wanted });
        }
        if codec_from_wire(reply.codec) != Some(job.codec) {
            return Err(ReplyError::Codec { id, found: reply.codec, wanted: job.codec });
        }
        Ok(())
    }

    /// The positions that come next, and the last mark on the last of them.
    fn check_rows(&self, reply: &v1::ScoreReply) -> Result<usize, ReplyError> {
        let id = self.job.id;
        if self.done {
            return Err(ReplyError::AfterLast { id });
        }
        let (found, last) = (reply.rows as usize, reply.last);
        let coming = &self.positions[self.signal.rows()..];
        let wanted = coming.len();
        let complete = found == wanted;
        if found == 0 || found > wanted || complete != last {
            return Err(ReplyError::Rows { id, found, wanted, last });
        }
        if reply.first_position != coming[0] {
            let (found, wanted) = (reply.first_position, coming[0]);
            return Err(ReplyError::Position { id, found, wanted });
        }
        Ok(found)
    }

    fn check_payload(
        &self,
        reply: &v1::ScoreReply,
        rows: usize,
    ) -> Result<(Signal, Vec<f32>), ReplyError> {
        let (job, id) = (&self.job, self.job.id);
        let found = payload_checksum(&[&reply.signal, &reply.next_logprob]);
        if found != reply.payload_checksum {
            return Err(ReplyError::Payload { id, found, wanted: reply.payload_checksum });
        }
        let start = self.signal.rows();
        let signal = payload::read(job, &reply.signal, start..start + rows, self.width);
        let first_position = reply.first_position;
        let signal = signal.map_err(|source| ReplyError::Signal { id, first_position, source })?;
        let of_next = if payload::has_next(job) { 4 * rows } else { 0 };
        let (found, wanted) = (reply.next_logprob.len(), of_next);
        let next = codec::floats_from_bytes(&reply.next_logprob)
            .filter(|_| found == wanted)
            .ok_or(ReplyError::NextBytes { id, found, wanted })?;
        let positions = &self.positions[start..start + rows];
        for (&position, &found) in positions.iter().zip(&next) {
            let follows = position as usize + 1 < job.tokens.len();
            if !is_next_logprob(found, follows) {
                let wanted =
                    if follows { "a finite number" } else { "NaN, since no token follows" };
                return Err(ReplyError::NextLogprob { id, position, found, wanted });
            }
        }
        Ok((signal, next))
    }
}

/// The first row whose log-probability of the next token is not one.
fn check_next(next_logprob: &[f32], job: &ScoreJob) -> Result<(), (usize, f32)> {
    let wrong = next_logprob
        .iter()
        .zip(job.next_tokens())
        .position(|(&logprob, token)| !is_next_logprob(logprob, token.is_some()));
    wrong.map_or(Ok(()), |row| Err((row, next_logprob[row])))
}

/// Finite where a token follows, NaN where none does.
fn is_next_logprob(logprob: f32, follows: bool) -> bool {
    if follows { logprob.is_finite() } else { logprob.is_nan() }
}

pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(32).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
