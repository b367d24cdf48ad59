//! What a teacher's hidden states are read with, brought here before the first step; and at which step
//! of its code they are asked for.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::{Address, Failure};
use distill::backoff::Backoff;
use distill::batch::Sequence;
use distill::codec::Codec;
use distill::coded::{Code, Rate};
use distill::hidden::HiddenForm;
use distill::window::LONGEST_PAUSE;
use hub::settings::own_cache;
use model::coding::enough_positions;
use proto::convert::{BlobFacts, DecoderFacts};

use crate::asking::{Ask, Wanted};
use crate::config::{DEFAULT_SIGNAL_ERROR, HiddenFormKind, SignalConfig, SignalKind};
use crate::error::TrainError;
use crate::feed::Feed;
use crate::reading::{Projection, Reading, read_code};
use crate::stop::Stop;
use crate::teacher::{Network, Teacher, TeacherError, Voice};

/// A step of a code that was chosen.
#[derive(Clone, Debug)]
pub(crate) struct Coded {
    pub(crate) code: Arc<Code>,
    pub(crate) rate: Rate,
}

/// What is wanted of each position, and how it is read.
pub(crate) type Prepared = (Wanted, Reading);

/// Who prepares, and how.
pub(crate) struct Preparing<'a> {
    pub(crate) network: &'a Network,
    pub(crate) signal: &'a SignalConfig,
    pub(crate) set: &'a Arc<[Sequence]>,
    pub(crate) note: &'a mut dyn FnMut(&str),
    pub(crate) stop: &'a Stop,
    /// An output matrix that was read before; it is read again where the teacher has another.
    pub(crate) there: Option<Projection>,
}

impl Preparing<'_> {
    /// Brings what it takes to read the hidden states of `teacher`, asked for as `ask` says.
    ///
    /// # Errors
    /// Those of the teacher and of the disk; [`TrainError::NoStep`] where no step of the code is as
    /// wanted.
    pub(crate) fn hidden(&mut self, teacher: &Teacher, ask: Ask) -> Result<Prepared, TrainError> {
        let Voice::Grpc(address) = &teacher.voice else {
            // Nobody else offers these signals.
            return Err(TeacherError::Ended.into());
        };
        let dir = self.dir()?;
        let coded = self.signal.kind == SignalKind::Coded;
        let limit = ask.give_up_after;
        let mut facts =
            self.insist(address, limit, (async || address.decoder(false).await, || 0))?;
        if coded && facts.code.is_none() {
            self.let_hear(teacher, ask, facts.hidden_size)?;
            (self.note)(
                "the teacher makes a code of its hidden states, which it has not done before",
            );
            facts = self.insist(address, limit, (async || address.decoder(true).await, || 0))?;
        }
        let wanted = teacher.agreement().model_fingerprint;
        if facts.model != wanted {
            let (url, what, found) = (address.url().to_owned(), "model", facts.model);
            return Err(
                TeacherError::from(client::Error::Changed { url, what, found, wanted }).into()
            );
        }
        let DecoderFacts { hidden_size, matrix, code, .. } = facts;
        let sizes = [hidden_size, teacher.agreement().classes];
        let same = |there: &Projection| there.fingerprint() == matrix.fingerprint;
        let matrix = match self.there.take().filter(same) {
            Some(there) => there,
            None => {
                let file = (matrix.fingerprint, self.fetch(address, matrix, &dir, limit)?);
                Projection::read(file, sizes)?
            }
        };
        if !coded {
            let form = match self.signal.hidden_form {
                HiddenFormKind::F32 => HiddenForm::F32,
                HiddenFormKind::Bf16 => HiddenForm::Bf16,
                HiddenFormKind::Int8 => HiddenForm::Int8,
                HiddenFormKind::Int4 => HiddenForm::Int4,
            };
            let wanted = Wanted::Hidden { form, bytes: form.row_bytes(hidden_size) };
            return Ok((wanted, Reading::full(matrix, None)));
        }
        // Whether there is one was seen when it was asked for.
        let code = code.ok_or(TeacherError::Ended)?;
        let path = self.fetch(address, code, &dir, limit)?;
        let code = read_code(&path, code.fingerprint, wanted)?;
        let Coded { code, rate } = choose(code, self.signal)?;
        (self.note)(&format!(
            "coded hidden states at step {}: about {:.1} bytes a position, which say what the teacher says \
             to {:.1e} nats at temperature 1 (code {:.16})",
            rate.rung,
            rate.bytes,
            rate.divergence,
            code.fingerprint().to_string(),
        ));
        let form = HiddenForm::Coded { code: code.fingerprint(), rung: rate.rung };
        let wanted = Wanted::Hidden { form, bytes: rate.bytes.ceil() as usize };
        let code = Some((code, path, rate.rung));
        Ok((wanted, Reading::full(matrix, code)))
    }

    /// Where what is fetched is kept.
    fn dir(&self) -> Result<PathBuf, TrainError> {
        let kept = || own_cache().map(|cache| cache.join("decoder"));
        self.signal.decoder_dir.clone().or_else(kept).ok_or(TrainError::NoDecoderDir)
    }

    fn fetch(
        &self,
        address: &Address,
        blob: BlobFacts,
        dir: &Path,
        limit: Duration,
    ) -> Result<PathBuf, TrainError> {
        let part = client::part_of(blob, dir);
        let come = || std::fs::metadata(&part).map_or(0, |part| part.len());
        self.insist(address, limit, (async || address.fetch(blob, dir).await, come))
    }

    /// Sends the first rows, of which nothing but their tokens matters, to a teacher with hidden states of
    /// `width` numbers that has no code yet: it makes one of text like that which it will be asked about.
    fn let_hear(&self, teacher: &Teacher, ask: Ask, width: usize) -> Result<(), TrainError> {
        let (mut tokens, wanted) = (0, enough_positions(width));
        let enough = |row: &&Sequence| {
            tokens += row.len();
            tokens < wanted + row.len()
        };
        let rows = self.set.iter().take_while(enough).count();
        let ask = Ask { wanted: Wanted::TopK { k: 1, codec: Codec::Packed }, ..ask };
        let mut feed =
            Feed::start(self.network.handle(), teacher, Arc::clone(self.set), 0..rows, ask);
        while feed.next(self.stop)?.is_some() {}
        match self.stop.requested() {
            true => Err(TrainError::Stopped),
            false => Ok(()),
        }
    }

    /// Tries until it succeeds, cannot, or has not got on for `limit`: `come` is how far it has.
    fn insist<T>(
        &self,
        address: &Address,
        limit: Duration,
        (attempt, come): (impl AsyncFn() -> Result<T, Failure>, impl Fn() -> u64),
    ) -> Result<T, TrainError> {
        let url = || address.url().to_owned();
        self.network.handle().block_on(async {
            let (mut begin, mut attempts) = (Instant::now(), 0);
            loop {
                let before = come();
                attempts += 1;
                let tried = tokio::select! {
                    tried = attempt() => tried,
                    () = self.stop.wait() => return Err(TeacherError::Stopped { url: url() }.into()),
                };
                let failure = match tried {
                    Ok(found) => return Ok(found),
                    Err(Failure::Final(error)) => return Err(TeacherError::from(error).into()),
                    Err(failure) => failure,
                };
                if come() > before {
                    (begin, attempts) = (Instant::now(), 1);
                }
                let (tried_for, last_error) = (begin.elapsed(), failure.to_string());
                if tried_for >= limit {
                    let url = url();
                    let lost =
                        TeacherError::Unreachable { url, attempts, tried_for, limit, last_error };
                    return Err(lost.into());
                }
                tracing::info!(teacher = url(), attempts, last_error, "asked again");
                let backoff = Backoff::default().delay(attempts, rand::random());
                let wait = backoff.max(failure.pause().min(LONGEST_PAUSE));
                tokio::select! {
                    () = tokio::time::sleep(wait.min(limit - tried_for)) => {}
                    () = self.stop.wait() => return Err(TeacherError::Stopped { url: url() }.into()),
                }
            }
        })
    }
}

/// The step of a code that the options want.
///
/// # Errors
/// [`TrainError::NoStep`], with what there is.
pub(crate) fn choose(code: Code, signal: &SignalConfig) -> Result<Coded, TrainError> {
    let found = match (signal.signal_bytes, signal.signal_error) {
        (Some(bytes), _) => code.rung_for_bytes(bytes),
        (None, error) => code.rung_for_divergence(error.unwrap_or(DEFAULT_SIGNAL_ERROR)),
    };
    let rates = code.rates();
    let ends = rates.first().zip(rates.last());
    let ends = ends.map_or_else(String::new, |(finest, coarsest)| {
        format!(
            ": its steps take {:.2} to {:.2} bytes a position and are off by {:.1e} to {:.1e} nats",
            coarsest.bytes, finest.bytes, finest.divergence, coarsest.divergence
        )
    });
    match found {
        Some(rate) => Ok(Coded { code: Arc::new(code), rate }),
        None => Err(TrainError::NoStep {
            wanted: match (signal.signal_bytes, signal.signal_error) {
                (Some(bytes), _) => format!("--signal-bytes {bytes}"),
                (None, Some(error)) => format!("--signal-error {error}"),
                (None, None) => format!("--signal-error {DEFAULT_SIGNAL_ERROR} (the default)"),
            },
            ends,
        }),
    }
}
