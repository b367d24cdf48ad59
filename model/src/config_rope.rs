//! The rotary part of `config.json`, in the spellings of `transformers` 4 and 5.

use serde_json::{Map, Value};

use crate::config::{ConfigError, Fields, describe, wrong};

/// How the rotary frequencies are stretched beyond the length a model was first trained at.
/// Formulas: `transformers`' `modeling_rope_utils.py`.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all. Also `dynamic`, which changes nothing up to `max_position_embeddings`, and
    /// longer sequences are refused.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// YaRN: low frequencies divided by `factor`, high ones kept, a ramp between them.
    Yarn {
        /// The divisor of the low frequencies.
        factor: f64,
        /// Multiplies cosines and sines.
        attention_factor: f64,
        /// Rotations over the original length above which a frequency is kept.
        beta_fast: f64,
        /// Rotations over the original length below which a frequency is divided.
        beta_slow: f64,
        /// The length the model was first trained at.
        original_max_position_embeddings: usize,
        /// Whether the ends of the ramp are rounded outwards to whole dimensions.
        truncate: bool,
    },
    /// Llama 3: as YaRN, with the ramp over wavelengths.
    Llama3 {
        /// The divisor of the low frequencies.
        factor: f64,
        /// Original length over wavelength below which a frequency is divided.
        low_freq_factor: f64,
        /// Original length over wavelength above which a frequency is kept.
        high_freq_factor: f64,
        /// The length the model was first trained at.
        original_max_position_embeddings: usize,
    },
}

impl Fields<'_> {
    /// Base and scaling: from `rope_scaling` (version 4) or `rope_parameters` (version 5), the
    /// base else from the top level.
    pub(crate) fn rope(&self, max_positions: usize) -> Result<(f64, RopeScaling), ConfigError> {
        let none = Map::new();
        // Version 5 lets the old name win where both are there and not empty.
        let given = |field| self.get(field).filter(|value| **value != Value::Object(Map::new()));
        let nested = match given("rope_scaling").or_else(|| given("rope_parameters")) {
            None => &none,
            Some(Value::Object(fields)) if !fields.values().any(Value::is_object) => fields,
            Some(other) => {
                return Err(wrong("rope_parameters", other, "one object for all layers, or null"));
            }
        };
        let inner = Fields(nested);
        let top_theta = self.positive("rope_theta", Some(10_000.0))?;
        let theta = inner.positive("rope_theta", Some(top_theta))?;
        for place in [self, &inner] {
            if let Some(value) = place.get("partial_rotary_factor")
                && value.as_f64() != Some(1.0)
            {
                return Err(ConfigError::Unsupported {
                    field: "partial_rotary_factor",
                    found: describe(value),
                    accepted: "1.0",
                });
            }
        }
        Ok((theta, inner.rope_scaling(max_positions)?))
    }

    fn rope_scaling(&self, max_positions: usize) -> Result<RopeScaling, ConfigError> {
        let default = Value::from("default");
        let kind = self.get("rope_type").or_else(|| self.get("type")).unwrap_or(&default);
        let factor = || self.positive("factor", None);
        let original = || self.original_length(max_positions);
        match kind.as_str() {
            Some("default" | "dynamic") => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear { factor: factor()? }),
            Some("yarn") => self.yarn(original()?, max_positions),
            Some("llama3") => {
                let scaling = RopeScaling::Llama3 {
                    factor: factor()?,
                    low_freq_factor: self.positive("low_freq_factor", None)?,
                    high_freq_factor: self.positive("high_freq_factor", None)?,
                    original_max_position_embeddings: original()?,
                };
                self.check_llama3(&scaling)?;
                Ok(scaling)
            }
            _ => Err(ConfigError::Unsupported {
                field: "rope_type",
                found: describe(kind),
                accepted: "default, linear, dynamic, yarn, llama3",
            }),
        }
    }

    fn yarn(&self, original: usize, max_positions: usize) -> Result<RopeScaling, ConfigError> {
        let implied = max_positions as f64 / original as f64;
        let factor = self.positive("factor", Some(implied))?;
        let magnitude =
            |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        let optional = |field| self.get(field).map(|_| self.positive(field, None)).transpose();
        let implied = match (optional("mscale")?, optional("mscale_all_dim")?) {
            (Some(above), Some(below)) => magnitude(above) / magnitude(below),
            _ => magnitude(1.0),
        };
        Ok(RopeScaling::Yarn {
            factor,
            attention_factor: self.positive("attention_factor", Some(implied))?,
            beta_fast: self.positive("beta_fast", Some(32.0))?,
            beta_slow: self.positive("beta_slow", Some(1.0))?,
            original_max_position_embeddings: original,
            truncate: self.boolean("truncate", true)?,
        })
    }

    fn original_length(&self, max_positions: usize) -> Result<usize, ConfigError> {
        let field = "original_max_position_embeddings";
        let length = self.positive(field, Some(max_positions as f64))?;
        if length.fract() != 0.0 || length > f64::from(u32::MAX) {
            return Err(ConfigError::Value {
                field,
                found: length.to_string(),
                wanted: "a whole number of positions".to_owned(),
            });
        }
        Ok(length as usize)
    }

    fn check_llama3(&self, scaling: &RopeScaling) -> Result<(), ConfigError> {
        if let RopeScaling::Llama3 { low_freq_factor, high_freq_factor, .. } = scaling
            && high_freq_factor <= low_freq_factor
        {
            return Err(ConfigError::Value {
                field: "high_freq_factor",
                found: high_freq_factor.to_string(),
                wanted: format!("a number above low_freq_factor ({low_freq_factor})"),
            });
        }
        Ok(())
    }
}
