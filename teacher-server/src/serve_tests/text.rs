//! `ScoreText`: plain fields with the model's own numbers, and its refusals.

use distill::signal::log_sum_exp;
use proto::v1::ScoreTextRequest;
use tonic::Code;

use super::harness::{CLASSES, Server};
use crate::settings::Settings;
use crate::testing::FakeScorer;

fn ask(text: &str, temperature: f32, top_k: u32) -> ScoreTextRequest {
    ScoreTextRequest { text: text.into(), temperature, top_k }
}

#[tokio::test(flavor = "multi_thread")]
async fn text_comes_back_with_the_most_probable_next_tokens() {
    let server = Server::start(FakeScorer::new(CLASSES), Settings::DEFAULT).await;
    let mut client = server.client().await;
    let reply = client.score_text(ask("!BC", 2.0, 3)).await.unwrap().into_inner();
    let ids: Vec<u32> = reply.tokens.iter().map(|token| token.id).collect();
    assert_eq!(ids, [33 % 32, 66 % 32, 67 % 32]);
    assert_eq!((reply.temperature, reply.model_fingerprint), (2.0, "a5".repeat(32)));
    assert_eq!(reply.tokenizer_fingerprint, "5a".repeat(32));
    for (t, token) in reply.tokens.iter().enumerate() {
        let logits = FakeScorer::logits(&ids[..=t], CLASSES);
        let log_z = log_sum_exp(logits.iter().map(|y| y / 2.0));
        assert!((f64::from(token.log_z) - log_z).abs() < 1e-5);
        let mut order: Vec<usize> = (0..CLASSES).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        assert_eq!(token.next.len(), 3);
        for (next, id) in token.next.iter().zip(order) {
            assert_eq!(next.id as usize, id);
            assert!((f64::from(next.logit) - logits[id]).abs() < 1e-5);
            assert!((f64::from(next.logprob) - (logits[id] / 2.0 - log_z)).abs() < 1e-5);
        }
        let followed =
            ids.get(t + 1).map(|&id| logits[id as usize] - log_sum_exp(logits.iter().copied()));
        let close = |found: f32, wanted: f64| (f64::from(found) - wanted).abs() < 1e-5;
        match (token.next_logprob, followed) {
            (Some(found), Some(wanted)) => assert!(close(found, wanted), "{found} for {wanted}"),
            (found, wanted) => assert!(found.is_none() && wanted.is_none()),
        }
    }
    let defaults = client.score_text(ask("a", 0.0, 0)).await.unwrap().into_inner();
    assert_eq!((defaults.temperature, defaults.tokens[0].next.len()), (1.0, 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_scored_is_refused_by_name() {
    let server = Server::start(FakeScorer::new(CLASSES), Settings::DEFAULT).await;
    let mut client = server.client().await;
    let long = "a".repeat(4097);
    let wide = "a".repeat(4096);
    let huge = "a".repeat(16 * 4096 + 1);
    let cases = [
        (ask("", 1.0, 5), "empty"),
        (ask(&long, 1.0, 5), "4097"),
        (ask(&huge, 1.0, 5), "65537 bytes, this server takes at most 65536"),
        (ask(&wide, 1.0, 32), "65536"),
        (ask("a", f32::NAN, 5), "temperature NaN"),
        (ask("a", -1.0, 5), "temperature -1"),
        (ask("a", f32::INFINITY, 5), "temperature inf"),
        (ask("a", 1.0, 33), "top_k 33"),
        (ask("a", 1.0, u32::MAX), "top_k 4294967295"),
    ];
    for (request, wanted) in cases {
        let refused = client.score_text(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains(wanted), "{wanted}: {refused}");
    }
    assert!(client.score_text(ask("still here", 1.0, 5)).await.is_ok());
}
