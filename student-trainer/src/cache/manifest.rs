//! What all answers of a cache have in common, in `cache.json`: whose they are, about which ids, and
//! which signal. A run that wants anything else is refused before anything is asked.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use distill::cache::{FORMAT_VERSION, Identity, Space};
use distill::codec::Codec;
use distill::coded::Rung;
use distill::fingerprint::Fingerprint;
use distill::handshake::{Limits, PROTOCOL_VERSION, SignalKind, StudentFacts, TeacherFacts};
use distill::hidden::HiddenForm;
use proto::limits::DEFAULT_LIMITS;
use serde::{Deserialize, Serialize};

use super::error::{CacheError, at};
use super::payload::About;
use crate::asking::Wanted;
use crate::files;

/// The file within a cache.
pub(crate) const FILE: &str = "cache.json";

/// The description of a cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT_VERSION`].
    pub format: u32,
    /// The teacher's name, for people.
    pub model: String,
    /// Commit of the model; empty for a local directory.
    pub revision: String,
    /// Its fingerprint, 64 hexadecimal digits.
    pub model_fingerprint: String,
    /// That of its tokenizer.
    pub tokenizer_fingerprint: String,
    /// 1 + the largest id of the tokenizer.
    pub tokenizer_size: usize,
    /// Rows of the teacher's output matrix.
    pub vocab_size: usize,
    /// Classes the distributions are taken over.
    pub classes: usize,
    /// The signal and its parameters: `top-k k=64`, and ` values=8-bit` where it came in that codec;
    /// `sampled draws=16 exact=0`; `full form=bf16`; `coded code=FINGERPRINT rung=-40`.
    pub signal: String,
    /// What hidden states are read with; absent where none are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoder: Option<DecoderNames>,
    /// Temperature of the signal; null where it depends on none.
    pub temperature: Option<f32>,
    /// Whether the answers say how much mass they leave out.
    pub knows_mass: bool,
    /// Parameters of the teacher, for people; 0 where unknown.
    pub parameters: u64,
    /// Type it computed in, for people.
    pub dtype: String,
}

/// The file that what hidden states are read with is kept in, by its digest.
pub(crate) fn blob_name(fingerprint: &str) -> String {
    format!("{fingerprint}{BLOB}")
}

/// How such files end.
pub(crate) const BLOB: &str = ".blob";

/// What hidden states are read with, by the digests it is kept under beside the segments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecoderNames {
    /// Numbers of a hidden state.
    pub hidden_size: usize,
    /// The output matrix.
    pub output_matrix: String,
    /// The code, of coded ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}

impl DecoderNames {
    /// The digests.
    pub(crate) fn all(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.output_matrix.as_str()).chain(self.code.as_deref())
    }
}

/// A signal in the words of a manifest.
pub(crate) fn in_words(wanted: Wanted) -> String {
    match wanted {
        // Candidates are not kept, and what they begin with is a top-k.
        Wanted::TopK { k, codec } | Wanted::Candidates { k, codec } => top_k(k, codec),
        Wanted::Sampled { draws, exact, .. } => format!("sampled draws={draws} exact={exact}"),
        Wanted::Hidden { form: HiddenForm::Coded { code, rung }, .. } => {
            format!("coded code={code} rung={}", rung.0)
        }
        Wanted::Hidden { form, .. } => format!("full form={form}"),
    }
}

/// A top-k in the words of a manifest. Codecs of 16 bits a value and more are one: what they round
/// away, the loss does not see.
pub(crate) fn top_k(k: usize, codec: Codec) -> String {
    match codec {
        Codec::Packed | Codec::Raw | Codec::Compact => format!("top-k k={k}"),
        Codec::Compact8 => format!("top-k k={k} values=8-bit"),
    }
}

impl Manifest {
    /// The description of a cache of this teacher's answers.
    pub(crate) fn of(
        teacher: &TeacherFacts,
        classes: usize,
        (wanted, temperature): (Wanted, f32),
        decoder: Option<DecoderNames>,
        knows_mass: bool,
    ) -> Self {
        let of_all = matches!(wanted, Wanted::Hidden { .. });
        Self {
            format: FORMAT_VERSION,
            model: teacher.model.clone(),
            revision: teacher.revision.clone(),
            model_fingerprint: teacher.model_fingerprint.to_string(),
            tokenizer_fingerprint: teacher.tokenizer_fingerprint.to_string(),
            tokenizer_size: teacher.tokenizer_size,
            vocab_size: teacher.vocab_size,
            classes,
            signal: in_words(wanted),
            decoder,
            temperature: (!of_all).then_some(temperature),
            knows_mass,
            parameters: teacher.parameters,
            dtype: teacher.dtype.clone(),
        }
    }

    /// Reads the description of the cache in `dir`; none where there is none.
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>, CacheError> {
        let path = dir.join(FILE);
        match files::read(&path) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                Ok(None)
            }
            read => Self::parse(&at("read", &path, read)?, &path).map(Some),
        }
    }

    /// Reads a description; `path` is where it stands.
    pub(crate) fn parse(text: &[u8], path: &Path) -> Result<Self, CacheError> {
        let wrong = |reason: String| CacheError::Manifest { path: path.to_owned(), reason };
        let value: serde_json::Value =
            serde_json::from_slice(text).map_err(|e| wrong(e.to_string()))?;
        // A later format may have other fields.
        let found = value["format"].as_u64().ok_or_else(|| wrong("no format in it".to_owned()))?;
        if found != u64::from(FORMAT_VERSION) {
            return Err(CacheError::Format {
                place: path.parent().unwrap_or(path).display().to_string(),
                found: u32::try_from(found).unwrap_or(u32::MAX),
                wanted: FORMAT_VERSION,
            });
        }
        let manifest: Self = serde_json::from_value(value).map_err(|e| wrong(e.to_string()))?;
        for text in [&manifest.model_fingerprint, &manifest.tokenizer_fingerprint] {
            text.parse::<Fingerprint>().map_err(|e| wrong(e.to_string()))?;
        }
        for text in manifest.decoder.iter().flat_map(DecoderNames::all) {
            text.parse::<Fingerprint>().map_err(|e| wrong(e.to_string()))?;
        }
        if u32::try_from(manifest.classes).is_err() {
            return Err(wrong(format!("{} classes are more than ids can name", manifest.classes)));
        }
        Ok(manifest)
    }

    /// Writes it, so that it is there whole or not at all.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), CacheError> {
        let path = dir.join(FILE);
        at("write", &path, files::write(&path, self.text().as_bytes()))?;
        at("write", dir, File::open(dir).and_then(|dir| dir.sync_all()))
    }

    /// As it stands in its file.
    pub(crate) fn text(&self) -> String {
        let text = serde_json::to_string_pretty(self).unwrap_or_default();
        format!("{text}\n")
    }

    pub(crate) fn fingerprints(&self) -> [Fingerprint; 2] {
        let read = |text: &str| text.parse().unwrap_or(Fingerprint([0; 32]));
        [read(&self.model_fingerprint), read(&self.tokenizer_fingerprint)]
    }

    /// What the names of its answers begin with.
    pub(crate) fn space(&self) -> Space {
        let [model, tokenizer] = self.fingerprints();
        let classes = self.classes as u32;
        let (signal, temperature) = (self.signal.clone(), self.temperature);
        Identity { model, tokenizer, classes, signal, temperature }.space()
    }

    /// k, where the signal is a top-k.
    pub(crate) fn k(&self) -> Option<usize> {
        self.signal.strip_prefix("top-k k=")?.split(' ').next()?.parse().ok()
    }

    /// What its answers are about.
    pub(crate) fn about(&self) -> About {
        let (classes, form) = (self.classes, self.form());
        let width = self.decoder.as_ref().map(|decoder| decoder.hidden_size);
        About { classes, states: form.zip(width) }
    }

    /// How hidden states are said, where these are what it keeps.
    pub(crate) fn form(&self) -> Option<HiddenForm> {
        if let Some(form) = self.signal.strip_prefix("full form=") {
            let forms = [HiddenForm::F32, HiddenForm::Bf16, HiddenForm::Int8, HiddenForm::Int4];
            return forms.into_iter().find(|known| known.to_string() == form);
        }
        let (code, rung) = self.signal.strip_prefix("coded code=")?.split_once(" rung=")?;
        Some(HiddenForm::Coded { code: code.parse().ok()?, rung: Rung(rung.parse().ok()?) })
    }

    /// The kind of its signal.
    fn kind(&self) -> SignalKind {
        match self.signal.split(' ').next() {
            Some("sampled") => SignalKind::Sampled,
            Some("full") => SignalKind::Full,
            Some("coded") => SignalKind::Coded,
            _ => SignalKind::TopK,
        }
    }

    /// The teacher that answered, as it would describe itself.
    pub(crate) fn facts(&self) -> TeacherFacts {
        let [model_fingerprint, tokenizer_fingerprint] = self.fingerprints();
        TeacherFacts {
            model: self.model.clone(),
            revision: self.revision.clone(),
            model_fingerprint,
            tokenizer_fingerprint,
            vocab_size: self.vocab_size,
            tokenizer_size: self.tokenizer_size,
            hidden_size: self.decoder.as_ref().map_or(0, |decoder| decoder.hidden_size),
            // What was answered was within its bounds, which are not known.
            limits: Limits {
                max_sequence_tokens: usize::MAX,
                max_top_k: usize::MAX,
                ..DEFAULT_LIMITS
            },
            signals: vec![self.kind()],
            codecs: Codec::ALL.to_vec(),
            protocol_version: PROTOCOL_VERSION,
            server_version: String::new(),
            dtype: self.dtype.clone(),
            device: String::new(),
            parameters: self.parameters,
        }
    }

    /// Refuses a run that wants other answers than these, as far as it is known before a teacher is
    /// reached. `place` is the cache, for the error; `wanted` is in the words of a manifest, as far as it
    /// can be known: of coded hidden states their first word.
    ///
    /// # Errors
    /// [`CacheError::Differs`], both values in it.
    pub(crate) fn serves(
        &self,
        place: &str,
        student: &StudentFacts,
        (wanted, temperature): (&str, f32),
    ) -> Result<(), CacheError> {
        let signal = match wanted {
            "coded" => self.signal.split(' ').next().unwrap_or_default(),
            _ => &self.signal,
        };
        let tokenizer = student.tokenizer_fingerprint.to_string();
        let classes = self.vocab_size.min(student.vocab_size);
        let checks = [
            (
                "the tokenizer",
                self.tokenizer_fingerprint.clone(),
                tokenizer,
                "take the student the cache was made for",
            ),
            (
                "the signal",
                signal.to_owned(),
                wanted.to_owned(),
                "set --signal and its options (--top-k, --codec, --draws, --exact, --hidden-form, \
                 --signal-bytes, --signal-error) to the cache's; where only code=… differs, the teacher has \
                 another code since: start it with the calibration of that one (teacher-server calibrate sets \
                 it aside under a name that ends in .before), or leave out --teacher if every answer is there",
            ),
            (
                "--temperature",
                self.temperature.map_or_else(|| "any".to_owned(), |t| t.to_string()),
                self.temperature.map_or_else(|| "any".to_owned(), |_| temperature.to_string()),
                "such answers are of one temperature: set --temperature to the cache's",
            ),
            (
                "this many classes:",
                self.classes.to_string(),
                classes.to_string(),
                "take a student with as many rows in its output matrix",
            ),
        ];
        for (what, found, wanted, remedy) in checks {
            if found != wanted {
                let place = place.to_owned();
                return Err(CacheError::Differs { place, what, found, wanted, remedy });
            }
        }
        Ok(())
    }

    /// Refuses answers of another kind than these.
    ///
    /// # Errors
    /// [`CacheError::Differs`], both values in it.
    pub(crate) fn same(&self, place: &str, other: &Self) -> Result<(), CacheError> {
        let words = |m: &Self| {
            let temperature = m.temperature.map_or_else(|| "any".to_owned(), |t| t.to_string());
            [
                ("the model", m.model_fingerprint.clone()),
                ("the tokenizer", m.tokenizer_fingerprint.clone()),
                ("the signal", m.signal.clone()),
                ("temperature", temperature),
                ("this many classes:", m.classes.to_string()),
            ]
        };
        let mut pairs = words(self).into_iter().zip(words(other));
        match pairs.find(|(ours, theirs)| ours.1 != theirs.1) {
            None => Ok(()),
            Some(((what, found), (_, wanted))) => {
                let (place, remedy) = (place.to_owned(), "what is put in must be of one kind");
                Err(CacheError::Differs { place, what, found, wanted, remedy })
            }
        }
    }

    /// Refuses a teacher whose answers these are not.
    ///
    /// # Errors
    /// [`CacheError::Differs`], both values in it.
    pub(crate) fn is_of(&self, place: &str, teacher: &TeacherFacts) -> Result<(), CacheError> {
        let width = self.decoder.as_ref().map(|decoder| decoder.hidden_size);
        if let Some(found) = width.filter(|&found| found != teacher.hidden_size) {
            return Err(CacheError::Differs {
                place: place.to_owned(),
                what: "hidden states of this many numbers:",
                found: found.to_string(),
                wanted: teacher.hidden_size.to_string(),
                remedy: "its cache.json was changed: put it right",
            });
        }
        let wanted = teacher.model_fingerprint.to_string();
        if self.model_fingerprint == wanted {
            return Ok(());
        }
        Err(CacheError::Differs {
            place: place.to_owned(),
            what: "the model",
            found: format!("{} ({})", self.model_fingerprint, self.model),
            wanted: format!("{wanted} ({})", teacher.model),
            remedy: "ask the teacher the cache was made with",
        })
    }
}
