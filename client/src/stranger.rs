//! What listens at an address where no teacher answers: named at once, so that a wrong port is not
//! waited for until the time is over.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Longest wait for its answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of its answer that are looked at.
const MOST_BYTES: usize = 4096;
/// Characters of its answer that are shown.
const SHOWN: usize = 60;
/// What `/health` of a teacher-server says.
const HEALTH: [&str; 3] = ["serving\n", "loading\n", "draining\n"];

/// Speaks HTTP/1.1 to `authority` (`HOST:PORT`) and says what answers, if that can be no teacher.
/// None where nobody listens, where nothing is said, and where HTTP/2 is spoken.
pub(crate) async fn recognise(authority: &str) -> Option<String> {
    let mut answer = Vec::new();
    // Not answering to the end, or not at all, is an answer too.
    let _ = tokio::time::timeout(PATIENCE, ask(authority, &mut answer)).await;
    name(&answer)
}

/// Who answers at `authority` in something else than HTTP/1.1, where a vLLM server was expected.
pub(crate) async fn instead_of_vllm(authority: &str) -> Option<&'static str> {
    let mut answer = Vec::new();
    // The same.
    let _ = tokio::time::timeout(PATIENCE, ask(authority, &mut answer)).await;
    match &answer[..] {
        answer if is_http_2(answer) => {
            Some("a gRPC server answers there; for a teacher-server write grpc://")
        }
        answer if is_tls_alert(answer) => {
            Some("a server that wants encryption (TLS) answers there; write vllm+https://")
        }
        _ => None,
    }
}

/// An alert of TLS 1.x.
fn is_tls_alert(answer: &[u8]) -> bool {
    matches!(answer, [0x15, 3, ..])
}

/// A SETTINGS or GOAWAY frame: length, type, flags, stream 0.
fn is_http_2(answer: &[u8]) -> bool {
    matches!(answer, [_, _, _, 4 | 7, _, 0, 0, 0, 0, ..])
}

/// Asks for `/health` and keeps what comes.
async fn ask(authority: &str, answer: &mut Vec<u8>) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(authority).await?;
    let request = format!("GET /health HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    while answer.len() < MOST_BYTES && stream.read_buf(answer).await? > 0 {}
    Ok(())
}

/// Who answers so.
fn name(answer: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(answer);
    let first_line: String = text.lines().next()?.chars().take(SHOWN).collect();
    match answer {
        [b'H', b'T', b'T', b'P', b'/', b'1', ..] => {
            let of_teacher = HEALTH.iter().any(|state| text.ends_with(&format!("\r\n\r\n{state}")));
            if of_teacher {
                return Some("this is the HTTP port of a teacher-server".to_owned());
            }
            // vLLM's web server.
            let vllm = match text.to_ascii_lowercase().contains("\r\nserver: uvicorn\r\n") {
                true => "; for a vLLM server write vllm+http://",
                false => "",
            };
            Some(format!("a web server answers there, in HTTP/1 ({first_line:?}){vllm}"))
        }
        _ if is_http_2(answer) => None,
        _ if is_tls_alert(answer) => {
            Some("a server that wants encryption (TLS) answers there; write grpcs://".to_owned())
        }
        _ => Some(format!("something that is no gRPC server answers there ({first_line:?})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        let uvicorn = b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-length: 0\r\n\r\n";
        let cases: [(&[u8], Option<&str>); 9] = [
            (uvicorn, Some("write vllm+http://")),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nserving\n", Some("a teacher-server")),
            (b"HTTP/1.1 503 Unavailable\r\n\r\nloading\n", Some("a teacher-server")),
            (b"HTTP/1.1 404 Not Found\r\nserver: nginx\r\n\r\n", Some("404 Not Found")),
            (b"SSH-2.0-OpenSSH_9.6\r\n", Some("SSH-2.0-OpenSSH_9.6")),
            (b"\x15\x03\x01\x00\x02\x02\x46", Some("TLS")),
            (b"\x1b[31mred", Some("\\u{1b}[31mred")),
            (b"\0\0\x06\x04\0\0\0\0\0\0\x04\0\x10\0\0", None),
            (b"", None),
        ];
        for (answer, wanted) in cases {
            match (name(answer), wanted) {
                (Some(found), Some(wanted)) => assert!(found.contains(wanted), "{found}"),
                (found, wanted) => assert_eq!(found.as_deref(), wanted),
            }
        }
    }
}
