//! Tests of the handshake: the cases people meet, each refused by name with both values.

use super::*;

fn teacher() -> TeacherFacts {
    TeacherFacts {
        model: "teacher".to_string(),
        revision: String::new(),
        model_fingerprint: Fingerprint([1; 32]),
        tokenizer_fingerprint: Fingerprint([2; 32]),
        vocab_size: 151_936,
        tokenizer_size: 151_669,
        hidden_size: 0,
        limits: Limits {
            max_sequence_tokens: 2048,
            max_top_k: 512,
            max_reply_bytes: 1 << 20,
            max_request_bytes: 1 << 20,
            max_in_flight_per_stream: 64,
            max_batch_tokens: 8192,
            max_queued_sequences: 100,
            max_queued_tokens: 100_000,
            max_text_bytes: 32_768,
            max_connections: 256,
            max_streams_per_connection: 128,
            max_held_bytes_per_stream: 1 << 20,
            max_held_bytes: 1 << 20,
            max_unfinished_bytes: 1 << 20,
            max_http_body_bytes: 100,
            max_encoding_texts: 2,
            stream_timeout: Duration::from_secs(100),
            stream_idle_timeout: Duration::from_secs(10),
            message_timeout: Duration::from_secs(10),
            reader_timeout: Duration::from_secs(10),
            batch_wait: Duration::from_secs(0),
            idle_timeout: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(10),
        },
        signals: vec![SignalKind::TopK],
        codecs: vec![Codec::Packed, Codec::Raw],
        protocol_version: 1,
        server_version: "0.1.0".to_string(),
        dtype: "f32".to_string(),
        device: "cpu".to_string(),
        parameters: 4_000_000_000,
    }
}

fn student() -> StudentFacts {
    StudentFacts {
        tokenizer_fingerprint: Fingerprint([2; 32]),
        vocab_size: 151_936,
        tokenizer_size: 151_669,
        max_length: 1024,
        signal: SignalKind::TopK,
        top_k: 64,
        codec: Codec::Packed,
    }
}

/// The mismatch of a teacher and a student, each changed.
fn refused(
    teach: impl FnOnce(&mut TeacherFacts),
    learn: impl FnOnce(&mut StudentFacts),
) -> Mismatch {
    let (mut teacher, mut student) = (teacher(), student());
    teach(&mut teacher);
    learn(&mut student);
    check(&teacher, &student).unwrap_err()
}

#[test]
fn a_pair_that_fits_agrees_on_all_classes() {
    let agreement = check(&teacher(), &student()).unwrap();
    let wanted = Agreement {
        classes: 151_936,
        model_fingerprint: Fingerprint([1; 32]),
        tokenizer_fingerprint: Fingerprint([2; 32]),
        hidden_size: 0,
        max_in_flight: 64,
    };
    assert_eq!(agreement, wanted);
}

#[test]
fn outputs_padded_differently_share_the_smaller_one() {
    for (teacher_rows, student_rows) in [(152_064, 151_936), (151_936, 152_064)] {
        let teacher = TeacherFacts { vocab_size: teacher_rows, ..teacher() };
        let student = StudentFacts { vocab_size: student_rows, ..student() };
        assert_eq!(check(&teacher, &student).unwrap().classes, 151_936);
    }
}

#[test]
fn an_output_smaller_than_the_tokenizer_is_refused() {
    let wanted = Mismatch::Classes { teacher: 151_936, student: 151_668, tokenizer: 151_669 };
    assert_eq!(refused(|_| (), |student| student.vocab_size = 151_668), wanted);
}

#[test]
fn tokenizers_must_be_equal() {
    let other = Fingerprint([3; 32]);
    let error = refused(|_| (), |student| student.tokenizer_fingerprint = other);
    let text = error.to_string();
    assert!(text.contains(&other.to_string()), "{text}");
    assert!(text.contains(&Fingerprint([2; 32]).to_string()), "{text}");
    let error = refused(|_| (), |student| student.tokenizer_size = 151_670);
    assert!(matches!(
        error,
        Mismatch::Tokenizer { teacher_size: 151_669, student_size: 151_670, .. }
    ));
}

#[test]
fn everything_else_is_refused_by_name_with_both_values() {
    type Learn = fn(&mut StudentFacts);
    let wrong_students: [(Learn, Mismatch); 4] = [
        (|s| s.max_length = 2049, Mismatch::Length { teacher: 2048, student: 2049 }),
        (|s| s.top_k = 0, Mismatch::ZeroTopK),
        (|s| s.top_k = 513, Mismatch::TopKLimit { teacher: 512, student: 513 }),
        (|s| s.top_k = 151_937, Mismatch::TopKClasses { classes: 151_936, student: 151_937 }),
    ];
    for (learn, wanted) in wrong_students {
        assert_eq!(refused(|_| (), learn), wanted);
    }
    let error = refused(|teacher| teacher.protocol_version = 2, |_| ());
    assert_eq!(error, Mismatch::Protocol { teacher: 2, student: 1 });
    let error = refused(|teacher| teacher.signals.clear(), |_| ());
    assert_eq!(error, Mismatch::Signal { teacher: vec![], student: SignalKind::TopK });
    assert!(error.to_string().ends_with("the teacher offers nothing"), "{error}");
    let error = refused(|teacher| teacher.codecs = vec![Codec::Raw], |_| ());
    assert_eq!(error, Mismatch::Codec { teacher: vec![Codec::Raw], student: Codec::Packed });
    let many = (1 << 24) + 1;
    let error = refused(|teacher| teacher.vocab_size = many, |student| student.vocab_size = many);
    assert_eq!(error, Mismatch::PackedClasses { classes: many });
}

#[test]
fn bounds_themselves_are_allowed() {
    let student = StudentFacts { max_length: 2048, top_k: 512, ..student() };
    assert!(check(&teacher(), &student).is_ok());
    let student = StudentFacts { vocab_size: 151_669, ..student };
    assert_eq!(check(&teacher(), &student).unwrap().classes, 151_669);
}
