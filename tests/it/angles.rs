//! How far the student's gradient under a signal is from that under all the teacher knows: on real
//! text, with the small trained models.

use std::path::Path;

use distill::batch::{Sequence, TokenBatch};
use distill::codec::draws::{HEAD_BYTES, Head, Values, decode, encode};
use distill::fingerprint::token_checksum;
use distill::signal::{DrawKey, Draws};
use hub::tokenizer::Tokenizer;
use model::config::Qwen3Config;
use model::ops::Precision;
use model::ops::draws::{WantedDraws, draw_head};
use model::ops::embed::gather_rows;
use model::ops::head::{LossSettings, Tail, Teaching};
use model::qwen3::Qwen3;
use model::student::{Student, Training};
use model::weights::Weights;
use tests::shared;

/// Scored positions, of held-out text.
const POSITIONS: usize = 4096;
/// Tokens of a row at most, and rows of a batch.
const ROW: usize = 256;
const BATCH: usize = 8;

/// Both models, and held-out text.
struct Field {
    teacher: Qwen3,
    student: Student,
    classes: usize,
    rows: Vec<Sequence>,
}

/// n draws and k exact entries a position, or all.
#[derive(Clone, Copy, Debug)]
enum Signal {
    Full,
    Draws { draws: u32, k: usize, seed: u64 },
}

impl Field {
    fn new(models: &Path, data: &Path) -> Self {
        let device = model::device::choose("cpu").expect("the CPU");
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
        let rows = held_out(&tokenizer, data);
        Self { teacher, student: student.expect("the student"), classes, rows }
    }

    /// Gradient of the mean divergence with respect to all parameters, and the bytes a position of the
    /// signal and the log-probability beside it.
    fn gradient(&mut self, signal: Signal, temperature: f64) -> (Vec<f64>, f64) {
        self.student.gradients().zero().expect("gradients");
        let settings =
            LossSettings { alpha: 1.0, temperature, tail: Tail::Bucket, precision: Precision::F32 };
        let scale = 1.0 / POSITIONS as f64;
        let mut bytes = 0;
        for rows in self.rows.chunks(BATCH) {
            let batch = TokenBatch::pack(rows);
            let hidden = self.teacher.forward_hidden(&batch).expect("hidden states");
            let hidden = gather_rows(&hidden, batch.scored()).expect("scored positions");
            let drawn = match signal {
                Signal::Full => None,
                Signal::Draws { draws, k, seed } => {
                    let next: Vec<Option<u32>> = batch.targets().iter().map(|&t| Some(t)).collect();
                    let keys = keys(rows, seed);
                    let (classes, next) = (self.classes, next.as_slice());
                    let wanted = WantedDraws { classes, next, temperature, draws, k, keys: &keys };
                    let scores = draw_head(&hidden, self.teacher.head(), wanted, Precision::F32);
                    Some(travelled(&scores.expect("draws").signal, classes, &mut bytes))
                }
            };
            let said = match &drawn {
                None => Teaching::Full { hidden: &hidden, w: self.teacher.head() },
                Some(signal) => Teaching::Draws(signal),
            };
            let loss = self.student.backward(&batch, self.classes, Some(said), &settings, scale);
            loss.expect("a gradient");
        }
        let gradient = self.student.gradients().flat().to_vec1::<f32>().expect("values");
        (gradient.into_iter().map(f64::from).collect(), bytes as f64 * scale + 4.0)
    }
}

/// What arrives of a signal; its bytes are counted.
fn travelled(signal: &Draws, classes: usize, count: &mut usize) -> Draws {
    let bytes = encode(signal, 0..signal.rows(), classes, Values::F16).expect("bytes");
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

/// Questions with their answers that neither model was trained on, so many that there are
/// [`POSITIONS`].
fn held_out(tokenizer: &Tokenizer, data: &Path) -> Vec<Sequence> {
    let text = std::fs::read_to_string(data.join("test.jsonl")).expect("test.jsonl");
    let mut rows = Vec::new();
    let mut left = POSITIONS;
    for line in text.lines() {
        let row: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let field = |name: &str| row[name].as_str().expect("text").to_owned();
        let text = format!("{}\n{}", field("question"), field("answer"));
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
