//! Sequences of one and two tokens without number, over one stream and one call each: every one is
//! answered once and rightly, memory stays where it is, and a neighbour is answered all the while.
//!
//! A program of its own, since it measures the memory of its process: client and server together.

#![expect(clippy::print_stdout, reason = "the figures are what a run by hand is for")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use distill::codec::Codec;
use distill::fingerprint::Fingerprint;
use distill::handshake::Agreement;
use distill::queue::Priority;
use distill::signal::Entries;
use proto::convert::{ReplyAssembler, ScoreJob, score_request};
use proto::v1::teacher_client::TeacherClient;
use proto::v1::{GetInfoRequest, ScoreReply, ScoreTextRequest};
use teacher_server::settings::Settings;
use teacher_server::testing::FakeScorer;
use teacher_server::{Guard, Listeners, serve};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// Sequences over one stream where [`VARIABLE`] names no other number; a fifth as many calls.
const MANY: usize = 100_000;
/// 1,000,000 were run by hand (docs/log.md).
const VARIABLE: &str = "LIMBECK_TINY_SEQUENCES";
/// What the process may grow by, once it is warm.
const MOST_GROWTH: usize = 10 << 20;
/// The longest a neighbour may wait for one answer. It takes milliseconds; the machine may be busy.
const MOST_WAIT: Duration = Duration::from_secs(2);
/// Classes of the model.
const CLASSES: usize = 32;
/// Calls under way at a time: one client has half of the places for texts (`max_encoding_texts`).
const AT_A_TIME: usize = 16;

type Client = TeacherClient<Channel>;

/// A job of one token or of two, over all positions.
fn job(id: usize) -> ScoreJob {
    let tokens: Vec<u32> = (0..1 + id % 2).map(|at| ((id + at) % CLASSES) as u32).collect();
    let all = 0..tokens.len() as u32;
    ScoreJob {
        id: id as u64,
        tokens,
        ranges: vec![all],
        temperature: 2.0,
        k: 4,
        codec: Codec::Raw,
        classes: CLASSES,
        entries: Entries::Top,
        priority: Priority::Normal,
    }
}

/// The answer to a job, in one message, is what the model's definition says.
fn assert_right(id: usize, reply: &ScoreReply) {
    let (job, wanted) = (job(id), FakeScorer::scores(&job(id)));
    let agreement = Agreement {
        classes: CLASSES,
        model_fingerprint: Fingerprint([0xA5; 32]),
        tokenizer_fingerprint: Fingerprint([0x5A; 32]),
        hidden_size: 0,
        max_in_flight: 64,
    };
    let scored = ReplyAssembler::new(job, &agreement).push(reply).expect("an answer");
    let signal = scored.expect("a whole answer").signal;
    assert_eq!(signal.top_k(), wanted.signal.top_k(), "job {id}");
}

/// Bytes of this process in memory.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: usize = pages.split(' ').nth(1).expect("pages").parse().expect("a number");
    pages * 4096
}

/// What the process has grown by since it was warm.
#[derive(Default)]
struct Memory {
    warm: usize,
    most: usize,
}

impl Memory {
    /// Looks, now and then, after `done` of `all`: the first tenth warms the process up.
    fn look(&mut self, done: usize, all: usize) {
        if done == all / 10 {
            self.warm = resident();
        } else if self.warm > 0 && done.is_multiple_of(1000) {
            self.most = self.most.max(resident());
        }
    }

    fn growth(&self) -> usize {
        self.most.saturating_sub(self.warm)
    }
}

/// Serves until it is dropped; a client for each connection wanted.
async fn served(connections: usize) -> (oneshot::Sender<()>, Vec<Client>) {
    let free = "127.0.0.1:0".parse().expect("an address");
    let listeners = Listeners::bind(free, free).await.expect("free ports");
    let address = listeners.grpc.local_addr().expect("an address");
    let (stop, stopped) = oneshot::channel::<()>();
    let (told, ready) = oneshot::channel();
    let load = || Ok(FakeScorer::new(CLASSES).loaded());
    let ready_call = move |_: &_| told.send(()).expect("somebody who waits");
    let shutdown = async { drop(stopped.await) };
    let guard = Guard::default();
    tokio::spawn(serve(listeners, load, Settings::DEFAULT, guard, ready_call, shutdown));
    ready.await.expect("it serves");
    let mut clients = Vec::new();
    for _ in 0..connections {
        let channel = Channel::from_shared(format!("http://{address}")).expect("an address");
        clients.push(TeacherClient::new(channel.connect().await.expect("a connection")));
    }
    (stop, clients)
}

/// Somebody else, who asks all the while until told that it is over; how long each answer took.
struct Neighbour {
    over: Arc<AtomicBool>,
    asking: JoinHandle<Vec<Duration>>,
}

impl Neighbour {
    fn moves_in(mut client: Client) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let asking = tokio::spawn(async move {
            let (requests, receiver) = mpsc::channel(1);
            let replies = client.score(ReceiverStream::new(receiver)).await;
            let mut replies = replies.expect("a stream").into_inner();
            let mut waits = Vec::new();
            while !told.load(Ordering::SeqCst) {
                let (id, asked) = (waits.len(), Instant::now());
                requests.send(score_request(&job(id))).await.expect("a stream that goes on");
                let reply = replies.message().await.expect("no end").expect("a reply");
                waits.push(asked.elapsed());
                assert_right(id, &reply);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            waits
        });
        Self { over, asking }
    }

    /// The median and the longest of its waits.
    async fn moves_out(self) -> (Duration, Duration) {
        self.over.store(true, Ordering::SeqCst);
        let mut waits = self.asking.await.expect("a neighbour who was answered rightly");
        waits.sort();
        (waits[waits.len() / 2], waits[waits.len() - 1])
    }
}

/// Sends `many` over one stream and takes their answers.
async fn over_one_stream(many: usize, mut client: Client) -> Memory {
    let (requests, receiver) = mpsc::channel(AT_A_TIME);
    let replies = client.score(ReceiverStream::new(receiver)).await;
    let mut replies = replies.expect("a stream").into_inner();
    let sending = tokio::spawn(async move {
        for id in 0..many {
            requests.send(score_request(&job(id))).await.expect("a stream that goes on");
        }
    });
    // Written to here, so that it is in memory before that is measured.
    let mut owed = vec![true; many];
    let mut memory = Memory::default();
    for done in 0..many {
        let reply = replies.message().await.expect("no end").expect("a reply");
        let id = reply.id as usize;
        assert!(reply.error.is_none(), "{:?}", reply.error);
        assert!(std::mem::replace(&mut owed[id], false), "{id} was answered twice");
        if id.is_multiple_of(97) {
            assert_right(id, &reply);
        }
        memory.look(done, many);
    }
    sending.await.expect("all were sent");
    let end = replies.message().await.expect("a good end");
    assert!(end.is_none(), "more answers than questions: {end:?}");
    memory
}

/// Asks `many` texts of one token or two, each by a call of its own.
async fn over_many_calls(many: usize, client: Client) -> Memory {
    let room = Arc::new(Semaphore::new(AT_A_TIME));
    let (mut calls, mut memory) = (JoinSet::new(), Memory::default());
    for done in 0..many {
        let place = Arc::clone(&room).acquire_owned().await.expect("never closed");
        let mut client = client.clone();
        calls.spawn(async move {
            let text = if done % 2 == 0 { "a" } else { "ab" };
            let request = ScoreTextRequest { text: text.into(), ..Default::default() };
            let answer = client.score_text(request).await.expect("an answer").into_inner();
            assert_eq!(answer.tokens.len(), text.len());
            drop(place);
        });
        while let Some(ended) = calls.try_join_next() {
            ended.expect("a call that was answered rightly");
        }
        memory.look(done, many);
    }
    while let Some(ended) = calls.join_next().await {
        ended.expect("a call that was answered rightly");
    }
    memory
}

#[tokio::test(flavor = "multi_thread")]
async fn tiny_sequences_without_number_are_answered_each() {
    let asked = std::env::var(VARIABLE).ok();
    let many = asked.map_or(MANY, |number| number.parse().expect("a number of sequences"));
    let (_stop, clients) = served(3).await;
    let [flood, other, fresh] = clients.try_into().expect("three clients");
    for (how, many) in [("over one stream", many), ("over as many calls", many / 5)] {
        let neighbour = Neighbour::moves_in(other.clone());
        let begun = Instant::now();
        let memory = match how {
            "over one stream" => over_one_stream(many, flood.clone()).await,
            _ => over_many_calls(many, flood.clone()).await,
        };
        let took = begun.elapsed();
        let (median, longest) = neighbour.moves_out().await;
        let (warm, growth) = (memory.warm >> 10, memory.growth());
        println!(
            "{many} sequences {how}: {:.1} s; {warm} KiB warm, {} KiB more at most; a neighbour \
             waited {median:.1?} in the median, {longest:.1?} at most",
            took.as_secs_f64(),
            growth >> 10
        );
        assert!(growth < MOST_GROWTH, "{how}: memory grew by {growth} bytes");
        assert!(longest < MOST_WAIT, "{how}: a neighbour waited {longest:?}");
    }
    // It serves as before.
    let mut fresh = fresh;
    fresh.get_info(GetInfoRequest {}).await.expect("an answer");
}
