//! Answers of vLLM, byte for byte (0.32.0, a model of 4,096 classes), and what is none.

use distill::codec::Codec;
use distill::queue::Priority;

use super::*;

/// To `[10, 20, 30, 40]`, `prompt_logprobs` 3.
const ANSWER: &str = r#"{"id":"cmpl-9b37951f33102230","object":"text_completion","created":1795849690,"model":"teacher","choices":[{"index":0,"text":" are","logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null,"prompt_logprobs":[null,{"20":{"logprob":-2.525447130203247,"rank":6,"decoded_token":"5"},"16":{"logprob":-1.5431549549102783,"rank":1,"decoded_token":"1"},"17":{"logprob":-1.623047113418579,"rank":2,"decoded_token":"2"},"18":{"logprob":-2.0976831912994385,"rank":3,"decoded_token":"3"}},{"30":{"logprob":-11.533034324645996,"rank":142,"decoded_token":"?"},"28":{"logprob":-1.1794462203979492,"rank":1,"decoded_token":"="},"15":{"logprob":-1.5004711151123047,"rank":2,"decoded_token":"0"},"10":{"logprob":-2.3764333724975586,"rank":3,"decoded_token":"+"}},{"40":{"logprob":-13.797755241394043,"rank":3013,"decoded_token":"I"},"4095":{"logprob":-0.2525832951068878,"rank":1,"decoded_token":"<|im_end|>"},"15":{"logprob":-3.4273955821990967,"rank":2,"decoded_token":"0"},"17":{"logprob":-3.6179144382476807,"rank":3,"decoded_token":"2"}}],"prompt_token_ids":null,"routed_experts":null}],"service_tier":null,"system_fingerprint":"vllm-0.32.0-937d0ca2","usage":{"prompt_tokens":4,"total_tokens":5,"completion_tokens":1,"prompt_tokens_details":null,"completion_tokens_details":null},"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}"#;

fn job(temperature: f32, k: usize, positions: std::ops::Range<u32>) -> ScoreJob {
    ScoreJob {
        id: 9,
        tokens: vec![10, 20, 30, 40],
        ranges: std::iter::once(positions).collect(),
        temperature,
        entries: Entries::Top,
        k,
        codec: Codec::Raw,
        classes: 4096,
        priority: Priority::Normal,
    }
}

fn near(found: f32, wanted: f64) {
    assert!((f64::from(found) - wanted).abs() < 1e-6, "{found} {wanted}");
}

#[test]
fn at_temperature_1_the_mass_of_the_others_is_what_is_missing_to_1() {
    let scored = read(&job(1.0, 3, 0..3), ANSWER.as_bytes()).unwrap();
    let signal = scored.signal.top_k().unwrap();
    assert_eq!(signal.ids, [16, 17, 18, 28, 15, 10, 4095, 15, 17]);
    near(signal.scaled[0], -1.543_154_954_910_278_3);
    assert_eq!(signal.log_z, [0.0; 3]);
    // 1 - exp(-1.5431549549) - exp(-1.6230471134) - exp(-2.0976831913), computed with Python.
    near(signal.log_rest[0], 0.466_257_133_077_319_5_f64.ln());
    assert_eq!(scored.next_logprob, [-2.525_447_1, -11.533_034, -13.797_755]);
    assert_eq!((scored.id, scored.wire_bytes), (9, ANSWER.len()));
}

#[test]
fn at_another_temperature_the_others_have_none() {
    let scored = read(&job(2.0, 2, 1..2), ANSWER.as_bytes()).unwrap();
    let signal = scored.signal.top_k().unwrap();
    assert_eq!(signal.ids, [28, 15]);
    near(signal.scaled[0], -1.179_446_220_397_949_2 / 2.0);
    near(signal.scaled[1], -1.500_471_115_112_304_7 / 2.0);
    assert_eq!(signal.log_rest, [f32::NEG_INFINITY]);
    // exp of the difference of the two: the probabilities of both sum to 1.
    let (p, rest) = signal.probabilities(0);
    assert_eq!(rest, 0.0);
    assert!((p[0] / p[1] - (0.321_024_894_714_355_5_f64 / 2.0).exp()).abs() < 1e-6, "{p:?}");
}

#[test]
fn only_the_positions_asked_for_are_given() {
    let apart = ScoreJob { ranges: vec![0..1, 2..3], ..job(1.0, 1, 0..1) };
    let scored = read(&apart, ANSWER.as_bytes()).unwrap();
    assert_eq!(scored.signal.top_k().unwrap().ids, [16, 4095]);
    let last = read(&job(1.0, 1, 3..4), ANSWER.as_bytes());
    assert!(matches!(last, Err(AnswerError::Unsupported { .. })), "{last:?}");
}

#[test]
fn what_is_no_answer_is_refused_with_both_values() {
    let all = || job(1.0, 3, 0..3);
    let small = ScoreJob { classes: 4095, ..all() };
    let other = ScoreJob { tokens: vec![10, 20, 31, 40], ..all() };
    let longer = ScoreJob { tokens: vec![10, 20, 30, 40, 50], ..all() };
    let named = ScoreJob { entries: Entries::Named(vec![1, 2, 3]), ..all() };
    let changed = |from: &str, to: &str| ANSWER.replace(from, to);
    let cases = [
        (job(1.0, 5, 0..3), ANSWER.to_owned(), "4 entries where 5 were asked"),
        (small, ANSWER.to_owned(), "token 4095, but the student has 4095 classes"),
        (other, ANSWER.to_owned(), "next token 31"),
        (longer, ANSWER.to_owned(), "4 positions, wanted 5"),
        (named, ANSWER.to_owned(), "candidates"),
        (all(), changed("-1.5431549549102783", "14.5"), "exponentials sum to"),
        (all(), changed("-1.5431549549102783", "1e39"), "no completion"),
        (all(), changed("-1.5431549549102783", "null"), "null"),
        (all(), changed("-1.5431549549102783", "NaN"), "no completion"),
        (all(), changed("\"18\":", "\"16\":"), "token 16 comes twice"),
        (all(), changed("\"16\":", "\"x\":"), "no completion"),
        (all(), changed("\"16\":", "\"-16\":"), "no completion"),
        (all(), changed("\"prompt_logprobs\":[null,", "\"x\":[null,"), "prompt_logprobs is null"),
        (all(), "{\"choices\":[]}".to_owned(), "choices is empty"),
        (all(), ANSWER[..900].to_owned(), "no completion"),
        (all(), String::new(), "no completion"),
    ];
    for (job, body, wanted) in cases {
        let error = read(&job, body.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with("request 9") && error.contains(wanted), "{error}: {wanted}");
    }
}

#[test]
fn a_refusal_for_want_of_logprobs_says_what_to_start_the_server_with() {
    let message = "400 Bad Request: Requested prompt logprobs of 65, which is greater than max \
                   allowed: 64"
        .to_owned();
    let refused = AnswerError::Refused { id: 9, code: Code::InvalidArgument, message };
    assert!(refused.to_string().contains("--max-logprobs"), "{refused}");
}
