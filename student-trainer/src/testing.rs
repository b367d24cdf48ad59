//! For tests: a teacher in this process, over real gRPC on a loopback port, that can misbehave; and a
//! student of it (`student`).

mod asks;
mod recorder;
mod student;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use distill::codec::Codec;
use distill::fingerprint::Fingerprint;
use distill::handshake::{Limits, PROTOCOL_VERSION, SignalKind, TeacherFacts};
use distill::signal::{TopK, log_sum_exp};
use proto::convert::{self, ScoreJob, Stamp};
use proto::v1::teacher_server::{Teacher, TeacherServer};
use proto::v1::{
    FetchReply, FetchRequest, GetDecoderReply, GetDecoderRequest, GetInfoReply, GetInfoRequest,
    ScoreReply, ScoreRequest, ScoreTextReply, ScoreTextRequest,
};
use tokio_stream::{Stream, StreamExt};
use tonic::transport::ServerTlsConfig;
use tonic::{Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::setup::Source;
pub(crate) use asks::{joined, listing};
pub(crate) use recorder::Recorder;
pub(crate) use student::{config, manifest, material, row_set, rows, tiny_source};

/// Classes of the tiny student.
pub(crate) const CLASSES: usize = 24;

/// How a fake teacher misbehaves. All numbers may be changed while it serves.
#[derive(Debug, Default)]
pub(crate) struct Mischief {
    /// Replies after which each stream ends; 0 for never.
    pub(crate) hang_up_after: AtomicUsize,
    /// Milliseconds for which a stream that ends asks to be left alone; 0 asks for nothing.
    pub(crate) pause_ms: AtomicUsize,
    /// Added to the index of the token that is taken for the next one.
    pub(crate) shift: AtomicUsize,
    /// Whether answers go out in the reverse order of a small group.
    pub(crate) reverse: AtomicUsize,
    /// Requests refused as overloaded before any is answered.
    pub(crate) refuse_first: AtomicUsize,
    /// Streams opened so far.
    pub(crate) streams: AtomicU32,
    /// Requests answered so far.
    pub(crate) answered: AtomicUsize,
    /// Milliseconds an answer takes.
    pub(crate) delay_ms: AtomicUsize,
}

/// A teacher whose logits depend on the token at the position alone.
#[derive(Clone)]
pub(crate) struct FakeTeacher {
    pub(crate) facts: Arc<Mutex<TeacherFacts>>,
    pub(crate) mischief: Arc<Mischief>,
}

/// A served teacher; dropping it ends it at once.
pub(crate) struct Served {
    pub(crate) url: String,
    pub(crate) address: SocketAddr,
    pub(crate) teacher: FakeTeacher,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Served {
    /// Ends it at once, as a killed process would.
    pub(crate) fn end(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.end();
    }
}

impl FakeTeacher {
    /// A teacher with the tokenizer of `source`.
    pub(crate) fn of(source: &Source) -> Self {
        let facts = TeacherFacts {
            model: "fake".to_owned(),
            revision: String::new(),
            model_fingerprint: Fingerprint([7; 32]),
            tokenizer_fingerprint: Fingerprint(source.tokenizer.fingerprint()),
            vocab_size: CLASSES,
            tokenizer_size: source.tokenizer.size(),
            hidden_size: 0,
            limits: Limits { max_top_k: CLASSES, ..proto::limits::DEFAULT_LIMITS },
            signals: vec![SignalKind::TopK, SignalKind::Candidates],
            codecs: Codec::ALL.to_vec(),
            protocol_version: PROTOCOL_VERSION,
            server_version: "test".to_owned(),
            dtype: "f32".to_owned(),
            device: "cpu".to_owned(),
            parameters: 1,
        };
        Self { facts: Arc::new(Mutex::new(facts)), mischief: Arc::default() }
    }

    /// Serves it on `address` (port 0: any).
    pub(crate) fn serve_at(self, address: &str) -> Served {
        self.serve_guarded(address, None, None)
    }

    /// Serves it on `address`, encrypted, and to those only who show a token.
    pub(crate) fn serve_guarded(
        self,
        address: &str,
        tls: Option<ServerTlsConfig>,
        token: Option<&'static str>,
    ) -> Served {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind(address)).unwrap();
        let address = listener.local_addr().unwrap();
        let shown = move |request: Request<()>| {
            let shown = request.metadata().get("authorization").and_then(|v| v.to_str().ok());
            match token.is_none_or(|token| shown == Some(token)) {
                true => Ok(request),
                false => Err(Status::unauthenticated("no token of mine")),
            }
        };
        let service = TeacherServer::with_interceptor(self.clone(), shown);
        let scheme = if tls.is_some() { "grpcs" } else { "grpc" };
        let mut server = tonic::transport::Server::builder();
        if let Some(tls) = tls {
            server = server.tls_config(tls).unwrap();
        }
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        runtime.spawn(server.add_service(service).serve_with_incoming(incoming));
        let url = format!("{scheme}://{address}");
        Served { url, address, teacher: self, runtime: Some(runtime) }
    }

    /// Serves it on any port.
    pub(crate) fn serve(self) -> Served {
        self.serve_at("127.0.0.1:0")
    }

    fn answer(&self, job: &ScoreJob) -> (TopK, Vec<f32>) {
        let shift = self.mischief.shift.load(Ordering::Relaxed);
        let (mut signal, mut next_logprob) = (TopK::new(job.k), Vec::new());
        for (row, position) in job.positions().enumerate() {
            let logits = logits(job.tokens[position as usize], job.classes);
            let temperature = f64::from(job.temperature);
            match job.entries.named_at(row, job.k) {
                Some(ids) => signal.push_exact_named(ids, &logits, temperature),
                None => signal.push_exact(&logits, temperature),
            }
            let next = job.tokens.get(position as usize + 1 + shift).or(job.tokens.first());
            let last = position as usize + 1 == job.tokens.len();
            let log_z = log_sum_exp(logits.iter().copied());
            next_logprob.push(match next {
                Some(&next) if !last => (logits[next as usize] - log_z) as f32,
                _ => f32::NAN,
            });
        }
        (signal, next_logprob)
    }

    fn reply(&self, request: &ScoreRequest) -> Vec<ScoreReply> {
        let facts = self.facts.lock().unwrap().clone();
        let job = match convert::score_job(request, &facts) {
            Ok(job) => job,
            Err(error) => {
                return vec![convert::refusal(request.id, error.code(), error.to_string(), None)];
            }
        };
        let refused =
            self.mischief
                .refuse_first
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if refused.is_ok() {
            return vec![convert::refusal(
                job.id,
                tonic::Code::ResourceExhausted,
                "the queue is full",
                None,
            )];
        }
        let (signal, next_logprob) = self.answer(&job);
        let stamp = Stamp {
            model_fingerprint: facts.model_fingerprint,
            tokenizer_fingerprint: facts.tokenizer_fingerprint,
            max_reply_bytes: proto::limits::MIN_REPLY_BYTES,
            queued: Duration::ZERO,
            computed: Duration::ZERO,
        };
        self.mischief.answered.fetch_add(1, Ordering::Relaxed);
        convert::score_replies(&job, &signal.into(), &next_logprob, &stamp).unwrap()
    }
}

/// The fake teacher's logits after a token: a fixed function of it.
pub(crate) fn logits(token: u32, classes: usize) -> Vec<f64> {
    let class = |c: usize| ((token as usize * 7 + c * 5) % classes) as f64 * 0.3;
    (0..classes).map(class).collect()
}

type Replies = Pin<Box<dyn Stream<Item = Result<ScoreReply, Status>> + Send>>;

#[tonic::async_trait]
impl Teacher for FakeTeacher {
    type ScoreStream = Replies;

    async fn get_info(&self, _: Request<GetInfoRequest>) -> Result<Response<GetInfoReply>, Status> {
        Ok(Response::new(convert::facts_to_info(&self.facts.lock().unwrap())))
    }

    async fn score(
        &self,
        request: Request<Streaming<ScoreRequest>>,
    ) -> Result<Response<Replies>, Status> {
        self.mischief.streams.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let teacher = self.clone();
        tokio::spawn(async move {
            let mut requests = request.into_inner();
            let mut sent = 0;
            loop {
                let mut group = Vec::new();
                let reverse = teacher.mischief.reverse.load(Ordering::Relaxed).max(1);
                // A group closes when full, or when nothing more comes for a moment.
                while group.len() < reverse {
                    let next = tokio::time::timeout(Duration::from_millis(20), requests.next());
                    match next.await {
                        Ok(Some(Ok(request))) => group.push(teacher.reply(&request)),
                        Ok(Some(Err(_)) | None) => return,
                        Err(_) if group.is_empty() => {}
                        Err(_) => break,
                    }
                }
                let delay = teacher.mischief.delay_ms.load(Ordering::Relaxed) as u64;
                tokio::time::sleep(Duration::from_millis(delay)).await;
                for replies in group.into_iter().rev() {
                    let bound = teacher.mischief.hang_up_after.load(Ordering::Relaxed);
                    if bound > 0 && sent >= bound {
                        let pause = teacher.mischief.pause_ms.load(Ordering::Relaxed) as u64;
                        let pause = (pause > 0).then(|| Duration::from_millis(pause));
                        let details = ErrorDetails::with_retry_info(pause);
                        let code = tonic::Code::Unavailable;
                        let end = Status::with_error_details(code, "going away", details);
                        let _ = sender.send(Err(end)).await;
                        return;
                    }
                    sent += 1;
                    for reply in replies {
                        if sender.send(Ok(reply)).await.is_err() {
                            return;
                        }
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver))))
    }

    async fn get_decoder(
        &self,
        _: Request<GetDecoderRequest>,
    ) -> Result<Response<GetDecoderReply>, Status> {
        Err(Status::unimplemented("this teacher lists tokens"))
    }

    type FetchStream = Pin<Box<dyn Stream<Item = Result<FetchReply, Status>> + Send>>;

    async fn fetch(&self, _: Request<FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        Err(Status::unimplemented("this teacher lists tokens"))
    }

    async fn score_text(
        &self,
        _: Request<ScoreTextRequest>,
    ) -> Result<Response<ScoreTextReply>, Status> {
        Err(Status::unimplemented("not in tests"))
    }
}
