//! The kernels of `cuda/`, as nvcc compiled them for this program's cards, and their launches.
#![expect(unsafe_code, reason = "the driver's functions")]

use std::collections::HashMap;
use std::ffi::{CString, c_void};

use cudarc::driver::result as driver;
use cudarc::driver::sys::{self, CUdeviceptr, CUfunction_attribute_enum as Attribute};

use super::device::Device;
use super::error::CardError;
use crate::program::View;
use crate::{Argument, Call};

/// Code for each capability that was asked for, and PTX for newer ones.
static IMAGE: &Aligned<[u8]> =
    &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin")));

/// The driver reads words of it.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

/// Memory of a block that needs no asking for.
const USUAL_MEMORY: u32 = 48 << 10;

/// The kernels that are loaded.
pub(super) struct Kernels {
    module: sys::CUmodule,
    functions: HashMap<&'static str, Function>,
}

// SAFETY: handles that any thread may use.
unsafe impl Send for Kernels {}

#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    /// Memory of a block that it may take.
    memory: u32,
}

impl Kernels {
    pub(super) fn load(device: &Device) -> Result<Self, CardError> {
        Ok(Self { module: device.load(&IMAGE.0)?, functions: HashMap::new() })
    }

    /// Puts a launch into a stream.
    pub(super) fn launch(
        &mut self,
        device: &Device,
        stream: sys::CUstream,
        call: &Call<View>,
        address: impl Fn(&View) -> CUdeviceptr,
    ) -> Result<(), CardError> {
        let function = self.function(device, call)?;
        // What a parameter's address is taken of.
        let mut words: Vec<u64> = call
            .arguments
            .iter()
            .map(|argument| match argument {
                Argument::Buffer(view) => address(view),
                Argument::U32(value) => u64::from(*value),
                Argument::F32(value) => u64::from(value.to_bits()),
                Argument::F64(value) => value.to_bits(),
            })
            .collect();
        let mut parameters: Vec<*mut c_void> =
            words.iter_mut().map(|word| std::ptr::from_mut(word).cast()).collect();
        let [x, y] = call.blocks;
        // SAFETY: the arguments are those the emulation compares with the kernel's parameters, over memory that the
        // executor has placed.
        let done = unsafe {
            driver::launch_kernel(
                function,
                (x, y, 1),
                (call.threads, 1, 1),
                call.memory,
                stream,
                &mut parameters,
            )
        };
        device.say(call.kernel, done)
    }

    /// A kernel that may take as much memory of a block as the launch wants.
    fn function(
        &mut self,
        device: &Device,
        call: &Call<View>,
    ) -> Result<sys::CUfunction, CardError> {
        if !self.functions.contains_key(call.kernel) {
            let name = CString::new(call.kernel).expect("a name without 0");
            let handle = device.function(self.module, &name)?;
            self.functions.insert(call.kernel, Function { handle, memory: USUAL_MEMORY });
        }
        let function = self.functions.get_mut(call.kernel).expect("it was looked for");
        if call.memory > function.memory {
            let (ordinal, found) = (device.ordinal, device.block_memory);
            if i64::from(call.memory) > i64::from(found) {
                let (kernel, wanted) = (call.kernel, call.memory);
                return Err(CardError::BlockMemory { ordinal, kernel, wanted, found });
            }
            let which = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a kernel that is loaded.
            let done = unsafe {
                driver::function::set_function_attribute(function.handle, which, call.memory as i32)
            };
            device.say(&format!("{}: {} bytes a block", call.kernel, call.memory), done)?;
            function.memory = call.memory;
        }
        Ok(function.handle)
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        // SAFETY: it was loaded once, and what runs has been waited for.
        let _ = unsafe { driver::module::unload(self.module) };
    }
}
