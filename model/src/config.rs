//! `config.json` of a Qwen3 model: read, checked, and kept word for word for saving.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

pub use crate::ops::rope::RopeScaling;

/// The largest value accepted for any size: far above every model, far below overflow.
const MAX_SIZE: u64 = 1 << 26;
/// The most positions accepted: tables of angles are made for all of them.
const MAX_POSITIONS: usize = 1 << 22;
/// The most parameters accepted.
const MAX_PARAMETERS: u128 = 1 << 40;

/// A checked Qwen3 configuration. Names are those of `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Qwen3Config {
    /// Rows of the embedding and of the head, V.
    pub vocab_size: usize,
    /// Width of the residual stream, D.
    pub hidden_size: usize,
    /// Width of the gated layer, I.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads, H.
    pub num_attention_heads: usize,
    /// Key/value heads, G; divides H.
    pub num_key_value_heads: usize,
    /// Width of a head, E; even.
    pub head_dim: usize,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the rotary frequencies are stretched.
    pub rope_scaling: RopeScaling,
    /// The longest sequence.
    pub max_position_embeddings: usize,
    /// Whether q, k, v and o projections have biases.
    pub attention_bias: bool,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Standard deviation of random weights.
    pub initializer_range: f64,
    /// Token whose embedding row gets no gradient from look-ups (`torch.nn.Embedding`'s
    /// `padding_idx`); it still gets the head's when tied.
    pub pad_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// Name of the type the weights were saved in, where given (`bfloat16`).
    pub stored_dtype: Option<String>,
    source: Map<String, Value>,
}

/// Why a `config.json` is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}; a model directory holds config.json")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not a JSON object.
    #[error("config.json is not a JSON object: {reason}")]
    Json {
        /// What the parser said.
        reason: String,
    },
    /// Another architecture.
    #[error(
        "config.json describes {found}; accepted: model_type `qwen3` with architecture \
         `Qwen3ForCausalLM`"
    )]
    Architecture {
        /// What the file says.
        found: String,
    },
    /// A field that has no default.
    #[error("config.json has no `{field}`; it is needed for a Qwen3 model")]
    Missing {
        /// Name of the field.
        field: &'static str,
    },
    /// A value of the wrong kind or out of range.
    #[error("config.json: `{field}` is {found}; wanted {wanted}")]
    Value {
        /// Name of the field.
        field: &'static str,
        /// What the file says.
        found: String,
        /// What is accepted.
        wanted: String,
    },
    /// A feature this crate does not compute.
    #[error("config.json: `{field}` is {found}, which is not supported; accepted: {accepted}")]
    Unsupported {
        /// Name of the field.
        field: &'static str,
        /// What the file says.
        found: String,
        /// What is accepted.
        accepted: &'static str,
    },
    /// Sizes that multiply to nonsense.
    #[error(
        "config.json describes {found} parameters; at most {MAX_PARAMETERS} are accepted: look \
         for a wrong size in it"
    )]
    TooLarge {
        /// Number of parameters.
        found: u128,
    },
}

impl Qwen3Config {
    /// Reads and checks `config.json` of a model directory.
    ///
    /// # Errors
    /// [`ConfigError::Read`] when the file cannot be read, else as [`Self::from_json`].
    pub fn from_dir(dir: &Path) -> Result<Self, ConfigError> {
        let path = dir.join("config.json");
        let bytes = std::fs::read(&path).map_err(|source| ConfigError::Read { path, source })?;
        let text = std::str::from_utf8(&bytes)
            .map_err(|error| ConfigError::Json { reason: error.to_string() })?;
        Self::from_json(text)
    }

    /// Checks a configuration as `transformers` writes it (4 or 5). Absent fields take the
    /// defaults of `transformers`' `Qwen3Config`.
    ///
    /// # Errors
    /// [`ConfigError`], naming the field, what it holds and what is accepted.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let source: Map<String, Value> = serde_json::from_str(text)
            .map_err(|error| ConfigError::Json { reason: error.to_string() })?;
        let fields = Fields(&source);
        fields.check_architecture()?;
        fields.check_features()?;
        let hidden_size = fields.size("hidden_size")?;
        let num_attention_heads = fields.size("num_attention_heads")?;
        const POSITIONS: &str = "max_position_embeddings";
        let max_position_embeddings = fields.size_or(POSITIONS, Some(32_768))?.unwrap_or(32_768);
        if max_position_embeddings > MAX_POSITIONS {
            let found = Value::from(max_position_embeddings);
            return Err(wrong(
                POSITIONS,
                &found,
                &format!("a whole number from 1 to {MAX_POSITIONS}"),
            ));
        }
        let vocab_size = fields.size("vocab_size")?;
        let rope = fields.rope(max_position_embeddings)?;
        let config = Self {
            vocab_size,
            hidden_size,
            intermediate_size: fields.size("intermediate_size")?,
            num_hidden_layers: fields.size("num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads: fields
                .size_or("num_key_value_heads", None)?
                .unwrap_or(num_attention_heads),
            head_dim: fields
                .size_or("head_dim", Some(128))?
                .unwrap_or(hidden_size / num_attention_heads),
            rms_norm_eps: fields.positive("rms_norm_eps", Some(1e-6))?,
            rope_theta: rope.0,
            rope_scaling: rope.1,
            max_position_embeddings,
            attention_bias: fields.boolean("attention_bias", false)?,
            tie_word_embeddings: fields.boolean("tie_word_embeddings", false)?,
            initializer_range: fields.positive("initializer_range", Some(0.02))?,
            pad_token_id: fields.tokens("pad_token_id", vocab_size)?.first().copied(),
            eos_token_ids: fields.tokens("eos_token_id", vocab_size)?,
            stored_dtype: ["dtype", "torch_dtype"]
                .iter()
                .find_map(|name| source.get(*name)?.as_str().map(str::to_owned)),
            source: source.clone(),
        };
        config.check_together()?;
        Ok(config)
    }

    /// The file as it was read, fields in their order, with `dtype` (and `torch_dtype` where it
    /// was there) set to the type the weights are saved in.
    pub fn to_json(&self, dtype: &str) -> String {
        let mut source = self.source.clone();
        let old = source.contains_key("torch_dtype");
        if old {
            source.insert("torch_dtype".to_owned(), dtype.into());
        }
        if !old || source.contains_key("dtype") {
            source.insert("dtype".to_owned(), dtype.into());
        }
        let mut text = serde_json::to_string_pretty(&source).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Width of the joined query, key and value projection: `(H + 2 G) E`.
    pub fn qkv_width(&self) -> usize {
        (self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_dim
    }

    fn check_together(&self) -> Result<(), ConfigError> {
        let (heads, groups) = (self.num_attention_heads, self.num_key_value_heads);
        if !heads.is_multiple_of(groups) {
            return Err(ConfigError::Value {
                field: "num_key_value_heads",
                found: groups.to_string(),
                wanted: format!("a divisor of num_attention_heads ({heads})"),
            });
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) {
            return Err(ConfigError::Value {
                field: "head_dim",
                found: self.head_dim.to_string(),
                wanted: "an even number: positions rotate pairs".to_owned(),
            });
        }
        let found = self.count_parameters();
        if found > MAX_PARAMETERS {
            return Err(ConfigError::TooLarge { found });
        }
        Ok(())
    }

    fn count_parameters(&self) -> u128 {
        let [v, d, i, e, h, g, layers] = [
            self.vocab_size,
            self.hidden_size,
            self.intermediate_size,
            self.head_dim,
            self.num_attention_heads,
            self.num_key_value_heads,
            self.num_hidden_layers,
        ]
        .map(|n| n as u128);
        // Every factor is at most 2^26, so three of them stay below 2^128 with room to add.
        let block = 2 * d + 2 * e + (h + 2 * g) * e * (d + 1) + d * (h * e + 1) + 3 * i * d;
        let tables = if self.tie_word_embeddings { 1 } else { 2 };
        tables * v * d + d + layers * block
    }
}

/// A field, whether a value of it is computed here, and what is.
type Check<'a> = (&'static str, &'a dyn Fn(&Value) -> bool, &'static str);

/// The fields of the file, each taken with its name in the error.
pub(crate) struct Fields<'a>(pub(crate) &'a Map<String, Value>);

impl Fields<'_> {
    pub(crate) fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    fn size(&self, field: &'static str) -> Result<usize, ConfigError> {
        self.size_or(field, None)?.ok_or(ConfigError::Missing { field })
    }

    /// None when the field is null, or absent and without a default.
    fn size_or(
        &self,
        field: &'static str,
        default: Option<usize>,
    ) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.0.get(field) else { return Ok(default) };
        match value.as_u64() {
            Some(n) if (1..=MAX_SIZE).contains(&n) => Ok(Some(n as usize)),
            None if value.is_null() => Ok(None),
            _ => Err(wrong(field, value, &format!("a whole number from 1 to {MAX_SIZE}"))),
        }
    }

    pub(crate) fn positive(
        &self,
        field: &'static str,
        default: Option<f64>,
    ) -> Result<f64, ConfigError> {
        let Some(value) = self.get(field) else {
            return default.ok_or(ConfigError::Missing { field });
        };
        match value.as_f64() {
            Some(n) if n.is_finite() && n > 0.0 => Ok(n),
            _ => Err(wrong(field, value, "a finite number above 0")),
        }
    }

    pub(crate) fn boolean(&self, field: &'static str, default: bool) -> Result<bool, ConfigError> {
        let Some(value) = self.get(field) else { return Ok(default) };
        value.as_bool().ok_or_else(|| wrong(field, value, "true or false"))
    }

    /// One id, a list of ids, or none.
    fn tokens(&self, field: &'static str, vocab_size: usize) -> Result<Vec<u32>, ConfigError> {
        let Some(value) = self.get(field) else { return Ok(Vec::new()) };
        let one = |value: &Value| match value.as_u64() {
            Some(id) if id < vocab_size as u64 => Ok(id as u32),
            _ => Err(wrong(field, value, &format!("a token id below {vocab_size}"))),
        };
        match value.as_array() {
            Some(list) => list.iter().map(one).collect(),
            None => Ok(vec![one(value)?]),
        }
    }

    fn check_architecture(&self) -> Result<(), ConfigError> {
        let model_type = self.get("model_type").map(describe);
        let architectures = self.get("architectures").map(describe);
        let right_type = model_type.as_deref() == Some("\"qwen3\"");
        let right_class =
            architectures.as_deref().is_none_or(|found| found == "[\"Qwen3ForCausalLM\"]");
        if right_type && right_class {
            return Ok(());
        }
        Err(ConfigError::Architecture {
            found: format!(
                "model_type {} with architectures {}",
                model_type.as_deref().unwrap_or("(absent)"),
                architectures.as_deref().unwrap_or("(absent)")
            ),
        })
    }

    fn check_features(&self) -> Result<(), ConfigError> {
        let silu = Value::from("silu");
        let full = |layer: &Value| layer.as_str() == Some("full_attention");
        let all_full = |types: &Value| types.as_array().is_some_and(|t| t.iter().all(full));
        let checks: [Check; 5] = [
            ("hidden_act", &|value| *value == silu, "\"silu\""),
            ("use_sliding_window", &|value| *value == Value::Bool(false), "false"),
            ("layer_types", &all_full, "\"full_attention\" for every layer"),
            ("attention_dropout", &|value| value.as_f64() == Some(0.0), "0.0"),
            ("quantization_config", &|_| false, "weights in float32, bfloat16 or float16"),
        ];
        for (field, accepts, accepted) in checks {
            if let Some(value) = self.get(field)
                && !accepts(value)
            {
                return Err(ConfigError::Unsupported { field, found: describe(value), accepted });
            }
        }
        Ok(())
    }
}

pub(crate) fn wrong(field: &'static str, found: &Value, wanted: &str) -> ConfigError {
    ConfigError::Value { field, found: describe(found), wanted: wanted.to_owned() }
}

/// A value as JSON, cut to a length that fits an error message.
pub(crate) fn describe(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(120) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
