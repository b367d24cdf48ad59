//! The engine on a card, emulated, against the processor's in float32, which its own tests hold against `f64`.

mod answers;
mod bench;
mod learning;
mod needs;
mod quantised;
#[cfg(feature = "cuda")]
mod taken;

use candle_core::Device;
use kernels::emulation::{AVAILABLE, TestDevice};

use super::CardModel;
use crate::config::Qwen3Config;
use crate::ops::Precision;
use crate::qwen3::Qwen3;
use crate::weights::Weights;

fn emulated(test: &str) -> bool {
    if !AVAILABLE {
        test_support::skip(test, "c++", "no compiler of C++20 was found (g++ 10 or newer, $CXX)");
    }
    AVAILABLE
}

/// Both precisions of a card, and how far from float32 each may be: of float32 sums in another order, of bfloat16 the
/// rounding of a few dozen operands one after another.
const BOTH: [(Precision, f64); 2] = [(Precision::F32, 3e-5), (Precision::Bf16, 3e-2)];

/// A model on the processor in float32, and the same on a card. Its weights are what bfloat16 holds, as those of published
/// models are.
fn both(config: &Qwen3Config, precision: Precision) -> (Qwen3, CardModel<TestDevice>) {
    let drawn = Weights::random(config, 5, &Device::Cpu).unwrap();
    let rounded = drawn.flat().to_dtype(candle_core::DType::BF16).unwrap();
    let flat = rounded.to_dtype(candle_core::DType::F32).unwrap();
    let weights = Weights::from_flat(flat, drawn.index().clone()).unwrap();
    let card = CardModel::new(TestDevice::default(), config.clone(), &weights, precision).unwrap();
    (Qwen3::new(config.clone(), weights, Precision::F32).unwrap(), card)
}
