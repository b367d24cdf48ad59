//! Tests of requests: what passes, and every way not to, with both values.

use distill::fingerprint::Fingerprint;
use distill::handshake::Limits;
use proptest::prelude::*;
use tonic::Code;

use super::*;
use crate::convert::refusal;
use crate::limits::DEFAULT_LIMITS;
use distill::queue::Priority;

/// A teacher of 96 classes for 90 ids, of which at most 16 are shown.
pub(crate) fn server() -> TeacherFacts {
    TeacherFacts {
        model: "tiny".to_string(),
        revision: String::new(),
        model_fingerprint: Fingerprint([7; 32]),
        tokenizer_fingerprint: Fingerprint([9; 32]),
        vocab_size: 96,
        tokenizer_size: 90,
        hidden_size: 8,
        limits: Limits { max_sequence_tokens: 12, max_top_k: 16, ..DEFAULT_LIMITS },
        signals: SignalKind::ALL.to_vec(),
        codecs: Codec::ALL.to_vec(),
        protocol_version: 1,
        server_version: "0.1.0".to_string(),
        dtype: "f32".to_string(),
        device: "cpu".to_string(),
        parameters: 1,
    }
}

/// Positions 1, 2 and 4 of five tokens.
pub(crate) fn job() -> ScoreJob {
    ScoreJob {
        id: 77,
        tokens: vec![3, 1, 89, 4, 0],
        ranges: vec![1..3, 4..5],
        temperature: 5.0,
        k: 2,
        codec: Codec::Raw,
        classes: 90,
        entries: Entries::Top,
        priority: Priority::Normal,
    }
}

fn ranges(ranges: &[(u32, u32)]) -> Vec<v1::PositionRange> {
    ranges.iter().map(|&(first, end)| v1::PositionRange { first, end }).collect()
}

fn name(request: &mut v1::ScoreRequest, ids: &[u32]) {
    (request.signal, request.candidates) = (2, codec::token_bytes(ids).into());
}

#[test]
fn a_job_survives_the_wire() {
    let named = |ids: &[u32]| ScoreJob { entries: Entries::Named(ids.to_vec()), ..job() };
    let urgent = ScoreJob { priority: Priority::High, ..job() };
    let drawn = |k, draws, seed| ScoreJob { k, entries: Entries::Drawn { draws, seed }, ..job() };
    let hidden = |form| ScoreJob { k: 0, entries: Entries::Hidden(form), ..job() };
    let coded = HiddenForm::Coded { code: Fingerprint([5; 32]), rung: Rung(-40) };
    let others = [
        drawn(0, 16, u64::MAX),
        drawn(2, 1024, 0),
        hidden(HiddenForm::F32),
        hidden(HiddenForm::Bf16),
        hidden(HiddenForm::Int8),
        hidden(HiddenForm::Int4),
        ScoreJob { temperature: 0.0, ..hidden(coded) },
    ];
    let listed = [job(), named(&[89, 0]), named(&[1, 2, 2, 1, 89, 0]), urgent];
    for job in listed.into_iter().chain(others) {
        assert_eq!(score_job(&score_request(&job), &server()), Ok(job));
    }
}

#[test]
fn fields_left_out_mean_all_positions_all_classes_and_the_packed_codec() {
    let request = v1::ScoreRequest {
        id: 1,
        tokens: vec![95, 0, 0, 0, 2, 0, 0, 0].into(),
        temperature: 1.0,
        signal: 1,
        top_k: 1,
        ..Default::default()
    };
    assert_eq!(score_job(&request, &server()).unwrap().priority, Priority::Normal);
    let job = score_job(&request, &server()).unwrap();
    assert_eq!((job.positions().collect(), &job.tokens[..]), (vec![0, 1], &[95, 2][..]));
    assert_eq!((job.codec, job.classes), (Codec::Packed, 96));
}

#[test]
fn rows_positions_and_next_tokens_are_those_asked_for() {
    assert_eq!(job().rows(), 3);
    assert_eq!(job().positions().collect::<Vec<_>>(), [1, 2, 4]);
    assert_eq!(job().next_tokens().collect::<Vec<_>>(), [Some(89), Some(4), None]);
}

#[test]
fn every_bad_request_is_refused_by_name_with_both_values() {
    type Change = fn(&mut v1::ScoreRequest);
    let offered = || "packed, raw, compact, compact8".to_string();
    let signals = || "top-k, candidates, sampled, full, coded".to_string();
    let cases: Vec<(Change, RequestError)> = vec![
        (|r| r.tokens.clear(), RequestError::Empty),
        (|r| r.tokens.truncate(19), RequestError::TokenBytes { found: 19 }),
        (|r| r.tokens = vec![0; 52].into(), RequestError::TooLong { found: 13, limit: 12 }),
        // Beyond the bound no token is looked at, not even their number.
        (|r| r.tokens = vec![9; 53].into(), RequestError::TooLong { found: 13, limit: 12 }),
        (
            |r| r.tokens = codec::token_bytes(&[3, u32::MAX]).into(),
            RequestError::TokenId { position: 1, found: u32::MAX, classes: 90 },
        ),
        (
            |r| r.tokens = codec::token_bytes(&[90, 3]).into(),
            RequestError::TokenId { position: 0, found: 90, classes: 90 },
        ),
        (
            |r| r.vocab_size = 89,
            RequestError::Classes { found: 89, tokenizer_size: 90, vocab_size: 96 },
        ),
        (
            |r| r.vocab_size = 97,
            RequestError::Classes { found: 97, tokenizer_size: 90, vocab_size: 96 },
        ),
        (|r| r.top_k = 0, RequestError::ZeroTopK),
        (|r| r.top_k = 17, RequestError::TopKLimit { found: 17, limit: 16 }),
        (|r| r.top_k = 91, RequestError::TopKClasses { found: 91, classes: 90 }),
        (|r| r.temperature = 0.0, RequestError::Temperature { found: 0.0 }),
        (|r| r.temperature = -0.0, RequestError::Temperature { found: -0.0 }),
        (|r| r.temperature = -5.0, RequestError::Temperature { found: -5.0 }),
        (|r| r.temperature = 1e-40, RequestError::Temperature { found: 1e-40 }),
        (|r| r.temperature = f32::INFINITY, RequestError::Temperature { found: f32::INFINITY }),
        (|r| r.signal = 0, RequestError::NoSignal),
        (|r| r.signal = 9, RequestError::UnknownSignal { found: 9, offered: signals() }),
        (|r| r.signal = -1, RequestError::UnknownSignal { found: -1, offered: signals() }),
        (|r| r.priority = 4, RequestError::UnknownPriority { found: 4 }),
        (|r| r.priority = -1, RequestError::UnknownPriority { found: -1 }),
        (
            |r| r.candidates = vec![1; 8].into(),
            RequestError::Stray { field: "candidates", signal: SignalKind::TopK },
        ),
        (|r| r.draws = 1, RequestError::Stray { field: "draws", signal: SignalKind::TopK }),
        (|r| r.seed = 1, RequestError::Stray { field: "seed", signal: SignalKind::TopK }),
        (|r| r.rung = 1, RequestError::Stray { field: "rung", signal: SignalKind::TopK }),
        (
            |r| (r.signal, r.hidden_form) = (3, 1),
            RequestError::Stray { field: "hidden_form", signal: SignalKind::Sampled },
        ),
        (
            |r| (r.signal, r.top_k, r.code_fingerprint) = (4, 0, vec![0; 32].into()),
            RequestError::Stray { field: "code_fingerprint", signal: SignalKind::Full },
        ),
        (|r| r.signal = 4, RequestError::Stray { field: "top_k", signal: SignalKind::Full }),
        (|r| r.signal = 3, RequestError::Draws { found: 0 }),
        (|r| (r.signal, r.draws) = (3, 1025), RequestError::Draws { found: 1025 }),
        (
            |r| (r.signal, r.draws, r.top_k) = (3, 1, 17),
            RequestError::TopKLimit { found: 17, limit: 16 },
        ),
        (
            |r| (r.signal, r.top_k, r.hidden_form) = (4, 0, 5),
            RequestError::UnknownForm { found: 5 },
        ),
        (|r| (r.signal, r.top_k, r.rung) = (5, 0, 1601), RequestError::Rung { found: 1601 }),
        (|r| (r.signal, r.top_k) = (5, 0), RequestError::CodeBytes { found: 0 }),
        (
            |r| (r.signal, r.top_k, r.code_fingerprint) = (5, 0, vec![0; 31].into()),
            RequestError::CodeBytes { found: 31 },
        ),
        (|r| r.signal = 2, RequestError::CandidateBytes { found: 0, k: 2, rows: 3 }),
        (|r| name(r, &[1]), RequestError::CandidateBytes { found: 4, k: 2, rows: 3 }),
        (|r| name(r, &[1, 2, 3, 4]), RequestError::CandidateBytes { found: 16, k: 2, rows: 3 }),
        (
            |r| (r.signal, r.candidates) = (2, vec![0; 9].into()),
            RequestError::CandidateBytes { found: 9, k: 2, rows: 3 },
        ),
        (
            |r| name(r, &[1, 2, 3, 4, 5, 90]),
            RequestError::CandidateId { row: 2, index: 1, found: 90, classes: 90 },
        ),
        (
            |r| name(r, &[u32::MAX, 1]),
            RequestError::CandidateId { row: 0, index: 0, found: u32::MAX, classes: 90 },
        ),
        (|r| name(r, &[1, 2, 3, 3, 5, 6]), RequestError::DuplicateCandidate { row: 1, found: 3 }),
        (|r| name(r, &[7, 7]), RequestError::DuplicateCandidate { row: 0, found: 7 }),
        (|r| r.codec = 5, RequestError::UnknownCodec { found: 5, offered: offered() }),
        (
            |r| r.positions = ranges(&[(0, 1), (2, 2)]),
            RequestError::EmptyRange { index: 1, first: 2, end: 2 },
        ),
        (
            |r| r.positions = ranges(&[(3, 1)]),
            RequestError::EmptyRange { index: 0, first: 3, end: 1 },
        ),
        (
            |r| r.positions = ranges(&[(4, 6)]),
            RequestError::RangeBounds { index: 0, first: 4, end: 6, length: 5 },
        ),
        (
            |r| r.positions = ranges(&[(0, 3), (2, 4)]),
            RequestError::RangeOrder { index: 1, first: 2, previous_end: 3 },
        ),
        (
            |r| r.positions = ranges(&[(3, 4), (0, 1)]),
            RequestError::RangeOrder { index: 1, first: 0, previous_end: 4 },
        ),
    ];
    for (change, wanted) in cases {
        let mut request = score_request(&job());
        change(&mut request);
        let error = score_job(&request, &server()).unwrap_err();
        assert_eq!(error, wanted);
        assert_eq!(error.code(), Code::InvalidArgument);
    }
    let request = v1::ScoreRequest { temperature: f32::NAN, ..score_request(&job()) };
    let error = score_job(&request, &server()).unwrap_err();
    assert!(matches!(error, RequestError::Temperature { found } if found.is_nan()));
}

#[test]
fn what_this_server_does_not_offer_is_refused() {
    let raw_only = TeacherFacts { codecs: vec![Codec::Raw], ..server() };
    let request = v1::ScoreRequest { codec: 0, ..score_request(&job()) };
    let offered = "raw".to_string();
    let wanted = RequestError::CodecNotOffered { found: Codec::Packed, offered };
    assert_eq!(score_job(&request, &raw_only), Err(wanted));
    let nothing = TeacherFacts { signals: vec![], ..server() };
    let wanted = RequestError::SignalNotOffered { found: SignalKind::TopK, offered: String::new() };
    assert_eq!(score_job(&score_request(&job()), &nothing), Err(wanted));
}

#[test]
fn more_classes_than_three_bytes_name_need_the_raw_codec() {
    let vast = TeacherFacts { vocab_size: (1 << 24) + 1, ..server() };
    let asked = |codec| v1::ScoreRequest { codec, vocab_size: 0, ..score_request(&job()) };
    for codec in [0, 1, 3, 4] {
        let wanted = RequestError::PackedClasses { classes: (1 << 24) + 1 };
        assert_eq!(score_job(&asked(codec), &vast), Err(wanted), "{codec}");
    }
    assert!(score_job(&asked(2), &vast).is_ok());
}

#[test]
fn a_position_that_fits_no_reply_is_refused_before_it_is_computed() {
    let limits = Limits { max_top_k: 200_000, ..DEFAULT_LIMITS };
    let server = TeacherFacts { vocab_size: 151_936, limits, ..server() };
    let all = v1::ScoreRequest { vocab_size: 0, top_k: 151_936, ..score_request(&job()) };
    let error = score_job(&all, &server).unwrap_err();
    let found = 8 + 8 * 151_936 + 4 + 160;
    let wanted = RequestError::RowTooLarge { k: 151_936, codec: Codec::Raw, found, limit: 1 << 20 };
    assert_eq!(error, wanted);
    // The packed codec carries the whole vocabulary of Qwen3 in one message.
    assert!(score_job(&v1::ScoreRequest { codec: 1, ..all }, &server).is_ok());
    // Nor is a hidden state of 4 KiB where replies have 4 KiB.
    let limits = Limits { max_reply_bytes: 4096, ..DEFAULT_LIMITS };
    let small = TeacherFacts { hidden_size: 1024, limits, ..server };
    let state = v1::ScoreRequest { signal: 4, top_k: 0, hidden_form: 1, ..score_request(&job()) };
    let (form, width, found) = (HiddenForm::F32, 1024, 4096 + 4 + 160);
    let wanted = RequestError::StateTooLarge { form, width, found, limit: 4096 };
    assert_eq!(score_job(&state, &small), Err(wanted));
    assert!(score_job(&v1::ScoreRequest { hidden_form: 0, ..state }, &small).is_ok());
}

#[test]
fn a_refusal_is_a_last_reply_with_the_code_and_the_words() {
    let error = score_job(&v1::ScoreRequest::default(), &server()).unwrap_err();
    let reply = refusal(5, error.code(), error.to_string(), None);
    assert_eq!((reply.id, reply.last, reply.rows), (5, true, 0));
    let sent = reply.error.unwrap();
    assert_eq!(sent.code, 3);
    assert_eq!(
        sent.message,
        "signal is not set: say what is wanted, SIGNAL_KIND_TOP_K (1) for instance"
    );
    assert_eq!(tonic::Status::from(error).code(), Code::InvalidArgument);
}

proptest! {
    #[test]
    fn no_request_makes_checking_panic_and_what_passes_is_in_bounds(
        tokens in prop::collection::vec(prop_oneof![9 => Just(0u8), 1 => any::<u8>()], 0..60),
        positions in prop::collection::vec((0u32..8, 0u32..8), 0..4),
        wild: (u32, u32),
        temperature in prop_oneof![any::<f32>(), Just(1.0f32)],
        signal in -1i32..7,
        (draws, hidden_form, rung) in (0u32..3, -1i32..6, -1i32..2),
        code in prop_oneof![Just(0usize), Just(32)],
        named in prop::collection::vec(prop_oneof![9 => 0u32..96, 1 => any::<u32>()], 0..40),
        of_each in any::<bool>(),
        priority in -1i32..5,
        top_k in prop_oneof![0u32..20, any::<u32>()],
        codec in -1i32..6,
        vocab_size in prop_oneof![Just(0u32), 85u32..100, any::<u32>()],
    ) {
        let mut positions = ranges(&positions);
        if wild.0 % 4 == 0 {
            positions.push(v1::PositionRange { first: wild.0, end: wild.1 });
        }
        // Mostly as many as fit, or nothing beyond their number would be looked at.
        let rows: u32 = positions.iter().map(|p| p.end.saturating_sub(p.first)).sum();
        let fitting = top_k.saturating_mul(if of_each { rows } else { 1 }) as usize;
        let named = if signal == 2 { &named[..fitting.min(named.len())] } else { &[] };
        let (candidates, tokens) = (codec::token_bytes(named).into(), tokens.into());
        let request = v1::ScoreRequest {
            id: 1, tokens, positions, temperature, signal, top_k, codec, vocab_size, candidates,
            priority, draws, seed: 0, hidden_form, rung,
            code_fingerprint: vec![7; code].into(),
        };
        if let Ok(job) = score_job(&request, &server()) {
            prop_assert!((1..=12).contains(&job.tokens.len()) && (90..=96).contains(&job.classes));
            prop_assert!(job.tokens.iter().all(|&id| (id as usize) < job.classes));
            prop_assert!((1..=16).contains(&job.k) && job.temperature > 0.0);
            let positions: Vec<u32> = job.positions().collect();
            prop_assert!(!positions.is_empty() && positions.is_sorted_by(|a, b| a < b));
            prop_assert!((positions[positions.len() - 1] as usize) < job.tokens.len());
            for row in 0..job.rows() {
                let Some(named) = job.entries.named_at(row, job.k) else { continue };
                prop_assert_eq!(named.len(), job.k);
                prop_assert!(named.iter().all(|&id| (id as usize) < job.classes));
                let different: std::collections::HashSet<_> = named.iter().collect();
                prop_assert_eq!(different.len(), job.k);
            }
        }
    }
}
