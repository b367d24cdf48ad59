//! Tests of replies: cutting, putting together, and everything a wrong answer can be.

use distill::codec::Codec;
use distill::handshake::{Limits, SignalKind};
use distill::signal::{Entries, TopK};
use proptest::prelude::*;

use super::*;
use crate::convert::request::tests::{job, server};
use crate::convert::{Reaction, refusal, score_job, score_request};
use crate::limits::MAX_MESSAGE_BYTES;

mod signals;

const MODEL: Fingerprint = Fingerprint([7; 32]);
const TOKENIZER: Fingerprint = Fingerprint([9; 32]);

fn agreement() -> Agreement {
    Agreement {
        classes: 90,
        model_fingerprint: MODEL,
        tokenizer_fingerprint: TOKENIZER,
        hidden_size: 0,
        max_in_flight: 1,
    }
}

fn stamp(max_reply_bytes: usize) -> Stamp {
    Stamp {
        model_fingerprint: MODEL,
        tokenizer_fingerprint: TOKENIZER,
        max_reply_bytes,
        queued: Duration::from_nanos(5),
        computed: Duration::from_secs(1),
    }
}

/// A signal for a job, with numbers that tell rows and entries apart.
fn answer(job: &ScoreJob) -> (TopK, Vec<f32>) {
    let (rows, k) = (job.rows(), job.k);
    let entry = |n: usize| (n / k, n % k);
    let signal = TopK {
        k,
        ids: (0..rows * k).map(|n| ((entry(n).0 + entry(n).1) % job.classes) as u32).collect(),
        scaled: (0..rows * k).map(|n| entry(n).0 as f32 - entry(n).1 as f32 / 7.0).collect(),
        log_z: (0..rows).map(|row| row as f32 + 2.0).collect(),
        log_rest: (0..rows).map(|row| -(row as f32) / 3.0).collect(),
    };
    let next = job.next_tokens().map(|token| token.map_or(f32::NAN, |id| -(id as f32)));
    (signal, next.collect())
}

fn replies(job: &ScoreJob, max_reply_bytes: usize) -> Vec<v1::ScoreReply> {
    let (signal, next) = answer(job);
    score_replies(job, &signal.into(), &next, &stamp(max_reply_bytes)).unwrap()
}

/// A job over all positions of `length` tokens.
fn long_job(length: u32, k: usize, codec: Codec, classes: usize) -> ScoreJob {
    let tokens: Vec<u32> = (0..length).map(|t| t % classes as u32).collect();
    let ranges = std::iter::once(0..length).collect();
    ScoreJob { id: u64::MAX, tokens, ranges, k, codec, classes, ..job() }
}

#[test]
fn one_message_carries_a_short_answer() {
    let [reply] = &replies(&job(), 1 << 20)[..] else { panic!("one message") };
    assert_eq!((reply.id, reply.first_position, reply.rows, reply.last), (77, 1, 3, true));
    assert_eq!((reply.temperature, reply.top_k, reply.codec), (5.0, 2, 2));
    assert_eq!(reply.model_fingerprint, vec![7; 16]);
    assert_eq!(reply.tokenizer_fingerprint, vec![9; 16]);
    assert_eq!((reply.queue_ns, reply.compute_ns), (5, 1_000_000_000));
    let next = [-89.0f32, -4.0].map(f32::to_le_bytes).concat();
    assert_eq!(reply.next_logprob[..8], next);
    assert_eq!(reply.next_logprob[8..], f32::NAN.to_le_bytes());

    let mut assembler = ReplyAssembler::new(job(), &agreement());
    let scored = assembler.push(reply).unwrap().unwrap();
    let (signal, next) = answer(&job());
    assert_eq!(scored.signal, signal.into());
    assert_eq!(scored.next_logprob[..2], next[..2]);
    assert!(scored.next_logprob[2].is_nan());
    assert_eq!((scored.id, scored.wire_bytes), (77, reply.encoded_len()));
    assert_eq!((scored.queued, scored.computed), (stamp(0).queued, stamp(0).computed));
    assert_eq!(assembler.push(reply), Err(ReplyError::AfterLast { id: 77 }));
    assembler.restart();
    assert!(assembler.push(reply).unwrap().is_some());
}

#[test]
fn a_token_costs_at_most_400_bytes_at_k_64_and_at_most_272_in_a_compact_codec() {
    // What the default job sends: 150 rows of 64 out of Qwen3's classes. What a row has of signal, 4 of
    // next_logprob, and a share of the rest.
    for (codec, of_signal) in
        [(Codec::Packed, 336.0), (Codec::Compact, 250.0), (Codec::Compact8, 186.0)]
    {
        let replies = replies(&long_job(150, 64, codec, 151_936), 1 << 20);
        let bytes: usize = replies.iter().map(v1::ScoreReply::encoded_len).sum();
        let a_row = bytes as f64 / 150.0 - 4.0 - of_signal;
        assert_eq!(replies.len(), 1);
        assert!((0.0..2.0).contains(&a_row), "{codec}: {a_row} bytes a row beside the signal");
    }
}

#[test]
fn long_answers_are_cut_into_messages_within_the_limit_and_nearly_full() {
    for codec in Codec::ALL {
        let job = long_job(12_000, 64, codec, 151_936);
        let replies = replies(&job, 1 << 20);
        let sizes: Vec<usize> = replies.iter().map(v1::ScoreReply::encoded_len).collect();
        let (_, full) = sizes.split_last().unwrap();
        assert!(sizes.iter().all(|&size| size <= 1 << 20), "{sizes:?}");
        assert!(full.len() > 1 && full.iter().all(|&size| size > (1 << 20) - 1_000), "{sizes:?}");
        assert_eq!(replies.iter().filter(|reply| reply.last).count(), 1);
    }
}

#[test]
fn the_longest_envelope_fits_its_allowance() {
    let reply = v1::ScoreReply {
        id: u64::MAX,
        first_position: u32::MAX,
        rows: u32::MAX,
        last: true,
        temperature: 1.0,
        top_k: u32::MAX,
        codec: v1::Codec::Compact8.into(),
        token_checksum: u64::MAX,
        model_fingerprint: vec![0; 16].into(),
        tokenizer_fingerprint: vec![0; 16].into(),
        code_fingerprint: vec![0; 16].into(),
        payload_checksum: u64::MAX,
        queue_ns: u64::MAX,
        compute_ns: u64::MAX,
        ..Default::default()
    };
    // Tags and lengths of the two arrays, which are left out above.
    let of_arrays = 2 * (1 + prost::length_delimiter_len(MAX_MESSAGE_BYTES));
    assert!(reply.encoded_len() + of_arrays <= ENVELOPE_BYTES, "{}", reply.encoded_len());
}

#[test]
fn signals_that_are_not_what_was_asked_are_not_sent() {
    let (signal, next) = answer(&job());
    let refused = |signal: &TopK, next: &[f32]| {
        let error = score_replies(&job(), &signal.clone().into(), next, &stamp(1 << 20));
        let SignalError::Listed(error) = error.unwrap_err() else { panic!("of listed tokens") };
        error
    };
    let drawn = ScoreJob { entries: Entries::Drawn { draws: 3, seed: 0 }, ..job() };
    let other = score_replies(&drawn, &signal.clone().into(), &next, &stamp(1 << 20)).unwrap_err();
    assert_eq!(other, SignalError::Kind { wanted: SignalKind::Sampled });
    let short = signal.slice(0..2);
    assert!(matches!(refused(&short, &next), CodecError::Shape { wanted: 3, found: 2, .. }));
    let other_k = TopK { k: 3, ..signal.clone() };
    assert!(matches!(refused(&other_k, &next), CodecError::Shape { wanted: 2, found: 3, .. }));
    assert!(matches!(refused(&signal, &next[..2]), CodecError::Shape { wanted: 3, found: 2, .. }));
    let infinite = [next[0], f32::NEG_INFINITY, next[2]];
    assert!(matches!(refused(&signal, &infinite), CodecError::NotFinite { row: 1, .. }));
    let mut broken = signal;
    broken.scaled[5] = f32::NAN;
    assert!(matches!(refused(&broken, &next), CodecError::NotFinite { row: 2, .. }));
}

/// What the second of two messages, changed, is taken for.
fn wrong(change: impl FnOnce(&mut v1::ScoreReply)) -> ReplyError {
    // Room for two rows: positions 1 and 2, then 4.
    let mut replies = replies(&job(), ENVELOPE_BYTES + 2 * (24 + 4));
    assert_eq!(replies.len(), 2);
    let mut assembler = ReplyAssembler::new(job(), &agreement());
    assert_eq!(assembler.push(&replies[0]), Ok(None));
    change(&mut replies[1]);
    assembler.push(&replies[1]).unwrap_err()
}

/// The reply with its payload checksum made to fit again.
fn resealed(reply: &mut v1::ScoreReply, change: impl FnOnce(&mut Vec<u8>, &mut Vec<u8>)) {
    let (mut signal, mut next) = (reply.signal.to_vec(), reply.next_logprob.to_vec());
    change(&mut signal, &mut next);
    reply.payload_checksum = payload_checksum(&[&signal, &next]);
    (reply.signal, reply.next_logprob) = (signal.into(), next.into());
}

#[test]
fn every_wrong_answer_is_found_by_name_with_both_values() {
    let id = 77;
    let sum = token_checksum(&job().tokens);
    assert_eq!(wrong(|r| r.id = 78), ReplyError::Id { found: 78, wanted: 77 });
    let error = wrong(|r| r.temperature = 1.0);
    assert_eq!(error, ReplyError::Temperature { id, found: 1.0, wanted: 5.0 });
    let error = wrong(|r| r.token_checksum = 1);
    assert_eq!(error, ReplyError::Tokens { id, found: 1, wanted: sum });
    let error = wrong(|r| r.model_fingerprint = vec![8; 16].into());
    let (found, wanted) = ("08".repeat(16), "07".repeat(16));
    assert_eq!(error, ReplyError::Model { id, found, wanted });
    // A shorter prefix would prove less.
    let error = wrong(|r| r.model_fingerprint = vec![7; 15].into());
    assert!(matches!(error, ReplyError::Model { .. }));
    let error = wrong(|r| r.tokenizer_fingerprint = vec![8; 16].into());
    let (found, wanted) = ("08".repeat(16), "09".repeat(16));
    assert_eq!(error, ReplyError::Tokenizer { id, found, wanted: wanted.clone() });
    let error = wrong(|r| r.tokenizer_fingerprint = vec![9; 17].into());
    assert!(matches!(error, ReplyError::Tokenizer { .. }));
    // As a server sends that does not know the field.
    let error = wrong(|r| r.tokenizer_fingerprint.clear());
    assert_eq!(error, ReplyError::NoTokenizer { id, wanted });
    assert_eq!(wrong(|r| r.top_k = 3), ReplyError::TopK { id, found: 3, wanted: 2 });
    assert_eq!(wrong(|r| r.codec = 1), ReplyError::Codec { id, found: 1, wanted: Codec::Raw });
    assert_eq!(wrong(|r| r.codec = 9), ReplyError::Codec { id, found: 9, wanted: Codec::Raw });
    let error = wrong(|r| r.first_position = 3);
    assert_eq!(error, ReplyError::Position { id, found: 3, wanted: 4 });
    for (rows, last) in [(0, false), (0, true), (2, true), (1, false), (u32::MAX, true)] {
        let error = wrong(|r| (r.rows, r.last) = (rows, last));
        assert_eq!(error, ReplyError::Rows { id, found: rows as usize, wanted: 1, last });
    }
    let error = wrong(|r| r.signal = vec![0; 24].into());
    assert!(matches!(error, ReplyError::Payload { .. }));
}

#[test]
fn a_payload_that_is_whole_but_wrong_is_found() {
    let id = 77;
    let wrong_payload = |change: fn(&mut Vec<u8>, &mut Vec<u8>)| wrong(|r| resealed(r, change));
    let short = CodecError::Length { codec: Codec::Raw, rows: 1, k: 2, wanted: 24, found: 23 };
    let error = wrong_payload(|signal, _| signal.truncate(23));
    assert_eq!(error, ReplyError::Signal { id, first_position: 4, source: short.into() });
    let error = wrong_payload(|signal, _| signal[8..12].copy_from_slice(&90u32.to_le_bytes()));
    let source = CodecError::Id { row: 0, found: 90, classes: 90 };
    assert_eq!(error, ReplyError::Signal { id, first_position: 4, source: source.into() });
    let error = wrong_payload(|signal, _| signal[..4].copy_from_slice(&f32::NAN.to_le_bytes()));
    let ReplyError::Signal { source: SignalError::Listed(source), .. } = error else {
        panic!("{error}")
    };
    assert!(matches!(source, CodecError::NotFinite { .. }));
    let error = wrong_payload(|_, next| next.extend([0; 4]));
    assert_eq!(error, ReplyError::NextBytes { id, found: 8, wanted: 4 });
    // Position 4 is the sequence's last: nothing follows it.
    let error = wrong_payload(|_, next| next.fill(0));
    let wanted = "NaN, since no token follows";
    assert_eq!(error, ReplyError::NextLogprob { id, position: 4, found: 0.0, wanted });
    let mut first = replies(&job(), 1 << 20).remove(0);
    resealed(&mut first, |_, next| next[..4].copy_from_slice(&f32::NAN.to_le_bytes()));
    let error = ReplyAssembler::new(job(), &agreement()).push(&first).unwrap_err();
    assert!(matches!(error, ReplyError::NextLogprob { position: 1, .. }), "{error}");
}

/// The ids of candidates stay where they are known, whichever way they were named and however the
/// answer is cut.
#[test]
fn candidates_come_back_without_their_ids() {
    let long = long_job(150, 64, Codec::Packed, 151_936);
    let same: Vec<u32> = (0..64).map(|i| i * 7 + 3).collect();
    let each: Vec<u32> = (0..150 * 64).map(|i| i * 11 % 9_000).collect();
    for (named, codec, [entry, row, head], most) in [
        (same.clone(), Codec::Packed, [2, 16, 0], 1e-4),
        (each.clone(), Codec::Raw, [4, 8, 0], 1e-9),
        (same, Codec::Compact8, [1, 16, 20], 9.0 / 500.0),
        (each, Codec::Compact, [2, 16, 20], 1e-4),
    ] {
        let job = ScoreJob { entries: Entries::Named(named.clone()), codec, ..long.clone() };
        let (mut signal, next) = answer(&job);
        signal.ids = named.iter().copied().cycle().take(150 * 64).collect();
        let messages = score_replies(&job, &signal.clone().into(), &next, &stamp(8192)).unwrap();
        let sent: usize = messages.iter().map(|reply| reply.signal.len()).sum();
        assert_eq!(sent, 150 * (64 * entry + row) + messages.len() * head, "{codec}");
        assert!(messages.len() > 1 && messages.iter().all(|r| r.encoded_len() <= 8192));
        let agreement = Agreement { classes: 151_936, ..agreement() };
        let mut assembler = ReplyAssembler::new(job, &agreement);
        let answers: Vec<_> =
            messages.iter().filter_map(|reply| assembler.push(reply).unwrap()).collect();
        let [scored] = &answers[..] else { panic!("one answer") };
        let found = scored.signal.top_k().unwrap();
        assert_eq!((&found.ids, &found.log_z), (&signal.ids, &signal.log_z));
        let off = |(a, b): (&f32, &f32)| (a - b).abs();
        let worst = found.scaled.iter().zip(&signal.scaled).map(off).fold(0.0, f32::max);
        assert!(worst < most, "{codec}: {worst}");
    }
}

#[test]
fn refusals_may_pass_or_not_and_wrong_answers_never_do() {
    let refused = |code| {
        let reply =
            refusal(77, code, "the queue\u{1b}[31m is full", Some(Duration::from_millis(250)));
        ReplyAssembler::new(job(), &agreement()).push(&reply).unwrap_err()
    };
    let error = refused(Code::ResourceExhausted);
    let message = "the queue\u{fffd}[31m is full".to_string();
    let wanted = ReplyError::Refused {
        id: 77,
        code: Code::ResourceExhausted,
        message,
        pause: Duration::from_millis(250),
    };
    assert_eq!(error, wanted);
    assert_eq!(error.reaction(), Reaction::Retry);
    assert_eq!(refused(Code::Unavailable).reaction(), Reaction::Retry);
    assert_eq!(refused(Code::InvalidArgument).reaction(), Reaction::Stop);
    assert_eq!(wrong(|r| r.temperature = 2.0).reaction(), Reaction::Stop);
}

proptest! {
    #[test]
    fn whatever_is_asked_is_put_together_as_it_was_computed(
        length in 1u32..200,
        wanted in prop::collection::vec(any::<bool>(), 200),
        k in 1usize..40,
        codec in prop::sample::select(&Codec::ALL[..]),
        room in 0usize..4_000,
    ) {
        let mut job = long_job(length, k, codec, 90);
        let mask = std::iter::once(true).chain((0..length as usize).map(|t| wanted[t]));
        let sequence = distill::batch::Sequence::new(
            std::iter::once(0).chain(job.tokens.iter().copied()).collect(),
            mask.collect(),
        ).unwrap();
        job.ranges = sequence.scored_ranges();
        prop_assume!(job.rows() > 0);
        // The request, checked by a server that can just send one row.
        let limit = message_bytes(1, &job, &server()) + room;
        let limits = Limits { max_sequence_tokens: 200, max_top_k: 40, max_reply_bytes: limit,
            ..server().limits };
        let server = TeacherFacts { limits, ..server() };
        prop_assert_eq!(score_job(&score_request(&job), &server), Ok(job.clone()));

        let (signal, next) = answer(&job);
        let replies = score_replies(&job, &signal.clone().into(), &next, &stamp(limit)).unwrap();
        let mut assembler = ReplyAssembler::new(job.clone(), &agreement());
        let (last, others) = replies.split_last().unwrap();
        for reply in others {
            prop_assert!(reply.encoded_len() <= limit);
            prop_assert_eq!(assembler.push(reply), Ok(None));
        }
        prop_assert!(last.encoded_len() <= limit);
        let scored = assembler.push(last).unwrap().expect("the last message completes it");
        let found = scored.signal.top_k().unwrap();
        prop_assert_eq!(&found.ids, &signal.ids);
        prop_assert_eq!(&found.log_z, &signal.log_z);
        prop_assert_eq!(&found.log_rest, &signal.log_rest);
        // Numbers up to 200 in steps of 1 / 7: float32 has them to 1e-5.
        let rounding = if codec == Codec::Raw { 0.0 } else { 1e-5 };
        let most = 40.0 / 7.0 * codec.error_share() as f32 + rounding;
        for (received, sent) in found.scaled.iter().zip(&signal.scaled) {
            prop_assert!((received - sent).abs() <= most);
        }
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(&scored.next_logprob), bits(&next));
        let bytes: usize = replies.iter().map(v1::ScoreReply::encoded_len).sum();
        prop_assert_eq!(scored.wire_bytes, bytes);
    }

    #[test]
    fn no_reply_makes_the_assembler_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..80),
        next in prop::collection::vec(any::<u8>(), 0..16),
        rows in prop_oneof![0u32..4, any::<u32>()],
        first_position in prop_oneof![0u32..6, any::<u32>()],
        last: bool,
    ) {
        let mut reply = replies(&job(), 1 << 20).remove(0);
        (reply.rows, reply.first_position, reply.last) = (rows, first_position, last);
        reply.payload_checksum = payload_checksum(&[&bytes, &next]);
        (reply.signal, reply.next_logprob) = (bytes.into(), next.into());
        let mut assembler = ReplyAssembler::new(job(), &agreement());
        let _ = assembler.push(&reply);
        let _ = assembler.push(&reply);
    }
}
