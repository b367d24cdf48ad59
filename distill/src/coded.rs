//! The coded hidden state: a transform code of a teacher's final hidden states in the metric of its own
//! softmax.
//!
//! `h - mean` is turned into coordinates z that are uncorrelated and whose squared error is, to second
//! order, what an error costs the teacher's distribution; each z_j is rounded to a multiple of one
//! step, and the multiples are entropy-coded by static tables. The decoder needs the [`Code`]: the
//! mean, a matrix of whole numbers that leads back from coordinates to hidden states, the spread of
//! each direction, and the tables. How a code is made of a teacher's hidden states is `model`'s; what is
//! said of a position, and how to the bit, is here. docs/wire.md gives both layouts.
//!
//! Everything a decoder does is exact: the numbers come from integer arithmetic; the sums
//! `Σ matrix_ij · number_j` are of whole numbers below 2^53, so that any order gives the same; what
//! follows is one multiplication and one addition in float64 and a rounding to float32.

mod ans;
mod blob;
mod rows;
mod tables;

use crate::fingerprint::Fingerprint;
use crate::signal::HiddenStates;
pub use ans::TOTAL;
pub use rows::{BLOCK_ROWS, Numbers, rung_of};
pub use tables::MAX_NUMBER;
use tables::{Coding, FIRST_CLASS, LAST_CLASS, Tables};

/// Largest magnitude of an entry of the decoding matrix: 2^24 · 2^15 · 8,192 directions stay below 2^52.
pub const MAX_ENTRY: i32 = (1 << 24) - 1;
/// Largest magnitude of an entry of a code that is made here: 24 bits with its sign, for decoders that
/// multiply bytes.
const MADE_ENTRY: i32 = (1 << 23) - 1;
/// Largest width of a hidden state.
pub const MAX_WIDTH: usize = 8192;

/// A step: 2^(rung / 16), fine enough that a byte more a position is a step less. A higher rung is
/// coarser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rung(pub i16);

impl Rung {
    /// The finest there is.
    pub const FINEST: Self = Self(-1600);
    /// The coarsest there is.
    pub const COARSEST: Self = Self(1600);

    /// The step, to the last bit the same everywhere.
    pub fn step(self) -> f64 {
        // 2^(0/16) to 2^(15/16), to the nearest float64.
        const ROOTS: [f64; 16] = [
            1.0,
            1.044_273_782_427_413_8,
            1.090_507_732_665_257_7,
            1.138_788_634_756_691_6,
            1.189_207_115_002_721,
            1.241_857_812_073_484,
            1.296_839_554_651_009_6,
            1.354_255_546_936_892_7,
            std::f64::consts::SQRT_2,
            1.476_826_145_939_499_3,
            1.542_210_825_407_940_7,
            1.610_490_331_949_254_3,
            1.681_792_830_507_429,
            1.756_252_160_373_299_5,
            1.834_008_086_409_342_4,
            1.915_206_561_397_147_4,
        ];
        let (whole, part) = (self.0.div_euclid(16), self.0.rem_euclid(16));
        // A power of two by its exponent's bits.
        let power = f64::from_bits(((1023 + i64::from(whole)) as u64) << 52);
        ROOTS[usize::from(part.unsigned_abs())] * power
    }
}

impl std::fmt::Display for Rung {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "2^({}/16)", self.0)
    }
}

/// What one step was found to take and to cost, on text the code was not made from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// The step.
    pub rung: Rung,
    /// Bytes a position, all overhead of a long sequence included.
    pub bytes: f32,
    /// Mean divergence of the decoded distribution from the teacher's at T = 1, in nats.
    pub divergence: f32,
}

/// Why bytes are no code or no coded rows.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CodedError {
    /// Too few bytes.
    #[error("coded hidden states are cut off after {found} bytes")]
    Short {
        /// Bytes there are.
        found: usize,
    },
    /// Another layout.
    #[error(
        "bytes of kind {kind:#04x}, version {version}, where coded hidden states begin with 0xc0, version 1"
    )]
    Kind {
        /// First byte.
        kind: u8,
        /// Second byte.
        version: u8,
    },
    /// Rows that cannot be read.
    #[error("coded hidden states are damaged at row {row}: {what}")]
    Damaged {
        /// The row, or the first of its block.
        row: usize,
        /// What was met.
        what: &'static str,
    },
    /// A table that is none.
    #[error("the code's table of class {class} has {symbols} symbols of sum {sum}, wanted 4096")]
    Table {
        /// The ratio's class.
        class: i32,
        /// Symbols, the escape included.
        symbols: usize,
        /// Sum of their widths.
        sum: u32,
    },
    /// A code that is none.
    #[error("not a code of hidden states: {0}")]
    Code(String),
}

/// What it takes to read the coded hidden states of one teacher.
#[derive(Clone, Debug, PartialEq)]
pub struct Code {
    /// Digest of its bytes.
    fingerprint: Fingerprint,
    /// The teacher whose hidden states it codes.
    model: Fingerprint,
    /// `[width]`
    mean: Vec<f32>,
    /// `[directions]`: spread = 2^(class / 16); falling.
    classes: Vec<i16>,
    /// `[width, directions]`, magnitudes up to [`MAX_ENTRY`].
    matrix: Vec<i32>,
    /// The matrix in units of this power of two.
    exponent: i16,
    tables: Tables,
    /// By rising rung.
    rates: Vec<Rate>,
}

/// What a code is made of.
#[derive(Clone, Debug)]
pub struct Parts<'a> {
    /// The teacher.
    pub model: Fingerprint,
    /// Mean hidden state, `[width]`.
    pub mean: Vec<f32>,
    /// Spread of each coordinate, falling, `[directions]`, above 0.
    pub spreads: &'a [f64],
    /// Leads from coordinates back to hidden states, `[width, directions]`.
    pub matrix: &'a [f64],
    /// Coordinates divided by their spread, of all directions together.
    pub standardised: Vec<f32>,
}

impl Code {
    /// Makes a code; its rates are not known yet.
    ///
    /// # Errors
    /// [`CodedError::Code`] when shapes do not fit or a number is not finite.
    pub fn new(parts: Parts<'_>) -> Result<Self, CodedError> {
        let Parts { model, mean, spreads, matrix, mut standardised } = parts;
        let wrong = |what: String| Err(CodedError::Code(what));
        let (width, directions) = (mean.len(), spreads.len());
        if width == 0 || width > MAX_WIDTH || directions == 0 || directions > width {
            return wrong(format!("{directions} directions of a width of {width}"));
        }
        if matrix.len() != width * directions {
            let found = matrix.len();
            return wrong(format!("a matrix of {found} numbers for {width} by {directions}"));
        }
        let finite = mean.iter().all(|x| x.is_finite())
            && matrix.iter().all(|x| x.is_finite())
            && standardised.iter().all(|x| x.is_finite())
            && spreads.iter().all(|&x| x.is_finite() && x > 0.0);
        if !finite || standardised.is_empty() {
            return wrong("a mean, spread, matrix or shape that is not finite".to_owned());
        }
        standardised.sort_unstable_by(f32::total_cmp);
        let largest = matrix.iter().fold(f64::MIN_POSITIVE, |most, x| most.max(x.abs()));
        // The largest entry takes 24 bits with its sign, one fewer than it may: three bytes.
        let exponent = largest.log2().floor() as i32 - 22;
        let unit = f64::from(exponent).exp2();
        let entry = |x: &f64| ((x / unit).round() as i32).clamp(-MADE_ENTRY, MADE_ENTRY);
        let least = f64::from(i32::from(i16::MIN));
        let class = |spread: &f64| (16.0 * spread.log2()).round().max(least) as i16;
        let code = Self {
            fingerprint: Fingerprint([0; 32]),
            model,
            mean,
            classes: spreads.iter().map(class).collect(),
            matrix: matrix.iter().map(entry).collect(),
            exponent: exponent as i16,
            tables: Tables::of_shape(&standardised)?,
            rates: Vec::new(),
        };
        Ok(code.sealed())
    }

    /// The same code with what its steps were found to take, by rising rung.
    #[must_use]
    pub fn with_rates(mut self, rates: Vec<Rate>) -> Self {
        self.rates = rates;
        self.sealed()
    }

    /// Digest of its bytes: equal codes are the same code.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The teacher it was made for.
    pub fn model(&self) -> Fingerprint {
        self.model
    }

    /// Numbers of a hidden state.
    pub fn width(&self) -> usize {
        self.mean.len()
    }

    /// Coordinates of a hidden state; at most its width.
    pub fn directions(&self) -> usize {
        self.classes.len()
    }

    /// Mean hidden state, `[width]`.
    pub fn mean(&self) -> &[f32] {
        &self.mean
    }

    /// What its steps were found to take and to cost, the finest first.
    pub fn rates(&self) -> &[Rate] {
        &self.rates
    }

    /// The step that takes at most `bytes` a position: the finest of them.
    pub fn rung_for_bytes(&self, bytes: f64) -> Option<Rate> {
        self.rates.iter().find(|rate| f64::from(rate.bytes) <= bytes).copied()
    }

    /// The step that costs at most this divergence, in nats: the coarsest of them.
    pub fn rung_for_divergence(&self, nats: f64) -> Option<Rate> {
        self.rates.iter().rev().find(|rate| f64::from(rate.divergence) <= nats).copied()
    }

    /// Writes rows of numbers `[rows, directions]`, and of the hidden states `[rows, width]` they stand
    /// for, which travel instead where a number is above [`MAX_NUMBER`].
    ///
    /// # Panics
    /// When the arrays are not of these shapes.
    pub fn encode(&self, rung: Rung, numbers: &[i32], hidden: &[f32]) -> Vec<u8> {
        rows::encode(self, rung, numbers, hidden)
    }

    /// Reads `rows` rows.
    ///
    /// # Errors
    /// [`CodedError`] when the bytes are no such rows. No bytes make it panic.
    pub fn decode(&self, bytes: &[u8], rows: usize) -> Result<Numbers, CodedError> {
        rows::decode(self, bytes, rows)
    }

    /// Reads some of `rows` rows, and of their bytes only the blocks of [`BLOCK_ROWS`] these lie in.
    ///
    /// # Errors
    /// As [`Self::decode`].
    ///
    /// # Panics
    /// When `wanted` goes beyond the rows.
    pub fn decode_range(
        &self,
        bytes: &[u8],
        rows: usize,
        wanted: std::ops::Range<usize>,
    ) -> Result<Numbers, CodedError> {
        rows::decode_range(self, bytes, rows, wanted)
    }

    /// Bits these numbers `[rows, directions]` take by the tables' probabilities: what no coder can go
    /// below. Numbers in silent directions are not counted.
    pub fn information(&self, rung: Rung, numbers: &[i32]) -> f64 {
        let codings = self.codings(rung);
        let of_row = |row: &[i32]| -> f64 {
            codings.iter().zip(row).map(|(coding, &number)| coding.information(number)).sum()
        };
        numbers.chunks_exact(self.directions()).map(of_row).sum()
    }

    /// The decoding matrix, `[width, directions]`.
    pub fn matrix(&self) -> &[i32] {
        &self.matrix
    }

    /// What a sum of the matrix's products with numbers is multiplied by at this step, before the mean is
    /// added.
    pub fn unit(&self, rung: Rung) -> f64 {
        rung.step() * f64::from(self.exponent).exp2()
    }

    /// Of the directions in their order, those before the first in which a number is other than 0 in less than
    /// this share of positions, by the tables.
    pub fn frequent(&self, rung: Rung, share: f64) -> usize {
        let often = |coding: &Coding<'_>| 1.0 - (-coding.information(0)).exp2() >= share;
        self.codings(rung).iter().take_while(|coding| often(coding)).count()
    }

    /// The hidden states of rows of numbers, one at a time: the reference for every faster way.
    pub fn reconstruct(&self, rung: Rung, numbers: &Numbers) -> HiddenStates {
        let (directions, unit) = (self.directions(), self.unit(rung));
        let mut values = Vec::with_capacity(numbers.numbers.len() / directions * self.width());
        for row in numbers.numbers.chunks_exact(directions) {
            for (entries, mean) in self.matrix.chunks_exact(directions).zip(&self.mean) {
                let products =
                    entries.iter().zip(row).map(|(&entry, &n)| i64::from(entry) * i64::from(n));
                let sum: i64 = products.sum();
                values.push((sum as f64 * unit + f64::from(*mean)) as f32);
            }
        }
        for (row, hidden) in &numbers.verbatim {
            values[row * self.width()..(row + 1) * self.width()].copy_from_slice(hidden);
        }
        HiddenStates { width: self.width(), values }
    }

    /// How the directions that are spoken of at this step are coded: the first ones.
    fn codings(&self, rung: Rung) -> Vec<Coding<'_>> {
        // To the nearest quarter octave, of which there are tables.
        let class = |class: &i16| (i32::from(*class) - i32::from(rung.0) + 2) >> 2;
        let of = |at: &i16| self.tables.coding(class(at).min(LAST_CLASS));
        self.classes.iter().map_while(of).collect()
    }

    fn sealed(mut self) -> Self {
        self.fingerprint = Fingerprint::of(&self.to_bytes());
        self
    }
}

#[cfg(test)]
#[path = "coded/document_tests.rs"]
mod document_tests;
#[cfg(test)]
#[path = "coded_tests.rs"]
mod tests;
