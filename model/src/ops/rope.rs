//! Rotary position embedding: angles, and the ways their frequencies are scaled for long texts.
//!
//! Formulas: `modeling_rope_utils.py` of transformers, and its rounding: models were trained with
//! frequencies and angles that it rounds to `f32`, whatever type they compute in, so exact angles
//! would be the less exact model. What is done with the tables is beside: [`prepare_qkv`].

use std::f64::consts::PI;

use candle_core::{Result, bail};

pub use super::qkv::{QkvLayout, add_bias, bias_backward_into, prepare_qkv, prepare_qkv_backward};

/// How rotation frequencies are changed for texts longer than those of pre-training.
///
/// transformers' type `dynamic` equals [`RopeScaling::Default`] for rows no longer than
/// `max_position_embeddings`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    #[default]
    Default,
    /// All frequencies divided by `factor`.
    Linear {
        /// Quotient of the new and the old length.
        factor: f64,
    },
    /// Low frequencies divided by `factor`, high ones kept, a ramp between them (YaRN, arXiv
    /// 2309.00071).
    Yarn {
        /// Quotient of the new and the old length.
        factor: f64,
        /// Positions of pre-training.
        original_max_positions: f64,
        /// Multiplies cosines and sines; when absent it follows from the next two or from
        /// `factor`.
        attention_factor: Option<f64>,
        /// With `mscale_all_dim`: numerator of the attention factor.
        mscale: Option<f64>,
        /// With `mscale`: denominator of the attention factor.
        mscale_all_dim: Option<f64>,
        /// Turns within the old length from which on a frequency is kept; 32 when not configured.
        beta_fast: f64,
        /// Turns up to which a frequency is divided; 1 when not configured.
        beta_slow: f64,
        /// Whether the ramp's ends are moved outwards to whole dimensions; true when not
        /// configured.
        truncate: bool,
    },
    /// Long wavelengths divided by `factor`, short ones kept, a ramp between them (Llama 3.1).
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// `original_max_positions` over the wavelength above which all is divided.
        low_freq_factor: f64,
        /// `original_max_positions` over the wavelength below which all is kept.
        high_freq_factor: f64,
        /// Positions of pre-training.
        original_max_positions: f64,
    },
}

impl RopeScaling {
    /// The frequency of every pair of a head, `[E/2]` in radians a position, and the factor of
    /// cosines and sines.
    pub fn frequencies(&self, head_dim: usize, theta: f64) -> (Vec<f64>, f64) {
        let pairs = (0..head_dim / 2).map(|pair| {
            let exponent = (2 * pair) as f32 / head_dim as f32;
            let wavelength = f64::from(theta as f32).powf(f64::from(exponent)) as f32;
            f64::from(1.0 / wavelength)
        });
        match *self {
            Self::Default => (pairs.collect(), 1.0),
            Self::Linear { factor } => (pairs.map(|f| f / factor).collect(), 1.0),
            Self::Yarn { factor, .. } => {
                let kept = self.yarn_kept(head_dim, theta);
                let mix = |(f, kept): (f64, f64)| f / factor * (1.0 - kept) + f * kept;
                (pairs.zip(kept).map(mix).collect(), self.yarn_attention_factor())
            }
            Self::Llama3 { .. } => (pairs.map(|f| self.llama3(f)).collect(), 1.0),
        }
    }

    /// For every pair the share of its frequency that is kept, 0 to 1.
    fn yarn_kept(&self, head_dim: usize, theta: f64) -> Vec<f64> {
        let Self::Yarn { original_max_positions, beta_fast, beta_slow, truncate, .. } = *self
        else {
            return vec![1.0; head_dim / 2];
        };
        let dim = head_dim as f64;
        // The dimension that makes so many turns within the old length.
        let dimension = |turns: f64| {
            dim * (original_max_positions / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln())
        };
        let (low, high) = (dimension(beta_fast), dimension(beta_slow));
        let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
        let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        (0..head_dim / 2).map(|i| 1.0 - ((i as f64 - low) / (high - low)).clamp(0.0, 1.0)).collect()
    }

    fn yarn_attention_factor(&self) -> f64 {
        let Self::Yarn { factor, attention_factor, mscale, mscale_all_dim, .. } = *self else {
            return 1.0;
        };
        let by = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
        // Zero counts as absent, as it does in transformers.
        let given = |value: Option<f64>| value.filter(|value| *value != 0.0);
        match (attention_factor, given(mscale), given(mscale_all_dim)) {
            (Some(attention_factor), _, _) => attention_factor,
            (None, Some(mscale), Some(all_dim)) => by(mscale) / by(all_dim),
            (None, _, _) => by(1.0),
        }
    }

    fn llama3(&self, frequency: f64) -> f64 {
        let Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } =
            *self
        else {
            return frequency;
        };
        let wavelength = 2.0 * PI / frequency;
        if wavelength > original_max_positions / low_freq_factor {
            return frequency / factor;
        }
        if wavelength < original_max_positions / high_freq_factor {
            return frequency;
        }
        let kept = (original_max_positions / wavelength - low_freq_factor)
            / (high_freq_factor - low_freq_factor);
        (1.0 - kept) * frequency / factor + kept * frequency
    }
}

/// Cosine and sine of every position and pair, the attention factor multiplied in.
#[derive(Clone, Debug)]
pub struct RopeTables {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl RopeTables {
    /// Tables for heads of `head_dim` values and rows of up to `max_positions` tokens.
    ///
    /// # Errors
    /// When `head_dim` is odd or zero, or `theta` or a scaling value is not a positive number
    /// (`theta` must exceed 1 with [`RopeScaling::Yarn`]).
    pub fn new(
        head_dim: usize,
        theta: f64,
        scaling: &RopeScaling,
        max_positions: usize,
    ) -> Result<Self> {
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            bail!("a head dimension of {head_dim} cannot be rotated: it must be even");
        }
        let (frequencies, factor) = scaling.frequencies(head_dim, theta);
        let usable = |f: f64| f.is_finite() && f > 0.0;
        if !frequencies.iter().all(|f| usable(*f)) || !usable(factor) {
            bail!("rope theta {theta} and {scaling:?} do not give usable frequencies");
        }
        let half = head_dim / 2;
        let size = max_positions * half;
        let (mut cos, mut sin) = (Vec::with_capacity(size), Vec::with_capacity(size));
        for position in 0..max_positions {
            for &frequency in &frequencies {
                let angle = position as f32 * frequency as f32;
                let (s, c) = f64::from(angle).sin_cos();
                cos.push((c * factor) as f32);
                sin.push((s * factor) as f32);
            }
        }
        Ok(Self { cos, sin, half })
    }

    /// Cosines, `[positions, E/2]`.
    pub fn cos(&self) -> &[f32] {
        &self.cos
    }

    /// Sines, `[positions, E/2]`.
    pub fn sin(&self) -> &[f32] {
        &self.sin
    }

    /// Pairs of a head: E/2.
    pub fn half(&self) -> usize {
        self.half
    }

    /// Positions in the tables: the longest row they serve.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half
    }
}

#[cfg(test)]
#[path = "rope_tests.rs"]
mod tests;
