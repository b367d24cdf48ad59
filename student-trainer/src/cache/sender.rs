//! What a writer has sealed, on its way to a store: from a thread of its own, so that a store that is slow
//! or away holds up nobody.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::error::{CacheError, at};
use super::remote::Remote;

/// After a failure nothing is sent for so long, and for four times as long as the failure took.
const REST: Duration = Duration::from_secs(60);

/// The thread's end.
type Sending = JoinHandle<Result<(), CacheError>>;

/// A thread that sends.
#[derive(Debug)]
pub(super) struct Sender {
    /// None when it is over.
    at_work: Option<(SyncSender<Word>, Sending)>,
}

enum Word {
    /// There is more to send.
    More,
    /// There will be no more: the last of it decides.
    End,
}

impl Sender {
    /// Sends what is sealed in `dir`, whose lock is held until the thread ends.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn start(remote: Remote, dir: PathBuf, lock: Arc<File>) -> Result<Self, CacheError> {
        let (words, incoming) = sync_channel(1);
        let place = dir.clone();
        let work = move || {
            let done = send_all(remote, &dir, &incoming);
            drop(lock);
            done
        };
        let thread = std::thread::Builder::new().name("cache-store".to_owned()).spawn(work);
        Ok(Self { at_work: Some((words, at("write to", &place, thread)?)) })
    }

    /// Says that there is more to send.
    pub(super) fn more(&self) {
        if let Some((words, _)) = &self.at_work {
            // One that has not been heard yet says the same.
            let _ = words.try_send(Word::More);
        }
    }

    /// Sends what is left.
    ///
    /// # Errors
    /// Those of [`Remote::push`].
    pub(super) fn finish(mut self) -> Result<(), CacheError> {
        let Some((words, thread)) = self.at_work.take() else { return Ok(()) };
        // The thread ends by this word alone; its panic has been printed.
        let _ = words.send(Word::End);
        thread.join().unwrap_or(Ok(()))
    }
}

impl Drop for Sender {
    /// The lock is off when this is over.
    fn drop(&mut self) {
        if let Some((words, thread)) = self.at_work.take() {
            drop(words);
            // Its panic has been printed.
            let _ = thread.join();
        }
    }
}

fn send_all(
    mut remote: Remote,
    dir: &std::path::Path,
    words: &Receiver<Word>,
) -> Result<(), CacheError> {
    let mut rests_until = Instant::now();
    let mut stopped = None;
    loop {
        match words.recv() {
            // Who was told to stop has waited for this store already.
            Ok(Word::End) => return stopped.map_or_else(|| remote.push(dir).map(drop), Err),
            // Its writer came to no end; the next one sends what is here.
            Err(_) => return Ok(()),
            Ok(Word::More) if stopped.is_some() || Instant::now() < rests_until => {}
            Ok(Word::More) => {
                let began = Instant::now();
                let pushed = remote.push(dir);
                if let Err(error @ CacheError::Stopped { .. }) = pushed {
                    stopped = Some(error);
                } else if let Err(error) = pushed {
                    tracing::warn!("{error}: what could not be sent is kept here and sent later");
                    rests_until = Instant::now() + REST.max(began.elapsed() * 4);
                }
            }
        }
    }
}
