//! HTTP/2 written and read by hand, for what no client library would send; and a neighbour who must
//! not notice.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prost::Message as _;
use proto::convert::{ScoreJob, score_request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::harness::{PATIENCE, Server, assert_right, job};

/// What a client says before anything else.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// Kinds of frames (RFC 9113, 6).
pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RESET: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

// Flags.
pub(super) const ACK: u8 = 1;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

/// The setting that says how much may be sent on a stream before more is allowed.
pub(super) const INITIAL_WINDOW_SIZE: u16 = 4;

/// One frame.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

/// The bytes of a frame.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A SETTINGS frame.
pub(super) fn settings(settings: &[(u16, u32)]) -> Vec<u8> {
    let pair = |&(name, value): &(u16, u32)| {
        [name.to_be_bytes().as_slice(), &value.to_be_bytes()].concat()
    };
    frame(SETTINGS, 0, 0, &settings.iter().flat_map(pair).collect::<Vec<_>>())
}

/// A field as a literal without indexing, without Huffman (RFC 7541, 6.2.2).
pub(super) fn field(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| {
        let short = u8::try_from(text.len()).ok().filter(|length| *length < 127);
        [&[short.expect("a short text")], text.as_bytes()].concat()
    };
    [vec![0], text(name), text(value)].concat()
}

/// The head of a call, as a header block.
pub(super) fn call(path: &str) -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "x"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    fields.iter().flat_map(|(name, value)| field(name, value)).collect()
}

/// HEADERS and the whole block, of a call that goes on.
pub(super) fn open(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &call(path))
}

/// A gRPC message: its prefix and its bytes.
pub(super) fn message(flag: u8, bytes: &[u8]) -> Vec<u8> {
    [&[flag], (bytes.len() as u32).to_be_bytes().as_slice(), bytes].concat()
}

/// A request as a DATA frame of its own.
pub(super) fn ask(stream: u32, job: &ScoreJob) -> Vec<u8> {
    frame(DATA, 0, stream, &message(0, &score_request(job).encode_to_vec()))
}

/// A connection.
pub(super) struct Hand(pub(super) TcpStream);

impl Hand {
    /// Connects and says hello with these settings.
    pub(super) async fn greet(at: SocketAddr, with: &[(u16, u32)]) -> Self {
        let mut hand = Self(TcpStream::connect(at).await.unwrap());
        hand.send(&[PREFACE, &settings(with)].concat()).await;
        hand
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    /// Says the same over and over until the server takes no more for `pause`, or closes, or has
    /// taken `most` bytes; returns how many it took.
    pub(super) async fn flood(&mut self, bytes: &[u8], pause: Duration, most: usize) -> usize {
        let mut taken = 0;
        while taken < most {
            match tokio::time::timeout(pause, self.0.write(bytes)).await {
                // What is left of a frame cut in two is sent first, or it would be noise.
                Ok(Ok(sent)) => {
                    let rest = self.0.write_all(&bytes[sent..]);
                    match tokio::time::timeout(pause, rest).await {
                        Ok(Ok(())) => taken += bytes.len(),
                        Ok(Err(_)) | Err(_) => break,
                    }
                }
                Ok(Err(_)) | Err(_) => break,
            }
        }
        taken
    }

    /// The next frame; none when the server has closed.
    pub(super) async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        let read = tokio::time::timeout(PATIENCE, self.0.read_exact(&mut head));
        read.await.expect("a frame or the end in time").ok()?;
        let [a, b, c, kind, _, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        Some(Frame { kind, stream: u32::from_be_bytes(stream), payload })
    }

    /// The first frame of a kind, and of a stream.
    pub(super) async fn until(&mut self, kind: u8, stream: u32) -> Frame {
        loop {
            let frame = self.next().await.expect("the connection goes on");
            if (frame.kind, frame.stream) == (kind, stream) {
                return frame;
            }
        }
    }

    /// Reads until the server closes; what its GOAWAY said, if there was one: the code and a text.
    pub(super) async fn goodbye(&mut self) -> Option<(u32, String)> {
        let mut said = None;
        while let Some(frame) = self.next().await {
            if frame.kind == GOAWAY {
                let code = frame.payload[4..8].try_into().unwrap();
                let text = String::from_utf8_lossy(&frame.payload[8..]).into_owned();
                said = Some((u32::from_be_bytes(code), text));
            }
        }
        said
    }

    /// Says this now and then until the server has closed, reading nothing: what it sent is left
    /// where it is.
    pub(super) async fn closed(&mut self, drip: &[u8]) {
        let closed = async {
            // The peer of a closed connection resets it when something is sent there.
            while self.0.write_all(drip).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, closed).await.expect("the connection stays open");
    }
}

/// Runs an attack while a neighbour, on a connection of its own, asks and is answered, and once more
/// when it is over. Nothing may have panicked.
pub(super) async fn beside<T>(server: &Server, attack: impl Future<Output = T>) -> T {
    let mut stream = server.score().await;
    let over = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&over);
    let asking = tokio::spawn(async move {
        let mut answered = 0;
        loop {
            let last = told.load(Ordering::SeqCst);
            let good = job(answered, vec![3, answered as u32 % 32]);
            assert_right(&good, &stream.ask(&good).await);
            answered += 1;
            if last {
                return answered;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let result = attack.await;
    over.store(true, Ordering::SeqCst);
    let answered = asking.await.unwrap();
    assert!(answered >= 2, "the neighbour was answered {answered} times");
    assert_eq!(server.metric("teacher_panics_total").await, 0.0);
    result
}
