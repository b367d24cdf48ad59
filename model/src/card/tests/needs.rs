//! What a card's memory is taken for: sums known from the shapes, and that exactly so much suffices.

use std::path::Path;

use candle_core::Device as Tensors;
use candle_core::quantized::GgmlDType;
use kernels::counting::{Counting, WORKSPACE_BYTES};
use serde_json::json;

use crate::card::CardLearner;
use crate::card::needs::make_step;
use crate::config::Qwen3Config;
use crate::device::Device;
use crate::gguf::write::{Mixture, write};
use crate::needs::{Batch, Needs, Taught, answering, training};
use crate::ops::Precision;
use crate::parameters::ParameterIndex;
use crate::qwen3::ModelError;
use crate::recompute::Recompute;
use crate::student::{StudentError, Training};
use crate::test_support::config;
use crate::weights::Weights;

const CARD: Device = Device::Cuda(0);

/// A directory: what is in it is not read.
const NOWHERE: &str = "nowhere";

fn how(precision: Precision, recompute: Recompute) -> Training {
    Training { precision, recompute, ..Training::default() }
}

/// Six blocks of a middling width, so that what is kept of them is most of it.
fn model() -> Qwen3Config {
    config(json!({
        "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 6, "head_dim": 16,
        "vocab_size": 300,
    }))
}

fn of(how: &Training, rows: &[usize], taught: Taught) -> Needs {
    training(CARD, &model(), how, Batch { rows, taught }).unwrap()
}

#[test]
fn what_stays_is_known_from_the_shapes() {
    let (config, rows) = (model(), [64, 64, 30]);
    let parameters = ParameterIndex::new(&config).total() as u64;
    // Cosines and sines of 64 positions of half a head.
    let tables = 2 * 64 * 8 * 4;
    let listed = Taught::Listed { k: 5, own: 0 };
    let bf16 = of(&how(Precision::Bf16, Recompute::None), &rows, listed);
    assert_eq!(bf16.optimiser, 12 * parameters);
    // With what says whether steps are made.
    assert_eq!(bf16.gradients, 4 * parameters + 4);
    assert_eq!(bf16.model, 2 * parameters + tables);
    assert_eq!(bf16.workspace, WORKSPACE_BYTES as u64);
    assert_eq!(bf16.teacher, 0);
    let f32 = of(&how(Precision::F32, Recompute::None), &rows, listed);
    assert_eq!(f32.model, tables);
    // All of the classes there are.
    let k = config.vocab_size;
    let every = of(&how(Precision::F32, Recompute::None), &rows, Taught::Listed { k, own: k });
    assert!(every.loss > f32.loss);
    let all = Taught::All { width: 24, classes: 300 };
    let full = of(&how(Precision::Bf16, Recompute::None), &rows, all);
    assert_eq!(full.teacher, 2 * 24 * 300);
    let answers =
        answering(CARD, Path::new(NOWHERE), &config, Precision::Bf16, (&rows, 5)).unwrap().unwrap();
    assert_eq!((answers.model, answers.optimiser), (2 * parameters + tables, 0));
}

#[test]
fn activations_are_what_the_backward_needs() {
    let rows = [64; 16];
    let (tokens, heads, d, inner) = (64 * 16, 4, 64, 160);
    let kept_of = |bytes: usize| {
        // Per token: the block's input and middle in float32; q, k, v, attention, gate and up; sums of attention.
        let raw = (heads + 2 * 2) * 16;
        tokens * (2 * d * 4 + bytes * (raw + heads * 16 + 2 * inner) + heads * 4)
    };
    for (precision, bytes) in [(Precision::F32, 4), (Precision::Bf16, 2)] {
        let none = of(&how(precision, Recompute::None), &rows, Taught::Nothing);
        let blocks = of(&how(precision, Recompute::Blocks), &rows, Taught::Nothing);
        // Of six blocks, all at once where the backward begins; one of them is in what is computed meanwhile.
        let kept = 6 * kept_of(bytes) as u64;
        let passing = none.activations + none.loss;
        assert!(passing >= kept && passing < kept + 2 * kept_of(4) as u64, "{passing} {kept}");
        // Five of them are but their inputs then, and lie there for float32.
        let saved = none.activations + none.loss - blocks.activations - blocks.loss;
        let of_five = 5 * (kept_of(bytes) - tokens * d * 4) as u64;
        assert!(saved.abs_diff(of_five) <= kept_of(bytes) as u64, "{saved} {of_five}");
        assert_eq!(none.optimiser, blocks.optimiser);
    }
}

#[test]
fn so_much_suffices_and_a_byte_less_does_not() {
    let config = model();
    let (rows, how) = ([64, 50], how(Precision::Bf16, Recompute::Blocks));
    for taught in [
        Taught::Nothing,
        Taught::Listed { k: 7, own: 0 },
        Taught::Listed { k: 14, own: 14 },
        Taught::All { width: 24, classes: 300 },
    ] {
        let needs = of(&how, &rows, taught).total() as usize;
        let with = |room: usize| {
            let on = Counting::with_room(room);
            let mut learner = CardLearner::empty(on, config.clone(), how)?;
            make_step(&mut learner, &config, Batch { rows: &rows, taught })
        };
        with(needs).unwrap();
        let refused = with(needs - 1).unwrap_err();
        assert!(matches!(refused, StudentError::Model(ModelError::OutOfMemory(_))), "{refused}");
    }
}

/// A quantised teacher takes what its file's blocks do, and room to widen a matrix.
#[test]
fn a_quantised_model_is_counted_as_it_lies() {
    let (config, rows) = (model(), [64, 64, 30]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.gguf");
    let weights = Weights::random(&config, 5, &Tensors::Cpu).unwrap();
    write(&file, &config, &weights, Mixture::Pure(GgmlDType::Q8_0)).unwrap();
    let of = |place: &Path| {
        answering(CARD, place, &config, Precision::Bf16, (&rows, 5)).unwrap().unwrap()
    };
    let (quantised, plain) = (of(&file), of(Path::new(NOWHERE)));
    // 34 bytes for 32 weights; each matrix, and what lies between two, begins at a multiple of 256 bytes.
    let index = ParameterIndex::new(&config);
    let parameters = index.parameters();
    let blocks: usize =
        parameters.iter().filter(|p| p.shape.len() == 2).map(|p| p.len() / 32 * 34).sum();
    let others: usize = parameters.iter().filter(|p| p.shape.len() == 1).map(|p| 2 * p.len()).sum();
    let tables = 2 * 64 * 8 * 4;
    let least = (blocks + others) as u64 + tables;
    let most = least + 256 * parameters.len() as u64;
    assert!((least..most).contains(&quantised.model), "{least} {} {most}", quantised.model);
    assert!(quantised.model < plain.model && quantised.activations > plain.activations);
}

#[test]
fn a_longer_batch_takes_more_and_gradients_stay() {
    let how = how(Precision::Bf16, Recompute::Gradients);
    let batch = Batch { rows: &[9], taught: Taught::Nothing };
    let refused = training(CARD, &model(), &how, batch).unwrap_err().to_string();
    assert!(refused.contains("--recompute blocks"), "{refused}");
    let answers = |rows: &[usize]| {
        let needs = answering(CARD, Path::new(NOWHERE), &model(), Precision::F32, (rows, 5))
            .unwrap()
            .unwrap();
        needs.total()
    };
    assert!(answers(&[64; 8]) > answers(&[64; 4]));
    assert_eq!(
        answering(Device::Cpu, Path::new(NOWHERE), &model(), Precision::F32, (&[9], 5)).unwrap(),
        None
    );
}
