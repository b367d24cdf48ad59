//! Why a card cannot be used, or has failed: what was found, what is needed, what to do.

use cudarc::cublaslt::result::CublasError;
use cudarc::cublaslt::sys::cublasStatus_t;
use cudarc::driver::result::DriverError;
use cudarc::driver::sys::CUresult;

/// Oldest driver that reads what these kernels were compiled to, as CUDA counts: 1000 · major + 10 · minor.
pub(super) const DRIVER_NEEDED: i32 = 13_000;
/// Oldest cuBLASLt that the calls were written for, by the CUDA runtime it was built with, as CUDA counts.
pub(super) const LIBRARY_NEEDED: usize = 13_000;
/// Oldest capability with the instructions these kernels use (`mma.sync` of bfloat16, `cp.async`).
pub(super) const CAPABILITY_NEEDED: [i32; 2] = [8, 0];

/// What is wrong.
#[derive(Debug, thiserror::Error)]
pub enum CardError {
    /// No driver library.
    #[error(
        "cuda:{ordinal}: no NVIDIA driver was found (libcuda.so.1 is not on the library path); install driver 580 or newer, \
         in a container start it with --gpus, or choose --device cpu"
    )]
    NoDriver {
        /// Which card was asked for.
        ordinal: usize,
    },
    /// An old driver.
    #[error(
        "cuda:{ordinal}: the driver is too old: it speaks CUDA {}.{} and {}.{} is needed; install driver 580 or newer, or \
         choose --device cpu", found / 1000, found % 1000 / 10, DRIVER_NEEDED / 1000, DRIVER_NEEDED % 1000 / 10
    )]
    OldDriver {
        /// Which card was asked for.
        ordinal: usize,
        /// What it speaks, as CUDA counts.
        found: i32,
    },
    /// No such card.
    #[error(
        "cuda:{ordinal}: there is no such card; the driver shows {count} (counted from cuda:0, as CUDA_VISIBLE_DEVICES leaves \
         them): choose one of them, or --device cpu"
    )]
    NoCard {
        /// Which card was asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// An old card.
    #[error(
        "cuda:{ordinal}: {name} has compute capability {}.{}, needed is {}.{} or newer (Ampere, 2020): choose another card, or \
         --device cpu", found[0], found[1], CAPABILITY_NEEDED[0], CAPABILITY_NEEDED[1]
    )]
    OldCard {
        /// Which card was asked for.
        ordinal: usize,
        /// What it calls itself.
        name: String,
        /// Its compute capability.
        found: [i32; 2],
    },
    /// Kernels that were not compiled for it.
    #[error(
        "cuda:{ordinal}: {name} has compute capability {}.{}, which this program was not built for: build it with \
         --features cuda and KERNELS_ARCH={}{}", found[0], found[1], found[0], found[1]
    )]
    NotBuilt {
        /// Which card was asked for.
        ordinal: usize,
        /// What it calls itself.
        name: String,
        /// Its compute capability.
        found: [i32; 2],
    },
    /// A kernel wants more memory of a block than the card has.
    #[error(
        "cuda:{ordinal}: the kernel {kernel} takes {wanted} bytes of a block's memory and the card has {found}: heads of this \
         size are not computed on it; choose a card of compute capability 8.0 or 9.0, or --device cpu"
    )]
    BlockMemory {
        /// Which card it is.
        ordinal: usize,
        /// The kernel.
        kernel: &'static str,
        /// Bytes wanted.
        wanted: u32,
        /// Bytes there are.
        found: i32,
    },
    /// No library of matrix products.
    #[error(
        "cuda:{ordinal}: cuBLASLt was not found (libcublasLt.so.13 is not on the library path): install CUDA 13's cuBLAS, or \
         set LD_LIBRARY_PATH to where it is (/usr/local/cuda/lib64)"
    )]
    NoLibrary {
        /// Which card was asked for.
        ordinal: usize,
    },
    /// An old library of matrix products.
    #[error(
        "cuda:{ordinal}: cuBLASLt is too old: it is CUDA {}.{}'s and {}.{}'s is needed: install CUDA 13's cuBLAS, or set \
         LD_LIBRARY_PATH to where it is (/usr/local/cuda/lib64)", found / 1000, found % 1000 / 10, LIBRARY_NEEDED / 1000,
        LIBRARY_NEEDED % 1000 / 10
    )]
    OldLibrary {
        /// Which card was asked for.
        ordinal: usize,
        /// Whose it is, as CUDA counts.
        found: usize,
    },
    /// Not enough memory.
    #[error(
        "cuda:{ordinal}: {what} takes {} and {} of {} are free; other programs hold the rest, or it is not enough: make \
         the batch smaller, compute blocks again (recompute), or choose another card",
        gib(*wanted), gib(*free), gib(*total)
    )]
    Memory {
        /// Which card it is.
        ordinal: usize,
        /// What it was wanted for.
        what: String,
        /// Bytes wanted.
        wanted: usize,
        /// Bytes that were free.
        free: usize,
        /// Bytes of the card.
        total: usize,
    },
    /// The card refused a call.
    #[error(
        "cuda:{ordinal}: {what}: {source}; start the program again, and where it comes again ask nvidia-smi and the \
         system's log what ails the card"
    )]
    Driver {
        /// Which card it is.
        ordinal: usize,
        /// What was done.
        what: String,
        /// What the driver says.
        source: DriverError,
    },
    /// The library of products refused a call.
    #[error(
        "cuda:{ordinal}: {what}: cuBLASLt says {source}; of ALLOC_FAILED and NOT_INITIALIZED the cause is a card whose memory is \
         full: end other programs on it, make the batch smaller or choose another card; of anything else start the program \
         again"
    )]
    Library {
        /// Which card it is.
        ordinal: usize,
        /// What was done.
        what: String,
        /// What it says.
        source: CublasError,
    },
}

impl CardError {
    /// Whether memory did not suffice: then nothing was changed, and less may be tried.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::Memory { .. } => true,
            Self::Driver { source, .. } => source.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY,
            // It takes memory of its own when it starts, and when a kernel of its is first used.
            Self::Library { source, .. } => matches!(
                source.0,
                cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED
                    | cublasStatus_t::CUBLAS_STATUS_NOT_INITIALIZED
            ),
            Self::NoDriver { .. }
            | Self::OldDriver { .. }
            | Self::NoCard { .. }
            | Self::OldCard { .. }
            | Self::NotBuilt { .. }
            | Self::NoLibrary { .. }
            | Self::OldLibrary { .. }
            | Self::BlockMemory { .. } => false,
        }
    }

    /// Whether the card has failed for good: whatever this process asks of it from then on fails too (the CUDA driver's
    /// documentation of its errors, "the process must be terminated and relaunched"; ECC and NVLink's likewise).
    pub fn is_lost(&self) -> bool {
        use CUresult::*;
        let Self::Driver { source, .. } = self else { return false };
        matches!(
            source.0,
            CUDA_ERROR_DEVICE_UNAVAILABLE
                | CUDA_ERROR_ECC_UNCORRECTABLE
                | CUDA_ERROR_NVLINK_UNCORRECTABLE
                | CUDA_ERROR_CONTAINED
                | CUDA_ERROR_ILLEGAL_ADDRESS
                | CUDA_ERROR_LAUNCH_TIMEOUT
                | CUDA_ERROR_CONTEXT_IS_DESTROYED
                | CUDA_ERROR_ASSERT
                | CUDA_ERROR_HARDWARE_STACK_ERROR
                | CUDA_ERROR_ILLEGAL_INSTRUCTION
                | CUDA_ERROR_MISALIGNED_ADDRESS
                | CUDA_ERROR_INVALID_ADDRESS_SPACE
                | CUDA_ERROR_INVALID_PC
                | CUDA_ERROR_LAUNCH_FAILED
                | CUDA_ERROR_TENSOR_MEMORY_LEAK
                | CUDA_ERROR_MPS_CLIENT_TERMINATED
                | CUDA_ERROR_EXTERNAL_DEVICE
                | CUDA_ERROR_SYSTEM_NOT_READY
                | CUDA_ERROR_UNKNOWN
        )
    }
}

fn gib(bytes: usize) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_say_what_was_found_and_what_is_needed() {
        let old = CardError::OldDriver { ordinal: 1, found: 12_080 }.to_string();
        assert!(
            old.starts_with("cuda:1: ") && old.contains("CUDA 12.8 and 13.0 is needed"),
            "{old}"
        );
        let card = CardError::OldCard { ordinal: 0, name: "Tesla T4".to_owned(), found: [7, 5] };
        assert!(card.to_string().contains("Tesla T4 has compute capability 7.5, needed is 8.0"));
        let memory = CardError::Memory {
            ordinal: 0,
            what: "a step".to_owned(),
            wanted: 3 << 30,
            free: 1 << 30,
            total: 4 << 30,
        };
        assert!(memory.is_out_of_memory() && !card.is_out_of_memory());
        let driver = |result| CardError::Driver {
            ordinal: 0,
            what: "waiting for the card".to_owned(),
            source: DriverError(result),
        };
        let lost = driver(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        assert!(lost.is_lost() && !lost.is_out_of_memory() && !memory.is_lost());
        let full = driver(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        assert!(full.is_out_of_memory() && !full.is_lost());
        let contained = driver(CUresult::CUDA_ERROR_CONTAINED);
        assert!(contained.is_lost());
        let library = |status| CardError::Library {
            ordinal: 0,
            what: "starting it".to_owned(),
            source: CublasError(status),
        };
        let full = library(cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED);
        assert!(full.is_out_of_memory() && full.to_string().contains("end other programs"));
        assert!(library(cublasStatus_t::CUBLAS_STATUS_NOT_INITIALIZED).is_out_of_memory());
        let refused = library(cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED);
        assert!(!refused.is_out_of_memory() && !refused.is_lost());
        assert!(
            memory.to_string().contains("a step takes 3.00 GiB and 1.00 GiB of 4.00 GiB are free")
        );
    }
}
