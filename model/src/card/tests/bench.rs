//! The benchmark's programs, at sizes an emulation carries: they run, and count what they should.

use kernels::emulation::TestDevice;
use serde_json::json;

use super::emulated;
use crate::card::bench::{
    TINY, attention_both, copy, optimiser, output_layer, rate, student, teacher,
};
use crate::parameters::ParameterIndex;
use crate::test_support::config;

#[test]
fn everything_that_is_measured_on_a_card_runs() {
    if !emulated("everything_that_is_measured_on_a_card_runs") {
        return;
    }
    let config = config(json!({"vocab_size": 200}));
    let on = &mut TestDevice::default();
    assert_eq!(rate(on, TINY).unwrap().operations, 2.0 * 16.0 * 16.0 * 16.0);
    assert_eq!(copy(on, TINY).unwrap().bytes, 8000.0);
    assert_eq!(optimiser(on, TINY).unwrap().bytes, 30_000.0);
    // Two rows of nine tokens: q·kᵀ and p·v of 16 heads of 128, half the squares, and five like them back.
    let operations = attention_both(on, TINY).unwrap().operations;
    assert_eq!(operations, 7.0 * 2.0 * 81.0 * 2048.0);
    let [whole, alone] = output_layer(on, &config, TINY).unwrap();
    assert_eq!((whole.operations, alone.operations), (6.0 * 6.0 * 24.0 * 200.0, whole.operations));
    // Logits of six positions, and little beside them.
    assert!((6 * 200 * 4..10_000).contains(&(whole.memory as usize)), "{}", whole.memory);
    let of_teacher = teacher(TestDevice::default(), &config, TINY).unwrap();
    let [of_student, plan] = student(TestDevice::default(), &config, TINY).unwrap();
    assert_eq!(of_student.memory, plan.memory);
    // Weights of a layer: q, k and v, attention's output, the gated layer; of 18 tokens and 2 layers.
    let matrices = 24.0 * 64.0 + 32.0 * 24.0 + 3.0 * 24.0 * 40.0;
    let attention = 2.0 * 2.0 * 81.0 * 32.0 * 2.0;
    let blocks = 2.0 * 18.0 * 2.0 * matrices + attention;
    assert_eq!(of_teacher.operations, blocks + 2.0 * 18.0 * 24.0 * 200.0);
    // At least what stays: float32 weights, moments and gradients, and the rounded weights.
    let parameters = ParameterIndex::new(&config).total() as u64;
    assert!(of_student.memory > 18 * parameters, "{}", of_student.memory);
    assert_eq!(of_student.operations, 3.0 * (blocks + 2.0 * 16.0 * 24.0 * 200.0));
}
