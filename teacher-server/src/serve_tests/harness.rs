//! A running server, its clients, and the shortest way to score something.

use std::net::SocketAddr;
use std::sync::{LazyLock, mpsc};
use std::time::Duration;

use distill::codec::Codec;
use distill::fingerprint::Fingerprint;
use distill::handshake::{Agreement, Limits, TeacherFacts};
use distill::queue::Priority;
use distill::signal::{Computed, Entries, Signal};
use proto::convert::{ReplyAssembler, ScoreJob, Scored, score_request};
use proto::v1::teacher_client::TeacherClient;
use proto::v1::{ScoreReply, ScoreRequest};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::Streaming;
use tonic::transport::Channel;
use tracing::dispatcher::{DefaultGuard, Dispatch};

use crate::scorer::{LoadError, Loaded, all_positions};
use crate::settings::Settings;
use crate::testing::FakeScorer;
use crate::{Guard, Listeners, ServeError, serve};

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Classes of the fake model.
pub(crate) const CLASSES: usize = 32;

/// A server on free loopback ports.
pub(crate) struct Server {
    pub(crate) grpc: SocketAddr,
    pub(crate) http: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    done: JoinHandle<Result<(), ServeError>>,
    ready: Option<oneshot::Receiver<TeacherFacts>>,
}

impl Server {
    /// Starts serving whatever `load` brings, without waiting for it.
    pub(crate) async fn start_loading(
        load: impl FnOnce() -> Result<Loaded, LoadError> + Send + 'static,
        settings: Settings,
    ) -> Self {
        Self::start_guarded(load, settings, Guard::default()).await
    }

    /// The same, not open to everybody.
    pub(crate) async fn start_guarded(
        load: impl FnOnce() -> Result<Loaded, LoadError> + Send + 'static,
        settings: Settings,
        guard: Guard,
    ) -> Self {
        let free = "127.0.0.1:0".parse().unwrap();
        let listeners = Listeners::bind(free, free).await.unwrap();
        let (grpc, http) =
            (listeners.grpc.local_addr().unwrap(), listeners.http.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        let (told, ready) = oneshot::channel();
        let ready_call = move |facts: &TeacherFacts| drop(told.send(facts.clone()));
        let shutdown = async { drop(stopped.await) };
        let done = tokio::spawn(serve(listeners, load, settings, guard, ready_call, shutdown));
        Self { grpc, http, stop: Some(stop), done, ready: Some(ready) }
    }

    /// Starts and waits until it serves.
    pub(crate) async fn start(fake: FakeScorer, settings: Settings) -> Self {
        let mut server = Self::start_loading(|| Ok(fake.loaded()), settings).await;
        server.ready().await;
        server
    }

    /// A server whose model waits for leave before each batch, which is one sequence.
    pub(crate) async fn gated(settings: Settings) -> (Self, mpsc::Sender<()>) {
        let limits = Limits { max_batch_tokens: 1, ..settings.limits };
        let settings = Settings { limits, ..settings };
        let (leave, gate) = mpsc::channel();
        let fake = FakeScorer { gate: Some(gate), ..FakeScorer::new(CLASSES) };
        (Self::start(fake, settings).await, leave)
    }

    /// Waits until it serves.
    pub(crate) async fn ready(&mut self) -> TeacherFacts {
        self.ready.take().unwrap().await.unwrap()
    }

    pub(crate) async fn channel(&self) -> Channel {
        let uri = format!("http://{}", self.grpc);
        Channel::from_shared(uri).unwrap().connect().await.unwrap()
    }

    pub(crate) async fn client(&self) -> TeacherClient<Channel> {
        TeacherClient::new(self.channel().await)
    }

    /// A stream to send requests on, and its replies.
    pub(crate) async fn score(&self) -> Stream {
        let (requests, receiver) = tokio::sync::mpsc::channel(64);
        let inbound = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let replies = self.client().await.score(inbound).await.unwrap().into_inner();
        Stream { requests, replies }
    }

    /// Tells it to stop.
    pub(crate) fn stop(&mut self) {
        drop(self.stop.take());
    }

    /// How serving ended.
    pub(crate) async fn end(self) -> Result<(), ServeError> {
        self.done.await.unwrap()
    }

    /// GET of a page of JSON: head and body.
    pub(crate) async fn get_json(&self, path: &str) -> (String, Value) {
        http(self.http, format!("GET {path} HTTP/1.0\r\n\r\n")).await
    }

    /// POST of JSON: head and body of the answer.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> (String, Value) {
        post_to(self.http, path, body).await
    }

    /// GET of a page: status line and body.
    pub(crate) async fn get(&self, path: &str) -> (String, String) {
        let mut connection = TcpStream::connect(self.http).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }

    /// The value of one line of `/metrics`; one with labels is not there before it is counted.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let page = self.get("/metrics").await.1;
        let line = page.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        match line {
            None if name.contains('{') => 0.0,
            None => panic!("{name} is not in\n{page}"),
            Some(value) => value.parse().unwrap(),
        }
    }

    /// Waits until this many sequences have joined the queue, since the server started.
    pub(crate) async fn until_admitted(&self, sequences: u32) {
        self.until_metric("teacher_admitted_total", f64::from(sequences)).await;
    }

    /// Waits until a metric has a value.
    pub(crate) async fn until_metric(&self, name: &str, value: f64) {
        let wait = async {
            while self.metric(name).await != value {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, wait).await;
        assert!(waited.is_ok(), "{name} is {}, not {value}", self.metric(name).await);
    }
}

/// POST of JSON: head and body of the answer.
pub(crate) async fn post_to(server: SocketAddr, path: &str, body: &Value) -> (String, Value) {
    let body = body.to_string();
    let length = body.len();
    http(server, format!("POST {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}")).await
}

/// By HTTP/1.0, which does not cut an answer into chunks.
async fn http(server: SocketAddr, request: String) -> (String, Value) {
    let mut connection = TcpStream::connect(server).await.unwrap();
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), serde_json::from_str(body).unwrap())
}

/// Has this thread tell a subscriber of its own what it does, while the guard lives.
pub(crate) fn tell(to: &Dispatch) -> DefaultGuard {
    // With one subscriber in the process, `tracing` asks it once for all, on whichever thread comes
    // first; and on the others' threads there is none.
    static ANOTHER: LazyLock<Dispatch> =
        LazyLock::new(|| Dispatch::new(tracing_subscriber::registry()));
    LazyLock::force(&ANOTHER);
    tracing::callsite::rebuild_interest_cache();
    tracing::dispatcher::set_default(to)
}

/// Both directions of a `Score` call.
pub(crate) struct Stream {
    pub(crate) requests: tokio::sync::mpsc::Sender<ScoreRequest>,
    pub(crate) replies: Streaming<ScoreReply>,
}

impl Stream {
    pub(crate) async fn send(&self, request: ScoreRequest) {
        self.requests.send(request).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> ScoreReply {
        let reply = tokio::time::timeout(PATIENCE, self.replies.message()).await;
        reply.expect("a reply in time").unwrap().expect("a reply")
    }

    /// Sends a job and puts its answer together; nothing else may be in flight.
    pub(crate) async fn ask(&mut self, job: &ScoreJob) -> Scored {
        self.send(score_request(job)).await;
        let mut assembler = assembler(job);
        loop {
            let reply = self.next().await;
            if let Some(scored) = assembler.push(&reply).unwrap() {
                return scored;
            }
        }
    }
}

pub(crate) fn assembler(job: &ScoreJob) -> ReplyAssembler {
    assembler_of(job, 0)
}

/// The same of a model whose hidden states have so many numbers.
pub(crate) fn assembler_of(job: &ScoreJob, hidden_size: usize) -> ReplyAssembler {
    let agreement = Agreement {
        classes: CLASSES,
        model_fingerprint: Fingerprint([0xA5; 32]),
        tokenizer_fingerprint: Fingerprint([0x5A; 32]),
        hidden_size,
        max_in_flight: 64,
    };
    ReplyAssembler::new(job.clone(), &agreement)
}

/// A job over all positions of some tokens: raw, T = 2, k = 4.
pub(crate) fn job(id: u64, tokens: Vec<u32>) -> ScoreJob {
    let ranges = all_positions(tokens.len());
    ScoreJob {
        id,
        tokens,
        ranges,
        temperature: 2.0,
        k: 4,
        codec: Codec::Raw,
        classes: CLASSES,
        entries: Entries::Top,
        priority: Priority::Normal,
    }
}

/// Whether the answer is what the fake model's definition says, bit for bit (raw codec).
pub(crate) fn assert_right(job: &ScoreJob, scored: &Scored) {
    let wanted = FakeScorer::scores(job);
    match (&scored.signal, &wanted.signal) {
        (Signal::TopK(found), Computed::TopK(wanted)) => {
            assert_eq!(found, wanted, "job {}", job.id)
        }
        (Signal::Drawn(found), Computed::Drawn(wanted)) => assert_eq!(found, wanted),
        (found, wanted) => panic!("job {}: {found:?} for {wanted:?}", job.id),
    }
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&scored.next_logprob), bits(&wanted.next_logprob), "job {}", job.id);
}
