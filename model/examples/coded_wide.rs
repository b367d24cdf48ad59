//! What coded hidden states take at the width and vocabulary of a real model: bytes a position for an angle
//! of 1 and 2 degrees between the student's gradients (`cargo run --release --package model --example
//! coded_wide`, about ten minutes on two cores).
//!
//! No model of that size is trained here; the numbers are drawn. Output matrix W [151,936, 1,024] and hidden
//! states h are normal in 1,024 directions whose spreads fall as (1 + j)^-1/2 in both, turned by one
//! reflection, scaled so that the logits of a position spread by 4.2: the entropy of the teacher's
//! distribution at T = 1 is then about 3 nats, as that of a language model on prose. The student's hidden
//! states and matrix are the teacher's with a third of their spread added as noise. The code is made of 4,096
//! states, the gradients (of the student's hidden states and its whole output matrix) are taken at 512 others.

use std::error::Error;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use distill::coded::Rung;
use distill::fingerprint::Fingerprint;
use distill::signal::{Entries, TopK};
use model::coding::{Decoder, Encoder, Sample, fit, to_tensor};
use model::ops::Precision;
use model::ops::head::{LossSettings, Teaching, head_loss};
use model::ops::topk::{Wanted, score_head};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

const CLASSES: usize = 151_936;
const WIDTH: usize = 1024;
const MADE_FROM: usize = 4096;
const COMPARED: usize = 512;
const LOGIT_SPREAD: f64 = 4.2;
const NOISE: f32 = 1.0 / 3.0;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Both sides.
struct Bench {
    hidden: Tensor,
    w: Tensor,
    student_hidden: Tensor,
    student_w: Tensor,
    targets: Vec<u32>,
}

/// A student's gradient.
struct Gradient {
    hidden: Vec<f32>,
    w: Tensor,
}

fn main() -> Result<()> {
    let (bench, sample) = drawn()?;
    let model = Fingerprint([0; 32]);
    let encoder = fit(Sample { hidden: &sample, w: &bench.w, precision: Precision::F32, model })?;
    let rates = encoder.code().rates().to_vec();
    say(format!(
        "{} steps, {} to {} bytes",
        rates.len(),
        rates[rates.len() - 1].bytes,
        rates[0].bytes
    ));
    for temperature in [1.0, 2.0, 5.0] {
        let exact = bench.full(&bench.hidden, temperature)?;
        let top = bench.top_k(64, temperature)?;
        say(format!("T = {temperature}: top-64 {:.2} degrees", angle(&top, &exact)?));
        for wanted in [1.0, 2.0] {
            // The coarsest step whose angle is within it; angles rise with the step.
            let (mut good, mut bad) = (0, rates.len());
            let mut found = None;
            while good + 1 < bad {
                let middle = (good + bad) / 2;
                let (bytes, coded) = bench.coded(&encoder, rates[middle].rung)?;
                let at = angle(&bench.full(&coded, temperature)?, &exact)?;
                if at <= wanted {
                    (good, found) = (middle, Some((bytes, at)));
                } else {
                    bad = middle;
                }
            }
            if let Some((bytes, at)) = found {
                say(format!("T = {temperature}: {at:.2} degrees in {bytes:.1} bytes a position"));
            }
        }
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "what this program is for")]
fn say(line: String) {
    println!("{line}");
}

impl Bench {
    fn loss(&self, teaching: Teaching<'_>, temperature: f64) -> Result<Gradient> {
        let settings = LossSettings::divergence_alone(temperature);
        let w = self.student_w.zeros_like()?;
        let (hidden, matrix, scale) =
            (&self.student_hidden, &self.student_w, 1.0 / COMPARED as f64);
        let teaching = Some(teaching);
        let loss = head_loss(
            hidden,
            matrix,
            CLASSES,
            &self.targets,
            teaching,
            &settings,
            scale,
            Some(&w),
        )?;
        let hidden = loss.d_hidden.ok_or("no gradient")?.flatten_all()?.to_vec1()?;
        Ok(Gradient { hidden, w })
    }

    fn full(&self, hidden: &Tensor, temperature: f64) -> Result<Gradient> {
        self.loss(Teaching::Full { hidden, w: &self.w }, temperature)
    }

    fn top_k(&self, k: usize, temperature: f64) -> Result<Gradient> {
        let next = vec![None; COMPARED];
        let wanted =
            Wanted { classes: CLASSES, next: &next, temperature, k, entries: &Entries::Top };
        let signal: TopK = score_head(&self.hidden, &self.w, wanted, Precision::F32)?.signal;
        self.loss(Teaching::TopK(&signal), temperature)
    }

    /// Bytes a position, and what is read from them.
    fn coded(&self, encoder: &Encoder, rung: Rung) -> Result<(f64, Tensor)> {
        let bytes = encoder.encode(&self.hidden, rung)?;
        let numbers = encoder.code().decode(&bytes, COMPARED)?;
        let decoder = Decoder::new(Arc::clone(encoder.code()), rung);
        let coded = to_tensor(decoder.hidden_states(&numbers))?;
        Ok((bytes.len() as f64 / COMPARED as f64, coded))
    }
}

/// What is compared, and the states a code is made of.
fn drawn() -> Result<(Bench, Tensor)> {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let spreads: Vec<f32> = (0..WIDTH).map(|j| (1.0 + j as f32).powf(-0.5)).collect();
    let of_logits: f64 = spreads.iter().map(|s| f64::from(*s).powi(4)).sum();
    let scale = (LOGIT_SPREAD / of_logits.sqrt()) as f32;
    let axis: Vec<f32> = (0..WIDTH).map(|_| normal(&mut random)).collect();
    let w = rows(&mut random, CLASSES, &spreads, 1.0);
    let states = rows(&mut random, MADE_FROM + COMPARED, &spreads, scale);
    let (sample, hidden) = states.split_at(MADE_FROM * WIDTH);
    let mut beside = |values: &[f32], scale: f32| -> Vec<f32> {
        let noise = rows(&mut random, values.len() / WIDTH, &spreads, NOISE * scale);
        values.iter().zip(noise).map(|(value, noise)| value + noise).collect()
    };
    let (student_w, student_hidden) = (beside(&w, 1.0), beside(hidden, scale));
    let tensor = |mut values: Vec<f32>| -> Result<Tensor> {
        turn(&mut values, &axis);
        let rows = values.len() / WIDTH;
        Ok(Tensor::from_vec(values, (rows, WIDTH), &Device::Cpu)?.to_dtype(DType::F32)?)
    };
    let sample = tensor(sample.to_vec())?;
    let targets = (0..COMPARED as u32).map(|at| at * 97 % CLASSES as u32).collect();
    let bench = Bench {
        hidden: tensor(hidden.to_vec())?,
        w: tensor(w)?,
        student_hidden: tensor(student_hidden)?,
        student_w: tensor(student_w)?,
        targets,
    };
    Ok((bench, sample))
}

/// Sum of twelve uniform numbers.
fn normal(random: &mut impl rand::Rng) -> f32 {
    (0..12).map(|_| random.random::<f32>()).sum::<f32>() - 6.0
}

fn rows(random: &mut impl rand::Rng, count: usize, spreads: &[f32], scale: f32) -> Vec<f32> {
    let row = |_| spreads.iter().map(|spread| scale * spread * normal(random)).collect::<Vec<_>>();
    (0..count).flat_map(row).collect()
}

/// A reflection of each row, so that no direction is a coordinate's.
fn turn(values: &mut [f32], axis: &[f32]) {
    let square: f32 = axis.iter().map(|x| x * x).sum();
    for row in values.chunks_exact_mut(WIDTH) {
        let along = 2.0 * row.iter().zip(axis).map(|(x, a)| x * a).sum::<f32>() / square;
        row.iter_mut().zip(axis).for_each(|(x, a)| *x -= along * a);
    }
}

/// Between two gradients, in degrees.
fn angle(a: &Gradient, b: &Gradient) -> Result<f64> {
    let mut sums = [0.0_f64; 3];
    let mut add = |a: &[f32], b: &[f32]| {
        for (&x, &y) in a.iter().zip(b) {
            let (x, y) = (f64::from(x), f64::from(y));
            sums[0] += x * x;
            sums[1] += y * y;
            sums[2] += (x - y) * (x - y);
        }
    };
    add(&a.hidden, &b.hidden);
    for first in (0..CLASSES).step_by(8192) {
        let count = 8192.min(CLASSES - first);
        let part = |g: &Gradient| -> Result<Vec<f32>> {
            Ok(g.w.narrow(0, first, count)?.flatten_all()?.to_vec1()?)
        };
        add(&part(a)?, &part(b)?);
    }
    // By the difference: the arc cosine loses its digits where vectors are nearly the same.
    let [of_a, of_b, apart] = sums;
    let (a, b) = (of_a.sqrt(), of_b.sqrt());
    let half = ((apart - (a - b) * (a - b)) / (4.0 * a * b)).max(0.0).sqrt();
    Ok(2.0 * half.min(1.0).asin().to_degrees())
}
