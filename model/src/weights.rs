//! All parameters of a model in one flat tensor, from files or from a seed.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::config::Qwen3Config;
use crate::load::StoredWeights;
pub use crate::load::WeightsError;
use crate::malloc;
use crate::parameters::{ModelViews, Parameter, ParameterIndex, ParameterKind};
use crate::tensor_file::Element;

/// Elements read or drawn at once: 4 MiB of float32, and whole blocks of quantised ones.
const PIECE: usize = 1 << 20;

/// The parameters of a model: a flat tensor `[P]` of f32, bf16 or f16, and where each lies in it.
#[derive(Clone, Debug)]
pub struct Weights {
    flat: Tensor,
    index: Arc<ParameterIndex>,
}

impl Weights {
    /// Loads the weights of a model directory or a GGUF file, converted to `dtype` (f32, bf16 or f16): quantised ones
    /// are widened once, a piece at a time, and take then what those of an unquantised model take.
    ///
    /// # Errors
    /// [`WeightsError`], naming file and tensor.
    pub fn load(
        place: &Path,
        config: &Qwen3Config,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, WeightsError> {
        let index = ParameterIndex::new(config);
        let stored = StoredWeights::open(place, config, &index)?;
        let length = index.total();
        let flat = if dtype == DType::F32 {
            to_device(read::<f32>(&stored, &index, length)?, device)?
        } else if dtype == DType::BF16 {
            to_device(read::<bf16>(&stored, &index, length)?, device)?
        } else if dtype == DType::F16 {
            to_device(read::<f16>(&stored, &index, length)?, device)?
        } else {
            return Err(WeightsError::HeldType { found: dtype.as_str().to_owned() });
        };
        Ok(Self { flat, index: Arc::new(index) })
    }

    /// Random float32 weights as `transformers` starts a model: normal with standard deviation
    /// `initializer_range` (norms 1, biases 0). A parameter's numbers depend on the seed and its
    /// name alone.
    ///
    /// # Errors
    /// [`WeightsError::Memory`] or [`WeightsError::Device`].
    pub fn random(config: &Qwen3Config, seed: u64, device: &Device) -> Result<Self, WeightsError> {
        let index = ParameterIndex::new(config);
        let flat = draw(config, &index, seed, index.total())?;
        Ok(Self { flat: to_device(flat, device)?, index: Arc::new(index) })
    }

    /// Weights over an existing flat tensor of this layout; they share its storage.
    ///
    /// # Errors
    /// When the length is not the layout's.
    pub fn from_flat(flat: Tensor, index: Arc<ParameterIndex>) -> candle_core::Result<Self> {
        if flat.dims() != [index.total()] {
            candle_core::bail!("{:?} elements where {} are wanted", flat.dims(), index.total());
        }
        Ok(Self { flat, index })
    }

    /// All parameters, `[P]`.
    pub fn flat(&self) -> &Tensor {
        &self.flat
    }

    /// Where each parameter lies.
    pub fn index(&self) -> &Arc<ParameterIndex> {
        &self.index
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.flat.dtype()
    }

    /// The device that holds them.
    pub fn device(&self) -> &Device {
        self.flat.device()
    }

    /// The parameters' names, in the order of the flat tensor.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.parameters().iter().map(|parameter| parameter.name.as_str())
    }

    /// One parameter, a view in its shape.
    ///
    /// # Errors
    /// When no parameter has this name.
    pub fn get(&self, name: &str) -> candle_core::Result<Tensor> {
        self.index.view(&self.flat, name)
    }

    pub(crate) fn views(&self, blocks: usize) -> candle_core::Result<ModelViews> {
        ModelViews::new(&self.flat, &self.index, blocks)
    }
}

/// A run of elements of one parameter, and its part of the flat tensor.
struct Piece<'a, T> {
    parameter: usize,
    /// First element within the parameter.
    first: usize,
    values: &'a mut [T],
}

/// The flat tensor cut into pieces that can be filled in any order.
fn pieces<'a, T>(index: &ParameterIndex, mut flat: &'a mut [T]) -> Vec<Piece<'a, T>> {
    let mut pieces = Vec::new();
    for (number, parameter) in index.parameters().iter().enumerate() {
        let (mine, rest) = flat.split_at_mut(parameter.len());
        flat = rest;
        let cut = mine.chunks_mut(PIECE).enumerate();
        pieces.extend(cut.map(|(at, values)| Piece {
            parameter: number,
            first: at * PIECE,
            values,
        }));
    }
    pieces
}

/// The stored weights at the front of `length` elements, zeros after them.
pub(crate) fn read<T: Element>(
    stored: &StoredWeights,
    index: &ParameterIndex,
    length: usize,
) -> Result<Vec<T>, WeightsError> {
    let mut flat = zeros::<T>(length)?;
    pieces(index, &mut flat).into_par_iter().try_for_each(|piece| {
        let (file, tensor) = stored.get(piece.parameter);
        file.read(tensor, piece.first, piece.values)
    })?;
    Ok(flat)
}

/// Random weights at the front of `length` elements, zeros after them.
pub(crate) fn draw(
    config: &Qwen3Config,
    index: &ParameterIndex,
    seed: u64,
    length: usize,
) -> Result<Vec<f32>, WeightsError> {
    let mut flat = zeros::<f32>(length)?;
    let deviation = config.initializer_range;
    pieces(index, &mut flat).into_par_iter().for_each(|piece| {
        let parameter = &index.parameters()[piece.parameter];
        match parameter.kind() {
            ParameterKind::Bias => {}
            ParameterKind::Norm => piece.values.fill(1.0),
            ParameterKind::Matrix => {
                fill_normal(piece.values, deviation, seed, parameter, piece.first);
            }
        }
    });
    Ok(flat)
}

/// Zeros, on pages the system hands out once they are touched: what is written first by a training step
/// costs nothing while a model is loaded.
pub(crate) fn zeros<T: Element>(length: usize) -> Result<Vec<T>, WeightsError> {
    let values = bytemuck::allocation::try_zeroed_vec(length);
    let values = values.map_err(|()| WeightsError::Memory { parameters: length })?;
    malloc::ask_for_large_pages(&values);
    Ok(values)
}

fn to_device<T: Element>(flat: Vec<T>, device: &Device) -> Result<Tensor, WeightsError> {
    let length = flat.len();
    Ok(Tensor::from_vec(flat, length, device)?)
}

/// Normal numbers by the Box–Muller transform, in float64, from a stream of the piece's own.
fn fill_normal(values: &mut [f32], deviation: f64, seed: u64, parameter: &Parameter, first: usize) {
    let mut key = blake3::Hasher::new();
    key.update(&seed.to_le_bytes()).update(parameter.name.as_bytes());
    let mut random = ChaCha8Rng::from_seed(*key.finalize().as_bytes());
    random.set_stream((first / PIECE) as u64);
    // 53 random bits, the unit interval without its lower end (the logarithm needs that).
    let mut unit = || ((random.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64;
    for pair in values.chunks_mut(2) {
        let radius = deviation * (-2.0 * unit().ln()).sqrt();
        let angle = std::f64::consts::TAU * unit();
        pair[0] = (radius * angle.cos()) as f32;
        if let [_, second] = pair {
            *second = (radius * angle.sin()) as f32;
        }
    }
}

#[cfg(test)]
#[path = "weights_tests.rs"]
mod tests;
