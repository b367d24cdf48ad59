//! Writes a model as a GGUF file, by candle's quantisers: to measure what quantising costs, and for tests. Published
//! files are llama.cpp's, whose quantisers may weigh errors by what a model reads.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use candle_core::Result;
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};

use super::{ARCHITECTURE, from_hugging_face};
use crate::config::Qwen3Config;
use crate::weights::Weights;

/// Which types a file's matrices get, by llama.cpp's names for such files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mixture {
    /// All of one type.
    Pure(GgmlDType),
    /// `Q4_K_M`: Q6_K for the output layer, and for the values and the last matrix of about half of the blocks; Q4_K for
    /// all others (`llama_tensor_get_type`).
    Q4KM,
}

impl Mixture {
    /// The type of a matrix in a model of so many blocks.
    fn of(self, name: &str, blocks: usize, tied: bool) -> GgmlDType {
        let (first, rest) = match self {
            Self::Pure(dtype) => return dtype,
            Self::Q4KM => (GgmlDType::Q6K, GgmlDType::Q4K),
        };
        let in_block = || {
            let (block, part) = name.strip_prefix("blk.")?.split_once('.')?;
            let block: usize = block.parse().ok()?;
            let eighth = blocks / 8;
            let more =
                block < eighth || block >= 7 * blocks / 8 || block.wrapping_sub(eighth) % 3 == 2;
            Some(more && matches!(part, "attn_v.weight" | "ffn_down.weight"))
        };
        let output = name == "output.weight" || (tied && name == "token_embd.weight");
        if output || in_block() == Some(true) { first } else { rest }
    }
}

/// Writes `weights` to `path`: vectors as float32, and matrices whose rows are no whole blocks of their type as
/// bfloat16. Gives the names of these.
///
/// # Errors
/// When the file cannot be written, or candle has no quantiser for a type.
pub fn write(
    path: &Path,
    config: &Qwen3Config,
    weights: &Weights,
    mixture: Mixture,
) -> Result<Vec<String>> {
    let (mut tensors, mut left) = (Vec::new(), Vec::new());
    for name in weights.names() {
        // A copy: candle quantises all that a view's memory holds.
        let tensor = weights.get(name)?.force_contiguous()?;
        let Some(name) = from_hugging_face(name) else { candle_core::bail!("{name} has no name") };
        let wanted = mixture.of(&name, config.num_hidden_layers, config.tie_word_embeddings);
        let dtype = match tensor.dims() {
            [_] => GgmlDType::F32,
            [_, row] if row.is_multiple_of(wanted.block_size()) => wanted,
            _ => {
                left.push(name.clone());
                GgmlDType::BF16
            }
        };
        tensors.push((name, QTensor::quantize(&tensor, dtype)?));
    }
    let metadata = metadata(config);
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut file = BufWriter::new(File::create(path)?);
    gguf_file::write(&mut file, &metadata, &tensors)?;
    file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
    Ok(left)
}

/// What llama.cpp's converter says of a Qwen3 model, the tokenizer apart.
fn metadata(config: &Qwen3Config) -> Vec<(String, Value)> {
    let size = |n: usize| Value::U32(n as u32);
    let of = |key: &str, value| (format!("{ARCHITECTURE}.{key}"), value);
    vec![
        ("general.architecture".to_owned(), Value::String(ARCHITECTURE.to_owned())),
        of("block_count", size(config.num_hidden_layers)),
        of("context_length", size(config.max_position_embeddings)),
        of("embedding_length", size(config.hidden_size)),
        of("feed_forward_length", size(config.intermediate_size)),
        of("attention.head_count", size(config.num_attention_heads)),
        of("attention.head_count_kv", size(config.num_key_value_heads)),
        of("attention.key_length", size(config.head_dim)),
        of("attention.value_length", size(config.head_dim)),
        of("attention.layer_norm_rms_epsilon", Value::F32(config.rms_norm_eps as f32)),
        of("rope.freq_base", Value::F32(config.rope_theta as f32)),
    ]
}
