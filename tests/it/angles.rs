//! How far the student's gradient under a signal is from that under all the teacher knows: on real
//! text, with the small trained models.

use std::path::Path;
use std::sync::Arc;

use candle_core::Tensor;
use distill::batch::{Sequence, TokenBatch};
use distill::codec::draws::{HEAD_BYTES, Head, Values, decode, encode};
use distill::coded::Rung;
use distill::fingerprint::{Fingerprint, token_checksum};
use distill::hidden::{self, HiddenForm};
use distill::signal::{DrawKey, Draws};
use hub::tokenizer::Tokenizer;
use model::coding::{Decoder, Encoder, Sample, fit, to_tensor};
use model::config::Qwen3Config;
use model::ops::Precision;
use model::ops::draws::{WantedDraws, draw_head};
use model::ops::embed::gather_rows;
use model::ops::head::{LossSettings, Teaching};
use model::qwen3::Qwen3;
use model::student::{Student, Training};
use model::weights::Weights;
use tests::shared;

/// Scored positions, of held-out text.
const POSITIONS: usize = 4096;
/// Tokens of a row at most, and rows of a batch.
const ROW: usize = 256;
const BATCH: usize = 8;
/// Positions of other text that a code is made from.
const CALIBRATION: usize = 8192;
/// The most bytes of a reply beside its arrays (`proto`), for each row.
const ENVELOPE: usize = 128;

/// Both models, and held-out text.
struct Field {
    teacher: Qwen3,
    student: Student,
    classes: usize,
    rows: Vec<Sequence>,
    /// Of the teacher's hidden states, from text that is not in `rows`.
    encoder: Encoder,
}

/// n draws and k exact entries a position, or all: as they are, in a form, or coded.
#[derive(Clone, Copy, Debug)]
enum Signal {
    Full,
    Draws { draws: u32, k: usize, seed: u64 },
    Form(HiddenForm),
    Coded(Rung),
}

impl Field {
    fn new(models: &Path, data: &Path) -> Self {
        let device = candle_core::Device::Cpu;
        let of_teacher = models.join("gsm8k-teacher");
        let config = Qwen3Config::from_dir(&of_teacher).expect("a configuration");
        let classes = config.vocab_size;
        let weights = Weights::load(&of_teacher, &config, Precision::F32.dtype(), &device);
        let weights = weights.expect("the teacher's weights");
        let teacher = Qwen3::new(config, weights, Precision::F32).expect("the teacher");
        let of_student = models.join("gsm8k-student");
        let config = Qwen3Config::from_dir(&of_student).expect("a configuration");
        assert_eq!(config.vocab_size, classes);
        let student = Student::load(&of_student, config, Training::default(), &device);
        let tokenizer = Tokenizer::load(&of_teacher).expect("a tokenizer");
        let rows = read(&tokenizer, &data.join("test.jsonl"), POSITIONS);
        let encoder = encoder(&teacher, &read(&tokenizer, &data.join("train.jsonl"), CALIBRATION));
        Self { teacher, student: student.expect("the student"), classes, rows, encoder }
    }

    /// Gradient of the mean divergence with respect to all parameters, and the bytes a position of the
    /// signal.
    fn gradient(&mut self, signal: Signal, temperature: f64) -> (Vec<f64>, f64) {
        self.student.gradients().zero().expect("gradients");
        let settings = LossSettings::divergence_alone(temperature);
        let scale = 1.0 / POSITIONS as f64;
        let mut bytes = 0;
        for rows in self.rows.chunks(BATCH) {
            let batch = TokenBatch::pack(rows);
            let hidden = self.teacher.forward_hidden(&batch).expect("hidden states");
            let hidden = gather_rows(&hidden, batch.scored()).expect("scored positions");
            let drawn = match signal {
                Signal::Full | Signal::Form(_) | Signal::Coded(_) => None,
                Signal::Draws { draws, k, seed } => {
                    let next: Vec<Option<u32>> = batch.targets().iter().map(|&t| Some(t)).collect();
                    let keys = keys(rows, seed);
                    let (classes, next) = (self.classes, next.as_slice());
                    let wanted = WantedDraws { classes, next, temperature, draws, k, keys: &keys };
                    let scores = draw_head(&hidden, self.teacher.head(), wanted, Precision::F32);
                    Some(travelled(&scores.expect("draws").signal, classes, &mut bytes))
                }
            };
            let hidden = self.arrived(hidden, &batch, signal, &mut bytes);
            let said = match &drawn {
                None => Teaching::Full { hidden: &hidden, w: self.teacher.head() },
                Some(signal) => Teaching::Draws(signal),
            };
            let loss = self.student.backward(&batch, self.classes, Some(said), &settings, scale);
            loss.expect("a gradient");
        }
        let gradient = self.student.gradients().flat().to_vec1::<f32>().expect("values");
        (gradient.into_iter().map(f64::from).collect(), bytes as f64 * scale)
    }

    /// What arrives of hidden states, row by row; bytes and envelopes are counted.
    fn arrived(
        &self,
        hidden: Tensor,
        batch: &TokenBatch,
        signal: Signal,
        count: &mut usize,
    ) -> Tensor {
        let (Signal::Form(_) | Signal::Coded(_)) = signal else { return hidden };
        let width = hidden.dim(1).expect("a width");
        let mut first = 0;
        let mut parts = Vec::new();
        for &rows in batch.scored_per_row() {
            let part = hidden.narrow(0, first, rows).expect("rows").contiguous().expect("rows");
            first += rows;
            let (bytes, states) = match signal {
                Signal::Coded(rung) => {
                    let bytes = self.encoder.encode(&part, rung).expect("bytes");
                    let code = self.encoder.code();
                    let numbers = code.decode(&bytes, rows).expect("numbers");
                    let decoder = Decoder::new(Arc::clone(code), rung);
                    (bytes, decoder.hidden_states(&numbers))
                }
                Signal::Form(form) => {
                    let values = part.flatten_all().and_then(|flat| flat.to_vec1::<f32>());
                    let bytes =
                        hidden::encode(&values.expect("values"), width, form).expect("bytes");
                    let states = hidden::decode(&bytes, rows, width, form).expect("states");
                    (bytes, states)
                }
                Signal::Full | Signal::Draws { .. } => continue,
            };
            *count += bytes.len() + ENVELOPE;
            parts.push(to_tensor(states).expect("a tensor"));
        }
        Tensor::cat(&parts, 0).expect("all rows")
    }
}

/// A code of a teacher's hidden states on these rows.
fn encoder(teacher: &Qwen3, rows: &[Sequence]) -> Encoder {
    let states = rows.chunks(BATCH).map(|rows| teacher.forward_hidden(&TokenBatch::pack(rows)));
    let states: Vec<Tensor> = states.map(|states| states.expect("hidden states")).collect();
    let hidden = Tensor::cat(&states, 0).expect("all rows");
    let (precision, model) = (Precision::F32, Fingerprint([0; 32]));
    fit(Sample { hidden: &hidden, w: teacher.head(), precision, model }).expect("a code")
}

/// What arrives of a signal; its bytes are counted.
fn travelled(signal: &Draws, classes: usize, count: &mut usize) -> Draws {
    let bytes = encode(signal, 0..signal.rows(), classes, Values::F32).expect("bytes");
    *count += bytes.len() - HEAD_BYTES;
    decode(&bytes, &Head::read(&bytes).expect("a head")).expect("a signal")
}

/// Of every scored position.
fn keys(rows: &[Sequence], seed: u64) -> Vec<DrawKey> {
    let of_row = |row: &Sequence| {
        let token_checksum = token_checksum(&row.ids);
        let key = move |t: usize| DrawKey { seed, token_checksum, position: t as u32 };
        row.scored().map(key).collect::<Vec<_>>()
    };
    rows.iter().flat_map(of_row).collect()
}

/// Questions with their answers, so many that there are these positions.
fn read(tokenizer: &Tokenizer, file: &Path, positions: usize) -> Vec<Sequence> {
    let text = std::fs::read_to_string(file).expect("text");
    let mut rows = Vec::new();
    let mut left = positions;
    for line in text.lines() {
        let row: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let field = |name: &str| row[name].as_str().expect("text").to_owned();
        // As the models' chat template writes it.
        let text = format!(
            "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n",
            field("question"),
            field("answer")
        );
        let mut ids = tokenizer.encode(&text).expect("ids");
        ids.truncate(ROW.min(left + 1));
        left -= ids.len() - 1;
        rows.push(Sequence::all_scored(ids).expect("a row"));
        if left == 0 {
            return rows;
        }
    }
    panic!("{left} positions are missing");
}

/// In degrees, and the quotient of the lengths.
fn angle(found: &[f64], wanted: &[f64]) -> (f64, f64) {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let lengths = [dot(found, found).sqrt(), dot(wanted, wanted).sqrt()];
    let cosine = dot(found, wanted) / (lengths[0] * lengths[1]);
    (cosine.min(1.0).acos().to_degrees(), lengths[0] / lengths[1])
}

#[test]
#[expect(clippy::print_stdout, reason = "the figures, for whoever asks with --nocapture")]
fn sixteen_draws_are_within_six_degrees_of_the_full_gradient() {
    let test = "sixteen_draws_are_within_six_degrees_of_the_full_gradient";
    let (Some(models), Some(data)) = (shared("models", test), shared("data/gsm8k", test)) else {
        return;
    };
    let mut field = Field::new(&models, &data);
    for temperature in [1.0, 2.0, 5.0] {
        let (full, _) = field.gradient(Signal::Full, temperature);
        for (draws, k) in [(16, 0), (16, 4), (16, 16), (50, 0)] {
            let mut angles = Vec::new();
            let mut about = String::new();
            for seed in 0..2 {
                let (found, bytes) = field.gradient(Signal::Draws { draws, k, seed }, temperature);
                // With the log-probability beside it.
                let bytes = bytes + 4.0;
                let (degrees, length) = angle(&found, &full);
                about += &format!("  {degrees:.2}° (length {length:.3}, {bytes:.1} bytes)");
                angles.push((degrees, bytes));
            }
            println!("T = {temperature}, {draws} draws, {k} exact:{about}");
            let promised = temperature == 1.0 && draws == 16;
            for (degrees, bytes) in angles {
                assert!(
                    !promised || degrees <= 6.0,
                    "{k} exact: {degrees}° from the full gradient"
                );
                assert!(draws != 16 || k != 0 || bytes <= 40.0, "{bytes} bytes a token");
            }
        }
    }
}

/// The figures of the study, at the bytes of whole messages: a code made from other text.
#[test]
#[expect(clippy::print_stdout, reason = "the figures, for whoever asks with --nocapture")]
fn hidden_states_give_nearly_the_full_gradient_in_few_bytes() {
    let test = "hidden_states_give_nearly_the_full_gradient_in_few_bytes";
    let (Some(models), Some(data)) = (shared("models", test), shared("data/gsm8k", test)) else {
        return;
    };
    let mut field = Field::new(&models, &data);
    let within = |bytes: f64| {
        let rate = field.encoder.code().rung_for_bytes(bytes).expect("a step");
        Signal::Coded(rate.rung)
    };
    // Signal, the most bytes a position, the most degrees at T = 1, 2 and 5.
    let promised = [
        (within(43.0), 44.0, [2.0, 1.0, 0.6]),
        (within(82.0), 84.0, [0.6, 0.6, 0.6]),
        (Signal::Form(HiddenForm::Bf16), 516.0, [0.1, 0.1, 0.1]),
        (Signal::Form(HiddenForm::Int8), 268.0, [0.2, 0.2, 0.2]),
        (Signal::Form(HiddenForm::Int4), 140.0, [90.0, 90.0, 90.0]),
    ];
    for (at, temperature) in [1.0, 2.0, 5.0].into_iter().enumerate() {
        let (full, _) = field.gradient(Signal::Full, temperature);
        for (signal, most_bytes, most) in promised {
            let (found, bytes) = field.gradient(signal, temperature);
            let (degrees, length) = angle(&found, &full);
            println!(
                "T = {temperature}, {signal:?}: {degrees:.3}° (length {length:.4}, {bytes:.1} bytes)"
            );
            assert!(degrees <= most[at], "{signal:?} at T = {temperature}: {degrees}°");
            assert!(bytes <= most_bytes, "{signal:?}: {bytes} bytes a position");
        }
    }
}
