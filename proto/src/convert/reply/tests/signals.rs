//! Tests of what travels beside lists of tokens: hidden states in each form, and draws.

use distill::coded::{Code, Parts, Rung};
use distill::hidden::{self, HiddenForm};
use distill::signal::{DrawKey, Draws, HiddenStates};

use super::*;

/// Hidden states come back as they were sent, however they are cut, and nothing beside them.
#[test]
fn hidden_states_travel_in_each_form() {
    let (rows, width) = (150, 8);
    let job = ScoreJob { k: 0, ..long_job(rows as u32, 2, Codec::Packed, 90) };
    let value = |n: usize| ((n * 7919) % 1000) as f32 / 250.0 - 2.0;
    let values: Vec<f32> = (0..rows * width).map(value).collect();
    let states = HiddenStates { width, values };
    let agreement = Agreement { hidden_size: width, ..agreement() };
    let travel = |job: &ScoreJob, computed: &Computed| {
        let messages = score_replies(job, computed, &[], &stamp(1024)).unwrap();
        assert!(messages.len() > 1 && messages.iter().all(|reply| reply.encoded_len() <= 1024));
        assert!(messages.iter().all(|reply| reply.next_logprob.is_empty()));
        let mut assembler = ReplyAssembler::new(job.clone(), &agreement);
        let answers = messages.iter().filter_map(|reply| assembler.push(reply).unwrap());
        let Some(Scored { signal: Signal::Hidden(rows), next_logprob, .. }) = answers.last() else {
            panic!("hidden states")
        };
        assert!(next_logprob.is_empty());
        (messages, rows)
    };
    for form in [HiddenForm::F32, HiddenForm::Bf16, HiddenForm::Int8, HiddenForm::Int4] {
        let job = ScoreJob { entries: Entries::Hidden(form), ..job.clone() };
        let (_, found) = travel(&job, &Computed::Hidden(states.clone()));
        let mut at = 0;
        for (count, bytes) in &found.parts {
            let sent = &states.values[at * width..(at + count) * width];
            assert_eq!(*bytes, hidden::encode(sent, width, form).unwrap());
            at += count;
        }
        assert_eq!((at, found.rows()), (rows, rows), "{form}");
    }
    // Each number by itself, in steps of 2^-2.
    let diagonal = |i: usize| if i.is_multiple_of(width + 1) { 1.0 } else { 0.0 };
    let matrix: Vec<f64> = (0..width * width).map(diagonal).collect();
    let code = Code::new(Parts {
        model: MODEL,
        mean: vec![0.0; width],
        spreads: &vec![1.0; width],
        matrix: &matrix,
        standardised: states.values.clone(),
    });
    let code = std::sync::Arc::new(code.unwrap());
    let rung = Rung(-32);
    let numbers = states.values.iter().map(|x| (x * 4.0).round() as i32).collect();
    let coded = CodedStates { code: code.clone(), numbers, states: states.clone() };
    let form = HiddenForm::Coded { code: code.fingerprint(), rung };
    let job = ScoreJob { entries: Entries::Hidden(form), ..job };
    let (messages, found) = travel(&job, &Computed::Coded(coded));
    let mut read = Vec::new();
    for (count, bytes) in &found.parts {
        read.extend(code.reconstruct(rung, &code.decode(bytes, *count).unwrap()).values);
    }
    let worst = read.iter().zip(&states.values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= 0.126, "{worst}");
    let mut other = messages[0].clone();
    other.code_fingerprint = vec![1; 16].into();
    let error = ReplyAssembler::new(job, &agreement).push(&other).unwrap_err();
    assert!(matches!(error, ReplyError::Code { .. }), "{error}");
}

#[test]
fn draws_travel_with_the_next_tokens_beside_them() {
    for k in [0, 3] {
        let entries = Entries::Drawn { draws: 16, seed: 7 };
        let job = ScoreJob { entries, ..long_job(150, k, Codec::Packed, 90) };
        let (_, next) = answer(&ScoreJob { k: 1, ..job.clone() });
        let mut signal = Draws::new(16, k);
        for position in job.positions() {
            let key = DrawKey { seed: 7, token_checksum: 1, position };
            let logits: Vec<f64> = (0..90).map(|j| f64::from((j * 31 + position) % 17)).collect();
            signal.push_exact(&logits, 2.0, &key.uniforms(16));
        }
        let computed = Computed::Drawn(signal.clone());
        let messages = score_replies(&job, &computed, &next, &stamp(1024)).unwrap();
        assert!(messages.len() > 1 && messages.iter().all(|reply| reply.encoded_len() <= 1024));
        let mut assembler = ReplyAssembler::new(job, &agreement());
        let found = messages.iter().filter_map(|reply| assembler.push(reply).unwrap()).last();
        let found = found.unwrap();
        assert_eq!((found.signal, found.next_logprob.len()), (Signal::Drawn(signal), 150));
    }
}
