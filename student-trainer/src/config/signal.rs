//! What the teacher is asked to say of each position: the signal and its parameters.

use std::path::PathBuf;

use proto::limits::MAX_DRAWS;
use serde::Serialize;

use super::kinds::{Choice, CodecKind, DivergenceKind, HiddenFormKind, SignalKind, TailKind};
use super::layers::Origin;
use super::reader::Reader;
use super::top_k;

/// Mean divergence of what coded hidden states say from what the teacher says, at T = 1 and in nats, where
/// nobody asks for another.
pub const DEFAULT_SIGNAL_ERROR: f64 = 0.01;

/// Highest temperature at which a divergence over all classes is told from rounding: it falls as 1/T², to
/// some 1e-6 nats at 1,000, where 1 % of it was rounding and at 10,000 a third.
pub(super) const HIGHEST_OF_ALL: f64 = 1000.0;

/// The signal and its parameters. Fields are named as the flags.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "each field is the option of the same name in OPTIONS")]
pub struct SignalConfig {
    #[serde(rename = "signal")]
    pub kind: SignalKind,
    pub top_k: usize,
    pub codec: CodecKind,
    pub draws: u32,
    pub exact: usize,
    pub hidden_form: HiddenFormKind,
    pub signal_bytes: Option<f64>,
    pub signal_error: Option<f64>,
    pub decoder_dir: Option<PathBuf>,
}

impl SignalConfig {
    /// A signal with the least that can be asked of it.
    pub(crate) fn of(kind: SignalKind) -> Self {
        Self {
            kind,
            top_k: 1,
            codec: CodecKind::Packed,
            draws: 1,
            exact: 0,
            hidden_form: HiddenFormKind::F32,
            signal_bytes: None,
            signal_error: None,
            decoder_dir: None,
        }
    }

    /// Reads the options, and finds fault with those that say nothing of the signal chosen.
    pub(super) fn read(r: &mut Reader<'_>) -> Self {
        let mut config = Self {
            kind: r.choice("signal"),
            top_k: top_k(r),
            codec: r.choice("codec"),
            draws: r.number(
                "draws",
                1..=MAX_DRAWS,
                &format!("a whole number from 1 to {MAX_DRAWS}"),
            ),
            exact: r.number("exact", .., "a whole number from 0 to the teacher's limit of top-k"),
            hidden_form: r.choice("hidden-form"),
            signal_bytes: r.optional_number(
                "signal-bytes",
                1.0..=1e6,
                "a number of bytes from 1 to 1000000",
            ),
            signal_error: r.optional_number(
                "signal-error",
                1e-9..=10.0,
                "a number of nats from 1e-9 to 10",
            ),
            decoder_dir: r.text("decoder-dir").map(PathBuf::from),
        };
        // A flag is over what a file or the environment says of the other.
        let flag = |name: &str| r.layers().given(name) == Some(&Origin::Flag);
        match [flag("signal-bytes"), flag("signal-error")] {
            [true, false] => config.signal_error = None,
            [false, true] => config.signal_bytes = None,
            _ => {}
        }
        let kind = config.kind;
        let lists = [SignalKind::TopK, SignalKind::Candidates];
        let owners: [(&str, &[SignalKind]); 7] = [
            ("top-k", &lists),
            ("codec", &lists),
            ("draws", &[SignalKind::Sampled]),
            ("exact", &[SignalKind::Sampled]),
            ("hidden-form", &[SignalKind::Full]),
            ("signal-bytes", &[SignalKind::Coded]),
            ("signal-error", &[SignalKind::Coded]),
        ];
        for (name, owners) in owners {
            let given = r.layers().given(name) == Some(&Origin::Flag);
            if given && !owners.contains(&kind) {
                let owners: Vec<&str> = owners.iter().map(|owner| owner.word()).collect();
                let owners = owners.join(" and ");
                r.fault(format!("--{name} says nothing with --signal {kind}; it is for {owners}"));
            }
        }
        if kind == SignalKind::Coded
            && config.signal_bytes.is_some()
            && config.signal_error.is_some()
        {
            r.fault("--signal-bytes and --signal-error both choose the step of the code; give one");
        }
        config
    }

    /// Whether tokens are listed, and others left out.
    pub fn lists(&self) -> bool {
        matches!(self.kind, SignalKind::TopK | SignalKind::Candidates)
    }

    /// Finds fault with a cache, where there is one, of what no later run asks again.
    pub(super) fn is_kept(&self, r: &mut Reader<'_>, cache: bool) {
        if cache && self.kind == SignalKind::Candidates {
            r.fault(
                "a cache cannot keep --signal candidates: which tokens are asked for depends on the \
                 student as it is at the time; take --signal coded, which says the same of every token \
                 and is kept, or leave out --cache",
            );
        }
    }

    /// Finds fault with a comparison this signal cannot carry.
    pub(super) fn carries(
        &self,
        r: &mut Reader<'_>,
        (divergence, tail): (DivergenceKind, TailKind),
        temperature: f64,
    ) {
        let kind = self.kind;
        let says_all = matches!(kind, SignalKind::Coded | SignalKind::Full);
        if says_all && temperature > HIGHEST_OF_ALL {
            r.fault(format!(
                "--temperature {temperature} with --signal {kind}: above {HIGHEST_OF_ALL} the divergence of \
                 all classes is less than float32 can tell; take a lower one, or --signal top-k"
            ));
        }
        if kind == SignalKind::Sampled && divergence != DivergenceKind::ForwardKl {
            r.fault(format!(
                "--divergence {divergence} cannot be learned from --signal sampled: draws give the \
                 gradient of forward-kl alone; --signal coded or full carries every divergence, top-k \
                 carries it on its tokens and the rest"
            ));
        }
        if !self.lists() && tail == TailKind::Renormalise {
            r.fault(format!(
                "--tail renormalise says nothing with --signal {kind}, which leaves no tokens out; it \
                 is for top-k and candidates"
            ));
        }
    }
}
