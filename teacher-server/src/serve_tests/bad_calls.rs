//! Calls that are none: wrong paths, methods, types and encodings, and messages that are cut off or
//! too long. Each is answered by a status of gRPC or of HTTP, and a neighbour does not notice.

use axum::http::{HeaderMap, Request};
use h2::client::ResponseFuture;
use prost::Message as _;
use proto::convert::score_request;
use proto::v1::GetInfoRequest;
use tokio::net::TcpStream;
use tonic::Code;

use super::by_hand::{beside, message};
use super::harness::{CLASSES, PATIENCE, Server, job};
use crate::settings::Settings;
use crate::testing::FakeScorer;

const GRPC: (&str, &str) = ("content-type", "application/grpc");
const INFO: &str = "/distill.v1.Teacher/GetInfo";
const TEXT: &str = "/distill.v1.Teacher/ScoreText";
const SCORE: &str = "/distill.v1.Teacher/Score";

/// What a call came to.
#[derive(Debug)]
struct Answer {
    http: u16,
    /// `grpc-status` and `grpc-message`, of the head or the trailers.
    grpc: Option<(Code, String)>,
    head: HeaderMap,
}

fn grpc_status(headers: &HeaderMap) -> Option<(Code, String)> {
    let status = tonic::Status::from_header_map(headers)?;
    Some((status.code(), status.message().to_owned()))
}

/// Sends a call with this body, as it is, and reads all of the answer.
async fn answer(
    server: &Server,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Answer {
    let tcp = TcpStream::connect(server.grpc).await.unwrap();
    let (mut client, connection) = h2::client::handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(format!("http://x{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (answer, mut sender) = client.send_request(request.body(()).unwrap(), false).unwrap();
    // A server that has refused already takes no body.
    let _ = sender.send_data(body.into(), true);
    tokio::time::timeout(PATIENCE, read(answer)).await.expect("an answer in time")
}

async fn read(answer: ResponseFuture) -> Answer {
    let (head, mut body) = answer.await.unwrap().into_parts();
    while let Some(data) = body.data().await {
        let Ok(data) = data else { break };
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    let trailers = body.trailers().await.ok().flatten().unwrap_or_default();
    let grpc = grpc_status(&head.headers).or_else(|| grpc_status(&trailers));
    Answer { http: head.status.as_u16(), grpc, head: head.headers }
}

async fn served() -> Server {
    Server::start(FakeScorer::new(CLASSES), Settings::DEFAULT).await
}

fn info() -> Vec<u8> {
    message(0, &GetInfoRequest {}.encode_to_vec())
}

type Headers = &'static [(&'static str, &'static str)];

#[tokio::test(flavor = "multi_thread")]
async fn a_method_that_is_not_there_is_unimplemented_by_name() {
    let server = served().await;
    for path in [
        "/distill.v1.Teacher/Nope",
        "/distill.v1.Teacher/GetInfo/",
        "/distill.v1.Teacher/getinfo",
        "/distill.v2.Teacher/GetInfo",
        "/Teacher/GetInfo",
        "/",
    ] {
        let said = beside(&server, answer(&server, "POST", path, &[GRPC], info())).await;
        let (code, text) = said.grpc.expect(path);
        assert_eq!((said.http, code), (200, Code::Unimplemented), "{path}: {text}");
        assert!(text.contains(&format!("no method {path}; it lists")), "{path}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_grpc_call_is_refused_as_http_does() {
    let server = served().await;
    const TYPES: [Headers; 5] = [
        &[],
        &[("content-type", "application/json")],
        &[("content-type", "application/grpc+json")],
        &[("content-type", "application/grpc-web+proto")],
        &[("content-type", "application/grpcfoo")],
    ];
    let methods = ["GET", "PUT", "OPTIONS", "HEAD"].map(|method| (method, &[GRPC][..], 405));
    let types = TYPES.map(|headers| ("POST", headers, 415));
    for (method, headers, wanted) in methods.into_iter().chain(types) {
        let said = beside(&server, answer(&server, method, INFO, headers, info())).await;
        assert_eq!(said.http, wanted, "{method} {headers:?}");
        assert_eq!(said.grpc, None, "{method} {headers:?}");
        let named = if wanted == 405 { "allow" } else { "accept" };
        assert!(said.head.contains_key(named), "{method} {headers:?}: {:?}", said.head);
    }
    for kind in ["application/grpc+proto", "application/grpc; charset=utf-8", "Application/GRPC"] {
        let said = answer(&server, "POST", INFO, &[("content-type", kind)], info()).await;
        assert_eq!(said.grpc, Some((Code::Ok, String::new())), "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_unpacked_whatever_it_is_packed_with() {
    let server = served().await;
    // The head of a gzip file; a gigabyte of zeros goes on from here.
    let bomb = message(1, &[&[0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 0xFF][..], &[0; 4096]].concat());
    for path in [INFO, TEXT, SCORE] {
        for encoding in ["gzip", "deflate", "zstd", "br", "snappy"] {
            for body in [bomb.clone(), info()] {
                let headers = [GRPC, ("grpc-encoding", encoding)];
                let said = beside(&server, answer(&server, "POST", path, &headers, body)).await;
                let (code, text) = said.grpc.expect(encoding);
                assert_eq!(code, Code::Unimplemented, "{path} {encoding}: {text}");
                assert!(text.contains(&format!("`{encoding}`")), "{path}: {text}");
                assert_eq!(said.head["grpc-accept-encoding"], "identity", "{path} {encoding}");
            }
        }
        // Said to be packed, without a word about how; and what no flag means.
        for (flag, says) in [(1, "no grpc-encoding"), (7, "compression flag: 7")] {
            let body = message(flag, &[0; 4096]);
            let said = beside(&server, answer(&server, "POST", path, &[GRPC], body)).await;
            let (code, text) = said.grpc.expect(says);
            assert_eq!(code, Code::InvalidArgument, "{path}: {text}");
            assert!(text.contains(says), "{path}: {text}");
        }
    }
    let plain = [GRPC, ("grpc-encoding", "identity")];
    let said = answer(&server, "POST", INFO, &plain, info()).await;
    assert_eq!(said.grpc, Some((Code::Ok, String::new())));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_cut_off_or_too_long_is_refused_by_name() {
    let server = served().await;
    let whole = message(0, &score_request(&job(1, vec![1, 2])).encode_to_vec());
    let cut = (Code::InvalidArgument, "in the middle of a message");
    let long = (Code::OutOfRange, "the limit is: 4194304 bytes");
    // Announced: nine bytes, four gigabytes, and one more than a message may have.
    let announced = |length: u32| [&[0][..], &length.to_be_bytes()].concat();
    let mut cases = Vec::new();
    for path in [INFO, TEXT, SCORE] {
        for length in 1..5 {
            cases.push((path, announced(9)[..length].to_vec(), cut));
        }
        cases.push((path, announced(9), cut));
        cases.push((path, [announced(9), vec![8]].concat(), cut));
        cases.push((path, [announced(u32::MAX), vec![8]].concat(), long));
        cases.push((path, [announced((4 << 20) + 1), vec![8]].concat(), long));
    }
    for rest in [1, 5, 6, whole.len() - 1] {
        cases.push((SCORE, [&whole[..], &whole[..rest]].concat(), cut));
    }
    for (path, body, (wanted, says)) in cases {
        let name = format!("{path} {:?}", &body[..body.len().min(9)]);
        let said = beside(&server, answer(&server, "POST", path, &[GRPC], body)).await;
        let (code, text) = said.grpc.expect(&name);
        assert_eq!(code, wanted, "{name}: {text}");
        assert!(text.contains(says), "{name}: {text}");
    }
    server.until_metric("teacher_streams", 0.0).await;
}
