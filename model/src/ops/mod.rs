//! The operations of the network, each a pair of functions: forward, and backward written by hand.
//!
//! Candle supplies storage ([`Tensor`]) and devices; there is no autograd. Every operation takes
//! and returns contiguous `f32` tensors (weights may be stored in `bf16` or `f16`), and every
//! gradient is *added* to the tensor it is meant for. [`mod@reference`] holds each of them again,
//! slowly and in `f64`.
//!
//! What holds for all of them, and is tested:
//! - the bits of a result do not depend on the number of threads;
//! - what a packed row gives does not depend on the other rows of its batch;
//! - two tensors one operation writes to may be views of one arena, but a tensor written to never
//!   shares its storage with one that is read.

pub mod adamw;
pub mod attention;
pub mod draws;
pub mod embed;
#[cfg(test)]
mod emulated_tests;
pub mod head;
pub mod math;
pub mod matmul;
pub mod norm;
pub(crate) mod parallel;
pub(crate) mod product;
mod qkv;
pub mod reference;
pub mod rope;
pub mod swiglu;
#[cfg(test)]
pub(crate) mod testing;
pub mod topk;

use std::cell::Cell;
use std::ops::{Deref, Range};

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Result, Storage, Tensor, bail};
use half::{bf16, f16};
use product::MatRef;

/// The type to which the operands of matrix products are rounded (to nearest, ties to even).
///
/// Sums are kept in `f32` whatever the precision; norms, softmax, the residual stream, the loss
/// and the gradients of weights are `f32` throughout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Operands as they are.
    #[default]
    F32,
    /// Operands rounded to bfloat16.
    Bf16,
    /// Operands rounded to IEEE half precision.
    F16,
}

impl Precision {
    /// The element type the operands are rounded to.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.dtype().as_str())
    }
}

/// Floating-point values of any of the three stored types.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Floats<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Bfloat16.
    Bf16(&'a [bf16]),
    /// IEEE half precision.
    F16(&'a [f16]),
}

impl<'a> From<&'a [f32]> for Floats<'a> {
    fn from(values: &'a [f32]) -> Self {
        Self::F32(values)
    }
}

impl Floats<'_> {
    /// The number of values.
    pub(crate) fn len(self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::Bf16(x) => x.len(),
            Self::F16(x) => x.len(),
        }
    }

    /// The values of a range of indices.
    pub(crate) fn slice(self, range: Range<usize>) -> Self {
        match self {
            Self::F32(x) => Self::F32(&x[range]),
            Self::Bf16(x) => Self::Bf16(&x[range]),
            Self::F16(x) => Self::F16(&x[range]),
        }
    }
}

/// A tensor's storage, locked for reading.
pub(crate) struct Reading<'a, Guard> {
    storage: Guard,
    layout: &'a Layout,
}

/// Locks a tensor for reading; the slices are borrowed from the result.
pub(crate) fn read(tensor: &Tensor) -> Reading<'_, impl Deref<Target = Storage>> {
    let (storage, layout) = tensor.storage_and_layout();
    Reading { storage, layout }
}

impl<Guard: Deref<Target = Storage>> Reading<'_, Guard> {
    /// The values of an `f32` tensor.
    pub(crate) fn f32(&self) -> Result<&[f32]> {
        match self.floats()? {
            Floats::F32(values) => Ok(values),
            Floats::Bf16(_) | Floats::F16(_) => bail!("a 16-bit tensor where f32 is wanted"),
        }
    }

    /// The first rows of a matrix of any of these types.
    pub(crate) fn rows(&self, rows: usize) -> Result<MatRef<'_>> {
        let (_, width) = self.layout.shape().dims2()?;
        Ok(MatRef::new(self.floats()?, rows, width))
    }

    /// The values of a tensor of any of the three floating-point types.
    pub(crate) fn floats(&self) -> Result<Floats<'_>> {
        let range = contiguous(self.layout)?;
        #[expect(clippy::wildcard_enum_match_arm, reason = "every other type is refused alike")]
        match cpu_storage(&self.storage)? {
            CpuStorage::F32(values) => Ok(Floats::F32(&values[range])),
            CpuStorage::BF16(values) => Ok(Floats::Bf16(&values[range])),
            CpuStorage::F16(values) => Ok(Floats::F16(&values[range])),
            other => bail!("a tensor of {:?} where f32, bf16 or f16 is wanted", dtype_of(other)),
        }
    }
}

/// Gives `f` the values of a contiguous `f32` tensor or view, to be changed in place.
///
/// The tensor's storage is locked for writing meanwhile: `f` must not lock it again.
pub(crate) fn write_f32<R>(tensor: &Tensor, f: impl FnOnce(&mut [f32]) -> Result<R>) -> Result<R> {
    let op = InPlace { f: Cell::new(Some(f)), result: Cell::new(None) };
    tensor.inplace_op1(&op)?;
    match op.result.into_inner() {
        Some(result) => Ok(result),
        None => bail!("an in-place operation was not run"),
    }
}

/// Adds `values` to a contiguous `f32` tensor or view.
pub(crate) fn add_values(tensor: &Tensor, values: &[f32]) -> Result<()> {
    expect_len("accumulator", tensor.elem_count(), values.len())?;
    write_f32(tensor, |acc| {
        math::add_assign(acc, values);
        Ok(())
    })
}

/// A new tensor on the CPU.
pub(crate) fn tensor(values: Vec<f32>, shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &Device::Cpu)
}

/// Refuses a length other than the one wanted.
pub(crate) fn expect_len(what: &str, found: usize, wanted: usize) -> Result<()> {
    if found != wanted {
        bail!("{what}: {found} elements found, {wanted} wanted");
    }
    Ok(())
}

/// Refuses a shape other than the one wanted.
pub(crate) fn expect_shape(what: &str, found: &Tensor, wanted: &[usize]) -> Result<()> {
    if found.dims() != wanted {
        bail!("{what}: shape {:?} found, {wanted:?} wanted", found.dims());
    }
    Ok(())
}

/// Refuses row ends that do not rise to `tokens`, and gives the rows as ranges.
pub(crate) fn rows(row_ends: &[usize], tokens: usize) -> Result<Vec<Range<usize>>> {
    let mut start = 0;
    let mut rows = Vec::with_capacity(row_ends.len());
    for &end in row_ends {
        if end < start {
            bail!("row ends must not fall: {end} after {start}");
        }
        rows.push(start..end);
        start = end;
    }
    if start != tokens {
        bail!("the last row ends at {start} but there are {tokens} tokens");
    }
    Ok(rows)
}

/// The one place that says which devices have kernels.
fn cpu_storage(storage: &Storage) -> Result<&CpuStorage> {
    match storage {
        Storage::Cpu(storage) => Ok(storage),
        Storage::Cuda(_) | Storage::Metal(_) => {
            bail!("this operation has no kernel for this device yet: use the CPU")
        }
    }
}

fn contiguous(layout: &Layout) -> Result<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => bail!("a tensor of shape {:?} must be contiguous here", layout.dims()),
    }
}

fn dtype_of(storage: &CpuStorage) -> DType {
    candle_core::backend::BackendStorage::dtype(storage)
}

struct InPlace<F, R> {
    f: Cell<Option<F>>,
    result: Cell<Option<R>>,
}

impl<R, F: FnOnce(&mut [f32]) -> Result<R>> InplaceOp1 for InPlace<F, R> {
    fn name(&self) -> &'static str {
        "write_f32"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let range = contiguous(layout)?;
        let CpuStorage::F32(values) = storage else {
            bail!("a tensor of {:?} where f32 is wanted", dtype_of(storage));
        };
        if let Some(f) = self.f.take() {
            self.result.set(Some(f(&mut values[range])?));
        }
        Ok(())
    }
}
