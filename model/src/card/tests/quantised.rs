//! A quantised teacher on a card, against the processor's with the same numbers widened.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use distill::signal::Entries;
use kernels::emulation::TestDevice;
use kernels::executor::Executor as _;
use kernels::program::Kind;
use kernels::quantised::Quantised;
use serde_json::json;
use tempfile::TempDir;

use super::{BOTH, emulated};
use crate::card::CardModel;
use crate::card::network::Making;
use crate::card::weight::{Piece, Weight};
use crate::config::Qwen3Config;
use crate::gguf::write::{Mixture, write};
use crate::language_model::{Asked, LanguageModel, Said};
use crate::ops::Precision;
use crate::ops::head::Teaching;
use crate::ops::topk::Wanted;
use crate::qwen3::Qwen3;
use crate::test_support::{batch, config, relative, settings, signal, values};
use crate::weights::Weights;

/// Rows are whole blocks of every type, or none of Q4_K and Q6_K are: 32 of Q8_0.
fn of_rows(width: usize, tied: bool) -> Qwen3Config {
    config(json!({
        "hidden_size": width, "intermediate_size": width, "head_dim": width / 4, "num_hidden_layers": 3,
        "tie_word_embeddings": tied, "attention_bias": !tied,
    }))
}

fn written(config: &Qwen3Config, mixture: Mixture) -> (TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let weights = Weights::random(config, 5, &Device::Cpu).unwrap();
    write(&path, config, &weights, mixture).unwrap();
    (dir, path)
}

/// The file's model on the processor in float32, and on a card.
fn both(
    config: &Qwen3Config,
    mixture: Mixture,
    precision: Precision,
) -> (Qwen3, CardModel<TestDevice>) {
    let (_dir, path) = written(config, mixture);
    let weights = Weights::load(&path, config, DType::F32, &Device::Cpu).unwrap();
    let host = Qwen3::new(config.clone(), weights, Precision::F32).unwrap();
    let card = CardModel::quantised(TestDevice::default(), &path, config.clone(), precision);
    (host, card.unwrap())
}

/// Q4_K_M has matrices of two types side by side in one product; bfloat16 is what is left where rows are no blocks.
const MIXTURES: [(usize, Mixture); 4] = [
    (32, Mixture::Pure(GgmlDType::Q8_0)),
    (256, Mixture::Q4KM),
    (256, Mixture::Pure(GgmlDType::F16)),
    (40, Mixture::Pure(GgmlDType::Q8_0)),
];

#[test]
fn hidden_states_are_those_of_the_widened_model() {
    if !emulated("hidden_states_are_those_of_the_widened_model") {
        return;
    }
    for (number, (width, mixture)) in MIXTURES.into_iter().enumerate() {
        let config = of_rows(width, number % 2 == 1);
        let batch = batch(&[3, 1, 7], config.vocab_size, 3);
        for (precision, far) in BOTH {
            let (host, card) = both(&config, mixture, precision);
            let error = relative(&card.states(&batch).unwrap(), &host.states(&batch).unwrap());
            assert!(error < far, "{width}, {mixture:?}, {precision}: {error}");
            let head = LanguageModel::head(&card).unwrap().to_dtype(DType::F32).unwrap();
            let error = relative(&values(&head), &values(Qwen3::head(&host)));
            assert!(error < far && head.dims() == Qwen3::head(&host).dims(), "{error}");
        }
    }
}

#[test]
fn an_output_layer_in_parts_says_what_it_says_at_once() {
    if !emulated("an_output_layer_in_parts_says_what_it_says_at_once") {
        return;
    }
    let (classes, rows, width, of) = (300, 3, 64, Quantised::Q8_0);
    let w = Tensor::randn(0.0_f32, 1.0, (classes, width), &Device::Cpu).unwrap();
    let w = QTensor::quantize(&w, GgmlDType::Q8_0).unwrap();
    let mut on = TestDevice::default();
    let view = on.keep("w", Kind::Bytes, of.bytes_of(classes * width)).unwrap();
    on.write(view, &w.data().unwrap()).unwrap();
    let w = w.dequantize(&Device::Cpu).unwrap();
    let piece = Piece { view, quantised: Some(of), len: classes * width };
    let head = Weight::Pieces(vec![piece]);
    let hidden = Tensor::randn(0.0_f32, 1.0, (rows, width), &Device::Cpu).unwrap();
    // From the second class on, into rows that are longer than needed.
    let (these, stride) = (1..classes, classes + 5);
    for bytes in [1, 4 * 128 * width, 4 * 256 * width, 1 << 20] {
        let mut making = Making::default();
        let at = making.send(&values(&hidden));
        let blank = making.send(&vec![f32::NAN; rows * stride]);
        let program = &mut making.program;
        let logits = program.output(Kind::F32, rows * stride);
        program.copy(blank, logits);
        head.logits_within(bytes, program, (at, width), these.clone(), (logits, stride));
        let found = on.run(program, &making.inputs).unwrap().get::<f32>(logits);
        let wanted = hidden.matmul(&w.t().unwrap()).unwrap();
        for (found, wanted) in found.chunks(stride).zip(values(&wanted).chunks(classes)) {
            assert!(relative(&found[..classes - 1], &wanted[1..]) < 1e-6, "parts of {bytes} bytes");
            assert!(found[classes - 1..].iter().all(|x| x.is_nan()), "it wrote beyond its classes");
        }
    }
}

#[test]
fn what_is_asked_of_a_quantised_output_layer_is_answered_and_measured() {
    if !emulated("what_is_asked_of_a_quantised_output_layer_is_answered_and_measured") {
        return;
    }
    for tied in [true, false] {
        let config = of_rows(256, tied);
        let (host, card) = both(&config, Mixture::Q4KM, Precision::F32);
        let batch = batch(&[5, 4], config.vocab_size, 4);
        let next = vec![Some(7); 9];
        let positions: Vec<u32> = (0..9).collect();
        let (classes, entries) = (59, &Entries::Top);
        let wanted = Wanted { classes, next: &next, temperature: 2.0, k: 6, entries };
        let asked = [(&positions[..], Asked::Listed(wanted))];
        let listed = |model: &dyn LanguageModel| match model.answer(&batch, &asked).unwrap().pop() {
            Some(Ok(Said::Listed(scores))) => scores,
            other => panic!("{other:?}"),
        };
        let (wanted, found) = (listed(&host), listed(&card));
        assert_eq!(wanted.signal.ids, found.signal.ids);
        assert!(relative(&found.signal.scaled, &wanted.signal.scaled) < 3e-5);
        assert!(relative(&found.next_logprob, &wanted.next_logprob) < 3e-5);
        let settings = settings();
        let said = signal(batch.scored().len(), config.vocab_size, &settings, 1);
        let said = Some(Teaching::TopK(&said));
        let wanted = host.losses(&batch, config.vocab_size, said, &settings).unwrap();
        let found = card.losses(&batch, config.vocab_size, said, &settings).unwrap();
        assert!(relative(&found.ce, &wanted.ce) < 3e-5);
        assert!(relative(&found.kl, &wanted.kl) < 3e-5);
    }
}
