//! Whose share of the device a call takes.

use std::sync::Arc;

use proto::v1::ScoreTextRequest;
use tonic::{Code, Request, Status};

use super::dialects::said;
use super::harness::{CLASSES, PATIENCE, Server};
use crate::Guard;
use crate::access::Access;
use crate::settings::Settings;
use crate::testing::FakeScorer;

const ALICE: &str = "alice-0123456789abcdef";
const BOB: &str = "bob-0123456789abcdef";

/// One call on a connection of its own.
async fn call(server: &Server, token: &str) -> Result<(), Status> {
    let text = ScoreTextRequest { text: "a".into(), ..Default::default() };
    let mut request = Request::new(text);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    let mut client = server.client().await;
    let answer = tokio::time::timeout(PATIENCE, client.score_text(request)).await;
    answer.unwrap_or_else(|_| Err(Status::cancelled("no answer in time"))).map(drop)
}

/// Waits until so many have joined the queue.
async fn until_admitted(server: &Server, sequences: usize) {
    let ask = format!(
        "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {BOB}\r\n\r\n"
    );
    let line = format!("teacher_admitted_total {sequences}\n");
    let wait = async { while !said(server, &ask).await.contains(&line) {} };
    tokio::time::timeout(PATIENCE, wait).await.expect("admitted in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_has_one_share_over_all_its_connections() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("alice {ALICE}\nbob {BOB}\n")).unwrap();
    let access = Access::new(Some(file.path()), false).unwrap();
    let settings = Settings::with(|limits| {
        limits.max_batch_tokens = 1;
        limits.max_queued_sequences = 4;
    });
    let (_leave, gate) = std::sync::mpsc::channel();
    let load = || Ok(FakeScorer { gate: Some(gate), ..FakeScorer::new(CLASSES) }.loaded());
    let guard = Guard { access, tls: None };
    let mut server = Server::start_guarded(load, settings, guard).await;
    server.ready().await;
    let server = Arc::new(server);
    // The first is at the device, two more wait: half of four is all that one client has.
    let mut waiting = Vec::new();
    for admitted in 1..=3 {
        let asked = Arc::clone(&server);
        waiting.push(tokio::spawn(async move { call(&asked, ALICE).await }));
        until_admitted(&server, admitted).await;
    }
    let refused = call(&server, ALICE).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    let other = Arc::clone(&server);
    waiting.push(tokio::spawn(async move { call(&other, BOB).await }));
    until_admitted(&server, 4).await;
    waiting.iter().for_each(|call| assert!(!call.is_finished(), "they wait for the device"));
}
