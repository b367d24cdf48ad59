//! What it takes to read this teacher's hidden states, made when somebody first asks: the output matrix
//! as bytes, and the code of coded ones.
//!
//! A code is made from the first tokens that clients sent ([`Calibration`]), or of a text built in where
//! these are too few or are not to be trusted; it is kept on disk under the model's fingerprint, so that
//! a teacher that starts again has the same one.

use std::path::PathBuf;
use std::sync::Arc;

use distill::coded::Code;
use distill::fingerprint::Fingerprint;
use distill::matrix;
use model::coding::{CalibrationError, CalibrationFileError, Encoder, enough_positions};
use model::language_model::LanguageModel;
use model::qwen3::ModelError;
use proto::convert::{BlobFacts, DecoderFacts};

use crate::calibrate::from_sequences;
use crate::config::AutoCalibration;
use crate::scorer::{ScorerError, TextCodec};

/// Longest sequence the text built in is cut into, in tokens.
const SEQUENCE_TOKENS: usize = 1024;
/// A text for a teacher that has heard none: what this project says of itself.
const BUILT_IN: [&str; 5] = [
    include_str!("../../docs/wire.md"),
    include_str!("../../docs/architecture.md"),
    include_str!("../../docs/cache.md"),
    include_str!("../../docs/dialects.md"),
    include_str!("../../docs/log.md"),
];

/// Bytes under their digest; clones share them.
#[derive(Clone, Debug)]
pub struct Blob {
    fingerprint: Fingerprint,
    bytes: Arc<[u8]>,
}

impl Blob {
    fn facts(&self) -> BlobFacts {
        BlobFacts { fingerprint: self.fingerprint, bytes: self.bytes.len() as u64 }
    }
}

/// What it takes to read hidden states.
#[derive(Clone, Debug)]
pub struct Decoder {
    model: Fingerprint,
    hidden_size: usize,
    matrix: Blob,
    code: Option<(Blob, Arc<Code>)>,
}

impl Decoder {
    /// What clients are told of it.
    pub fn facts(&self) -> DecoderFacts {
        DecoderFacts {
            model: self.model,
            hidden_size: self.hidden_size,
            matrix: self.matrix.facts(),
            code: self.code.as_ref().map(|(blob, _)| blob.facts()),
            rates: self.code.as_ref().map(|(_, code)| code.rates().to_vec()).unwrap_or_default(),
        }
    }

    /// Whether coded hidden states can be read with it.
    pub fn has_code(&self) -> bool {
        self.code.is_some()
    }

    /// The bytes of this name.
    pub fn find(&self, fingerprint: Fingerprint) -> Option<Arc<[u8]>> {
        let code = self.code.as_ref().map(|(blob, _)| blob);
        let mut blobs = std::iter::once(&self.matrix).chain(code);
        blobs.find(|blob| blob.fingerprint == fingerprint).map(|blob| Arc::clone(&blob.bytes))
    }
}

/// Whose codes a [`Calibration`] makes.
#[derive(Clone)]
pub struct CalibrationSubject {
    /// The model.
    pub model: Fingerprint,
    /// Numbers of a hidden state.
    pub width: usize,
    /// The tokenizer's fingerprint.
    pub tokenizer: Fingerprint,
    /// The tokenizer, for the text built in.
    pub text: Arc<dyn TextCodec>,
}

/// Where codes are kept, and of what one is made where there is none.
#[derive(Clone, Debug, Default)]
pub struct Calibrating {
    /// The directory; none where there is no place for them.
    pub dir: Option<PathBuf>,
    /// Of what.
    pub auto: AutoCalibration,
}

/// A model's code, and what it is made of.
pub struct Calibration {
    of: CalibrationSubject,
    how: Calibrating,
    /// Tokens it takes of clients.
    enough: usize,
    /// The first tokens clients sent.
    traffic: Vec<Vec<u32>>,
    encoder: Option<Encoder>,
    matrix: Option<Blob>,
}

impl Calibration {
    /// Of this model, with the code that is kept, where there is one.
    pub fn new(of: CalibrationSubject, how: Calibrating) -> Self {
        let enough = match how.auto {
            AutoCalibration::Traffic => enough_positions(of.width),
            AutoCalibration::BuiltIn | AutoCalibration::Off => 0,
        };
        let mut calibration =
            Self { of, how, enough, traffic: Vec::new(), encoder: None, matrix: None };
        match calibration.kept() {
            Ok(encoder) => calibration.encoder = encoder,
            Err(error) => {
                tracing::warn!("{error}; until then no coded hidden states are to be had");
            }
        }
        calibration
    }

    /// What turns hidden states into coded rows, where there is a code.
    pub fn encoder(&self) -> Option<&Encoder> {
        self.encoder.as_ref()
    }

    /// Takes note of a client's tokens.
    pub fn hear(&mut self, tokens: &[u32]) {
        let heard: usize = self.traffic.iter().map(Vec::len).sum();
        if self.encoder.is_none() && heard < self.enough {
            let most = tokens.len().min(self.enough - heard);
            self.traffic.push(tokens[..most].to_vec());
        }
    }

    /// What it takes to read the hidden states of `network`, with `code` the coded ones too.
    ///
    /// # Errors
    /// When an operation fails, or no code can be made.
    pub fn decoder(
        &mut self,
        network: &dyn LanguageModel,
        code: bool,
    ) -> Result<Arc<Decoder>, ScorerError> {
        let failed = |error: String| ScorerError::Failed(error);
        let matrix = match &self.matrix {
            Some(matrix) => matrix.clone(),
            None => {
                let made = matrix_of(network).map_err(|error| failed(error.to_string()))?;
                self.matrix.insert(made).clone()
            }
        };
        if code && self.encoder.is_none() {
            // An operator, or another server, may have made one since this one began. Nothing takes the
            // place of one that cannot be used.
            self.encoder = self.kept().map_err(|error| ScorerError::NoCode(error.to_string()))?;
        }
        if code && self.encoder.is_none() {
            if self.how.auto == AutoCalibration::Off {
                return Err(ScorerError::NoCode(NONE_MADE.to_owned()));
            }
            let made = self.make(network).map_err(|error| {
                match matches!(error, CalibrationError::Tensor(_)) {
                    true => failed(error.to_string()),
                    false => ScorerError::NoCode(error.to_string()),
                }
            })?;
            self.encoder = Some(made);
            self.traffic.clear();
        }
        let code = self.encoder.as_ref().map(|encoder| {
            let code = encoder.code();
            let (fingerprint, bytes) = (code.fingerprint(), code.to_bytes().into());
            (Blob { fingerprint, bytes }, Arc::clone(code))
        });
        let hidden_size = network.config().hidden_size;
        Ok(Arc::new(Decoder { model: self.of.model, hidden_size, matrix, code }))
    }

    /// Makes a code and keeps it.
    fn make(&self, network: &dyn LanguageModel) -> Result<Encoder, CalibrationError> {
        let began = std::time::Instant::now();
        let made = from_sequences(network, &self.traffic, self.of.model);
        let (encoder, of) = match made {
            Ok(encoder) => (encoder, "what clients sent"),
            // Too few of theirs, or too much alike.
            Err(CalibrationError::TooShort { .. } | CalibrationError::Monotonous { .. }) => {
                let sequences = self.with_text_built_in(network)?;
                let made = from_sequences(network, &sequences, self.of.model)?;
                match self.traffic.is_empty() {
                    true => (made, "a text built in"),
                    false => (made, "what clients sent and a text built in"),
                }
            }
            Err(error) => return Err(error),
        };
        // Of two that are made at a time the first is everybody's.
        if let Ok(Some(kept)) = self.kept() {
            return Ok(kept);
        }
        let seconds = began.elapsed().as_secs_f64();
        match self.path().map(|path| (encoder.save(&path, self.of.tokenizer), path)) {
            None => tracing::warn!("made a code of {of} ({seconds:.1} s); {NOT_KEPT}"),
            Some((Ok(before), path)) => {
                if let Some(before) = before {
                    tracing::warn!(before = %before.display(), "another code was there: it is set aside");
                }
                tracing::info!(path = %path.display(), seconds, "made a code of {of}");
            }
            Some((Err(error), _)) => tracing::warn!("made a code of {of}; {error}; {NOT_KEPT}"),
        }
        Ok(encoder)
    }

    fn with_text_built_in(
        &self,
        network: &dyn LanguageModel,
    ) -> Result<Vec<Vec<u32>>, CalibrationError> {
        let mut sequences = self.traffic.clone();
        let mut left = enough_positions(self.of.width);
        for text in BUILT_IN {
            let ids = self.of.text.encode(text);
            let ids = ids.map_err(|error| CalibrationError::Degenerate(error.to_string()))?;
            for part in ids.chunks(SEQUENCE_TOKENS.min(network.config().max_position_embeddings)) {
                let part = &part[..part.len().min(left)];
                left -= part.len();
                sequences.extend((!part.is_empty()).then(|| part.to_vec()));
            }
        }
        Ok(sequences)
    }

    fn path(&self) -> Option<PathBuf> {
        Some(self.how.dir.as_ref()?.join(format!("{}.calibration", self.of.model)))
    }

    fn kept(&self) -> Result<Option<Encoder>, CalibrationFileError> {
        self.path()
            .map_or(Ok(None), |path| Encoder::load(&path, [self.of.model, self.of.tokenizer]))
    }
}

/// Why there is no code where none is to be made.
const NONE_MADE: &str = "none is kept under its fingerprint, and it was told to make none \
                         (--auto-calibration off): run teacher-server calibrate --data FILE, and start it again";
/// What a code that is not on disk means.
const NOT_KEPT: &str = "a teacher that starts again will make another one, and runs that use this one \
                        will have to begin anew: give --calibration-dir a place that can be written";

/// A model's output matrix as bytes.
fn matrix_of(network: &dyn LanguageModel) -> Result<Blob, ModelError> {
    let head = network.head()?.to_dtype(candle_core::DType::F32)?;
    let values = head.flatten_all()?.to_vec1::<f32>()?;
    let (bytes, fingerprint) = matrix::encode(&values, network.config().hidden_size);
    tracing::info!(bytes = bytes.len(), "holding the output matrix for who learns from it");
    Ok(Blob { fingerprint, bytes: bytes.into() })
}

#[cfg(test)]
mod tests {
    use model::coding::least_positions;

    use super::*;
    use crate::testing::FakeText;

    /// A wide model's code takes more tokens than a narrow one's, and traffic alone can be enough; nobody is
    /// heard where clients are not to be trusted.
    #[test]
    fn as_much_is_heard_as_a_code_takes() {
        let heard = |width: usize, auto| {
            let (model, tokenizer) = (Fingerprint([1; 32]), Fingerprint([2; 32]));
            let text = Arc::new(FakeText { vocab_size: 90 });
            let of = CalibrationSubject { model, width, tokenizer, text };
            let mut calibration = Calibration::new(of, Calibrating { dir: None, auto });
            for _ in 0..40 {
                calibration.hear(&[7; 1000]);
            }
            calibration.traffic.iter().map(Vec::len).sum::<usize>()
        };
        assert_eq!(heard(64, AutoCalibration::Traffic), 8192);
        for auto in [AutoCalibration::BuiltIn, AutoCalibration::Off] {
            assert_eq!(heard(64, auto), 0);
        }
        // Qwen3-8B and the widest Qwen3.
        for width in [4096, 5120] {
            let heard = heard(width, AutoCalibration::Traffic);
            assert!(heard > 8192 && heard >= least_positions(width), "{width}");
        }
    }
}
