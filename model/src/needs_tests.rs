//! The parts on the processor, and the choice that they lead to.

use serde_json::json;

use super::*;
use crate::parameters::ParameterIndex;
use crate::test_support::config;

const NOTHING: Taught = Taught::Nothing;

fn of(recompute: Recompute, taught: Taught) -> Needs {
    let config = config(json!({"num_hidden_layers": 3}));
    let how = Training { recompute, ..Training::default() };
    training(Device::Cpu, &config, &how, Batch { rows: &[40, 60], taught }).unwrap()
}

#[test]
fn the_parts_are_those_of_the_estimate() {
    let config = config(json!({"num_hidden_layers": 3}));
    let parameters = ParameterIndex::new(&config).total() as u64;
    for recompute in Recompute::ALL {
        let needs = of(recompute, NOTHING);
        assert_eq!(needs.optimiser, 12 * parameters);
        let step = needs.gradients + needs.activations + needs.loss;
        assert_eq!(step, recompute.step_bytes(&config, 100));
        assert_eq!(needs.total(), needs.optimiser + step);
    }
    assert_eq!(of(Recompute::None, NOTHING).gradients, 4 * parameters);
    // A row of 61 logits each.
    assert_eq!(of(Recompute::None, NOTHING).loss, 4 * 100 * 61);
    let all = of(Recompute::None, Taught::All { width: 12, classes: 61 });
    assert_eq!(all.teacher, 4 * 12 * 61);
    assert_eq!(all.total() - all.teacher, of(Recompute::None, NOTHING).total());
}

#[test]
fn amounts_have_units() {
    assert_eq!(amount(300 << 20), "300 MiB");
    assert_eq!(amount(3 << 29), "1.5 GiB");
}

#[test]
fn the_fastest_choice_that_fits_is_taken() {
    let with = |choices: &[Recompute]| -> Vec<(Recompute, Needs)> {
        choices.iter().map(|&choice| (choice, of(choice, NOTHING))).collect()
    };
    let (several, alone) = (with(choices(Device::Cpu, false)), with(choices(Device::Cpu, true)));
    let [all, blocks, gradients] = Recompute::ALL.map(|choice| of(choice, NOTHING).total());
    assert!(all > blocks && blocks > gradients);
    assert_eq!(choose(&alone, all), Recompute::None);
    assert_eq!(choose(&alone, all - 1), Recompute::Blocks);
    assert_eq!(choose(&alone, blocks - 1), Recompute::Gradients);
    assert_eq!(choose(&alone, 0), Recompute::Gradients);
    // With several batches a step the gradients must be kept, and on a card always.
    assert_eq!(choose(&several, blocks - 1), Recompute::Blocks);
    assert_eq!(choices(Device::Cuda(0), true), choices(Device::Cpu, false));
}
