//! What a trainer reads from a teacher it cannot trust: the messages of an answer, and what the
//! teacher states of itself.
//!
//! An input's first byte says which: messages as they travel, one after another, in answer to a job
//! that is always the same; decisions, of which a job, its right answer and the faults in it are
//! made; or a `GetInfoReply` as it travels.

use distill::codec::Codec;
use distill::fingerprint::payload_checksum;
use distill::handshake::{SignalKind, StudentFacts, TeacherFacts, check};
use distill::queue::Priority;
use distill::signal::Entries;
use prost::Message as _;
use prost::bytes::{Buf as _, Bytes};
use proto::convert::{
    ReplyAssembler, RequestError, ScoreJob, Scored, facts_from_info, facts_to_info, refusal,
    score_job, score_replies,
};
use proto::v1::{GetInfoReply, ScoreReply, ScoreRequest};
use tonic::Code;

use crate::answers::{agreement, answer, assert_sound, stamp};
use crate::draw::Draw;
use crate::memory::peak;
use crate::request::{SIMPLEST, drawn};
use crate::teachers::{MODEL, TEACHERS, TOKENIZER, numbered};

/// Bytes that reading may take for each byte of a message.
const MEMORY_A_BYTE: usize = 24;
/// And whatever its length: the words of an error, the names of a teacher.
const MEMORY: usize = 16 << 10;

/// Kinds of input.
const WIRE: u8 = 0;
const DRAWN: u8 = 1;
const INFO: u8 = 2;

/// Tries an input; whether it was an answer, or what a teacher may state.
///
/// # Panics
/// When a law is broken.
pub fn run(input: &[u8]) -> bool {
    let Some((kind, rest)) = input.split_first() else { return false };
    match kind % 3 {
        WIRE => on_the_wire(Bytes::copy_from_slice(rest)),
        DRAWN => with_faults(&mut Draw::new(rest)),
        _ => info(rest),
    }
}

/// The job that messages are taken for an answer to.
fn asked() -> ScoreJob {
    ScoreJob {
        id: 77,
        tokens: vec![3, 1, 89, 4, 0],
        ranges: vec![1..3, 4..5],
        temperature: 5.0,
        k: 2,
        codec: Codec::Packed,
        classes: 96,
        entries: Entries::Top,
        priority: Priority::Normal,
    }
}

fn on_the_wire(mut bytes: Bytes) -> bool {
    let (length, job) = (bytes.len(), asked());
    let mut assembler = ReplyAssembler::new(job.clone(), &agreement(&job));
    let (scored, memory) = peak(|| {
        while bytes.has_remaining() {
            let Ok(reply) = ScoreReply::decode_length_delimited(&mut bytes) else { break };
            match assembler.push(&reply) {
                Ok(None) => {}
                Ok(scored) => return scored,
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
        None
    });
    assert!(memory <= MEMORY + MEMORY_A_BYTE * length, "{memory} bytes held for {length}");
    if let Some(scored) = &scored {
        assert_sound(scored, &job);
        assert!(scored.wire_bytes <= length, "{} bytes came", scored.wire_bytes);
    }
    scored.is_some()
}

/// An answer as it should be, and its messages.
struct Right {
    job: ScoreJob,
    replies: Vec<ScoreReply>,
    scored: Scored,
}

impl Right {
    fn drawn(draw: &mut Draw<'_>) -> Option<Self> {
        let server = numbered(draw.up_to(TEACHERS - 1));
        let job = score_job(&drawn(draw, &server), &server).ok()?;
        let (signal, next) = (job.rows() * job.k <= 512).then(|| answer(&job))?;
        // A few rows a message.
        let rows = 1 + draw.up_to(3);
        let limit = 160 + job.layout().bytes(rows, job.k) + 4 * rows;
        let computed = signal.into();
        let replies = score_replies(&job, &computed, &next, &stamp(limit)).expect("a sound answer");
        let mut assembler = ReplyAssembler::new(job.clone(), &agreement(&job));
        let pushed = replies.iter().map(|reply| assembler.push(reply).expect("a right answer"));
        let scored = pushed.last().flatten().expect("a whole answer");
        Some(Self { job, replies, scored })
    }
}

fn with_faults(draw: &mut Draw<'_>) -> bool {
    let Some(right) = Right::drawn(draw) else { return false };
    let mut replies = right.replies.clone();
    for _ in 0..draw.up_to(3) {
        fault(&mut replies, draw);
    }
    let job = &right.job;
    let mut assembler = ReplyAssembler::new(job.clone(), &agreement(job));
    let (mut all, mut coming) = (None, job.positions());
    for reply in &replies {
        let pushed = assembler.push(reply);
        if pushed.is_ok() {
            assert!(terms(reply) == terms(&right.replies[0]), "{reply:?} was taken for an answer");
            assert_eq!(coming.next(), Some(reply.first_position), "{reply:?} has its turn later");
            assert!(
                (1..reply.rows).all(|_| coming.next().is_some()),
                "{reply:?} has too many rows"
            );
        }
        match pushed {
            Ok(None) => assert!(all.is_none(), "a message after the last was taken"),
            Ok(Some(scored)) => {
                assert_sound(&scored, job);
                assert!(coming.next().is_none(), "the answer is not whole");
                assert!(all.replace(scored).is_none(), "the answer came twice");
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    if replies == right.replies {
        assert_same(&all.expect("a whole answer"), &right.scored);
    }
    // Whatever came before, asked again it is answered.
    assembler.restart();
    let again: Vec<_> = right.replies.iter().map(|reply| assembler.push(reply)).collect();
    let Some(Ok(Some(scored))) = again.last() else {
        panic!("no answer after a restart: {again:?}")
    };
    assert_same(scored, &right.scored);
    true
}

/// NaN is NaN here.
fn assert_same(one: &Scored, other: &Scored) {
    let bits =
        |scored: &Scored| scored.next_logprob.iter().map(|p| p.to_bits()).collect::<Vec<_>>();
    assert_eq!((&one.signal, bits(one)), (&other.signal, bits(other)));
    assert_eq!((one.id, one.wire_bytes), (other.id, other.wire_bytes));
}

/// What every message has to say as it was asked.
fn terms(reply: &ScoreReply) -> impl PartialEq {
    let codec = if reply.codec == 0 { 1 } else { reply.codec };
    let tokens = (reply.token_checksum, reply.temperature.to_bits());
    let model = (reply.model_fingerprint.clone(), reply.tokenizer_fingerprint.clone());
    (reply.id, codec, reply.top_k, tokens, model, reply.error.clone())
}

/// Something wrong in one of the messages, or in their order.
fn fault(replies: &mut Vec<ScoreReply>, draw: &mut Draw<'_>) {
    let Some(last) = replies.len().checked_sub(1) else { return };
    let (at, other) = (draw.up_to(last), draw.up_to(last));
    let what = draw.up_to(17);
    match what {
        0 => return replies.swap(at, other),
        1 => return replies.insert(other, replies[at].clone()),
        2 => return drop(replies.remove(at)),
        _ => {}
    }
    let id = replies[at].id;
    let reply = &mut replies[at];
    match what {
        3 => reply.id = draw.any(),
        4 => reply.first_position = draw.of_or_any(&[0, 1, 2, 3]),
        5 => reply.rows = draw.of_or_any(&[0, 1, 2, 3]),
        6 => reply.last ^= true,
        7 => reply.temperature = draw.of_or_any(&[1.0, 5.0]),
        8 => reply.top_k = draw.of_or_any(&[0, 1, 2, 3]),
        9 => reply.codec = draw.of_or_any(&[0, 1, 2, 3, 4, 5]),
        10 => reply.token_checksum ^= draw.any::<u64>(),
        11 => reply.model_fingerprint = MODEL.0[..draw.up_to(20)].to_vec().into(),
        12 => reply.tokenizer_fingerprint = TOKENIZER.0[..draw.up_to(20)].to_vec().into(),
        13 => *reply = refusal(id, Code::from(draw.up_to(17) as i32), "no\u{1b}[2J", None),
        14 => reply.payload_checksum ^= draw.any::<u64>(),
        15 => reply.signal = changed(&reply.signal, draw),
        _ => reply.next_logprob = changed(&reply.next_logprob, draw),
    }
    // The checksum guards against accidents, not against a teacher that means it.
    if what > 14 && !draw.once_in(4) {
        reply.payload_checksum = payload_checksum(&[&reply.signal, &reply.next_logprob]);
    }
}

/// The bytes with a few of them others, or some more or less of them.
fn changed(bytes: &Bytes, draw: &mut Draw<'_>) -> Bytes {
    let mut bytes = bytes.to_vec();
    let length = bytes.len() + draw.of(&[0, 0, 0, 1, 4]);
    bytes.resize(length.saturating_sub(draw.of(&[0, 0, 0, 1, 4])), 0);
    for _ in 0..draw.up_to(3) {
        if let Some(most) = bytes.len().checked_sub(1) {
            let at = draw.up_to(most);
            bytes[at] = draw.any();
        }
    }
    bytes.into()
}

fn info(bytes: &[u8]) -> bool {
    let (read, memory) = peak(|| {
        let info = GetInfoReply::decode(bytes).ok()?;
        Some(facts_from_info(&info))
    });
    let allowed = MEMORY + MEMORY_A_BYTE * bytes.len();
    assert!(memory <= allowed, "{memory} bytes held for {}", bytes.len());
    let facts = match read {
        Some(Ok(facts)) => facts,
        Some(Err(error)) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
        None => return false,
    };
    assert!((1..=facts.vocab_size).contains(&facts.tokenizer_size));
    let limits = &facts.limits;
    assert!((4096..=4 << 20).contains(&limits.max_reply_bytes));
    assert!(limits.max_sequence_tokens > 0 && limits.max_top_k > 0);
    let words = [&facts.model, &facts.revision, &facts.server_version, &facts.dtype, &facts.device];
    for words in words {
        assert!(words.chars().count() <= 256 && !words.contains(char::is_control), "{words:?}");
    }
    assert_eq!(facts_from_info(&facts_to_info(&facts)).as_ref(), Ok(&facts));
    who_agrees_is_answered(&facts);
    true
}

/// A student that agreed with a teacher asks nothing that this teacher may refuse.
fn who_agrees_is_answered(facts: &TeacherFacts) {
    for (signal, codec) in [SignalKind::TopK, SignalKind::Candidates]
        .into_iter()
        .flat_map(|signal| Codec::ALL.map(|codec| (signal, codec)))
    {
        let student = StudentFacts {
            tokenizer_fingerprint: facts.tokenizer_fingerprint,
            vocab_size: facts.vocab_size.saturating_sub(1).max(facts.tokenizer_size),
            tokenizer_size: facts.tokenizer_size,
            max_length: 3,
            signal,
            top_k: 2,
            codec,
        };
        let Ok(agreed) = check(facts, &student) else { continue };
        assert!(agreed.classes <= student.vocab_size && agreed.classes <= facts.vocab_size);
        let request = ScoreRequest {
            tokens: vec![0; 4 * student.max_length].into(),
            temperature: 1.0,
            signal: if signal == SignalKind::TopK { 1 } else { 2 },
            top_k: 2,
            codec: match codec {
                Codec::Packed => 1,
                Codec::Raw => 2,
                Codec::Compact => 3,
                Codec::Compact8 => 4,
            },
            vocab_size: agreed.classes as u32,
            candidates: match signal == SignalKind::TopK {
                true => Bytes::new(),
                false => vec![0, 0, 0, 0, 1, 0, 0, 0].into(),
            },
            ..Default::default()
        };
        let asked: Result<ScoreJob, RequestError> = score_job(&request, facts);
        assert!(asked.is_ok(), "{asked:?} by {facts:?}");
    }
}

/// Inputs to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    let job = asked();
    let (signal, next) = answer(&job);
    let computed = signal.into();
    let messages = |limit| {
        let replies = score_replies(&job, &computed, &next, &stamp(limit)).expect("a sound answer");
        let bytes = replies.iter().flat_map(|reply| reply.encode_length_delimited_to_vec());
        std::iter::once(WIRE).chain(bytes).collect::<Vec<u8>>()
    };
    let info = |number| {
        let facts = facts_to_info(&numbered(number)).encode_to_vec();
        [vec![INFO], facts].concat()
    };
    let mut seeds = vec![messages(4096), messages(1), info(0), info(1), info(2), info(3)];
    // A message for each of two tokens, and a fault of each kind in the first.
    let decisions = &SIMPLEST[..SIMPLEST.len() - 1];
    seeds.extend((0..18).map(|fault| [&[DRAWN, 3], decisions, &[0, 1, 0, 1, fault]].concat()));
    seeds
}
