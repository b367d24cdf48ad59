//! The engine alone: packing, abandoned work, faults, and its end.

use std::sync::mpsc::{Receiver, Sender, channel};

use distill::codec::Codec;

use super::*;
use crate::scorer::{ScorerError, all_positions};
use crate::testing::FakeScorer;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);
const BOUNDS: QueueBounds = QueueBounds { sequences: 8, tokens: 1000 };

fn job(id: u64, tokens: Vec<u32>) -> ScoreJob {
    let ranges = all_positions(tokens.len());
    ScoreJob { id, tokens, ranges, temperature: 2.0, k: 3, codec: Codec::Raw, classes: 16 }
}

/// Says what each batch held, after waiting for leave to compute it.
struct Recorder {
    gate: Receiver<()>,
    batches: Sender<Vec<u64>>,
    fake: FakeScorer,
}

impl Scorer for Recorder {
    fn score(&mut self, jobs: &[&ScoreJob]) -> Result<Vec<Result<Scores, NotFinite>>, ScorerError> {
        self.batches.send(jobs.iter().map(|job| job.id).collect()).unwrap();
        self.gate.recv().unwrap();
        self.fake.score(jobs)
    }
}

struct Rig {
    engine: Engine,
    leave: Sender<()>,
    batches: Receiver<Vec<u64>>,
    metrics: Metrics,
    ended: oneshot::Receiver<Infallible>,
}

fn rig(fake: fn() -> FakeScorer, bounds: QueueBounds, max_batch_tokens: usize) -> Rig {
    let (leave, gate) = channel();
    let (sender, batches) = channel();
    let load = move || {
        let Loaded { text, facts, .. } = FakeScorer::new(16).loaded();
        let scorer = Box::new(Recorder { gate, batches: sender, fake: fake() });
        Ok(Loaded { scorer, text, facts })
    };
    let metrics = Metrics::default();
    let started = Engine::start(load, bounds, max_batch_tokens, metrics.clone()).unwrap();
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
            let reply = rig.engine.submit(job(id as u64, vec![id as u32; length])).unwrap();
            if id == 0 {
                assert_eq!(rig.batches.recv_timeout(PATIENCE).unwrap(), [0]);
            }
            reply
        })
        .collect();
    let mut seen = Vec::new();
    for _ in 0..4 {
        rig.leave.send(()).unwrap();
        seen.push(rig.batches.recv_timeout(PATIENCE).unwrap());
    }
    rig.leave.send(()).unwrap();
    assert_eq!(seen, [vec![1, 2], vec![3], vec![4], vec![5]]);
    for (id, reply) in replies.into_iter().enumerate() {
        let answer = reply.blocking_recv().unwrap().unwrap();
        let wanted = FakeScorer::scores(&job(id as u64, vec![id as u32; lengths[id]]));
        assert_eq!(answer.scores.signal, wanted.signal);
    }
    assert_eq!(rig.metrics.batches.get(), 5);
    assert_eq!(rig.metrics.tokens.get(), 44);
}

#[test]
fn work_whose_caller_left_is_not_computed_and_keeps_nobody_out() {
    let bounds = QueueBounds { sequences: 2, tokens: 1000 };
    let rig = rig(healthy, bounds, 10);
    let first = rig.engine.submit(job(0, vec![1])).unwrap();
    assert_eq!(rig.batches.recv_timeout(PATIENCE).unwrap(), [0]);
    let (left, stays) =
        (rig.engine.submit(job(1, vec![1])).unwrap(), rig.engine.submit(job(2, vec![1])).unwrap());
    let full = rig.engine.submit(job(3, vec![1])).unwrap_err();
    assert_eq!(
        full,
        TeacherError::Full(crate::queue::QueueFull::Sequences { queued: 2, limit: 2 })
    );
    drop(left);
    let late = rig.engine.submit(job(4, vec![1])).unwrap();
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
    let first = rig.engine.submit(job(0, vec![1])).unwrap();
    assert_eq!(rig.batches.recv_timeout(PATIENCE).unwrap(), [0]);
    let tokens = [2, 13, 3, 14, 15, 4];
    let replies: Vec<Reply> = (1..)
        .zip(tokens)
        .map(|(id, token)| rig.engine.submit(job(id, vec![token, 1])).unwrap())
        .collect();
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
    let running = rig.engine.submit(job(0, vec![1])).unwrap();
    assert_eq!(rig.batches.recv_timeout(PATIENCE).unwrap(), [0]);
    let waiting = rig.engine.submit(job(1, vec![1])).unwrap();
    rig.engine.abort();
    assert!(waiting.blocking_recv().is_err());
    assert_eq!(rig.engine.submit(job(2, vec![1])).unwrap_err(), TeacherError::Stopped);
    rig.leave.send(()).unwrap();
    assert!(running.blocking_recv().unwrap().is_ok());
    assert!(rig.ended.blocking_recv().is_err());
}

#[test]
fn loading_that_fails_or_panics_is_told() {
    let metrics = Metrics::default;
    let failed = Engine::start(|| Err("no weights".into()), BOUNDS, 1, metrics()).unwrap();
    let told = failed.ready.blocking_recv().unwrap().err().unwrap();
    assert_eq!(told.to_string(), "no weights");
    assert!(failed.ended.blocking_recv().is_err());
    assert_eq!(failed.engine.submit(job(0, vec![1])).unwrap_err(), TeacherError::Stopped);
    let panicked = Engine::start(|| panic!("loading met a bug"), BOUNDS, 1, metrics()).unwrap();
    assert!(panicked.ready.blocking_recv().is_err());
}
