//! Asking: streams of sequences, and single texts at a fixed pace.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};
use client::{Access, Address, Exchange, Grpc, Heard};
use distill::codec::Codec;
use distill::queue::Priority;
use distill::signal::Entries;
use proto::convert::{ScoreJob, Scored};
use proto::v1::ScoreTextRequest;
use tokio::task::JoinSet;
use tonic::Code;

/// A teacher's address, once it serves.
pub(crate) async fn reach(url: &str) -> Result<(Address, distill::handshake::TeacherFacts)> {
    let address = Address::parse(url, &Access::default())?;
    let begin = Instant::now();
    loop {
        match address.info().await {
            Ok(facts) => return Ok((address, facts)),
            Err(failure) if begin.elapsed() > Duration::from_secs(60) => bail!(failure),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// A stream to it over all classes.
pub(crate) async fn stream(url: &str) -> Result<(Exchange, usize, usize)> {
    let (address, facts) = reach(url).await?;
    let terms = facts.terms(facts.vocab_size);
    Ok((address.open(terms).await?, facts.vocab_size, terms.max_in_flight))
}

/// Sequence `id`, of `length` tokens.
pub(crate) fn job(id: u64, length: usize, k: usize, classes: usize, codec: Codec) -> ScoreJob {
    ScoreJob {
        id,
        tokens: (0..length).map(|t| ((id as usize * 31 + t * 17) % classes) as u32).collect(),
        ranges: std::iter::once(0..length as u32).collect(),
        temperature: 1.0,
        entries: Entries::Top,
        k,
        codec,
        classes,
        priority: Priority::Normal,
    }
}

/// Answers in the order of their ids, whatever order they came in, and how many waited at most.
#[derive(Default)]
pub(crate) struct InOrder {
    next: u64,
    early: BTreeMap<u64, Box<Scored>>,
    pub(crate) most_waiting: usize,
}

impl InOrder {
    /// Those that are next, once this one is there.
    pub(crate) fn take(&mut self, scored: Box<Scored>) -> Result<Vec<Scored>> {
        let id = scored.id;
        ensure!(id >= self.next, "answer {id} came twice");
        ensure!(self.early.insert(id, scored).is_none(), "answer {id} came twice");
        self.most_waiting = self.most_waiting.max(self.early.len());
        let mut ready = Vec::new();
        while let Some(scored) = self.early.remove(&self.next) {
            self.next += 1;
            ready.push(*scored);
        }
        Ok(ready)
    }
}

/// Asks `count` jobs over one stream, as many in flight as it takes; gives each answer as it comes.
pub(crate) async fn all(
    stream: &mut Exchange,
    in_flight: usize,
    count: u64,
    job: impl Fn(u64) -> ScoreJob,
    answer: impl FnMut(Box<Scored>) -> Result<()>,
) -> Result<()> {
    while_wanted(stream, in_flight, |asked| asked < count, job, answer).await
}

/// Asks as long as one more is wanted, of which it gets the number of those that were asked.
pub(crate) async fn while_wanted(
    stream: &mut Exchange,
    in_flight: usize,
    wanted: impl Fn(u64) -> bool,
    job: impl Fn(u64) -> ScoreJob,
    mut answer: impl FnMut(Box<Scored>) -> Result<()>,
) -> Result<()> {
    let mut asked = 0;
    loop {
        while stream.unanswered() < in_flight && wanted(asked) {
            stream.send(job(asked))?;
            asked += 1;
        }
        if stream.unanswered() == 0 {
            return Ok(());
        }
        match stream.next().await? {
            Heard::Part { .. } => {}
            Heard::Answer { scored, .. } => answer(scored)?,
            Heard::Fault { id, fault } => bail!("request {id}: {fault}"),
            Heard::Stray { id } => bail!("an answer to {id}, which was not asked"),
        }
    }
}

/// Single calls: how long each took, and the refusals among them.
#[derive(Default)]
pub(crate) struct Calls {
    pub(crate) done: Vec<Duration>,
    pub(crate) refused: Vec<Duration>,
    pub(crate) failed: Vec<String>,
}

impl Calls {
    /// The time that this share of `times` does not exceed.
    pub(crate) fn quantile(times: &mut [Duration], share: f64) -> Duration {
        times.sort_unstable();
        let place = ((times.len() as f64 * share).ceil() as usize).saturating_sub(1);
        times.get(place).copied().unwrap_or_default()
    }

    fn add(&mut self, call: (Duration, Result<(), tonic::Status>)) {
        match call {
            (time, Ok(())) => self.done.push(time),
            (time, Err(status)) if status.code() == Code::ResourceExhausted => {
                self.refused.push(time);
            }
            (_, Err(status)) => self.failed.push(status.to_string()),
        }
    }
}

/// Clients on `count` connections.
pub(crate) async fn clients(url: &str, count: usize) -> Result<Vec<Grpc>> {
    let (address, _) = reach(url).await?;
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(address.client().await.map_err(|e| anyhow!("{e}"))?);
    }
    Ok(clients)
}

/// One `ScoreText` of as many tokens as `text` has bytes.
async fn call(
    mut client: Grpc,
    text: String,
    from: Instant,
) -> (Duration, Result<(), tonic::Status>) {
    let request = ScoreTextRequest { text, temperature: 1.0, top_k: 1 };
    let answer = client.score_text(request).await.map(drop);
    (from.elapsed(), answer)
}

/// `rate` calls a second for `time`, each at its moment whether the others are answered or not; its
/// time counts from that moment, not from when this program came to it.
pub(crate) async fn at_pace(clients: &[Grpc], rate: f64, time: Duration, text: &str) -> Calls {
    let (begin, count) = (tokio::time::Instant::now(), (rate * time.as_secs_f64()) as u64);
    let (mut calls, mut open) = (Calls::default(), JoinSet::new());
    for n in 0..count {
        let moment = begin + Duration::from_secs_f64(n as f64 / rate);
        tokio::time::sleep_until(moment).await;
        let client = clients[n as usize % clients.len()].clone();
        open.spawn(call(client, text.to_owned(), moment.into_std()));
        while let Some(Ok(done)) = open.try_join_next() {
            calls.add(done);
        }
    }
    while let Some(done) = open.join_next().await {
        match done {
            Ok(done) => calls.add(done),
            Err(error) => calls.failed.push(error.to_string()),
        }
    }
    calls
}

/// `at_once` calls always under way, for `time`.
pub(crate) async fn closed(clients: &[Grpc], at_once: usize, time: Duration, text: &str) -> Calls {
    let begin = Instant::now();
    let (mut calls, mut open, mut n) = (Calls::default(), JoinSet::new(), 0);
    loop {
        while open.len() < at_once && begin.elapsed() < time {
            n += 1;
            let client = clients[n % clients.len()].clone();
            open.spawn(call(client, text.to_owned(), Instant::now()));
        }
        match open.join_next().await {
            Some(Ok(done)) => calls.add(done),
            Some(Err(_)) => {}
            None => return calls,
        }
    }
}
