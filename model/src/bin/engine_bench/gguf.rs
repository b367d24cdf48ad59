//! A model of a directory as a GGUF file.

use std::error::Error;
use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device};
use model::config::Qwen3Config;
use model::gguf::write::{Mixture, write};
use model::weights::Weights;

/// Writes the model of `dir` to `file`, and gives the names of matrices that were left in bfloat16.
pub(super) fn convert(
    dir: &Path,
    mixture: &str,
    file: &Path,
) -> Result<Vec<String>, Box<dyn Error>> {
    let mixture = match mixture {
        "F16" => Mixture::Pure(GgmlDType::F16),
        "Q8_0" => Mixture::Pure(GgmlDType::Q8_0),
        "Q6_K" => Mixture::Pure(GgmlDType::Q6K),
        "Q4_K" => Mixture::Pure(GgmlDType::Q4K),
        "Q4_K_M" => Mixture::Q4KM,
        other => return Err(format!("{other} is none of F16, Q8_0, Q6_K, Q4_K and Q4_K_M").into()),
    };
    let config = Qwen3Config::from_dir(dir)?;
    let weights = Weights::load(dir, &config, DType::F32, &Device::Cpu)?;
    Ok(write(file, &config, &weights, mixture)?)
}
