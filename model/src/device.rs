//! The device a model runs on, from what a person wrote.

use candle_core::{Device, DeviceLocation};

use crate::ops::Precision;

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Not one of the names below.
    #[error("unknown device `{found}`; accepted: auto, cpu, cuda:N (N from 0)")]
    Unknown {
        /// What was asked for.
        found: String,
    },
    /// A CUDA device was asked for and this version computes on the CPU.
    #[error(
        "device `{found}` cannot be used: this version has kernels for the CPU only; \
         choose --device cpu (or auto)"
    )]
    NoCudaKernels {
        /// What was asked for.
        found: String,
    },
}

/// The device for `auto`, `cpu` or `cuda:N`. `auto` takes the best device the kernels of this
/// version can use.
///
/// # Errors
/// [`DeviceError::Unknown`] for any other name, [`DeviceError::NoCudaKernels`] for `cuda:N`.
pub fn choose(name: &str) -> Result<Device, DeviceError> {
    match name {
        "auto" | "cpu" => return Ok(Device::Cpu),
        "cuda" => return Err(DeviceError::NoCudaKernels { found: name.to_owned() }),
        _ => {}
    }
    let ordinal = name.strip_prefix("cuda:").and_then(|n| n.parse::<u32>().ok());
    Err(match ordinal {
        Some(_) => DeviceError::NoCudaKernels { found: name.to_owned() },
        None => DeviceError::Unknown { found: name.to_owned() },
    })
}

/// A device in the words of the flags.
pub fn name(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => "cpu".to_owned(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

/// The arithmetic `auto` means: 16-bit products are slower than 32-bit ones on many processors, and
/// many times faster on a GPU.
pub fn auto_precision(device: &Device) -> Precision {
    if device.is_cpu() { Precision::F32 } else { Precision::Bf16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_accepted_or_refused_with_the_names_that_are() {
        assert!(choose("auto").unwrap().is_cpu());
        let cpu = choose("cpu").unwrap();
        assert_eq!((name(&cpu), auto_precision(&cpu)), ("cpu".to_owned(), Precision::F32));
        assert!(matches!(choose("cuda:0"), Err(DeviceError::NoCudaKernels { .. })));
        for wrong in ["", "gpu", "CPU", "cuda:", "cuda:-1", "cuda:x", "cuda:99999999999"] {
            let message = choose(wrong).unwrap_err().to_string();
            assert!(message.contains("accepted: auto, cpu, cuda:N"), "{message}");
        }
    }
}
