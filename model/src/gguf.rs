//! GGUF files of Qwen3 models, as llama.cpp writes them: their tensors under the names of Hugging Face, and that they are
//! of the model that config.json describes.
//!
//! llama.cpp's converter leaves Qwen3's matrices as they are: it reorders queries and keys of Llama alone, whose
//! rotation pairs neighbours there; Qwen3's pairs the halves of a head (`LLAMA_ROPE_TYPE_NEOX`), as it does here.

mod header;
pub mod write;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use crate::config::Qwen3Config;
use crate::ops::rope::RopeScaling;
use crate::tensor_file::TensorFile;
use header::{Header, Value};

/// The architecture by llama.cpp's name.
const ARCHITECTURE: &str = "qwen3";

/// Why a GGUF file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file cannot be opened or read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The header is none.
    #[error("{path} is not a GGUF file that can be read: {reason}; fetch it again")]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A part of a model.
    #[error(
        "{path} is one of {parts} parts of a model; join them with `llama-gguf-split --merge` and give the whole"
    )]
    Split {
        /// The file.
        path: PathBuf,
        /// How many there are.
        parts: i128,
    },
    /// Another model than config.json describes.
    #[error(
        "{path} says {key} = {found}, and config.json's {field} makes it {wanted}; take config.json from the model \
         that this file was made of"
    )]
    Differs {
        /// The file.
        path: PathBuf,
        /// The name in the file.
        key: String,
        /// What it says.
        found: String,
        /// The name in config.json.
        field: &'static str,
        /// What follows from config.json.
        wanted: String,
    },
}

/// The names of tensors outside of blocks: llama.cpp's and Hugging Face's.
const OUTSIDE: [[&str; 2]; 3] = [
    ["token_embd.weight", "model.embed_tokens.weight"],
    ["output_norm.weight", "model.norm.weight"],
    ["output.weight", "lm_head.weight"],
];
/// Those of a block, without `.weight` or `.bias`.
const INSIDE: [[&str; 2]; 11] = [
    ["attn_norm", "input_layernorm"],
    ["attn_q", "self_attn.q_proj"],
    ["attn_k", "self_attn.k_proj"],
    ["attn_v", "self_attn.v_proj"],
    ["attn_q_norm", "self_attn.q_norm"],
    ["attn_k_norm", "self_attn.k_norm"],
    ["attn_output", "self_attn.o_proj"],
    ["ffn_norm", "post_attention_layernorm"],
    ["ffn_gate", "mlp.gate_proj"],
    ["ffn_up", "mlp.up_proj"],
    ["ffn_down", "mlp.down_proj"],
];

/// A tensor's name at Hugging Face; one that has none there stays what it is.
fn to_hugging_face(name: &str) -> String {
    if let Some([_, theirs]) = OUTSIDE.iter().find(|[ours, _]| *ours == name) {
        return (*theirs).to_owned();
    }
    let inside = || {
        let (block, rest) = name.strip_prefix("blk.")?.split_once('.')?;
        let (part, kind) = rest.rsplit_once('.')?;
        let [_, theirs] = INSIDE.iter().find(|[ours, _]| *ours == part)?;
        Some(format!("model.layers.{block}.{theirs}.{kind}"))
    };
    inside().unwrap_or_else(|| name.to_owned())
}

/// A parameter's name in llama.cpp.
fn from_hugging_face(name: &str) -> Option<String> {
    if let Some([ours, _]) = OUTSIDE.iter().find(|[_, theirs]| *theirs == name) {
        return Some((*ours).to_owned());
    }
    let (block, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (part, kind) = rest.rsplit_once('.')?;
    let [ours, _] = INSIDE.iter().find(|[_, theirs]| *theirs == part)?;
    Some(format!("blk.{block}.{ours}.{kind}"))
}

/// Opens the file of a model that this configuration describes.
///
/// # Errors
/// [`GgufError`]: every fault has its variant; no bytes can cause a panic.
pub fn open(path: &Path, config: &Qwen3Config) -> Result<TensorFile, GgufError> {
    let failed = |source| GgufError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let invalid = |reason| GgufError::Header { path: path.to_owned(), reason };
    let header = Header::read(&file, length).map_err(invalid)?;
    check(path, &header.metadata, config)?;
    let mut tensors = BTreeMap::new();
    for (name, entry) in header.tensors {
        let theirs = to_hugging_face(&name);
        if tensors.insert(theirs.clone(), entry).is_some() {
            return Err(invalid(format!(
                "it holds tensor `{theirs}` twice, once as llama.cpp names it"
            )));
        }
    }
    Ok(TensorFile::of(path, file, tensors))
}

/// What the file says of the model is what config.json says. What it does not say is what llama.cpp takes then.
fn check(
    path: &Path,
    metadata: &BTreeMap<String, Value>,
    config: &Qwen3Config,
) -> Result<(), GgufError> {
    if let Some(&Value::Integer(parts)) = metadata.get("split.count")
        && parts > 1
    {
        return Err(GgufError::Split { path: path.to_owned(), parts });
    }
    for Wanted { key, field, value, otherwise } in wanted(config) {
        let found = metadata.get(&key).or(otherwise.as_ref());
        if found.is_none_or(|found| !same(found, &value)) {
            return Err(GgufError::Differs {
                path: path.to_owned(),
                key,
                found: found.map_or_else(|| "nothing".to_owned(), said),
                field,
                wanted: said(&value),
            });
        }
    }
    Ok(())
}

/// What the metadata is to say.
struct Wanted {
    key: String,
    /// In config.json.
    field: &'static str,
    value: Value,
    /// What llama.cpp takes where nothing is said.
    otherwise: Option<Value>,
}

fn wanted(config: &Qwen3Config) -> Vec<Wanted> {
    let of = |key: &str, field, value, otherwise| {
        let key = format!("{ARCHITECTURE}.{key}");
        Wanted { key, field, value, otherwise }
    };
    let size = |n: usize| Value::Integer(n as i128);
    let head_dim = || size(config.head_dim);
    let usual = || Some(size(config.hidden_size / config.num_attention_heads));
    let heads = size(config.num_attention_heads);
    let architecture = Wanted {
        key: "general.architecture".to_owned(),
        field: "model_type",
        value: Value::Text(ARCHITECTURE.to_owned()),
        otherwise: None,
    };
    let mut all = vec![
        architecture,
        of("block_count", "num_hidden_layers", size(config.num_hidden_layers), None),
        of("context_length", "max_position_embeddings", size(config.max_position_embeddings), None),
        of("embedding_length", "hidden_size", size(config.hidden_size), None),
        of("feed_forward_length", "intermediate_size", size(config.intermediate_size), None),
        of("attention.head_count", "num_attention_heads", heads.clone(), None),
        of(
            "attention.head_count_kv",
            "num_key_value_heads",
            size(config.num_key_value_heads),
            Some(heads),
        ),
        of("attention.key_length", "head_dim", head_dim(), usual()),
        of("attention.value_length", "head_dim", head_dim(), usual()),
        of(
            "attention.layer_norm_rms_epsilon",
            "rms_norm_eps",
            Value::Float(config.rms_norm_eps),
            None,
        ),
        of(
            "rope.freq_base",
            "rope_theta",
            Value::Float(config.rope_theta),
            Some(Value::Float(10_000.0)),
        ),
    ];
    let (kind, factor) = match config.rope_scaling {
        RopeScaling::Default => ("none", None),
        RopeScaling::Linear { factor } => ("linear", Some(factor)),
        RopeScaling::Yarn { factor, .. } => ("yarn", Some(factor)),
        RopeScaling::Llama3 { .. } => ("llama3", None),
    };
    let kind = Value::Text(kind.to_owned());
    // A file made of a model's short form says nothing of what its config.json stretches later on.
    all.push(of("rope.scaling.type", "rope_scaling", kind.clone(), Some(kind)));
    if let Some(factor) = factor.map(Value::Float) {
        all.push(of("rope.scaling.factor", "rope_scaling", factor.clone(), Some(factor)));
    }
    all
}

/// Numbers of the metadata are float32.
fn same(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Float(found), Value::Float(wanted)) => *found as f32 == *wanted as f32,
        (found, wanted) => found == wanted,
    }
}

fn said(value: &Value) -> String {
    match value {
        Value::Integer(value) => value.to_string(),
        Value::Float(value) => format!("{}", *value as f32),
        Value::Bool(value) => value.to_string(),
        Value::Text(value) => value.clone(),
        Value::List(count) => format!("a list of {count}"),
    }
}

#[cfg(test)]
#[path = "gguf_tests.rs"]
mod tests;
