//! A token is nobody's to read: not in the log of either side, however much is logged.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use proto::v1::GetInfoRequest;
use proto::v1::teacher_client::TeacherClient;
use tests::{Teacher, root, teacher};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request};

#[test]
fn tokens_do_not_reach_the_log_even_when_everything_is_logged() {
    let folder = tempfile::tempdir().expect("a folder");
    let (good, wrong) = ("alice-0123456789abcdef", "mallory-0123456789abcd");
    let (tokens, log) = (folder.path().join("tokens"), folder.path().join("log"));
    std::fs::write(&tokens, format!("alice {good}\n")).expect("a file");
    let model = root().join("student-trainer/demo/teacher");
    let mut command: Command = teacher(&model.display().to_string());
    command.arg("--auth-tokens").arg(&tokens).env("RUST_LOG", "trace");
    command.stderr(Stdio::from(std::fs::File::create(&log).expect("a file")));
    let server = Teacher::serve(&mut command);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let ask = |token: &str| {
        let mut request = Request::new(GetInfoRequest {});
        let value: MetadataValue<_> = format!("Bearer {token}").parse().expect("a value");
        request.metadata_mut().insert("authorization", value);
        runtime.block_on(async {
            let url = format!("http://{}", server.grpc);
            let mut client = TeacherClient::connect(url).await.expect("a connection");
            client.get_info(request).await
        })
    };
    assert!(ask(good).is_ok());
    let refused = ask(wrong).expect_err("a refusal");
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(!refused.message().contains("mallory"), "{refused}");
    for (token, status) in [(good, "200"), (wrong, "401")] {
        let mut connection = TcpStream::connect(&server.http).expect("a connection");
        let request = format!(
            "GET /metrics?token={token} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\
             X-Request-Id: name-of-{status}\r\nConnection: close\r\n\r\n"
        );
        connection.write_all(request.as_bytes()).expect("a request");
        let mut answer = String::new();
        connection.read_to_string(&mut answer).expect("an answer");
        assert!(answer.lines().next().is_some_and(|line| line.contains(status)), "{answer}");
        assert!(!answer.contains("0123456789"), "{answer}");
    }
    drop(server);
    let log = std::fs::read_to_string(&log).expect("the log");
    // Down to the transport, whose frames carry the tokens.
    assert!(log.contains("TRACE") && log.contains("Headers"), "nothing much was logged");
    for told in ["name-of-200\" method=\"/metrics\" client=\"alice\"", "name-of-401"] {
        assert!(log.contains(told), "{told} is not in the log");
    }
    // What both tokens have in common.
    assert!(!log.contains("0123456789"), "a token is in the log");
}
