//! One file of tensors, safetensors (or GGUF, [`crate::gguf`]): its header checked against the file, its tensors read a
//! piece at a time.
//!
//! Pieces are read at their position instead of through a memory map: a file cut short while it
//! is read is then an error and not a signal that ends the process, and no `unsafe` is needed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use candle_core::CpuStorage;
use candle_core::quantized::GgmlDType;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use kernels::quantised::Quantised;
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde_json::Value;

/// The length of the header's length.
const PREFIX: u64 = 8;
/// The longest header accepted: that of the safetensors library.
const MAX_HEADER: u64 = 100_000_000;

/// Why a safetensors file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TensorFileError {
    /// The file cannot be opened or read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The header is no safetensors header.
    #[error("{path} is not a safetensors file: {reason}; fetch it again")]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file's length is not what its header says.
    #[error("{path} holds {found} bytes where its header describes {wanted}; fetch it again")]
    Length {
        /// The file.
        path: PathBuf,
        /// Bytes in the file.
        found: u64,
        /// Bytes the header describes.
        wanted: u64,
    },
    /// Tensors that overlap or leave a gap.
    #[error(
        "{path}: the bytes of tensor `{tensor}` overlap another's or leave a gap before them; \
         the file is damaged or hostile"
    )]
    Offsets {
        /// The file.
        path: PathBuf,
        /// The tensor whose offsets are wrong.
        tensor: String,
    },
    /// A tensor of a type that is not read.
    #[error(
        "{path}: tensor `{tensor}` is stored as {found}; accepted: F32, BF16, F16, and in GGUF files Q8_0, Q4_K, Q6_K"
    )]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type in the file.
        found: String,
    },
}

/// An open file whose header has been checked.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    tensors: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

/// A tensor as a header describes it.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Its type, or the name of one that is not read.
    pub(crate) dtype: Result<StoredDtype, String>,
    pub(crate) shape: Vec<usize>,
    /// First byte in the file.
    pub(crate) start: u64,
}

/// A tensor of floats in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTensor {
    /// Element type.
    pub dtype: StoredDtype,
    /// Shape.
    pub shape: Vec<usize>,
    /// First byte in the file.
    start: u64,
}

/// The element types of stored weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredDtype {
    /// IEEE single precision.
    F32,
    /// Bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// Blocks of numbers, quantised.
    Quantised(Quantised),
}

impl StoredDtype {
    /// Bytes of so many elements, whole blocks where they are quantised.
    pub fn bytes_of(self, elements: usize) -> usize {
        match self {
            Self::F32 => 4 * elements,
            Self::Bf16 | Self::F16 => 2 * elements,
            Self::Quantised(blocks) => blocks.bytes_of(elements),
        }
    }
}

impl StoredTensor {
    /// Bytes of the whole tensor.
    pub fn bytes(&self) -> usize {
        self.dtype.bytes_of(self.shape.iter().product())
    }
}

impl TensorFile {
    /// Opens a safetensors file and checks its header: tensors lie end to end, their sizes follow from shape
    /// and type, and together they fill the file.
    ///
    /// # Errors
    /// [`TensorFileError`]: every fault has its variant; no bytes can cause a panic.
    pub fn open(path: &Path) -> Result<Self, TensorFileError> {
        let failed = |source| TensorFileError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let invalid = |reason| TensorFileError::Header { path: path.to_owned(), reason };
        if length < PREFIX {
            return Err(invalid(format!("it has only {length} bytes")));
        }
        let mut prefix = [0; PREFIX as usize];
        file.read_exact_at(&mut prefix, 0).map_err(failed)?;
        let header = u64::from_le_bytes(prefix);
        if header > MAX_HEADER {
            return Err(invalid(format!("its header would have {header} bytes")));
        }
        if header > length - PREFIX {
            return Err(TensorFileError::Length {
                path: path.to_owned(),
                found: length,
                wanted: PREFIX + header,
            });
        }
        let mut text = vec![0; header as usize];
        file.read_exact_at(&mut text, PREFIX).map_err(failed)?;
        let (metadata, tensors) = parse_header(path, &text)?;
        let data = tensors.values().map(|info| info.data_offsets.1 as u64).max().unwrap_or(0);
        let data_start = PREFIX + header;
        let wanted = data_start.saturating_add(data);
        if wanted != length {
            return Err(TensorFileError::Length { path: path.to_owned(), found: length, wanted });
        }
        let entry = |info: TensorInfo| {
            let start = data_start + info.data_offsets.0 as u64;
            Entry { dtype: stored_dtype(info.dtype), shape: info.shape, start }
        };
        let tensors = tensors.into_iter().map(|(name, info)| (name, entry(info))).collect();
        Ok(Self { path: path.to_owned(), file, tensors, metadata })
    }

    /// A file whose header has been read and checked elsewhere.
    pub(crate) fn of(path: &Path, file: File, tensors: BTreeMap<String, Entry>) -> Self {
        Self { path: path.to_owned(), file, tensors, metadata: BTreeMap::new() }
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether the file holds a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The file's `__metadata__`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The tensor of a name, or None when the file has none of it.
    ///
    /// # Errors
    /// [`TensorFileError::Dtype`] when it does not hold floats of an accepted type.
    pub fn tensor(&self, name: &str) -> Result<Option<StoredTensor>, TensorFileError> {
        let Some(Entry { dtype, shape, start }) = self.tensors.get(name) else { return Ok(None) };
        match dtype {
            Ok(dtype) => {
                Ok(Some(StoredTensor { dtype: *dtype, shape: shape.clone(), start: *start }))
            }
            Err(found) => Err(TensorFileError::Dtype {
                path: self.path.clone(),
                tensor: name.to_owned(),
                found: found.clone(),
            }),
        }
    }

    /// Reads the bytes of a tensor from its byte `first` on.
    ///
    /// # Errors
    /// [`TensorFileError::Read`].
    pub fn read_bytes(
        &self,
        tensor: &StoredTensor,
        first: u64,
        into: &mut [u8],
    ) -> Result<(), TensorFileError> {
        self.file
            .read_exact_at(into, tensor.start + first)
            .map_err(|source| TensorFileError::Read { path: self.path.clone(), source })
    }

    /// Reads the elements of a tensor from element `first` on, converted to the type of `into`
    /// (to nearest even where it is narrower). Quantised ones begin and end where blocks do.
    ///
    /// # Errors
    /// [`TensorFileError::Read`].
    ///
    /// # Panics
    /// When they begin or end within a block.
    pub fn read<T: Element>(
        &self,
        tensor: &StoredTensor,
        first: usize,
        into: &mut [T],
    ) -> Result<(), TensorFileError> {
        let start = tensor.dtype.bytes_of(first) as u64;
        let mut wide = vec![0f32; into.len()];
        match tensor.dtype {
            StoredDtype::F32 => {
                self.read_bytes(tensor, start, bytemuck::cast_slice_mut(&mut wide))?;
            }
            StoredDtype::Bf16 | StoredDtype::F16 => {
                let mut bits = vec![0u16; into.len()];
                self.read_bytes(tensor, start, bytemuck::cast_slice_mut(&mut bits))?;
                if tensor.dtype == StoredDtype::Bf16 {
                    bits.reinterpret_cast::<bf16>().convert_to_f32_slice(&mut wide);
                } else {
                    bits.reinterpret_cast::<f16>().convert_to_f32_slice(&mut wide);
                }
            }
            StoredDtype::Quantised(blocks) => {
                let mut halves = vec![0_u16; blocks.bytes_of(into.len()) / 2];
                self.read_bytes(tensor, start, bytemuck::cast_slice_mut(&mut halves))?;
                wide = dequantise(blocks, &halves);
            }
        }
        T::narrow(&wide, into);
        Ok(())
    }
}

/// The numbers of blocks, which are read by candle as ggml reads them, two bytes at a time.
pub(crate) fn dequantise(of: Quantised, blocks: &[u16]) -> Vec<f32> {
    let blocks: &[u8] = bytemuck::cast_slice(blocks);
    let dtype = match of {
        Quantised::Q8_0 => GgmlDType::Q8_0,
        Quantised::Q4K => GgmlDType::Q4K,
        Quantised::Q6K => GgmlDType::Q6K,
    };
    let numbers = blocks.len() / of.bytes() * of.values();
    match dtype.from_data(Cow::Borrowed(blocks)).dequantize(numbers) {
        Ok(CpuStorage::F32(values)) => values,
        other => unreachable!("candle widens blocks to float32: {:?}", other.map(drop)),
    }
}

fn stored_dtype(dtype: Dtype) -> Result<StoredDtype, String> {
    if dtype == Dtype::F32 {
        Ok(StoredDtype::F32)
    } else if dtype == Dtype::BF16 {
        Ok(StoredDtype::Bf16)
    } else if dtype == Dtype::F16 {
        Ok(StoredDtype::F16)
    } else {
        Err(dtype.to_string())
    }
}

/// An element type weights are held in.
pub trait Element: candle_core::WithDType + bytemuck::Zeroable {
    /// Rounds to this type, to nearest even.
    fn narrow(from: &[f32], into: &mut [Self]);
}

impl Element for f32 {
    fn narrow(from: &[f32], into: &mut [Self]) {
        into.copy_from_slice(from);
    }
}

impl Element for bf16 {
    fn narrow(from: &[f32], into: &mut [Self]) {
        into.convert_from_f32_slice(from);
    }
}

impl Element for f16 {
    fn narrow(from: &[f32], into: &mut [Self]) {
        into.convert_from_f32_slice(from);
    }
}

type Header = (BTreeMap<String, String>, BTreeMap<String, TensorInfo>);

fn parse_header(path: &Path, text: &[u8]) -> Result<Header, TensorFileError> {
    let invalid = |reason: String| TensorFileError::Header { path: path.to_owned(), reason };
    let mut entries: BTreeMap<String, Value> =
        serde_json::from_slice(text).map_err(|error| invalid(error.to_string()))?;
    let metadata = match entries.remove("__metadata__") {
        None | Some(Value::Null) => BTreeMap::new(),
        Some(value) => serde_json::from_value(value)
            .map_err(|error| invalid(format!("its __metadata__: {error}")))?,
    };
    let mut tensors = BTreeMap::new();
    for (name, value) in entries {
        let info: TensorInfo = serde_json::from_value(value)
            .map_err(|error| invalid(format!("tensor `{name}`: {error}")))?;
        tensors.insert(name, info);
    }
    let mut ordered: Vec<_> = tensors.iter().map(|(n, info)| (n.clone(), info.clone())).collect();
    ordered.sort_by_key(|(_, info)| info.data_offsets);
    // The library's own check: no gaps, no overlaps, sizes that follow from shape and type.
    match Metadata::new(None, ordered) {
        Ok(_) => Ok((metadata, tensors)),
        Err(SafeTensorError::InvalidOffset(tensor)) => {
            Err(TensorFileError::Offsets { path: path.to_owned(), tensor })
        }
        Err(other) => Err(invalid(other.to_string())),
    }
}

#[cfg(test)]
#[path = "tensor_file_tests.rs"]
mod tests;
