//! Tests of a teacher's facts: the round trip, and the nonsense a stranger may send.

use super::*;
use crate::convert::request::tests::server;

fn refused(change: impl FnOnce(&mut v1::GetInfoReply)) -> InfoError {
    let mut info = facts_to_info(&server());
    change(&mut info);
    facts_from_info(&info).unwrap_err()
}

#[test]
fn facts_survive_the_wire() {
    assert_eq!(facts_from_info(&facts_to_info(&server())), Ok(server()));
}

#[test]
fn what_a_newer_teacher_offers_beside_is_left_out() {
    let mut info = facts_to_info(&server());
    info.signals.extend([0, 7, -1]);
    info.codecs.extend([0, 9]);
    assert_eq!(facts_from_info(&info), Ok(server()));
}

#[test]
fn nonsense_is_refused_by_name() {
    assert_eq!(refused(|i| i.protocol_version = 2), InfoError::Protocol { found: 2, wanted: 1 });
    // A server that is none of ours answers with nothing at all.
    let nothing = facts_from_info(&v1::GetInfoReply::default());
    assert_eq!(nothing, Err(InfoError::Protocol { found: 0, wanted: 1 }));
    assert_eq!(refused(|i| i.limits = None), InfoError::NoLimits);
    let error = refused(|i| i.tokenizer_fingerprint = "abc".to_string());
    let source = NotAFingerprint { found: "abc".to_string() };
    assert_eq!(error, InfoError::Fingerprint { field: "tokenizer_fingerprint", source });
    let error = refused(|i| i.tokenizer_size = 97);
    let (field, least, most) = ("tokenizer_size", 1, 96);
    assert_eq!(error, InfoError::OutOfRange { field, found: 97, least, most });
    assert!(matches!(
        refused(|i| i.vocab_size = 0),
        InfoError::OutOfRange { field: "vocab_size", found: 0, .. }
    ));
    // Replies no stock client would read.
    let error = refused(|i| i.limits.as_mut().unwrap().max_reply_bytes = (4 << 20) + 1);
    assert!(matches!(error, InfoError::OutOfRange { field: "max_reply_bytes", .. }));
}

#[test]
fn every_limit_must_be_there() {
    type Change = fn(&mut v1::Limits);
    let zeros: [(&str, Change); 9] = [
        ("max_sequence_tokens", |l| l.max_sequence_tokens = 0),
        ("max_top_k", |l| l.max_top_k = 0),
        ("max_reply_bytes", |l| l.max_reply_bytes = 0),
        ("max_request_bytes", |l| l.max_request_bytes = 0),
        ("max_in_flight_per_stream", |l| l.max_in_flight_per_stream = 0),
        ("max_batch_tokens", |l| l.max_batch_tokens = 0),
        ("max_queued_sequences", |l| l.max_queued_sequences = 0),
        ("max_queued_tokens", |l| l.max_queued_tokens = 0),
        ("max_text_bytes", |l| l.max_text_bytes = 0),
    ];
    for (name, change) in zeros {
        let error = refused(|info| change(info.limits.as_mut().unwrap()));
        assert!(matches!(error, InfoError::OutOfRange { field, found: 0, .. } if field == name));
    }
}

#[test]
fn foreign_text_cannot_steer_the_terminal() {
    let mut info = facts_to_info(&server());
    info.model = format!("\u{1b}[2Jevil\n{}", "x".repeat(1_000));
    let model = facts_from_info(&info).unwrap().model;
    assert!(model.starts_with("\u{fffd}[2Jevil\u{fffd}x"), "{model}");
    assert_eq!(model.chars().count(), 256);
}
