//! What a loss is given of a teacher's answers: listed tokens and draws as they came, hidden states made
//! numbers again, beside the output matrix that makes logits of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use distill::coded::{Code, CodedError, Rung};
use distill::fingerprint::Fingerprint;
use distill::hidden::{self, HiddenError, HiddenForm, HiddenRows};
use distill::matrix::{MatrixError, MatrixForm, OutputMatrix};
use distill::signal::{Draws, HiddenStates, Signal, TopK};
use model::coding::{Decoder, to_tensor};
use model::ops::head::Teaching;

use crate::feed::Scored;
use crate::files;

/// How answers are read.
#[derive(Debug, Default)]
pub struct Reading {
    full: Option<Full>,
    /// Of hidden states: the files of output matrix and code, by their digests.
    files: Vec<(Fingerprint, PathBuf)>,
}

/// What hidden states are read with.
#[derive(Debug)]
struct Full {
    /// `[V', E]`
    matrix: Tensor,
    /// For coded ones.
    decoder: Option<Decoder>,
}

/// A teacher's output matrix, out of its file. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Projection {
    file: (Fingerprint, PathBuf),
    /// `[V', E]`
    matrix: Tensor,
}

/// What a teacher says of the positions of a batch.
#[derive(Debug)]
pub enum Said {
    /// Listed tokens.
    TopK(TopK),
    /// Draws.
    Drawn(Draws),
    /// Everything.
    Full {
        /// Hidden states, `[S, E]`.
        hidden: Tensor,
        /// The output matrix, `[V', E]`.
        matrix: Tensor,
    },
}

/// Why answers cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadingError {
    /// A file that is gone.
    #[error(
        "cannot read {}, which the teacher's hidden states are read with: {source}; with --teacher it is \
         fetched again",
        path.display()
    )]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Other bytes than its name says.
    #[error(
        "{} is damaged: its digest is {found}, wanted {wanted}; remove it, and it is fetched again",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Digest of what it holds.
        found: Fingerprint,
        /// Digest of what it should hold.
        wanted: Fingerprint,
    },
    /// No output matrix.
    #[error("{}: {source}", path.display())]
    Matrix {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: MatrixError,
    },
    /// A matrix of another model.
    #[error(
        "the teacher's output matrix is {rows} by {width}, its hidden states have {wanted_width} numbers \
         and {classes} classes are compared"
    )]
    Shape {
        /// Rows of the matrix.
        rows: usize,
        /// Its width.
        width: usize,
        /// Numbers of a hidden state.
        wanted_width: usize,
        /// Classes.
        classes: usize,
    },
    /// A code of another model.
    #[error(
        "{} is a code of the model {found}, the teacher is the model {wanted}: make one of it with \
         `teacher-server calibrate`",
        path.display()
    )]
    OtherModel {
        /// The file.
        path: PathBuf,
        /// The model it is of.
        found: Fingerprint,
        /// The teacher's.
        wanted: Fingerprint,
    },
    /// No code, or rows that are none.
    #[error("the teacher's coded hidden states cannot be read: {0}")]
    Coded(#[from] CodedError),
    /// Hidden states that are none.
    #[error("the teacher's hidden states cannot be read: {0}")]
    Hidden(#[from] HiddenError),
    /// Answers of different kinds, or hidden states with nothing to read them with: a fault of this
    /// program.
    #[error("answers of another kind than the run asks for; this is a fault of this program")]
    Other,
    /// An operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl Said {
    /// As the loss takes it.
    pub fn teaching(&self) -> Teaching<'_> {
        match self {
            Self::TopK(signal) => Teaching::TopK(signal),
            Self::Drawn(signal) => Teaching::Draws(signal),
            Self::Full { hidden, matrix } => Teaching::Full { hidden, w: matrix },
        }
    }
}

impl Projection {
    /// The output matrix in a file of this digest, for hidden states of `width` numbers over `classes`
    /// classes.
    ///
    /// # Errors
    /// [`ReadingError`]
    pub(crate) fn read(
        file: (Fingerprint, PathBuf),
        [width, classes]: [usize; 2],
    ) -> Result<Self, ReadingError> {
        let bytes = read(&file.1, file.0)?;
        let parsed = OutputMatrix::parse(&bytes)
            .map_err(|source| ReadingError::Matrix { path: file.1.clone(), source })?;
        let OutputMatrix { rows, width: found, form, values } = parsed;
        if found != width || rows < classes {
            return Err(ReadingError::Shape { rows, width: found, wanted_width: width, classes });
        }
        let dtype = match form {
            MatrixForm::F32 => DType::F32,
            MatrixForm::Bf16 => DType::BF16,
        };
        let matrix = Tensor::from_raw_buffer(values, dtype, &[rows, width], &Device::Cpu)?;
        Ok(Self { file, matrix })
    }

    /// Digest of its file.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        self.file.0
    }
}

impl Reading {
    /// Of hidden states, with the output matrix, and the code in a file where they are coded at a step.
    pub(crate) fn full(projection: Projection, code: Option<(Arc<Code>, PathBuf, Rung)>) -> Self {
        let Projection { file, matrix } = projection;
        let mut files = vec![file];
        let decoder = code.map(|(code, path, rung)| {
            files.push((code.fingerprint(), path));
            Decoder::new(code, rung)
        });
        Self { full: Some(Full { matrix, decoder }), files }
    }

    /// The output matrix, where hidden states are read: who reads others of the same teacher needs no second
    /// one.
    pub(crate) fn projection(&self) -> Option<Projection> {
        let (full, file) = (self.full.as_ref()?, self.files.first()?);
        Some(Projection { file: file.clone(), matrix: full.matrix.clone() })
    }

    /// The same hidden states as `form` has them, said as finely as they can be read.
    pub(crate) fn finest(&self, form: HiddenForm) -> HiddenForm {
        let decoder = self.full.as_ref().and_then(|full| full.decoder.as_ref());
        match (form, decoder.and_then(|decoder| decoder.code().rates().first())) {
            (HiddenForm::Coded { code, .. }, Some(rate)) => {
                HiddenForm::Coded { code, rung: rate.rung }
            }
            (HiddenForm::Coded { .. }, None) => form,
            _ => HiddenForm::F32,
        }
    }

    /// The files of output matrix and code, by their digests; none where no hidden states are read.
    pub(crate) fn files(&self) -> &[(Fingerprint, PathBuf)] {
        &self.files
    }

    /// The answers about a batch, in the order of its positions; none of none.
    ///
    /// # Errors
    /// [`ReadingError`]
    pub fn said(&self, answers: &[Scored]) -> Result<Option<Said>, ReadingError> {
        let Some(first) = answers.first() else { return Ok(None) };
        let signals = answers.iter().map(|scored| &scored.signal);
        Ok(Some(match &first.signal {
            Signal::TopK(first) => {
                let mut all = TopK::new(first.k);
                for signal in signals {
                    let Signal::TopK(signal) = signal else { return Err(ReadingError::Other) };
                    all.append(signal);
                }
                Said::TopK(all)
            }
            Signal::Drawn(first) => {
                let mut all = Draws::new(first.draws, first.k);
                for signal in signals {
                    let Signal::Drawn(signal) = signal else { return Err(ReadingError::Other) };
                    all.append(signal);
                }
                Said::Drawn(all)
            }
            Signal::Hidden(first) => {
                let full = self.full.as_ref().ok_or(ReadingError::Other)?;
                let mut values = Vec::new();
                for signal in signals {
                    let Signal::Hidden(rows) = signal else { return Err(ReadingError::Other) };
                    full.decode(rows, &mut values)?;
                }
                let hidden = to_tensor(HiddenStates { width: first.width, values })?;
                Said::Full { hidden, matrix: full.matrix.clone() }
            }
        }))
    }
}

impl Full {
    /// Appends the numbers of hidden states.
    fn decode(&self, rows: &HiddenRows, values: &mut Vec<f32>) -> Result<(), ReadingError> {
        for (count, bytes) in &rows.parts {
            let states = match rows.form {
                HiddenForm::Coded { rung, .. } => {
                    let decoder = self.decoder.as_ref().ok_or(ReadingError::Other)?;
                    let numbers = decoder.code().decode(bytes, *count)?;
                    match rung == decoder.rung() {
                        true => decoder.hidden_states(&numbers),
                        false => decoder.code().reconstruct(rung, &numbers),
                    }
                }
                form @ (HiddenForm::F32
                | HiddenForm::Bf16
                | HiddenForm::Int8
                | HiddenForm::Int4) => hidden::decode(bytes, *count, rows.width, form)?,
            };
            values.extend(states.values);
        }
        Ok(())
    }
}

/// The code in a file that has this digest, which must be of this model.
pub(crate) fn read_code(
    path: &Path,
    fingerprint: Fingerprint,
    wanted: Fingerprint,
) -> Result<Code, ReadingError> {
    let code = Code::from_bytes(&read(path, fingerprint)?)?;
    match code.model() {
        found if found == wanted => Ok(code),
        found => Err(ReadingError::OtherModel { path: path.to_owned(), found, wanted }),
    }
}

/// The bytes of a file that has this digest.
pub(crate) fn read(path: &Path, wanted: Fingerprint) -> Result<Vec<u8>, ReadingError> {
    // A pipe or a device has no end.
    let bytes = files::read(path);
    let bytes = bytes.map_err(|source| ReadingError::Io { path: path.to_owned(), source })?;
    match Fingerprint::of(&bytes) {
        found if found == wanted => Ok(bytes),
        found => Err(ReadingError::Damaged { path: path.to_owned(), found, wanted }),
    }
}

#[cfg(test)]
mod tests {
    use distill::coded::Parts;

    use super::*;

    #[test]
    fn a_code_of_another_model_or_with_other_bytes_is_refused() {
        let model = Fingerprint([7; 32]);
        let code = Code::new(Parts {
            model,
            mean: vec![0.0; 2],
            spreads: &[2.0, 1.0],
            matrix: &[1.0, 0.0, 0.0, 1.0],
            standardised: (-2000..2000).map(|at| at as f32 / 1000.0).collect(),
        })
        .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (path, bytes) = (dir.path().join("code"), code.to_bytes());
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(read_code(&path, code.fingerprint(), model).unwrap().model(), model);
        let other = Fingerprint([8; 32]);
        let said = read_code(&path, code.fingerprint(), other).unwrap_err().to_string();
        for word in [&model.to_string(), &other.to_string(), "teacher-server calibrate"] {
            assert!(said.contains(word), "{said}");
        }
        std::fs::write(&path, &bytes[1..]).unwrap();
        let refused = read_code(&path, code.fingerprint(), model).unwrap_err();
        assert!(matches!(refused, ReadingError::Damaged { .. }), "{refused}");
    }
}
