//! Reading a golden folder.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use distill::batch::{Sequence, TokenBatch};
use serde::Deserialize;

use super::GoldenError;

/// `golden.json`.
#[derive(Debug, Deserialize)]
pub(super) struct Numbers {
    pub(super) k: usize,
    pub(super) losses: Vec<LossCase>,
    pub(super) adamw: AdamWCase,
}

/// The losses of one signal and setting.
#[derive(Debug, Deserialize)]
pub(super) struct LossCase {
    pub(super) mode: Mode,
    pub(super) alpha: f64,
    pub(super) temperature: f64,
    #[serde(flatten)]
    pub(super) losses: Losses,
}

/// The three golden losses; `kl` holds its factor T².
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Losses {
    pub(super) total: f64,
    pub(super) kl: f64,
    pub(super) ce: f64,
}

/// The settings and the losses of the AdamW steps.
#[derive(Debug, Deserialize)]
pub(super) struct AdamWCase {
    pub(super) lr: f64,
    pub(super) betas: [f64; 2],
    pub(super) eps: f64,
    pub(super) weight_decay: f64,
    pub(super) clip_grad_norm: f64,
    pub(super) alpha: f64,
    pub(super) temperature: f64,
    pub(super) steps: BTreeMap<Mode, Vec<StepCase>>,
}

/// One step: the losses before it and the norm before clipping.
#[derive(Debug, Deserialize)]
pub(super) struct StepCase {
    #[serde(flatten)]
    pub(super) losses: Losses,
    pub(super) grad_norm: f64,
}

/// The signals of the golden values.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub(super) enum Mode {
    Full,
    Tail,
    Renorm,
}

impl Mode {
    pub(super) const ALL: [Self; 3] = [Self::Full, Self::Tail, Self::Renorm];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Tail => "tail",
            Self::Renorm => "renorm",
        }
    }
}

/// A golden folder, read.
pub(super) struct Golden {
    pub(super) dir: PathBuf,
    pub(super) numbers: Numbers,
    tensors: HashMap<String, Tensor>,
}

impl Golden {
    pub(super) fn read(dir: &Path) -> Result<Self, GoldenError> {
        let path = dir.join("golden.json");
        let failed =
            |path: &Path, reason: String| GoldenError::File { path: path.to_owned(), reason };
        let text = std::fs::read(&path).map_err(|error| failed(&path, error.to_string()))?;
        let numbers =
            serde_json::from_slice(&text).map_err(|error| failed(&path, error.to_string()))?;
        let path = dir.join("golden.safetensors");
        let tensors = candle_core::safetensors::load(&path, &Device::Cpu)
            .map_err(|error| failed(&path, error.to_string()))?;
        Ok(Self { dir: dir.to_owned(), numbers, tensors })
    }

    /// The elements of a float tensor, in order.
    pub(super) fn floats(&self, name: &str) -> Result<Vec<f32>, GoldenError> {
        let read = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1();
        self.with(name, read)
    }

    /// Rows of an integer tensor `[B, L]` or the like.
    fn integer_rows(&self, name: &str) -> Result<Vec<Vec<i64>>, GoldenError> {
        self.with(name, |tensor| tensor.to_vec2())
    }

    fn with<R>(
        &self,
        name: &str,
        read: impl FnOnce(&Tensor) -> candle_core::Result<R>,
    ) -> Result<R, GoldenError> {
        let wrong = |reason: String| GoldenError::Tensor { name: name.to_owned(), reason };
        let tensor = self.tensors.get(name).ok_or_else(|| wrong("it is absent".to_owned()))?;
        read(tensor).map_err(|error| wrong(error.to_string()))
    }

    /// Names that begin with `prefix`, without it.
    pub(super) fn names_after<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.tensors.keys().filter_map(move |name| name.strip_prefix(prefix))
    }

    /// The batch without its padding, and for each of its tokens the place in the padded one.
    pub(super) fn batch(&self) -> Result<(TokenBatch, Vec<usize>), GoldenError> {
        let ids = self.integer_rows("input_ids")?;
        let attention = self.integer_rows("attention_mask")?;
        let targets = self.integer_rows("loss_mask")?;
        let mut sequences = Vec::new();
        let mut places = Vec::new();
        for (row, ((ids, attention), targets)) in
            ids.iter().zip(&attention).zip(&targets).enumerate()
        {
            let length = attention.iter().filter(|&&mask| mask == 1).count();
            places.extend((0..length).map(|t| row * ids.len() + t));
            let ids = ids[..length].iter().map(|&id| id as u32).collect();
            let mask = targets[..length].iter().map(|&mask| mask == 1).collect();
            sequences.push(Sequence::new(ids, mask).map_err(|error| GoldenError::Tensor {
                name: "input_ids".to_owned(),
                reason: error.to_string(),
            })?);
        }
        Ok((TokenBatch::pack(&sequences), places))
    }
}
