//! Requests no server should choke on: each gets a named status, the stream lives on, and the
//! requests beside it are answered as ever.

use proto::convert::score_request;
use proto::v1::{PositionRange, ScoreRequest, ScoreTextRequest};
use tonic::Code;

use super::harness::{CLASSES, PATIENCE, Server, assembler, assert_right, job};
use crate::settings::Settings;
use crate::testing::FakeScorer;

type Spoil = fn(&mut ScoreRequest);

/// Every way to spoil a request of 4 tokens, and what its refusal says.
const SPOILS: &[(&str, Spoil)] = &[
    ("empty", |r| r.tokens = vec![].into()),
    ("multiple of 4", |r| r.tokens = vec![1, 0, 0].into()),
    ("token id 32 at position 1", |r| r.tokens = bytes(&[1, 32])),
    ("token id 4294967295", |r| r.tokens = bytes(&[u32::MAX])),
    ("4097 tokens", |r| r.tokens = bytes(&[1; 4097])),
    ("temperature 0", |r| r.temperature = 0.0),
    ("temperature 0", |r| r.temperature = -0.0),
    ("temperature -1", |r| r.temperature = -1.0),
    ("temperature NaN", |r| r.temperature = f32::NAN),
    ("temperature inf", |r| r.temperature = f32::INFINITY),
    ("temperature -inf", |r| r.temperature = f32::NEG_INFINITY),
    ("temperature 0.0", |r| r.temperature = f32::from_bits(1)),
    ("signal is not set", |r| r.signal = 0),
    ("signal 99", |r| r.signal = 99),
    ("signal -1", |r| r.signal = -1),
    ("codec 99", |r| r.codec = 99),
    ("codec -2147483648", |r| r.codec = i32::MIN),
    ("top_k is 0", |r| r.top_k = 0),
    ("top_k 33", |r| r.top_k = 33),
    ("top_k 4294967295", |r| r.top_k = u32::MAX),
    ("vocab_size 31", |r| r.vocab_size = 31),
    ("vocab_size 33", |r| r.vocab_size = 33),
    ("2..2", |r| r.positions = ranges(&[(2, 2)])),
    ("3..1", |r| r.positions = ranges(&[(3, 1)])),
    ("0..5", |r| r.positions = ranges(&[(0, 5)])),
    ("0..4294967295", |r| r.positions = ranges(&[(0, u32::MAX)])),
    ("begins at 1", |r| r.positions = ranges(&[(0, 2), (1, 3)])),
    ("begins at 0", |r| r.positions = ranges(&[(2, 3), (0, 1)])),
];

fn bytes(ids: &[u32]) -> bytes::Bytes {
    distill::codec::token_bytes(ids).into()
}

fn ranges(ranges: &[(u32, u32)]) -> Vec<PositionRange> {
    ranges.iter().map(|&(first, end)| PositionRange { first, end }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_is_refused_by_name_and_its_neighbours_are_answered() {
    let server = Server::start(FakeScorer::new(CLASSES), Settings::DEFAULT).await;
    let mut stream = server.score().await;
    for (at, (says, spoil)) in SPOILS.iter().enumerate() {
        let (before, after) = (job(1, vec![at as u32; 5]), job(3, vec![at as u32; 6]));
        let mut bad = score_request(&job(2, vec![1, 2, 3, 4]));
        spoil(&mut bad);
        for request in [score_request(&before), bad, score_request(&after)] {
            stream.send(request).await;
        }
        let mut refused = None;
        for _ in 0..3 {
            let reply = stream.next().await;
            match reply.id {
                1 => assert_right(&before, &assembler(&before).push(&reply).unwrap().unwrap()),
                3 => assert_right(&after, &assembler(&after).push(&reply).unwrap().unwrap()),
                _ => refused = Some(reply),
            }
        }
        let reply = refused.expect(says);
        assert!(reply.last && reply.signal.is_empty(), "{says}");
        let error = reply.error.expect(says);
        assert_eq!(error.code, Code::InvalidArgument as i32, "{says}: {}", error.message);
        assert!(error.message.contains(says), "{says}: {}", error.message);
    }
    assert_eq!(server.metric("teacher_panics_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_in_flight_cannot_be_used_again_but_an_answered_one_can() {
    let (server, leave) = Server::gated(Settings::DEFAULT).await;
    let mut stream = server.score().await;
    let first = job(9, vec![1, 2]);
    stream.send(score_request(&first)).await;
    stream.send(score_request(&job(9, vec![3]))).await;
    let refused = stream.next().await.error.unwrap();
    assert_eq!(refused.code, Code::InvalidArgument as i32);
    assert!(refused.message.contains("id 9"), "{}", refused.message);
    leave.send(()).unwrap();
    let reply = stream.next().await;
    assert_right(&first, &assembler(&first).push(&reply).unwrap().unwrap());
    leave.send(()).unwrap();
    stream.ask(&first).await;
}

/// A message whose bytes are no `ScoreRequest`: field 2 is a number instead of bytes.
#[derive(Clone, PartialEq, prost::Message)]
struct Garbage {
    #[prost(uint64, tag = "2")]
    number: u64,
}

/// Bytes that no field of any message begins with, as a message.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Noise;

impl prost::Message for Noise {
    fn encode_raw(&self, buf: &mut impl bytes::BufMut) {
        buf.put_slice(&[0xFF; 20]);
    }

    fn merge_field(
        &mut self,
        _: u32,
        _: prost::encoding::WireType,
        _: &mut impl bytes::Buf,
        _: prost::encoding::DecodeContext,
    ) -> Result<(), prost::DecodeError> {
        Ok(())
    }

    fn encoded_len(&self) -> usize {
        20
    }

    fn clear(&mut self) {}
}

/// What the server says to these messages, sent to a method.
pub(super) async fn answer<T: prost::Message + Default + 'static>(
    server: &Server,
    method: &str,
    messages: Vec<T>,
) -> tonic::Status {
    let mut grpc = tonic::client::Grpc::new(server.channel().await);
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<T, proto::v1::ScoreReply>::default();
    let request = tonic::Request::new(tokio_stream::iter(messages));
    match grpc.streaming(request, method.parse().unwrap(), codec).await {
        Ok(replies) => replies.into_inner().message().await.unwrap_err(),
        Err(status) => status,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_request_are_the_senders_fault_and_end_their_call_only() {
    let server = Server::start(FakeScorer::new(CLASSES), Settings::DEFAULT).await;
    let mut neighbour = server.score().await;
    let (teacher, health) = ("/distill.v1.Teacher", "/grpc.health.v1.Health");
    let mut answers = vec![
        answer(&server, &format!("{teacher}/Score"), vec![Garbage { number: 5 }]).await,
        answer(&server, &format!("{teacher}/Score"), vec![Noise]).await,
    ];
    for method in ["GetInfo", "ScoreText"].map(|name| format!("{teacher}/{name}")) {
        answers.push(answer(&server, &method, vec![Noise]).await);
        answers.push(answer::<Noise>(&server, &method, vec![]).await);
    }
    answers.push(answer(&server, &format!("{health}/Check"), vec![Noise]).await);
    for status in answers {
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains("not a request"), "{status}");
    }
    neighbour.ask(&job(1, vec![1, 2])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_limit_ends_its_stream_only() {
    let settings = Settings::with(|limits| limits.max_request_bytes = 2048);
    let server = Server::start(FakeScorer::new(CLASSES), settings).await;
    let (mut neighbour, mut stream) = (server.score().await, server.score().await);
    stream.send(score_request(&job(1, vec![1; 600]))).await;
    let ended = stream.replies.message().await.unwrap_err();
    assert_eq!(ended.code(), Code::OutOfRange, "{ended}");
    neighbour.ask(&job(1, vec![1; 384])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_the_model_are_internal_and_the_server_goes_on() {
    let fake = FakeScorer {
        panic_at: Some(13),
        fail_at: Some(14),
        nan_at: Some(15),
        ..FakeScorer::new(CLASSES)
    };
    let server = Server::start(fake, Settings::DEFAULT).await;
    let mut stream = server.score().await;
    for (token, says) in [(13, "bug"), (14, "told to fail"), (15, "not finite")] {
        stream.send(score_request(&job(1, vec![1, token]))).await;
        let error = stream.next().await.error.unwrap();
        assert_eq!(error.code, Code::Internal as i32, "{}", error.message);
        assert!(error.message.contains(says), "{}", error.message);
        let good = job(2, vec![1, 2, 3]);
        assert_right(&good, &stream.ask(&good).await);
    }
    // A fault of the server stays one where the call has a single answer, too.
    let text = ScoreTextRequest { text: "\u{d}".into(), ..Default::default() };
    let status = server.client().await.score_text(text).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal, "{status}");
    assert_eq!(server.metric("teacher_panics_total").await, 2.0);
    assert_eq!(server.metric("teacher_failed_batches_total").await, 3.0);
    assert_eq!(server.metric("teacher_non_finite_total").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_noise_on_either_port_harms_nobody() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server = Server::start(FakeScorer::new(CLASSES), Settings::DEFAULT).await;
    let http1 = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let noise: Vec<u8> =
        (0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for address in [server.grpc, server.http] {
        for bytes in [http1.clone(), noise.clone(), [preface.clone(), noise.clone()].concat()] {
            let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
            // The server may close before it has read everything.
            let _ = connection.write_all(&bytes).await;
            let _ = connection.shutdown().await;
            let mut answer = Vec::new();
            let read = connection.read_to_end(&mut answer);
            assert!(tokio::time::timeout(PATIENCE, read).await.is_ok());
        }
    }
    server.score().await.ask(&job(1, vec![1, 2])).await;
}
