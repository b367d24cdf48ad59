//! A device that computes by itself: batches are started before those before them are read.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

/// What the engine did with a batch of these jobs.
type Told = (&'static str, Vec<u64>);

/// A device that computes a batch when it is let to. Batches fail as their tokens say: 21 when they are read, 22 with a
/// panic, 23 for good; the fake's when they are started.
struct ByItself {
    fake: FakeScorer,
    told: Sender<Told>,
    /// Batches started, and computed.
    started: u64,
    computed: Arc<AtomicU64>,
}

fn ids(jobs: &[&ScoreJob]) -> Vec<u64> {
    jobs.iter().map(|job| job.id).collect()
}

impl Scorer for ByItself {
    fn start(&mut self, jobs: &[&ScoreJob]) -> Result<Started<Vec<JobScores>>, ScorerError> {
        self.told.send(("start", ids(jobs))).unwrap();
        self.fake.start(jobs)?;
        self.started += 1;
        Ok(Started::Running(self.started))
    }

    fn has_ended(&mut self, started: &Started<Vec<JobScores>>) -> bool {
        let Started::Running(number) = started else { panic!("nothing is done at once") };
        *number <= self.computed.load(Ordering::SeqCst)
    }

    fn finish(
        &mut self,
        started: Started<Vec<JobScores>>,
        jobs: &[&ScoreJob],
    ) -> Result<Vec<JobScores>, ScorerError> {
        let begin = Instant::now();
        while !self.has_ended(&started) && begin.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_micros(100));
        }
        self.told.send(("finish", ids(jobs))).unwrap();
        let holds = |id| jobs.iter().any(|job| job.tokens.contains(&id));
        assert!(!holds(22), "a bug");
        match [holds(21), holds(23)] {
            [true, _] => Err(ScorerError::Failed("it failed while it computed".to_owned())),
            [_, true] => Err(ScorerError::DeviceLost("an illegal address".to_owned())),
            [false, false] => Ok(self.fake.start(jobs)?.done()),
        }
    }

    fn warm_up(&mut self, _: &Facts) -> Result<(), LoadError> {
        Ok(())
    }
}

struct Ahead {
    engine: Engine,
    told: Receiver<Told>,
    computed: Arc<AtomicU64>,
    metrics: Metrics,
    ended: oneshot::Receiver<Infallible>,
}

impl Ahead {
    /// An engine that computes two sequences of one token at a time.
    fn new(wait: Duration) -> Self {
        let (sender, told) = channel();
        let computed = Arc::new(AtomicU64::new(0));
        let by = Arc::clone(&computed);
        let load = move || {
            let Loaded { text, facts, .. } = FakeScorer::new(32).loaded();
            let fake = FakeScorer { fail_at: Some(24), ..FakeScorer::new(32) };
            let scorer = Box::new(ByItself { fake, told: sender, started: 0, computed: by });
            Ok(Loaded { scorer, text, facts })
        };
        let metrics = Metrics::default();
        let batching = Batching { max_tokens: 2, wait };
        let started = Engine::start(load, BOUNDS, batching, metrics.clone()).unwrap();
        started.ready.blocking_recv().unwrap().unwrap();
        Self { engine: started.engine, told, computed, metrics, ended: started.ended }
    }

    /// A sequence of this token, which names it too.
    fn submit(&self, token: u32) -> Reply {
        let job = ScoreJob { classes: 32, ..job(token.into(), vec![token]) };
        self.engine.submit(&client(1), job).unwrap()
    }

    /// Lets so many more batches be computed.
    fn compute(&self, batches: u64) {
        self.computed.fetch_add(batches, Ordering::SeqCst);
    }

    fn told(&self) -> Told {
        self.told.recv_timeout(PATIENCE).unwrap()
    }

    /// Whether nothing is told for a while.
    fn is_quiet(&self) -> bool {
        self.told.recv_timeout(Duration::from_millis(50)).is_err()
    }
}

fn is_answered(reply: Reply) -> bool {
    reply.blocking_recv().unwrap().is_ok()
}

#[test]
fn a_full_batch_is_started_behind_the_one_that_computes() {
    let rig = Ahead::new(Duration::ZERO);
    let first = rig.submit(1);
    assert_eq!(rig.told(), ("start", vec![1]));
    // Half a batch waits for company as long as the device has something to do.
    let second = rig.submit(2);
    assert!(rig.is_quiet());
    let third = rig.submit(3);
    assert_eq!(rig.told(), ("start", vec![2, 3]));
    // And no third one before the first is read.
    let rest = [4, 5, 6].map(|token| rig.submit(token));
    assert!(rig.is_quiet());
    rig.compute(1);
    assert_eq!(rig.told(), ("finish", vec![1]));
    assert!(is_answered(first));
    assert_eq!(rig.told(), ("start", vec![4, 5]));
    // A device that is done gets what there is before its answers are read.
    rig.compute(2);
    assert_eq!(rig.told(), ("finish", vec![2, 3]));
    assert_eq!(rig.told(), ("start", vec![6]));
    rig.compute(1);
    assert_eq!([rig.told(), rig.told()], [("finish", vec![4, 5]), ("finish", vec![6])]);
    assert!(is_answered(second) && is_answered(third));
    assert!(rest.into_iter().all(is_answered));
    assert_eq!(rig.metrics.failed_batches.get(), 0);
}

#[test]
fn a_device_that_is_done_waits_for_company_as_an_idle_one_does() {
    let rig = Ahead::new(Duration::from_millis(400));
    let first = [1, 2].map(|token| rig.submit(token));
    assert_eq!(rig.told(), ("start", vec![1, 2]));
    let second = rig.submit(3);
    rig.compute(2);
    assert_eq!(rig.told(), ("finish", vec![1, 2]));
    assert!(first.into_iter().all(is_answered));
    let third = rig.submit(4);
    assert_eq!([rig.told(), rig.told()], [("start", vec![3, 4]), ("finish", vec![3, 4])]);
    assert!(is_answered(second) && is_answered(third));
}

#[test]
fn what_fails_alone_fails_alone_and_the_batch_behind_it_is_answered() {
    // When it is started, read, with a panic.
    for token in [24, 21, 22] {
        let rig = Ahead::new(Duration::ZERO);
        let before = rig.submit(1);
        assert_eq!(rig.told(), ("start", vec![1]));
        let bad = [token, 2].map(|token| rig.submit(token));
        assert_eq!(rig.told(), ("start", vec![token.into(), 2]));
        let behind = [3, 4].map(|token| rig.submit(token));
        rig.compute(9);
        assert!(is_answered(before));
        let [bad, beside] = bad;
        assert!(bad.blocking_recv().unwrap().is_err() && is_answered(beside), "{token}");
        assert!(behind.into_iter().all(is_answered), "{token}");
        assert!(rig.metrics.failed_batches.get() >= 2, "{token}");
        // What fails when it is read is tried again once the batch behind it is read: it would run behind that.
        let told: Vec<Told> = rig.told.try_iter().collect();
        let place = |wanted: Told| told.iter().position(|told| *told == wanted);
        let (again, read) = (place(("start", vec![token.into()])), place(("finish", vec![3, 4])));
        assert!(token == 24 || again > read, "{token}: {told:?}");
    }
}

#[test]
fn with_a_device_that_is_lost_the_engine_ends_and_nobody_waits_in_vain() {
    let rig = Ahead::new(Duration::ZERO);
    let lost = rig.submit(23);
    assert_eq!(rig.told(), ("start", vec![23]));
    let behind = [2, 3, 4].map(|token| rig.submit(token));
    assert_eq!(rig.told(), ("start", vec![2, 3]));
    rig.compute(9);
    assert_eq!(rig.told(), ("finish", vec![23]));
    assert!(rig.ended.blocking_recv().is_err());
    for reply in [lost].into_iter().chain(behind) {
        assert!(reply.blocking_recv().is_err());
    }
    let again = rig.engine.submit(&client(1), job(5, vec![1]));
    assert_eq!(again.unwrap_err(), TeacherError::Stopped);
    assert!(rig.told.try_recv().is_err());
}
