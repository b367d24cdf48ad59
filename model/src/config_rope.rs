//! The rotary part of `config.json`, in the spellings of `transformers` 4 and 5.

use serde_json::{Map, Value};

use crate::config::{ConfigError, Fields, describe, wrong};
use crate::ops::rope::RopeScaling;

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
        let original =
            || self.positive("original_max_position_embeddings", Some(max_positions as f64));
        match kind.as_str() {
            // `dynamic` changes nothing up to `max_position_embeddings`, and longer rows are
            // refused.
            Some("default" | "dynamic") => Ok(RopeScaling::Default),
            Some("linear") => Ok(RopeScaling::Linear { factor: self.positive("factor", None)? }),
            Some("yarn") => self.yarn(original()?, max_positions),
            Some("llama3") => self.llama3(original()?),
            _ => Err(ConfigError::Unsupported {
                field: "rope_type",
                found: describe(kind),
                accepted: "default, linear, dynamic, yarn, llama3",
            }),
        }
    }

    fn yarn(&self, original: f64, max_positions: usize) -> Result<RopeScaling, ConfigError> {
        let implied = max_positions as f64 / original;
        Ok(RopeScaling::Yarn {
            factor: self.positive("factor", Some(implied))?,
            original_max_positions: original,
            attention_factor: self.optional("attention_factor")?,
            mscale: self.optional("mscale")?,
            mscale_all_dim: self.optional("mscale_all_dim")?,
            beta_fast: self.optional("beta_fast")?.unwrap_or(32.0),
            beta_slow: self.optional("beta_slow")?.unwrap_or(1.0),
            truncate: self.boolean("truncate", true)?,
        })
    }

    fn llama3(&self, original: f64) -> Result<RopeScaling, ConfigError> {
        let low_freq_factor = self.positive("low_freq_factor", None)?;
        let high_freq_factor = self.positive("high_freq_factor", None)?;
        if high_freq_factor <= low_freq_factor {
            return Err(ConfigError::Value {
                field: "high_freq_factor",
                found: high_freq_factor.to_string(),
                wanted: format!("a number above low_freq_factor ({low_freq_factor})"),
            });
        }
        Ok(RopeScaling::Llama3 {
            factor: self.positive("factor", None)?,
            low_freq_factor,
            high_freq_factor,
            original_max_positions: original,
        })
    }

    /// A positive number, or None when it is absent; 0 counts as absent, as it does in Python.
    fn optional(&self, field: &'static str) -> Result<Option<f64>, ConfigError> {
        let given = self.get(field).filter(|value| value.as_f64() != Some(0.0));
        given.map(|_| self.positive(field, None)).transpose()
    }
}
