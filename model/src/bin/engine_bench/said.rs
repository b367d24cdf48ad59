//! What the teacher of a benchmark says: numbers of the shapes there are, drawn.

use std::error::Error;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use distill::coded::{Code, Parts, Rung};
use distill::fingerprint::Fingerprint;
use distill::signal::TopK;
use model::coding::{Decoder, to_tensor};
use model::ops::head::Teaching;
use rand::Rng as _;
use rand_chacha::ChaCha8Rng;

use crate::Asked;

/// What a teacher says.
#[derive(Clone, Copy)]
pub(super) enum Asking {
    /// So many tokens.
    TopK(usize),
    /// Hidden states of so many numbers; none: as many as the student's.
    Full(Option<usize>),
    /// The same in a code.
    Coded(usize),
}

impl Asking {
    pub(super) fn of(word: &str) -> Result<Self, Box<dyn Error>> {
        Ok(match word.split_once(':') {
            None if word == "full" => Self::Full(None),
            None => Self::TopK(word.parse()?),
            Some(("full", width)) => Self::Full(Some(width.parse()?)),
            Some(("coded", width)) => Self::Coded(width.parse()?),
            Some(_) => return Err(format!("{word} is no number, full, full:E or coded:E").into()),
        })
    }
}

/// What a teacher said.
pub(super) enum Said {
    TopK(TopK),
    Full { hidden: Tensor, w: Tensor },
    Coded { bytes: Vec<u8>, decoder: Decoder, w: Tensor },
}

impl Said {
    pub(super) fn new(
        asked: &Asked,
        positions: usize,
        random: &mut ChaCha8Rng,
    ) -> Result<Self, Box<dyn Error>> {
        let classes = asked.config.vocab_size;
        let matrix = |width: usize, dtype: DType| {
            Tensor::randn(0.0_f32, 0.02, (classes, width), &Device::Cpu)?.to_dtype(dtype)
        };
        let hidden = |width: usize| Tensor::randn(0.0_f32, 1.0, (positions, width), &Device::Cpu);
        Ok(match asked.signal {
            Asking::TopK(k) => Self::TopK(signal(positions, k, classes, random)),
            Asking::Full(None) => {
                let width = asked.config.hidden_size;
                Self::Full { hidden: hidden(width)?, w: matrix(width, DType::F32)? }
            }
            Asking::Full(Some(width)) => {
                Self::Full { hidden: hidden(width)?, w: matrix(width, DType::BF16)? }
            }
            Asking::Coded(width) => {
                let (decoder, bytes) = coded(width, positions, random)?;
                Self::Coded { bytes, decoder, w: matrix(width, DType::BF16)? }
            }
        })
    }

    /// Hands on what the loss takes.
    pub(super) fn with<T>(
        &self,
        positions: usize,
        hear: impl FnOnce(Teaching<'_>) -> Result<T, Box<dyn Error>>,
    ) -> Result<T, Box<dyn Error>> {
        match self {
            Self::TopK(signal) => hear(Teaching::TopK(signal)),
            Self::Full { hidden, w } => hear(Teaching::Full { hidden, w }),
            Self::Coded { bytes, decoder, w } => {
                let numbers = decoder.code().decode(bytes, positions)?;
                let hidden = to_tensor(decoder.hidden_states(&numbers))?;
                hear(Teaching::Full { hidden: &hidden, w })
            }
        }
    }
}

/// Rows of numbers whose spread falls from 5.5 steps by a factor of 150 over the directions, about as
/// trained models' do, and what reads them.
fn coded(
    width: usize,
    positions: usize,
    random: &mut ChaCha8Rng,
) -> Result<(Decoder, Vec<u8>), Box<dyn Error>> {
    let mut normal = || (0..12).map(|_| random.random::<f64>()).sum::<f64>() - 6.0;
    let spread = |j: usize| 5.5 * (-5.0 * j as f64 / width as f64).exp();
    let spreads: Vec<f64> = (0..width).map(spread).collect();
    let matrix: Vec<f64> = (0..width * width).map(|_| normal() / (width as f64).sqrt()).collect();
    let code = Arc::new(Code::new(Parts {
        model: Fingerprint([0; 32]),
        mean: vec![0.0; width],
        spreads: &spreads,
        matrix: &matrix,
        standardised: (0..100_000).map(|_| normal() as f32).collect(),
    })?);
    let numbers = (0..positions * width).map(|at| (normal() * spreads[at % width]).round() as i32);
    let numbers: Vec<i32> = numbers.collect();
    let bytes = code.encode(Rung(0), &numbers, &vec![0.0; positions * width]);
    Ok((Decoder::new(code, Rung(0)), bytes))
}

/// A signal that is one: k distinct ids a row, values that fall, a rest.
fn signal(rows: usize, k: usize, classes: usize, random: &mut ChaCha8Rng) -> TopK {
    let mut signal = TopK { k, ids: vec![], scaled: vec![], log_z: vec![], log_rest: vec![] };
    for _ in 0..rows {
        let first = random.random_range(0..classes);
        let stride = classes / k;
        signal.ids.extend((0..k).map(|i| ((first + i * stride) % classes) as u32));
        signal.scaled.extend((0..k).map(|i| -0.05 * i as f32));
        let top: f64 = (0..k).map(|i| (-0.05 * i as f64).exp()).sum();
        // Half of the mass is elsewhere; none can be where there is no other class.
        let rest = if k == classes { 0.0 } else { top };
        signal.log_z.push((top + rest).ln() as f32);
        signal.log_rest.push((rest / (top + rest)).ln() as f32);
    }
    signal
}
