//! The bench that signals are measured on: one teacher, one student, the same rows.

use std::sync::Arc;
use std::time::Instant;

use distill::batch::{Sequence, TokenBatch};
use distill::codec::{Codec, MAX_PACKED_CLASSES};
use distill::handshake;
use model::device::Device;
use model::learner::Learner;
use model::ops::Precision;
use model::ops::head::{LossSettings, Tail};
use model::student::Training;

use super::Measured;
use crate::asking::{Ask, Terms, Wanted};
use crate::at_once::AtOnce;
use crate::candidates::Own;
use crate::config::{HiddenFormKind, SignalConfig, SignalKind, SignalsConfig};
use crate::data::RowSet;
use crate::decoder::Preparing;
use crate::error::{TrainError, at_row};
use crate::feed::{Feed, Scored};
use crate::proof::prove;
use crate::reading::{Projection, Reading, Said};
use crate::setup::{Source, pretrained};
use crate::stop::Stop;
use crate::teacher::{Network, Teacher};

/// A signal to measure.
pub(super) struct Candidate {
    pub(super) name: String,
    pub(super) options: String,
    pub(super) tail: Tail,
    pub(super) wanted: Wanted,
    pub(super) reading: Reading,
}

impl Candidate {
    /// Whether its answers are of one temperature.
    pub(super) fn is_of_one_temperature(&self) -> bool {
        !matches!(self.wanted, Wanted::Hidden { .. })
    }

    pub(super) fn lists(&self) -> bool {
        matches!(self.wanted, Wanted::TopK { .. } | Wanted::Candidates { .. })
    }
}

/// What is common to all measurements.
pub(super) struct Bench<'a> {
    pub(super) network: Network,
    pub(super) teacher: Teacher,
    pub(super) terms: Terms,
    pub(super) student: Box<dyn Learner>,
    pub(super) set: Arc<[Sequence]>,
    pub(super) rows: &'a RowSet,
    pub(super) rows_at_once: usize,
    pub(super) stop: &'a Stop,
}

/// A gradient and what was found on the way to it.
pub(super) struct Gradient {
    pub(super) flat: Vec<f32>,
    pub(super) kl: f64,
    pub(super) teacher_mass: f64,
    pub(super) seconds: f64,
}

/// Answers, and what they took.
pub(super) struct Answers {
    pub(super) scored: Vec<Scored>,
    pub(super) bytes: u64,
    pub(super) seconds: f64,
}

impl<'a> Bench<'a> {
    pub(super) fn new(
        config: &SignalsConfig,
        source: &Source,
        rows: &'a RowSet,
        device: Device,
        stop: &'a Stop,
    ) -> Result<Self, TrainError> {
        let network = Network::start()?;
        let terms = Terms::new(1.0, config.teacher_window, config.teacher_timeout);
        let full = signal(config, SignalKind::Full);
        let facts = source.student_facts([&rows.sequences, &[]], &full);
        let [url] = &config.teacher[..] else {
            return Err(TrainError::SeveralTeachers { found: config.teacher.len() });
        };
        let (access, limit) = (&config.access, terms.give_up_after);
        let teacher = Teacher::connect(&network, url, access, &facts, limit, stop)?;
        let training = Training { precision: Precision::F32, ..Training::default() };
        let student = pretrained(source, training, device)?;
        let set = Arc::clone(&rows.sequences);
        let rows_at_once = config.per_device_train_batch_size;
        Ok(Self { network, teacher, terms, student, set, rows, rows_at_once, stop })
    }

    /// What is measured, everything first.
    pub(super) fn candidates(
        &self,
        config: &SignalsConfig,
        note: &mut dyn FnMut(&str),
    ) -> Result<Vec<Candidate>, TrainError> {
        let classes = self.teacher.agreement().classes;
        let limit = self.teacher.facts().limits.max_top_k.min(classes);
        let packed = if classes > MAX_PACKED_CLASSES { Codec::Raw } else { Codec::Packed };
        let proof = self.terms.ask(Wanted::TopK { k: limit.min(16), codec: packed });
        prove(&self.network, &self.teacher, &self.set, proof, self.stop)
            .map_err(|e| at_row(e, self.rows))?;
        let mut all = self.of_hidden_states(config, note)?;
        for (draws, exact) in [(16, 0), (50, 0), (16, 16.min(limit))] {
            let wanted = Wanted::Sampled { draws, exact, seed: 0 };
            let options = format!("--signal sampled --draws {draws} --exact {exact}");
            let beside = if exact > 0 { format!(" beside top-{exact}") } else { String::new() };
            all.push(listing(format!("{draws} draws{beside}"), options, wanted, Tail::Bucket));
        }
        for k in [16, 64, 256].into_iter().filter(|&k| k <= limit) {
            let wanted = Wanted::TopK { k, codec: packed };
            all.push(listing(format!("top-{k}"), format!("--top-k {k}"), wanted, Tail::Bucket));
        }
        let offered = self.teacher.facts().signals.contains(&handshake::SignalKind::Candidates);
        for k in [16, 64].into_iter().filter(|&k| offered && 2 * k <= limit) {
            let wanted = Wanted::Candidates { k, codec: packed };
            let options = format!("--signal candidates --top-k {k}");
            let name = format!("top-{k} and the student's {k}");
            all.push(listing(name, options, wanted, Tail::Bucket));
        }
        if let (true, Codec::Packed) = (limit >= 64, packed) {
            let small = Wanted::TopK { k: 64, codec: Codec::Compact8 };
            let options = "--top-k 64 --codec compact8".to_owned();
            all.push(listing("top-64, 8 bits".to_owned(), options, small, Tail::Bucket));
            let same = Wanted::TopK { k: 64, codec: packed };
            let options = "--top-k 64 --tail renormalise".to_owned();
            all.push(listing("top-64, renormalised".to_owned(), options, same, Tail::Renormalise));
        }
        Ok(all)
    }

    /// Hidden states in every form, and coded at steps that cost so much or take so many bytes.
    fn of_hidden_states(
        &self,
        config: &SignalsConfig,
        note: &mut dyn FnMut(&str),
    ) -> Result<Vec<Candidate>, TrainError> {
        let mut all: Vec<Candidate> = Vec::new();
        let matrix_of =
            |all: &[Candidate]| all.first().and_then(|first| first.reading.projection());
        for form in
            [HiddenFormKind::F32, HiddenFormKind::Bf16, HiddenFormKind::Int8, HiddenFormKind::Int4]
        {
            let full = SignalConfig { hidden_form: form, ..signal(config, SignalKind::Full) };
            let options = format!("--signal full --hidden-form {form}");
            let with = matrix_of(&all);
            all.push(self.hidden(format!("full {form}"), options, &full, with, note)?);
        }
        let errors = [1e-3, 3e-3, 1e-2, 3e-2, 1e-1].map(|error| (None, Some(error)));
        for (bytes, error) in errors.into_iter().chain(config.budget.map(|b| (Some(b), None))) {
            let coded = SignalConfig {
                signal_bytes: bytes,
                signal_error: error,
                ..signal(config, SignalKind::Coded)
            };
            let (option, value) = match (bytes, error) {
                (Some(bytes), _) => ("--signal-bytes", bytes),
                (None, error) => ("--signal-error", error.unwrap_or_default()),
            };
            let options = format!("--signal coded {option} {value}");
            let (name, with) = (format!("coded, {option} {value}"), matrix_of(&all));
            match self.hidden(name, options, &coded, with, note) {
                Ok(candidate) => all.push(candidate),
                // A code may have no step as coarse or as fine.
                Err(TrainError::NoStep { .. }) => {}
                Err(error) if error.is_without_code() => {
                    note(&format!("{error}; the other signals are measured"));
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    pub(super) fn hidden(
        &self,
        name: String,
        options: String,
        signal: &SignalConfig,
        there: Option<Projection>,
        note: &mut dyn FnMut(&str),
    ) -> Result<Candidate, TrainError> {
        let (network, set, stop) = (&self.network, &self.set, self.stop);
        let ask = self.terms.ask(Wanted::TopK { k: 1, codec: Codec::Packed });
        let mut preparing = Preparing { network, signal, set, note, stop, there };
        let (wanted, reading) = preparing.hidden(&self.teacher, ask)?;
        Ok(Candidate { name, options, tail: Tail::Bucket, wanted, reading })
    }

    /// The answers about all rows.
    pub(super) fn ask(&self, wanted: Wanted, temperature: f64) -> Result<Answers, TrainError> {
        let ask = Ask { temperature: temperature as f32, ..self.terms.ask(wanted) };
        let begin = Instant::now();
        let set = || Arc::clone(&self.set);
        let (network, order) = (self.network.handle(), 0..self.set.len());
        let mut scored = self.all(Feed::start(network, &self.teacher, set(), order, ask))?;
        if let Wanted::Candidates { .. } = wanted {
            let (model, classes) = (self.student.model(), self.teacher.agreement().classes);
            let own = Own { model, classes, at_once: AtOnce::rows(self.rows_at_once) };
            let rows: Vec<_> = self.set.iter().enumerate().collect();
            let asked = own.questions(&rows, &scored, wanted)?.into_iter();
            let feed = Feed::start(network, &self.teacher, set(), asked, ask);
            let more = self.all(feed)?.into_iter().zip(scored);
            scored = more.map(|(more, first)| more.after(&first)).collect();
        }
        let seconds = begin.elapsed().as_secs_f64();
        // What was sent to ask is the same for all but for a few bytes; ids that were named count.
        let asked: u64 = self.set.iter().map(|row| 4 * row.len() as u64).sum();
        let all: u64 = scored.iter().map(|answer| answer.wire_bytes).sum();
        Ok(Answers { scored, bytes: all.saturating_sub(asked), seconds })
    }

    /// The answers of a feed of all rows.
    fn all(&self, mut feed: Feed) -> Result<Vec<Scored>, TrainError> {
        let mut scored = Vec::with_capacity(self.set.len());
        while scored.len() < self.set.len() {
            let answer = feed.next(self.stop).map_err(|e| at_row(e, self.rows))?;
            scored.push(answer.ok_or(TrainError::Stopped)?);
        }
        Ok(scored)
    }

    /// The student's gradient of the mean divergence.
    pub(super) fn gradient(
        &mut self,
        candidate: &Candidate,
        answers: &[Scored],
        temperature: f64,
    ) -> Result<Gradient, TrainError> {
        let classes = self.teacher.agreement().classes;
        let tail = candidate.tail;
        let loss = LossSettings { tail, ..LossSettings::divergence_alone(temperature) };
        let positions: usize = self.set.iter().map(|row| row.scored().count()).sum();
        let scale = 1.0 / positions as f64;
        // What an earlier one may have left.
        self.student.take_gradients()?;
        let (mut kl, mut teacher_mass) = (0.0, 0.0);
        let begin = Instant::now();
        let chunks = self.set.chunks(self.rows_at_once).zip(answers.chunks(self.rows_at_once));
        for (rows, answers) in chunks {
            let batch = TokenBatch::pack(rows);
            let said = candidate.reading.said(answers)?;
            let teaching = said.as_ref().map(Said::teaching);
            let found = self.student.backward(&batch, classes, teaching, &loss, scale)?;
            let sum = |values: &[f32]| values.iter().map(|&v| f64::from(v)).sum::<f64>();
            kl += scale * sum(&found.kl);
            teacher_mass += scale * sum(&found.teacher_mass);
            if self.stop.requested() {
                return Err(TrainError::Stopped);
            }
        }
        let seconds = begin.elapsed().as_secs_f64();
        let flat = self.student.take_gradients()?;
        Ok(Gradient { flat, kl, teacher_mass, seconds })
    }
}

impl Candidate {
    pub(super) fn unmeasured(&self) -> Measured {
        let (name, options) = (self.name.clone(), self.options.clone());
        Measured { name, options, bytes: 0.0, ask_seconds: 0.0, learn_seconds: 0.0, at: Vec::new() }
    }
}

/// Options that ask for a signal of this kind.
fn signal(config: &SignalsConfig, kind: SignalKind) -> SignalConfig {
    SignalConfig { decoder_dir: config.decoder_dir.clone(), ..SignalConfig::of(kind) }
}

fn listing(name: String, options: String, wanted: Wanted, tail: Tail) -> Candidate {
    Candidate { name, options, tail, wanted, reading: Reading::default() }
}
