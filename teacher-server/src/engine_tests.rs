//! The engine alone: packing, abandoned work, faults, and its end.

#[path = "engine_ahead_tests.rs"]
mod ahead;

use std::sync::mpsc::{Receiver, Sender, channel};

use distill::codec::Codec;
use distill::queue::{Priority, QueueFull};
use distill::signal::Entries;
use model::started::Started;

use super::*;
use crate::scorer::{JobScores, NotFinite, Scorer, ScorerError, all_positions};
use crate::testing::{FakeScorer, facts};

impl Reply {
    fn blocking_recv(self) -> Result<Result<Answer, TeacherError>, oneshot::error::RecvError> {
        self.receiver.blocking_recv()
    }
}

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);
const BOUNDS: QueueBounds = QueueBounds { sequences: 16, tokens: 2000 };

fn job(id: u64, tokens: Vec<u32>) -> ScoreJob {
    let ranges = all_positions(tokens.len());
    ScoreJob {
        id,
        tokens,
        ranges,
        temperature: 2.0,
        k: 3,
        codec: Codec::Raw,
        classes: 16,
        entries: Entries::Top,
        priority: Priority::Normal,
    }
}

/// Says what each batch held, after waiting for leave to compute it.
struct Recorder {
    gate: Receiver<()>,
    batches: Sender<Vec<u64>>,
    fake: FakeScorer,
}

impl Scorer for Recorder {
    fn start(&mut self, jobs: &[&ScoreJob]) -> Result<Started<Vec<JobScores>>, ScorerError> {
        self.batches.send(jobs.iter().map(|job| job.id).collect()).unwrap();
        self.gate.recv().unwrap();
        self.fake.start(jobs)
    }

    fn warm_up(&mut self, _: &Facts) -> Result<(), LoadError> {
        Ok(())
    }
}

/// Batches of one sequence.
fn alone() -> Batching {
    Batching { max_tokens: 1, wait: Duration::ZERO }
}

fn client(name: u16) -> Client {
    Client::at(([127, 0, 0, 1], name).into())
}

struct Rig {
    engine: Engine,
    leave: Sender<()>,
    batches: Receiver<Vec<u64>>,
    metrics: Metrics,
    ended: oneshot::Receiver<Infallible>,
}

impl Rig {
    /// A job of one and the same client.
    fn submit(&self, job: ScoreJob) -> Result<Reply, TeacherError> {
        self.engine.submit(&client(1), job)
    }

    /// Lets a batch be computed and says what the next one holds.
    fn next(&self) -> Vec<u64> {
        self.leave.send(()).unwrap();
        self.batches.recv_timeout(PATIENCE).unwrap()
    }
}

fn rig(fake: fn() -> FakeScorer, bounds: QueueBounds, max_tokens: usize) -> Rig {
    rig_waiting(fake, bounds, Batching { max_tokens, wait: Duration::ZERO })
}

fn rig_waiting(fake: fn() -> FakeScorer, bounds: QueueBounds, batching: Batching) -> Rig {
    let (leave, gate) = channel();
    let (sender, batches) = channel();
    let load = move || {
        let Loaded { text, facts, .. } = FakeScorer::new(16).loaded();
        let scorer = Box::new(Recorder { gate, batches: sender, fake: fake() });
        Ok(Loaded { scorer, text, facts })
    };
    let metrics = Metrics::default();
    let started = Engine::start(load, bounds, batching, metrics.clone()).unwrap();
    started.ready.blocking_recv().unwrap().unwrap();
    Rig { engine: started.engine, leave, batches, metrics, ended: started.ended }
}

fn healthy() -> FakeScorer {
    FakeScorer::new(16)
}

#[test]
fn what_waits_while_a_batch_runs_is_packed_by_the_token_budget() {
    let rig = rig(healthy, BOUNDS, 10);
    let lengths = [1usize, 4, 6, 1, 30, 2];
    let replies: Vec<Reply> = lengths
        .iter()
        .enumerate()
        .map(|(id, &length)| {
            let reply = rig.submit(job(id as u64, vec![id as u32; length])).unwrap();
            if id == 0 {
                assert_eq!(rig.batches.recv_timeout(PATIENCE).unwrap(), [0]);
            }
            reply
        })
        .collect();
    let mut seen = Vec::new();
    for _ in 0..3 {
        rig.leave.send(()).unwrap();
        seen.push(rig.batches.recv_timeout(PATIENCE).unwrap());
    }
    rig.leave.send(()).unwrap();
    assert_eq!(seen, [vec![1, 2], vec![3, 5], vec![4]]);
    for (id, reply) in replies.into_iter().enumerate() {
        let answer = reply.blocking_recv().unwrap().unwrap();
        let wanted = FakeScorer::scores(&job(id as u64, vec![id as u32; lengths[id]]));
        assert_eq!(answer.scores.signal, wanted.signal);
    }
    assert_eq!(rig.metrics.batches.get(), 4);
    assert_eq!(rig.metrics.tokens.get(), 44);
}

#[test]
fn who_asked_for_a_decoder_and_left_holds_no_place() {
    let rig = rig(healthy, BOUNDS, 10);
    let busy = rig.submit(job(0, vec![1])).unwrap();
    assert_eq!(rig.batches.recv_timeout(PATIENCE).unwrap(), [0]);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let mut stays = std::pin::pin!(rig.engine.decoder(true));
    assert!(stays.as_mut().poll(&mut context).is_pending());
    for _ in 0..100 {
        let mut leaves = Box::pin(rig.engine.decoder(true));
        assert!(leaves.as_mut().poll(&mut context).is_pending());
    }
    // The last of them is there until another comes.
    assert_eq!(rig.engine.shared.lock().errands.len(), 2);
    rig.leave.send(()).unwrap();
    busy.blocking_recv().unwrap().unwrap();
}

#[test]
fn work_whose_caller_left_is_not_computed_and_keeps_nobody_out() {
    let bounds = QueueBounds { sequences: 4, tokens: 1000 };
    let rig = rig(healthy, bounds, 10);
    let first = rig.submit(job(0, vec![1])).unwrap();
    assert_eq!(rig.batches.recv_timeout(PATIENCE).unwrap(), [0]);
    let (left, stays) =
        (rig.submit(job(1, vec![1])).unwrap(), rig.submit(job(2, vec![1])).unwrap());
    let full = rig.submit(job(3, vec![1])).unwrap_err();
    let wanted = QueueFull::Sequences { own: 2, queued: 2, limit: 4 };
    assert!(matches!(full, TeacherError::Full { full, .. } if full == wanted), "{full}");
    assert!(full.pause().is_some_and(|pause| pause >= Duration::from_millis(100)));
    drop(left);
    let late = rig.submit(job(4, vec![1])).unwrap();
    rig.leave.send(()).unwrap();
    assert_eq!(rig.batches.recv_timeout(PATIENCE).unwrap(), [2, 4]);
    rig.leave.send(()).unwrap();
    for reply in [first, stays, late] {
        reply.blocking_recv().unwrap().unwrap();
    }
    assert_eq!(rig.metrics.abandoned.get(), 1);
    assert_eq!(rig.metrics.queued_sequences.get(), 0);
}

#[test]
fn one_poisonous_sequence_fails_alone() {
    let faulty = || FakeScorer {
        panic_at: Some(13),
        fail_at: Some(14),
        nan_at: Some(15),
        ..FakeScorer::new(16)
    };
    let rig = rig(faulty, BOUNDS, 100);
    let first = rig.submit(job(0, vec![1])).unwrap();
    assert_eq!(rig.batches.recv_timeout(PATIENCE).unwrap(), [0]);
    let tokens = [2, 13, 3, 14, 15, 4];
    let replies: Vec<Reply> =
        (1..).zip(tokens).map(|(id, token)| rig.submit(job(id, vec![token, 1])).unwrap()).collect();
    (0..32).for_each(|_| rig.leave.send(()).unwrap());
    assert!(first.blocking_recv().unwrap().is_ok());
    for (token, reply) in tokens.into_iter().zip(replies) {
        let result = reply.blocking_recv().unwrap();
        match token {
            13 => assert!(matches!(result, Err(TeacherError::Panicked(_))), "{result:?}"),
            14 => assert!(matches!(result, Err(TeacherError::Scorer(_))), "{result:?}"),
            15 => assert_eq!(result, Err(NotFinite("row 0".into()).into())),
            _ => assert!(result.is_ok(), "{token}: {result:?}"),
        }
    }
    assert_eq!(rig.metrics.non_finite.get(), 1);
    assert!(rig.metrics.panics.get() >= 1 && rig.metrics.failed_batches.get() >= 2);
}

#[test]
fn an_aborted_engine_forgets_its_queue_takes_no_more_and_ends() {
    let rig = rig(healthy, BOUNDS, 1);
    let running = rig.submit(job(0, vec![1])).unwrap();
    assert_eq!(rig.batches.recv_timeout(PATIENCE).unwrap(), [0]);
    let waiting = rig.submit(job(1, vec![1])).unwrap();
    rig.engine.abort();
    assert!(waiting.blocking_recv().is_err());
    assert_eq!(rig.submit(job(2, vec![1])).unwrap_err(), TeacherError::Stopped);
    rig.leave.send(()).unwrap();
    assert!(running.blocking_recv().unwrap().is_ok());
    assert!(rig.ended.blocking_recv().is_err());
}

#[test]
fn loading_that_fails_or_panics_is_told() {
    let metrics = Metrics::default;
    let failed = Engine::start(|| Err("no weights".into()), BOUNDS, alone(), metrics()).unwrap();
    let told = failed.ready.blocking_recv().unwrap().err().unwrap();
    assert_eq!(told.to_string(), "no weights");
    assert!(failed.ended.blocking_recv().is_err());
    assert_eq!(
        failed.engine.submit(&client(1), job(0, vec![1])).unwrap_err(),
        TeacherError::Stopped
    );
    let panicked =
        Engine::start(|| panic!("loading met a bug"), BOUNDS, alone(), metrics()).unwrap();
    assert!(panicked.ready.blocking_recv().is_err());
}

#[test]
fn a_client_with_thousands_waiting_makes_another_wait_for_two_batches_at_most() {
    let bounds = QueueBounds { sequences: 100_000, tokens: 1_000_000 };
    let rig = rig(healthy, bounds, 10);
    let flood: Vec<Reply> =
        (0..10_000).map(|id| rig.engine.submit(&client(1), job(id, vec![1, 2])).unwrap()).collect();
    rig.batches.recv_timeout(PATIENCE).unwrap();
    // While a batch runs, and as long as a batch can be.
    let small = rig.engine.submit(&client(2), job(77_777, vec![1; 10])).unwrap();
    let waited = [rig.next(), rig.next()];
    assert!(waited.concat().contains(&77_777), "{waited:?}");
    rig.leave.send(()).unwrap();
    assert!(small.blocking_recv().unwrap().is_ok());
    // So that the thread does not compute the rest.
    drop(flood);
    drop(rig.leave);
}

#[test]
fn the_first_sequence_waits_for_company_a_while_and_not_longer() {
    let wait = Duration::from_millis(300);
    let rig = rig_waiting(healthy, BOUNDS, Batching { max_tokens: 10, wait });
    (0..9).for_each(|_| rig.leave.send(()).unwrap());
    let begin = Instant::now();
    let replies = [0, 1].map(|id| rig.submit(job(id, vec![1])).unwrap());
    assert_eq!(rig.batches.recv_timeout(PATIENCE).unwrap(), [0, 1]);
    assert!(begin.elapsed() >= wait, "{:?}", begin.elapsed());
    replies.into_iter().for_each(|reply| assert!(reply.blocking_recv().unwrap().is_ok()));
    // Nobody waits for a batch that is full.
    let full = rig_waiting(healthy, BOUNDS, Batching { max_tokens: 2, wait: 100 * PATIENCE });
    full.leave.send(()).unwrap();
    let replies = [0, 1].map(|id| full.submit(job(id, vec![1])).unwrap());
    assert_eq!(full.batches.recv_timeout(PATIENCE).unwrap(), [0, 1]);
    replies.into_iter().for_each(|reply| assert!(reply.blocking_recv().unwrap().is_ok()));
}

#[test]
fn a_batch_too_large_for_the_device_is_split_and_only_what_never_fits_is_refused() {
    let small = || FakeScorer { memory_tokens: Some(3), ..FakeScorer::new(16) };
    let rig = rig(small, BOUNDS, 100);
    (0..99).for_each(|_| rig.leave.send(()).unwrap());
    for _ in 0..100 {
        let lengths = [1, 2, 4, 3];
        let replies =
            lengths.map(|length| rig.submit(job(length as u64, vec![1; length])).unwrap());
        for (length, reply) in lengths.into_iter().zip(replies) {
            rig.leave.send(()).unwrap();
            rig.leave.send(()).unwrap();
            match reply.blocking_recv().unwrap() {
                Err(error @ TeacherError::OutOfMemory { tokens: 4, .. }) if length == 4 => {
                    assert!(error.pause().is_some() && error.to_string().contains("shorter"));
                }
                result => assert!(length != 4 && result.is_ok(), "{length}: {result:?}"),
            }
        }
    }
    assert!(rig.metrics.out_of_memory.get() >= 100);
}

#[test]
fn a_model_is_tried_before_it_serves() {
    struct Broken(Vec<usize>);
    impl Scorer for Broken {
        fn start(&mut self, jobs: &[&ScoreJob]) -> Result<Started<Vec<JobScores>>, ScorerError> {
            self.0.extend(jobs.iter().map(|job| job.tokens.len()));
            let mut scores = FakeScorer::scores(jobs[0]);
            scores.next_logprob[1] = f32::NAN;
            Ok(Started::Done(vec![Ok(scores)]))
        }
    }
    let short = Facts { max_positions: 5, ..facts(16) };
    let mut broken = Broken(vec![]);
    let error = broken.warm_up(&short).unwrap_err().to_string();
    for piece in ["not finite (tried in f32, row 1)", "convert it again"] {
        assert!(error.contains(piece), "{error}");
    }
    assert!(!error.contains("loaded"), "{error}");
    assert_eq!(broken.0, [5]);
    let load = || Ok(Loaded { scorer: Box::new(Broken(vec![])), ..FakeScorer::new(16).loaded() });
    let batching = Batching { max_tokens: 9, wait: Duration::ZERO };
    let started = Engine::start(load, BOUNDS, batching, Metrics::default()).unwrap();
    let error = started.ready.blocking_recv().unwrap().err().unwrap();
    assert!(error.to_string().contains("not finite"), "{error}");
}
