//! The engine on a card, emulated, against the processor's.

use candle_core::Device;
use distill::batch::TokenBatch;
use half::bf16;
use kernels::Activations;
use kernels::emulation::{AVAILABLE, Emulation};
use kernels::executor::Executor;
use kernels::program::Kind;
use serde_json::json;

use super::network::{Making, Network};
use crate::config::Qwen3Config;
use crate::ops::Precision;
use crate::qwen3::Qwen3;
use crate::recompute::Recompute;
use crate::test_support::{batch, config, relative, values};
use crate::weights::Weights;

fn emulated(test: &str) -> bool {
    if !AVAILABLE {
        test_support::skip(test, "c++", "no compiler of C++20 was found (g++ 10 or newer, $CXX)");
    }
    AVAILABLE
}

fn hidden_on_card(
    config: &Qwen3Config,
    weights: &Weights,
    batch: &TokenBatch,
    activations: Activations,
) -> Vec<f32> {
    let on = &mut Emulation::new(1);
    let kind = Kind::from(activations);
    let flat = on.keep("weights", kind, weights.index().total()).unwrap();
    let numbers = values(weights.flat());
    match activations {
        Activations::F32 => on.write(flat, &numbers).unwrap(),
        Activations::Bf16 => {
            let rounded: Vec<bf16> = numbers.iter().map(|&x| bf16::from_f32(x)).collect();
            on.write(flat, &rounded).unwrap();
        }
    }
    let network = Network::new(on, config.clone(), weights.index(), flat, activations).unwrap();
    let mut making = Making::default();
    let shape = network.shape(&mut making, batch);
    let tape = network.forward(&mut making, batch, &shape, Recompute::None);
    let positions: Vec<u32> = (0..batch.ids().len() as u32).collect();
    let hidden = network.hidden(&mut making, &tape, &positions, &shape).hidden;
    let output = making.program.output(kind, hidden.len);
    making.program.copy(hidden, output);
    let outputs = on.run(&making.program, &making.inputs).unwrap();
    match activations {
        Activations::F32 => outputs.get::<f32>(output),
        Activations::Bf16 => outputs.get::<bf16>(output).into_iter().map(bf16::to_f32).collect(),
    }
}

#[test]
fn hidden_states_are_the_processors() {
    if !emulated("hidden_states_are_the_processors") {
        return;
    }
    for bias in [false, true] {
        let config = config(json!({"attention_bias": bias, "tie_word_embeddings": !bias}));
        let weights = Weights::random(&config, 5, &Device::Cpu).unwrap();
        let batch = batch(&[7, 1, 20], config.vocab_size, 3);
        let model = Qwen3::new(config.clone(), weights.clone(), Precision::F32).unwrap();
        let exact = values(&model.forward_hidden(&batch).unwrap());
        for (activations, far) in [(Activations::F32, 2e-5), (Activations::Bf16, 2e-2)] {
            let found = hidden_on_card(&config, &weights, &batch, activations);
            let error = relative(&found, &exact);
            assert!(error < far, "{activations:?}: {error}");
        }
    }
}
