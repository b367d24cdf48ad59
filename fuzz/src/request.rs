//! What a stranger may send to `Score` and `ScoreText`: it is refused, or it keeps every promise of
//! [`ScoreJob`] and of the contract; and which of both does not depend on who reads the contract.
//!
//! An input's first byte names the teacher, the second what the others are: a `ScoreRequest` as it
//! travels, decisions of which one is made, or a `ScoreTextRequest`.

use std::collections::BTreeSet;

use distill::codec::{Codec, token_bytes};
use distill::handshake::{SignalKind, TeacherFacts};
use distill::queue::Priority;
use distill::signal::Entries;
use prost::Message as _;
use prost::bytes::Bytes;
use proto::convert::{ReplyAssembler, ScoreJob, score_job, score_replies, score_request, text_job};
use proto::limits::{MAX_TEMPERATURE, MIN_TEMPERATURE};
use proto::v1::{PositionRange, ScoreReply, ScoreRequest, ScoreTextRequest};
use tonic::Code;

use crate::answers::{agreement, answer, assert_distinct, assert_sound, stamp};
use crate::draw::Draw;
use crate::memory::peak;
use crate::teachers::{TEACHERS, numbered};

/// Bytes that reading a request may take for each of its own. Two bytes on the wire are a range of
/// positions, which takes 8 in the message and as many in the job; a list that grows holds up to three
/// times what is in it for a moment.
const MEMORY_A_BYTE: usize = 24;
/// And whatever its length: a job, or the words of an error.
const MEMORY: usize = 8 << 10;
/// Entries of an answer beyond which none is made up: it would take too long.
const MOST_ENTRIES: usize = 4096;

/// Kinds of input.
const WIRE: u8 = 0;
const DRAWN: u8 = 1;
const TEXT: u8 = 2;

/// Tries an input; whether it was a request that is accepted.
///
/// # Panics
/// When a law is broken.
pub fn run(input: &[u8]) -> bool {
    let [teacher, kind, rest @ ..] = input else { return false };
    let server = numbered(usize::from(*teacher) % TEACHERS);
    match kind % 3 {
        WIRE => on_the_wire(Bytes::copy_from_slice(rest), &server),
        DRAWN => {
            let request = drawn(&mut Draw::new(rest), &server);
            on_the_wire(request.encode_to_vec().into(), &server)
        }
        _ => text_on_the_wire(Bytes::copy_from_slice(rest), &server),
    }
}

fn on_the_wire(bytes: Bytes, server: &TeacherFacts) -> bool {
    let length = bytes.len();
    let (read, memory) = peak(|| {
        ScoreRequest::decode(bytes).ok().map(|request| {
            let job = score_job(&request, server);
            (request, job)
        })
    });
    // One bit a class tells which candidates have come.
    let allowed = MEMORY + MEMORY_A_BYTE * length + server.vocab_size / 8;
    assert!(memory <= allowed, "{memory} bytes held for {length}");
    let Some((request, job)) = read else { return false };
    assert_eq!(job.is_ok(), may_be_asked(&request, server), "{request:?} of {server:?}: {job:?}");
    match job {
        Ok(job) => {
            keeps_its_promises(&job, &request, server);
            survives_the_wire(&job, server);
            can_be_answered(&job, server);
            true
        }
        Err(error) => {
            assert_eq!(error.code(), Code::InvalidArgument);
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

/// The contract, read again: whether a teacher has to accept this.
fn may_be_asked(request: &ScoreRequest, server: &TeacherFacts) -> bool {
    let (vocab, tokenizer, limits) = (server.vocab_size, server.tokenizer_size, &server.limits);
    let classes = match request.vocab_size as usize {
        0 => vocab,
        asked => asked,
    };
    let (codec, signal) = match (request.codec, request.signal) {
        (0 | 1, signal @ (1 | 2)) => (Codec::Packed, signal),
        (2, signal @ (1 | 2)) => (Codec::Raw, signal),
        (3, signal @ (1 | 2)) => (Codec::Compact, signal),
        (4, signal @ (1 | 2)) => (Codec::Compact8, signal),
        _ => return false,
    };
    let named = signal == 2;
    let signal = if named { SignalKind::Candidates } else { SignalKind::TopK };
    let k = request.top_k as usize;
    let length = request.tokens.len() / 4;
    let id = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
    let ranges = &request.positions;
    let inside = ranges.iter().all(|range| range.first < range.end && range.end as usize <= length);
    let ascending = ranges.windows(2).all(|pair| pair[0].end <= pair[1].first);
    // As docs/wire.md counts, with the head of the one message that has to be possible.
    let of_ids = |k: usize| {
        let lower = (0..).take_while(|l| (classes / k.max(1)) >> (l + 1) > 0).count();
        (k * lower).div_ceil(8) + (k + ((classes.max(1) - 1) >> lower)).div_ceil(8)
    };
    let a_row = match (codec, named) {
        (Codec::Packed, false) => 5 * k + 16,
        (Codec::Packed, true) => 2 * k + 16,
        (Codec::Raw, false) => 8 * k + 8,
        (Codec::Raw, true) => 4 * k + 8,
        (Codec::Compact, false) => 20 + 16 + of_ids(k) + 2 * k,
        (Codec::Compact, true) => 20 + 16 + 2 * k,
        (Codec::Compact8, false) => 20 + 16 + of_ids(k) + k,
        (Codec::Compact8, true) => 20 + 16 + k,
    };
    let rest = server.signals.contains(&signal)
        && server.codecs.contains(&codec)
        && request.temperature >= MIN_TEMPERATURE
        && request.temperature <= MAX_TEMPERATURE
        && (0..=3).contains(&request.priority)
        && (tokenizer..=vocab).contains(&classes)
        && (1..=limits.max_top_k.min(classes)).contains(&k)
        && a_row + 4 + 128 <= limits.max_reply_bytes
        && (named || codec == Codec::Raw || classes <= 1 << 24)
        && request.tokens.len().is_multiple_of(4)
        && (1..=limits.max_sequence_tokens).contains(&length)
        && request.tokens.chunks(4).all(|bytes| id(bytes) < classes)
        && inside
        && ascending;
    if !rest || !named {
        return rest && request.candidates.is_empty();
    }
    let rows = match ranges.len() {
        0 => length,
        _ => ranges.iter().map(|range| (range.end - range.first) as usize).sum(),
    };
    let ids: Vec<usize> = request.candidates.chunks_exact(4).map(id).collect();
    let fit = [4 * k, 4 * k * rows].contains(&request.candidates.len());
    let distinct = |row: &[usize]| row.iter().collect::<BTreeSet<_>>().len() == row.len();
    fit && ids.iter().all(|&id| id < classes) && ids.chunks(k).all(distinct)
}

/// What the fields of a job say of themselves.
fn keeps_its_promises(job: &ScoreJob, request: &ScoreRequest, server: &TeacherFacts) {
    assert_eq!((job.id, job.temperature), (request.id, request.temperature));
    assert!((1..=server.limits.max_sequence_tokens).contains(&job.tokens.len()));
    assert!(job.tokens.iter().all(|&id| (id as usize) < job.classes));
    let positions: Vec<u32> = job.positions().collect();
    assert!(positions.is_sorted_by(|a, b| a < b) && positions.len() == job.rows());
    assert!(positions.last().is_some_and(|&last| (last as usize) < job.tokens.len()));
    assert!(job.ranges.iter().all(|range| !range.is_empty()));
    assert!((1..=job.classes).contains(&job.k));
    for row in 0..job.rows() {
        if let Some(named) = job.entries.named_at(row, job.k) {
            assert_distinct(named, job.k, job.classes);
        }
    }
}

/// The request for a job asks for that job.
fn survives_the_wire(job: &ScoreJob, server: &TeacherFacts) {
    let bytes = score_request(job).encode_to_vec();
    let back = ScoreRequest::decode(Bytes::from(bytes)).expect("what was encoded");
    assert_eq!(score_job(&back, server).as_ref(), Ok(job));
}

/// An answer in messages within the bound, put together again.
fn can_be_answered(job: &ScoreJob, server: &TeacherFacts) {
    if job.rows() * job.k > MOST_ENTRIES {
        return;
    }
    let (signal, next) = answer(job);
    let limit = server.limits.max_reply_bytes;
    let computed = signal.clone().into();
    let replies = score_replies(job, &computed, &next, &stamp(limit)).expect("a sound answer");
    let mut assembler = ReplyAssembler::new(job.clone(), &agreement(job));
    let mut scored = None;
    for reply in replies {
        let bytes = reply.encode_to_vec();
        assert!(bytes.len() <= limit, "{} bytes", bytes.len());
        let reply = ScoreReply::decode(Bytes::from(bytes)).expect("what was encoded");
        assert!(scored.is_none(), "a reply after the last");
        scored = assembler.push(&reply).expect("an answer to what was asked");
    }
    let scored = scored.expect("a whole answer");
    assert_sound(&scored, job);
    let found = scored.signal.top_k().expect("listed tokens");
    assert_eq!(found.log_z, signal.log_z);
    assert_eq!(found.log_rest, signal.log_rest);
    let in_order = |ids: &[u32]| {
        let mut rows: Vec<Vec<u32>> = ids.chunks(job.k).map(<[u32]>::to_vec).collect();
        // Entries that 8 bits do not tell apart come by ascending id.
        if job.codec == Codec::Compact8 && job.entries == Entries::Top {
            rows.iter_mut().for_each(|row| row.sort_unstable());
        }
        rows
    };
    assert_eq!(in_order(&found.ids), in_order(&signal.ids));
    if job.codec == Codec::Raw {
        assert_eq!(found.scaled, signal.scaled);
    }
}

fn text_on_the_wire(bytes: Bytes, server: &TeacherFacts) -> bool {
    let length = bytes.len();
    let (read, memory) = peak(|| {
        let request = ScoreTextRequest::decode(bytes).ok()?;
        Some((request.clone(), text_job(request, server)))
    });
    let allowed = MEMORY + MEMORY_A_BYTE * length;
    assert!(memory <= allowed, "{memory} bytes held for {length}");
    let Some((request, job)) = read else { return false };
    let most = server.limits.max_top_k.min(server.vocab_size).min(1024);
    let temperature = if request.temperature == 0.0 { 1.0 } else { request.temperature };
    let may = (1..=server.limits.max_text_bytes).contains(&request.text.len())
        && (MIN_TEMPERATURE..=MAX_TEMPERATURE).contains(&temperature)
        && request.top_k as usize <= most;
    assert_eq!(job.is_ok(), may, "{request:?} of {server:?}: {job:?}");
    let Ok(job) = job else { return false };
    let k = if request.top_k == 0 { most.min(5) } else { request.top_k as usize };
    assert_eq!((job.k, job.temperature, job.text), (k, temperature, request.text));
    true
}

/// A request by decisions, most of them good ones.
pub(crate) fn drawn(draw: &mut Draw<'_>, server: &TeacherFacts) -> ScoreRequest {
    let (vocab, tokenizer) = (server.vocab_size as u32, server.tokenizer_size as u32);
    let vocab_size = draw.of_or_any(&[0, tokenizer, vocab, 0, tokenizer - 1, vocab + 1]);
    let classes = if vocab_size == 0 { vocab } else { vocab_size.max(1) };
    let id = |draw: &mut Draw<'_>| match draw.up_to(15) {
        15 => draw.any(),
        14 => classes,
        13 => classes - 1,
        _ => draw.up_to(255) as u32 % classes,
    };
    let length = draw.up_to(server.limits.max_sequence_tokens.min(18) + 1);
    let mut tokens = token_bytes(&(0..length).map(|_| id(draw)).collect::<Vec<_>>());
    tokens.truncate(tokens.len() - if draw.once_in(32) { tokens.len().min(1) } else { 0 });
    let (mut positions, mut end) = (Vec::new(), 0u32);
    for _ in 0..draw.up_to(3) {
        let first = end.saturating_add_signed(draw.of(&[0, 1, 2, -1]));
        end = first.saturating_add(draw.of_or_any(&[1, 2, 3, 0]));
        positions.push(PositionRange { first, end });
    }
    let rows: u32 = match positions.len() {
        0 => length as u32,
        _ => positions.iter().fold(0, |rows, range: &PositionRange| {
            range.end.saturating_sub(range.first).saturating_add(rows)
        }),
    };
    let limit = server.limits.max_top_k as u32;
    let top_k = draw.of_or_any(&[1, 2, 3, limit, limit + 1, classes, classes.saturating_add(1), 0]);
    let signal = draw.of(&[1, 2, 1, 2, 0, 3]);
    let named = if draw.once_in(2) { top_k } else { top_k.saturating_mul(rows.min(64)) };
    let named = if signal == 2 { named.min(256) } else { draw.of(&[0, 0, 0, 1]) };
    let stride = draw.of(&[1, 7, 1, 0]);
    let mut candidates: Vec<u32> = (0..named).map(|n| n.wrapping_mul(stride) % classes).collect();
    for _ in 0..draw.up_to(2).min(candidates.len()) {
        let at = draw.up_to(candidates.len() - 1);
        candidates[at] = id(draw);
    }
    let lowest = MIN_TEMPERATURE;
    let temperatures =
        [1.0, 5.0, lowest, MAX_TEMPERATURE, lowest.next_down(), MAX_TEMPERATURE.next_up(), -0.0];
    ScoreRequest {
        id: draw.of_or_any(&[1, 0]),
        tokens: tokens.into(),
        positions,
        temperature: draw.of_or_any(&temperatures),
        signal,
        top_k,
        codec: draw.of_or_any(&[0, 1, 2, 3, 4, 5]),
        vocab_size,
        candidates: token_bytes(&candidates).into(),
        priority: draw.of_or_any(&[0, 1, 2, 3, 4]),
        ..Default::default()
    }
}

/// Decisions for a request of two tokens that the last teacher answers: 1 and 2, all positions, k = 1,
/// raw; two bytes where any value could have been chosen.
pub(crate) const SIMPLEST: [u8; 25] =
    [0, 0, 2, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0];

/// Inputs to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    let job = ScoreJob {
        id: 77,
        tokens: vec![3, 1, 4, 1, 0],
        ranges: vec![1..3, 4..5],
        temperature: 5.0,
        k: 2,
        codec: Codec::Raw,
        classes: 5,
        entries: Entries::Top,
        priority: Priority::High,
    };
    let of = |teacher: u8, kind: u8, bytes: Vec<u8>| [vec![teacher, kind], bytes].concat();
    let score = |teacher, job: ScoreJob| of(teacher, WIRE, score_request(&job).encode_to_vec());
    let named = |ids: &[u32]| Entries::Named(ids.to_vec());
    let packed = ScoreJob { codec: Codec::Packed, classes: 96, ..job.clone() };
    let wide = ScoreJob { entries: named(&[1 << 23, 4]), classes: 1 << 24, ..packed.clone() };
    let large = ScoreJob { k: 780, classes: 2000, ..packed.clone() };
    let text = ScoreTextRequest { text: "two and two".to_owned(), temperature: 2.0, top_k: 3 };
    let short = ScoreTextRequest { text: "a".to_owned(), ..Default::default() };
    vec![
        score(3, job.clone()),
        score(0, ScoreJob { entries: named(&[1, 2, 2, 1, 89, 0]), ..packed.clone() }),
        score(0, ScoreJob { entries: named(&[1, 2]), codec: Codec::Raw, ..packed.clone() }),
        score(0, ScoreJob { codec: Codec::Compact, ..packed.clone() }),
        score(0, ScoreJob { codec: Codec::Compact8, ..packed.clone() }),
        score(0, packed),
        score(1, large),
        score(2, wide),
        of(0, TEXT, text.encode_to_vec()),
        of(1, TEXT, short.encode_to_vec()),
        [&[3, DRAWN][..], &SIMPLEST].concat(),
    ]
}
