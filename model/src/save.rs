//! Models and training states written as safetensors: the same bytes Python's library writes.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use serde_json::{Map, Value, json};

use crate::config::Qwen3Config;
use crate::files;
use crate::weights::Weights;

/// Bytes of weights in one file before they are cut into shards, as `transformers` 4 cuts them.
const MAX_SHARD: usize = 5_000_000_000;
/// Elements converted at once.
const PIECE: usize = 1 << 20;

/// Why something could not be written.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The file system refused.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A type weights are not saved in.
    #[error("weights cannot be saved as {found}; accepted: f32, bf16, f16")]
    Type {
        /// The type asked for.
        found: String,
    },
    /// The device failed.
    #[error("the device could not give the weights back: {0}")]
    Device(#[from] candle_core::Error),
}

/// Writes `config.json` and the weights so that `transformers` and vLLM load the directory as it
/// stands: `model.safetensors`, or shards and an index above 5 GB; Hugging Face names,
/// `{"format": "pt"}`, no `lm_head.weight` when tied. `dtype` is f32, bf16 or f16. Each file
/// appears under its name only when it is whole and on the disk.
///
/// # Errors
/// [`SaveError`].
pub fn save_model(
    dir: &Path,
    config: &Qwen3Config,
    weights: &Weights,
    dtype: DType,
) -> Result<(), SaveError> {
    let name = python_name(dtype)?;
    std::fs::create_dir_all(dir)
        .map_err(|source| SaveError::Write { path: dir.to_owned(), source })?;
    save_weights(dir, weights, dtype, MAX_SHARD)?;
    write_file(&dir.join("config.json"), |file| {
        file.write_all(config.to_json(name).as_bytes()).map_err(Fault::Io)
    })
}

/// A tensor to be written: its name and shape, and its elements as a flat f32 tensor.
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) flat: Tensor,
}

/// Writes one safetensors file; tensors in the order given.
pub(crate) fn write_tensors(
    path: &Path,
    metadata: Map<String, Value>,
    entries: &[Entry],
    dtype: DType,
) -> Result<(), SaveError> {
    let header = header(metadata, entries, dtype);
    write_file(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for entry in entries {
            write_elements(file, &entry.flat, dtype)?;
        }
        Ok(())
    })
}

pub(crate) fn save_weights(
    dir: &Path,
    weights: &Weights,
    dtype: DType,
    max_shard: usize,
) -> Result<(), SaveError> {
    let (single, index) = (dir.join("model.safetensors"), "model.safetensors.index.json");
    let mut shards = cut_into_shards(weights, dtype, max_shard)?;
    let format = || Map::from_iter([("format".to_owned(), json!("pt"))]);
    if let [only] = &mut shards[..] {
        only.sort_by(|a, b| a.name.cmp(&b.name));
        write_tensors(&single, format(), only, dtype)?;
        return remove_stale(&dir.join(index));
    }
    let count = shards.len();
    let mut places = std::collections::BTreeMap::new();
    for (number, shard) in shards.iter_mut().enumerate() {
        let name = format!("model-{:05}-of-{count:05}.safetensors", number + 1);
        shard.sort_by(|a, b| a.name.cmp(&b.name));
        write_tensors(&dir.join(&name), format(), shard, dtype)?;
        places.extend(shard.iter().map(|entry| (entry.name.clone(), name.clone())));
    }
    let total = weights.index().total();
    let text = json!({
        "metadata": {
            "total_parameters": total,
            "total_size": total * dtype.size_in_bytes(),
        },
        "weight_map": places,
    });
    write_file(&dir.join(index), |file| {
        serde_json::to_writer_pretty(file, &text).map_err(|error| Fault::Io(error.into()))
    })?;
    remove_stale(&single)
}

/// Greedily, in the order of the network; a tensor larger than a shard has one to itself.
fn cut_into_shards(
    weights: &Weights,
    dtype: DType,
    max_shard: usize,
) -> Result<Vec<Vec<Entry>>, SaveError> {
    let mut shards = vec![Vec::new()];
    let mut size = 0;
    for parameter in weights.index().parameters() {
        let bytes = parameter.len() * dtype.size_in_bytes();
        if size > 0 && size + bytes > max_shard {
            shards.push(Vec::new());
            size = 0;
        }
        size += bytes;
        if let Some(shard) = shards.last_mut() {
            shard.push(Entry {
                name: parameter.name.clone(),
                shape: parameter.shape.clone(),
                flat: weights.flat().narrow(0, parameter.offset, parameter.len())?,
            });
        }
    }
    Ok(shards)
}

/// As the safetensors library writes it: compact JSON, padded with blanks to 8 bytes.
fn header(metadata: Map<String, Value>, entries: &[Entry], dtype: DType) -> Vec<u8> {
    let mut fields = Map::from_iter([("__metadata__".to_owned(), Value::Object(metadata))]);
    let mut start = 0;
    for entry in entries {
        let end = start + entry.flat.elem_count() * dtype.size_in_bytes();
        let info = json!({
            "dtype": dtype.as_str().to_uppercase(),
            "shape": entry.shape,
            "data_offsets": [start, end],
        });
        fields.insert(entry.name.clone(), info);
        start = end;
    }
    let mut text = Value::Object(fields).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    text
}

fn write_elements(file: &mut impl Write, flat: &Tensor, dtype: DType) -> Result<(), Fault> {
    let length = flat.elem_count();
    for first in (0..length).step_by(PIECE) {
        let piece = flat.narrow(0, first, PIECE.min(length - first))?.to_dtype(dtype)?;
        if dtype == DType::BF16 {
            let values = piece.to_vec1::<bf16>()?;
            file.write_all(bytemuck::cast_slice(values.reinterpret_cast()))?;
        } else if dtype == DType::F16 {
            let values = piece.to_vec1::<f16>()?;
            file.write_all(bytemuck::cast_slice(values.reinterpret_cast()))?;
        } else {
            file.write_all(bytemuck::cast_slice(&piece.to_vec1::<f32>()?))?;
        }
    }
    Ok(())
}

fn python_name(dtype: DType) -> Result<&'static str, SaveError> {
    let names = [(DType::F32, "float32"), (DType::BF16, "bfloat16"), (DType::F16, "float16")];
    let found = names.iter().find(|(known, _)| *known == dtype);
    found.map(|(_, name)| *name).ok_or_else(|| SaveError::Type { found: dtype.as_str().to_owned() })
}

/// A single file left beside shards, or an index beside a single file, would be loaded instead.
fn remove_stale(path: &Path) -> Result<(), SaveError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(SaveError::Write { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

enum Fault {
    Io(std::io::Error),
    Device(candle_core::Error),
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<candle_core::Error> for Fault {
    fn from(error: candle_core::Error) -> Self {
        Self::Device(error)
    }
}

fn write_file(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<(), Fault>,
) -> Result<(), SaveError> {
    files::write(path, fill).map_err(|fault| match fault {
        Fault::Io(source) => SaveError::Write { path: path.to_owned(), source },
        Fault::Device(error) => SaveError::Device(error),
    })
}

#[cfg(test)]
#[path = "save_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "save_peer_tests.rs"]
mod peer_tests;
