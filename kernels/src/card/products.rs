//! Matrix products by cuBLASLt.
//!
//! The library reads matrices column after column, ours lie row after row: what it is told is the transposed product,
//! `intoᵀ = bᵀ · aᵀ`. Which of its kernels to take it is asked once for each shape; the answer is the same for the same
//! shape, card and version of the library.
#![expect(unsafe_code, reason = "the library's functions")]

use std::collections::HashMap;
use std::ffi::c_void;

use cudarc::cublaslt::result as lt;
use cudarc::cublaslt::sys::{
    self, cublasLtMatmulDescAttributes_t as DescriptionAttribute,
    cublasLtMatmulPreferenceAttributes_t as PreferenceAttribute,
};
use cudarc::driver::sys::{CUdeviceptr, CUstream};

use super::device::{Device, Memory};
use super::error::CardError;
use crate::counting::WORKSPACE_BYTES;
use crate::program::{Kind, Matrix, Product};

/// Shapes that are remembered, about 1 KB of the host's memory each; where more come, as batches of ever other lengths
/// bring, all are asked about anew.
pub(super) const MOST_SHAPES: usize = 4096;
/// Largest alignment that is told.
const MOST_ALIGNMENT: u64 = 256;

/// What decides which kernel is taken.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Shape {
    /// Rows, columns, elements from row to row, and whether transposed: of a, b and into.
    matrices: [(usize, usize, usize, bool); 3],
    kinds: [Kind; 2],
    adds: bool,
    alignments: [u64; 4],
}

/// A product as the library knows it.
struct Known {
    description: sys::cublasLtMatmulDesc_t,
    /// Of b, a and into.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Drop for Known {
    fn drop(&mut self) {
        // SAFETY: each was made once; what they say is nobody's to hear any more. The library reads them when a product is put
        // into a stream, and no later.
        unsafe {
            let _ = lt::destroy_matmul_desc(self.description);
            for layout in self.layouts {
                let _ = lt::destroy_matrix_layout(layout);
            }
        }
    }
}

/// The library, and what it has been asked.
pub(super) struct Products {
    handle: sys::cublasLtHandle_t,
    workspace: Memory,
    known: HashMap<Shape, Known>,
}

// SAFETY: the handle may be used by any thread, one at a time.
unsafe impl Send for Products {}

/// Where the matrices of a product lie.
#[derive(Clone, Copy)]
pub(super) struct Addresses {
    pub(super) a: CUdeviceptr,
    pub(super) b: CUdeviceptr,
    pub(super) into: CUdeviceptr,
    pub(super) plus: Option<CUdeviceptr>,
}

impl Products {
    pub(super) fn new(device: &Device) -> Result<Self, CardError> {
        let workspace = device.allocate("the products' workspace", WORKSPACE_BYTES)?;
        let handle = device.say_library(|| "starting it".to_owned(), lt::create_handle())?;
        Ok(Self { handle, workspace, known: HashMap::new() })
    }

    /// Shapes that are remembered.
    #[cfg(test)]
    pub(super) fn known(&self) -> usize {
        self.known.len()
    }

    /// Puts a product behind what runs in a stream.
    pub(super) fn launch(
        &mut self,
        device: &Device,
        stream: CUstream,
        of: &Product,
        at: Addresses,
    ) -> Result<(), CardError> {
        let shape = Shape::of(of, at);
        if !self.known.contains_key(&shape) {
            let known = self.ask(of, &shape);
            let known = device.say_library(|| format!("asking about {of:?}"), known)?;
            if self.known.len() == MOST_SHAPES {
                self.known.clear();
            }
            self.known.insert(shape.clone(), known);
        }
        let known = &self.known[&shape];
        let beta = if at.plus.is_some() { 1.0_f32 } else { 0.0 };
        let plus = at.plus.unwrap_or(at.into);
        let [b, a, into] = known.layouts;
        // SAFETY: layouts and addresses are those of views that the executor has checked, and the workspace lives as
        // long as the library.
        let done = unsafe {
            lt::matmul(
                self.handle,
                known.description,
                (&raw const of.scale).cast(),
                (&raw const beta).cast(),
                at.b as *const c_void,
                b,
                at.a as *const c_void,
                a,
                plus as *const c_void,
                into,
                at.into as *mut c_void,
                into,
                &raw const known.algorithm,
                self.workspace.start as *mut c_void,
                self.workspace.bytes,
                stream.cast(),
            )
        };
        device.say_library(|| format!("{of:?}"), done)
    }

    fn ask(&self, of: &Product, shape: &Shape) -> Result<Known, lt::CublasError> {
        // Float32 is multiplied as float32: no TF32.
        let (compute, scale) =
            (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F);
        let description = lt::create_matmul_desc(compute, scale)?;
        for (attribute, transposed) in [
            (DescriptionAttribute::CUBLASLT_MATMUL_DESC_TRANSA, of.b.transposed),
            (DescriptionAttribute::CUBLASLT_MATMUL_DESC_TRANSB, of.a.transposed),
        ] {
            let operation = i32::from(transposed);
            // SAFETY: a description, and as many bytes as are said.
            unsafe {
                lt::set_matmul_desc_attribute(
                    description,
                    attribute,
                    (&raw const operation).cast(),
                    size_of::<i32>(),
                )
            }?;
        }
        let layouts = [layout(&of.b)?, layout(&of.a)?, layout(&of.into)?];
        let preference = lt::create_matmul_pref()?;
        let [a, b, into, plus] = shape.alignments.map(|alignment| alignment as u32);
        // Parts of a long sum are added in float32 and in one order: neither in the result's type nor in its place, as they
        // come (cuBLASLt's documentation, "cublasLtReductionScheme_t").
        let parts = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        for (attribute, value) in [
            (PreferenceAttribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, parts),
            (PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b),
            (PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a),
            (PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, plus),
            (PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, into),
        ] {
            // SAFETY: a preference, and as many bytes as are said.
            unsafe {
                lt::set_matmul_pref_attribute(
                    preference,
                    attribute,
                    (&raw const value).cast(),
                    size_of::<u32>(),
                )
            }?;
        }
        let bytes = self.workspace.bytes;
        // SAFETY: as above; then handles that live.
        let found = unsafe {
            lt::set_matmul_pref_attribute(
                preference,
                PreferenceAttribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const bytes).cast(),
                size_of::<usize>(),
            )?;
            let [b, a, into] = layouts;
            lt::get_matmul_algo_heuristic(self.handle, description, b, a, into, into, preference)
        };
        // SAFETY: it was made above and is used no more.
        unsafe { lt::destroy_matmul_pref(preference) }?;
        Ok(Known { description, layouts, algorithm: found?.algo })
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        self.known.clear();
        // SAFETY: it was made once, and nothing that it made is there any more.
        let _ = unsafe { lt::destroy_handle(self.handle) };
    }
}

impl Shape {
    fn of(product: &Product, at: Addresses) -> Self {
        let matrix = |of: &Matrix| (of.rows, of.columns, of.stride, of.transposed);
        let Product { a, b, into, plus, .. } = product;
        // Whole rows must be aligned, not their first alone.
        let alignment = |address: CUdeviceptr, of: &Matrix| {
            let stride = (of.stride * of.view.kind.bytes()) as u64;
            let bits = address | stride | MOST_ALIGNMENT;
            bits & bits.wrapping_neg()
        };
        Self {
            matrices: [matrix(a), matrix(b), matrix(into)],
            kinds: [a.view.kind, into.view.kind],
            adds: plus.is_some(),
            alignments: [
                alignment(at.a, a),
                alignment(at.b, b),
                alignment(at.into, into),
                alignment(at.plus.unwrap_or(at.into), into),
            ],
        }
    }
}

/// A matrix as the library sees it: its rows are our columns.
fn layout(of: &Matrix) -> Result<sys::cublasLtMatrixLayout_t, lt::CublasError> {
    let kind = match of.view.kind {
        Kind::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        Kind::F32 | Kind::F64 | Kind::U32 | Kind::Bytes => sys::cudaDataType::CUDA_R_32F,
    };
    lt::create_matrix_layout(kind, of.columns as u64, of.rows as u64, of.stride as i64)
}
