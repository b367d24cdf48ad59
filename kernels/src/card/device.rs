//! The card itself: found, compared with what is needed, and its memory.
#![expect(unsafe_code, reason = "the driver's functions")]

use std::ffi::{CStr, c_void};

use cudarc::cublaslt;
use cudarc::driver::result::{self as driver, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};

use super::error::{CAPABILITY_NEEDED, CardError, DRIVER_NEEDED, LIBRARY_NEEDED};

/// A card that this process has opened, and that the thread that holds it uses.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) ordinal: usize,
    context: sys::CUcontext,
    /// What it calls itself.
    pub(super) name: String,
    pub(super) capability: [i32; 2],
    /// Memory that a block may ask for, in bytes.
    pub(super) block_memory: i32,
}

// SAFETY: a context may be used by any thread once it is that thread's current one (`be_current`).
unsafe impl Send for Device {}

impl Device {
    /// The card of this number, if it and what it needs are there.
    pub(super) fn open(ordinal: usize) -> Result<Self, CardError> {
        // SAFETY: looking for libraries.
        let [has_driver, has_library] =
            unsafe { [sys::is_culib_present(), cublaslt::sys::is_culib_present()] };
        if !has_driver {
            return Err(CardError::NoDriver { ordinal });
        }
        let failed = |what: &str| {
            let what = what.to_owned();
            move |source| CardError::Driver { ordinal, what, source }
        };
        let mut found = 0;
        // SAFETY: it writes a number.
        let version = unsafe { sys::cuDriverGetVersion(&raw mut found) };
        version.result().map_err(failed("asking for the driver's version"))?;
        if found < DRIVER_NEEDED {
            return Err(CardError::OldDriver { ordinal, found });
        }
        match driver::init() {
            Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => {
                return Err(CardError::NoCard { ordinal, count: 0 });
            }
            other => other.map_err(failed("starting the driver"))?,
        }
        let count = driver::device::get_count().map_err(failed("counting cards"))? as usize;
        if ordinal >= count {
            return Err(CardError::NoCard { ordinal, count });
        }
        let device = driver::device::get(ordinal as i32).map_err(failed("opening the card"))?;
        let name = driver::device::get_name(device).map_err(failed("asking for its name"))?;
        let attribute = |which| {
            // SAFETY: a card that there is.
            unsafe { driver::device::get_attribute(device, which) }
                .map_err(failed("asking what it can"))
        };
        let capability = [
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ];
        let block_memory =
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        if capability < CAPABILITY_NEEDED {
            return Err(CardError::OldCard { ordinal, name, found: capability });
        }
        if !has_library {
            return Err(CardError::NoLibrary { ordinal });
        }
        // SAFETY: it takes nothing and returns a number.
        let found = unsafe { cublaslt::sys::cublasLtGetCudartVersion() };
        if found < LIBRARY_NEEDED {
            return Err(CardError::OldLibrary { ordinal, found });
        }
        // The process keeps it: libraries lose what they have loaded into a context that goes.
        // SAFETY: a card that there is.
        let context =
            unsafe { driver::primary_ctx::retain(device) }.map_err(failed("opening the card"))?;
        let opened = Self { ordinal, context, name, capability, block_memory };
        opened.be_current()?;
        Ok(opened)
    }

    /// Makes its context this thread's.
    pub(super) fn be_current(&self) -> Result<(), CardError> {
        // SAFETY: the context lives as long as the process.
        let done = unsafe { driver::ctx::set_current(self.context) };
        self.say("using the card", done)
    }

    /// A call's result, named.
    pub(super) fn say<T>(
        &self,
        what: &str,
        result: Result<T, DriverError>,
    ) -> Result<T, CardError> {
        let ordinal = self.ordinal;
        result.map_err(|source| CardError::Driver { ordinal, what: what.to_owned(), source })
    }

    /// A call's result of the library of products, named.
    pub(super) fn say_library<T>(
        &self,
        what: impl FnOnce() -> String,
        result: Result<T, cublaslt::result::CublasError>,
    ) -> Result<T, CardError> {
        let ordinal = self.ordinal;
        result.map_err(|source| CardError::Library { ordinal, what: what(), source })
    }

    /// Free bytes, and all.
    pub(super) fn memory(&self) -> Result<[usize; 2], CardError> {
        let (free, total) = self.say("asking for free memory", driver::mem_get_info())?;
        Ok([free, total])
    }

    /// Memory on the card.
    pub(super) fn allocate(&self, what: &str, bytes: usize) -> Result<Memory, CardError> {
        // SAFETY: nobody reads it before it is written; it is given back once.
        match unsafe { driver::malloc_sync(bytes.max(1)) } {
            Ok(start) => Ok(Memory { start, bytes }),
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let [free, total] = self.memory()?;
                let (ordinal, what) = (self.ordinal, what.to_owned());
                Err(CardError::Memory { ordinal, what, wanted: bytes, free, total })
            }
            Err(source) => self.say(what, Err(source)),
        }
    }

    /// Memory of the host that copies to and from the card need not wait for.
    pub(super) fn pinned(&self, bytes: usize) -> Result<Pinned, CardError> {
        // SAFETY: nobody reads it before it is written; it is given back once.
        let start = unsafe { driver::malloc_host(bytes.max(1), 0) };
        let start = self.say("pinning memory of the host", start)?;
        Ok(Pinned { start: start.cast(), bytes })
    }

    /// The kernels, compiled for this card.
    pub(super) fn load(&self, image: &[u8]) -> Result<sys::CUmodule, CardError> {
        // SAFETY: an image as nvcc writes it.
        match unsafe { driver::module::load_data(image.as_ptr().cast::<c_void>()) } {
            Err(DriverError(
                sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
                | sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
                | sys::CUresult::CUDA_ERROR_INVALID_PTX,
            )) => Err(CardError::NotBuilt {
                ordinal: self.ordinal,
                name: self.name.clone(),
                found: self.capability,
            }),
            other => self.say("loading the kernels", other),
        }
    }

    /// A kernel by name.
    pub(super) fn function(
        &self,
        module: sys::CUmodule,
        name: &CStr,
    ) -> Result<sys::CUfunction, CardError> {
        // SAFETY: a module that is loaded.
        let found = unsafe { driver::module::get_function(module, name.to_owned()) };
        self.say(&format!("looking for the kernel {}", name.to_string_lossy()), found)
    }
}

/// Memory on the card.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) start: sys::CUdeviceptr,
    pub(super) bytes: usize,
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: it was allocated once; whoever uses it has waited for what runs.
        let _ = unsafe { driver::free_sync(self.start) };
    }
}

/// Pinned memory of the host.
#[derive(Debug)]
pub(super) struct Pinned {
    start: *mut u8,
    pub(super) bytes: usize,
}

// SAFETY: memory of the process, used by whoever holds it.
unsafe impl Send for Pinned {}

impl Pinned {
    pub(super) fn slice(&self, bytes: usize) -> &[u8] {
        assert!(bytes <= self.bytes);
        // SAFETY: so many bytes are there, and the copy that wrote them has ended.
        unsafe { std::slice::from_raw_parts(self.start, bytes) }
    }

    pub(super) fn slice_mut(&mut self, bytes: usize) -> &mut [u8] {
        assert!(bytes <= self.bytes);
        // SAFETY: so many bytes are there, and no copy reads them.
        unsafe { std::slice::from_raw_parts_mut(self.start, bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: it was allocated once; whoever uses it has waited for the copies.
        let _ = unsafe { driver::free_host(self.start.cast()) };
    }
}
