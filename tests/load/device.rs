//! The server under load, as a process of its own: a mock device that answers at once or at a
//! stated rate, or a real model.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use distill::signal::TopK;
use model::started::Started;
use proto::convert::ScoreJob;
use teacher_server::decoder::Calibrating;
use teacher_server::qwen3_scorer::ModelSource;
use teacher_server::scorer::{Facts, JobScores, LoadError, Loaded, Scorer, ScorerError, Scores};
use teacher_server::settings::Settings;
use teacher_server::testing::{FakeText, facts};
use teacher_server::{Guard, Listeners, serve};

/// Classes of the mock: Qwen3's.
pub(crate) const CLASSES: usize = 151_936;
/// Different rows the mock has for each k; after these they repeat.
const ROWS: usize = 1024;

/// What the process serves.
pub(crate) struct Server {
    /// Tokens the mock computes a second; 0 answers at once.
    pub(crate) rate: f64,
    /// A model's directory; empty for the mock.
    pub(crate) model: String,
    /// Connections at a time.
    pub(crate) connections: usize,
}

/// A device that computes nothing: rows made beforehand, given out again and again.
struct Mock {
    rate: f64,
    rows: HashMap<usize, TopK>,
}

impl Mock {
    fn signal(&mut self, k: usize, count: usize) -> TopK {
        let all = self.rows.entry(k).or_insert_with(|| made(k));
        let mut signal = TopK::new(k);
        while signal.rows() < count {
            let rows = (count - signal.rows()).min(ROWS);
            match rows {
                ROWS => signal.append(all),
                part => signal.append(&all.slice(0..part)),
            }
        }
        signal
    }
}

/// Rows as a model's look: ids all over the classes, values falling.
fn made(k: usize) -> TopK {
    let mut signal = TopK::new(k);
    for row in 0..ROWS {
        for j in 0..k {
            // 7,919 is prime to the number of classes: no id comes twice within a row.
            signal.ids.push(((row * 104_729 + j * 7_919) % CLASSES) as u32);
            signal.scaled.push(9.0 - 0.11 * j as f32 - 0.000_7 * (row % 13) as f32);
        }
        signal.log_z.push(11.5);
        signal.log_rest.push(-1.5);
    }
    signal
}

impl Scorer for Mock {
    fn start(&mut self, jobs: &[&ScoreJob]) -> Result<Started<Vec<JobScores>>, ScorerError> {
        let begin = Instant::now();
        let answer = |job: &&ScoreJob| {
            let signal = self.signal(job.k, job.rows());
            let next: Vec<f32> =
                job.next_tokens().map(|next| next.map_or(f32::NAN, |_| -2.5)).collect();
            Ok(Scores { signal: signal.into(), next_logprob: next.clone(), next_logprob_t: next })
        };
        let answers = jobs.iter().map(answer).collect();
        if self.rate > 0.0 {
            let tokens: usize = jobs.iter().map(|job| job.tokens.len()).sum();
            let takes = Duration::from_secs_f64(tokens as f64 / self.rate);
            std::thread::sleep(takes.saturating_sub(begin.elapsed()));
        }
        Ok(Started::Done(answers))
    }

    fn warm_up(&mut self, _: &Facts) -> Result<(), LoadError> {
        Ok(())
    }
}

/// A model's directory, loaded on the processor in float32.
pub(crate) fn load(model: String) -> Result<Loaded, LoadError> {
    let dtype = teacher_server::config::Dtype::F32;
    let device = "cpu".to_owned();
    let calibrating = Calibrating::default();
    ModelSource { model, revision: None, device, dtype, calibrating, batches: None }.load()
}

impl Server {
    /// Serves until it is killed; prints where it listens.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(async {
            let any = SocketAddr::from(([127, 0, 0, 1], 0));
            let listeners = Listeners::bind(any, any).await?;
            println!("{}", listeners.grpc.local_addr()?);
            let settings = Settings::with(|limits| limits.max_connections = self.connections);
            let Self { rate, model, .. } = self;
            let load = move || match model.is_empty() {
                false => load(model),
                true => {
                    let vocab_size = CLASSES as u32;
                    let scorer = Box::new(Mock { rate, rows: HashMap::new() });
                    let text = Arc::new(FakeText { vocab_size });
                    Ok(Loaded { scorer, text, facts: facts(vocab_size) })
                }
            };
            let forever = std::future::pending();
            Ok(serve(listeners, load, settings, Guard::default(), |_| {}, forever).await?)
        })
    }
}
