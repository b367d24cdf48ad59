//! Signals in training order: keeps requests in flight to a teacher while the student computes.
//!
//! `distill::window` decides what is sent, tried again and given up; this file is the shell around
//! it: streams and clock. A row takes one of `window` places when it is asked for and gives it
//! back when the training loop takes its answer, so nothing here grows with the data.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::Fault;
use distill::batch::Sequence;
use distill::queue::Priority;
use distill::signal::{Entries, Signal};
use distill::window::{Command, Event, GiveUp, Window, WindowSettings};
use proto::convert::{self, Reaction, ReplyError, ScoreJob};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;

use crate::asking::Ask;
use crate::link::{Link, Said, Word};
use crate::stop::Stop;
use crate::teacher::{Teacher, TeacherError};

/// What a teacher says of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// The signal at the row's scored positions, ascending.
    pub signal: Signal,
    /// The teacher's log-probability, at T = 1, of each target; empty where the signal says it.
    pub next_logprob: Vec<f32>,
    /// Bytes of the answer and its request, encoded.
    pub wire_bytes: u64,
}

impl Scored {
    /// It, and what it took to ask before it.
    pub(crate) fn after(self, first: &Self) -> Self {
        Self { wire_bytes: self.wire_bytes + first.wire_bytes, ..self }
    }
}

/// Answers in the order of the rows.
#[derive(Debug)]
pub struct Feed {
    answers: mpsc::UnboundedReceiver<Result<Scored, TeacherError>>,
    room: Arc<Semaphore>,
    runtime: Handle,
    task: AbortHandle,
    waited: Duration,
}

impl Feed {
    /// Begins to ask `teacher` on a network about rows of `set`, in this order.
    pub fn start<Q: Into<Question> + 'static>(
        network: &Handle,
        teacher: &Teacher,
        set: Arc<[Sequence]>,
        order: impl Iterator<Item = Q> + Send + 'static,
        ask: Ask,
    ) -> Self {
        let (sender, answers) = mpsc::unbounded_channel();
        let room = Arc::new(Semaphore::new(ask.window.max(1)));
        let shell = Shell::new(teacher.clone(), set, ask, sender);
        let order = order.map(Into::into);
        let task = network.spawn(shell.run(order, Arc::clone(&room))).abort_handle();
        Self { answers, room, runtime: network.clone(), task, waited: Duration::ZERO }
    }

    /// The next row's answer; none when the order is through or a stop was asked for. Blocks the
    /// calling thread.
    ///
    /// # Errors
    /// [`TeacherError`] when the teacher was lost for too long, refused a row, or sent something
    /// that is not what was asked.
    pub fn next(&mut self, stop: &Stop) -> Result<Option<Scored>, TeacherError> {
        let begin = Instant::now();
        let answer = self.runtime.block_on(async {
            tokio::select! {
                biased;
                answer = self.answers.recv() => answer,
                () = stop.wait() => None,
            }
        });
        self.waited += begin.elapsed();
        self.room.add_permits(1);
        answer.transpose()
    }

    /// Time spent in [`Feed::next`] since the last call of this.
    pub fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A row, and what is asked of it.
#[derive(Clone, Debug)]
pub struct Question {
    /// Its index in the set.
    pub row: usize,
    /// Tokens that are named, so many for each of its positions; none where it is what all rows are asked.
    pub named: Option<(Vec<u32>, usize)>,
}

impl From<usize> for Question {
    fn from(row: usize) -> Self {
        Self { row, named: None }
    }
}

/// A row that was asked for.
struct Pending {
    row: usize,
    job: ScoreJob,
    answer: Option<Scored>,
}

/// The window's shell.
struct Shell {
    teacher: Teacher,
    set: Arc<[Sequence]>,
    ask: Ask,
    window: Window,
    begin: Instant,
    link: Option<Link>,
    links_opened: u64,
    words: (mpsc::Sender<Word>, mpsc::Receiver<Word>),
    pending: BTreeMap<u64, Pending>,
    wake: Option<Duration>,
    answers: mpsc::UnboundedSender<Result<Scored, TeacherError>>,
}

impl Shell {
    fn new(
        teacher: Teacher,
        set: Arc<[Sequence]>,
        ask: Ask,
        answers: mpsc::UnboundedSender<Result<Scored, TeacherError>>,
    ) -> Self {
        let settings = WindowSettings {
            max_requests: ask.window.max(1),
            // The rows of a window are bounded in number here and in length by --max-length.
            max_tokens: usize::MAX,
            // One attempt at least.
            give_up_after: ask.give_up_after.max(Duration::from_secs(1)),
            ..WindowSettings::default()
        };
        Self {
            teacher,
            set,
            ask,
            window: Window::new(settings, 1, Duration::ZERO),
            begin: Instant::now(),
            link: None,
            links_opened: 0,
            words: mpsc::channel(64),
            pending: BTreeMap::new(),
            wake: None,
            answers,
        }
    }

    /// Asks for every row of the order and delivers every answer, then ends.
    async fn run(mut self, order: impl Iterator<Item = Question>, room: Arc<Semaphore>) {
        if let Err(error) = self.serve(order, room).await {
            // The loop has gone when this fails, and wants no error.
            let _ = self.answers.send(Err(error));
        }
    }

    async fn serve(
        &mut self,
        order: impl Iterator<Item = Question>,
        room: Arc<Semaphore>,
    ) -> Result<(), TeacherError> {
        let mut order = order.peekable();
        while order.peek().is_some() || !self.window.is_empty() {
            let until = self.wake.map(|wake| (self.begin + wake).into());
            let event = tokio::select! {
                permit = room.acquire(), if order.peek().is_some() => {
                    // Given back by the loop when it takes the answer.
                    if let (Ok(permit), Some(question)) = (permit, order.next()) {
                        permit.forget();
                        self.submit(question);
                    }
                    Some(Event::Tick)
                }
                word = self.words.1.recv() => match word {
                    Some((number, said)) => self.listen(number, said)?,
                    None => return Err(TeacherError::Ended),
                },
                () = sleep_until(until) => Some(Event::Tick),
            };
            if let Some(event) = event {
                self.happen(event)?;
            }
        }
        Ok(())
    }

    /// Gives a row a place in the window.
    fn submit(&mut self, Question { row, named }: Question) {
        let sequence = &self.set[row];
        // There is room: as many permits exist as places.
        let Some(id) = self.window.submit(sequence.len()) else { return };
        let agreement = &self.teacher.agreement;
        let (entries, k, codec) = self.ask.wanted.job();
        let (entries, k) = named.map_or((entries, k), |(ids, k)| (Entries::Named(ids), k));
        let job = ScoreJob {
            id,
            tokens: sequence.ids.clone(),
            ranges: sequence.scored_ranges(),
            temperature: self.ask.temperature,
            k,
            codec,
            classes: agreement.classes,
            entries,
            priority: Priority::Normal,
        };
        self.pending.insert(id, Pending { row, job, answer: None });
    }

    /// What the window should know of a link's word.
    fn listen(&mut self, number: u64, said: Said) -> Result<Option<Event>, TeacherError> {
        if self.link.as_ref().is_none_or(|link| link.number != number) {
            return Ok(None);
        }
        let teacher = 0;
        Ok(Some(match said {
            Said::Open => {
                let max_in_flight = self.teacher.agreement.max_in_flight;
                Event::Connected { teacher, max_in_flight }
            }
            Said::Part => Event::Heard { teacher },
            Said::Answer(answer, request_bytes) => self.keep(*answer, request_bytes),
            Said::Fault(id, fault) => self.weigh(id, fault)?,
            Said::Ended(error, pause) => {
                self.link = None;
                tracing::warn!(teacher = self.teacher.url(), error, "lost the teacher's stream");
                Event::Disconnected { teacher, error, pause }
            }
            Said::Broken(error) => return Err(error.into()),
        }))
    }

    /// Keeps an answer until it is its turn. One to what nobody asks any more is the window's to
    /// ignore.
    fn keep(&mut self, answer: convert::Scored, request_bytes: usize) -> Event {
        let id = answer.id;
        if let Some(pending) = self.pending.get_mut(&id) {
            let wire_bytes = (request_bytes + answer.wire_bytes) as u64;
            let convert::Scored { signal, next_logprob, .. } = answer;
            pending.answer = Some(Scored { signal, next_logprob, wire_bytes });
        }
        Event::Answered { teacher: 0, id }
    }

    /// What the window should know of an answer that is none.
    fn weigh(&self, id: u64, fault: Fault) -> Result<Event, TeacherError> {
        let teacher = 0;
        match (fault.reaction(), fault) {
            (Reaction::Retry, fault) => {
                let pause = fault.pause();
                Ok(Event::Failed { teacher, id, error: fault.to_string(), pause })
            }
            (Reaction::Stop, Fault::Reply(ReplyError::Refused { message: error, .. })) => {
                Ok(Event::Refused { teacher, id, error })
            }
            (Reaction::Stop, source) => {
                let url = self.teacher.url().to_owned();
                // Nothing is wrong with an answer to what nobody asks any more.
                let Some(pending) = self.pending.get(&id) else {
                    return Ok(Event::Answered { teacher, id });
                };
                Err(TeacherError::Reply { url, row: pending.row, source })
            }
        }
    }

    /// Tells the window, and carries out what it says.
    fn happen(&mut self, event: Event) -> Result<(), TeacherError> {
        let now = self.begin.elapsed();
        self.wake = None;
        let mut commands = self.window.on(event, now, rand::random());
        while !commands.is_empty() {
            let mut lost = None;
            for command in commands {
                match command {
                    Command::Connect { .. } => self.connect(),
                    Command::Disconnect { .. } => self.link = None,
                    Command::Send { id, .. } => lost = self.send(id).err().or(lost),
                    Command::Deliver { id } => self.deliver(id),
                    Command::Ignore { .. } => {}
                    Command::Wait { until } => self.wake = Some(until),
                    Command::GiveUp { reason } => return Err(self.give_up(reason)),
                }
            }
            // A stream that takes no more requests is lost; the window decides what then.
            let pause = Duration::ZERO;
            let event = lost.map(|error| Event::Disconnected { teacher: 0, error, pause });
            commands = event.map(|e| self.window.on(e, now, rand::random())).unwrap_or_default();
        }
        Ok(())
    }

    fn connect(&mut self) {
        self.links_opened += 1;
        self.link = Some(Link::open(self.links_opened, &self.teacher, self.words.0.clone()));
    }

    /// Asks for a row.
    fn send(&mut self, id: u64) -> Result<(), String> {
        let (Some(pending), Some(link)) = (self.pending.get(&id), &self.link) else {
            return Ok(());
        };
        let sent = link.send(pending.job.clone());
        if sent.is_err() {
            self.link = None;
        }
        sent
    }

    fn deliver(&mut self, id: u64) {
        let Some(Pending { answer: Some(answer), .. }) = self.pending.remove(&id) else { return };
        // The loop has gone when this fails; the task is about to be ended.
        let _ = self.answers.send(Ok(answer));
    }

    fn give_up(&self, reason: GiveUp) -> TeacherError {
        let id = match &reason {
            GiveUp::Sequence { id, .. } | GiveUp::Refused { id, .. } => Some(id),
            GiveUp::Unreachable { .. } => None,
        };
        let row = id.and_then(|id| self.pending.get(id)).map(|pending| pending.row);
        TeacherError::Lost { urls: self.teacher.url().to_owned(), row, reason }
    }
}

async fn sleep_until(time: Option<tokio::time::Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[path = "feed_tests.rs"]
mod tests;
