//! Where each parameter lies: all of them end to end in one flat tensor.
//!
//! Weights, gradients and both moments of the optimiser share the layout, so an optimiser step is
//! one pass over flat tensors. What the network multiplies together lies together: q, k and v are
//! one matrix to it, their biases one vector, gate and up one matrix.

use std::collections::HashMap;
use std::ops::Range;

use candle_core::{DType, Result, Tensor, bail};

use crate::config::Qwen3Config;

/// One parameter under its Hugging Face name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Name in the file.
    pub name: String,
    /// First element in the flat tensor.
    pub offset: usize,
    /// Shape in the file: `[rows, columns]` or `[length]`.
    pub shape: Vec<usize>,
}

impl Parameter {
    /// Number of elements.
    #[expect(clippy::len_without_is_empty, reason = "a parameter is never empty")]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// What a random model starts it at.
    pub fn kind(&self) -> ParameterKind {
        match self.name.rsplit('.').next() {
            Some("bias") => ParameterKind::Bias,
            _ if self.shape.len() == 1 => ParameterKind::Norm,
            _ => ParameterKind::Matrix,
        }
    }
}

/// The three kinds of parameters, told apart by their start values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterKind {
    /// A projection, the embedding or the head: normal.
    Matrix,
    /// The weight of a norm: 1.
    Norm,
    /// A bias: 0.
    Bias,
}

/// The parameters of one configuration, in the order of the flat tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterIndex {
    parameters: Vec<Parameter>,
    by_name: HashMap<String, usize>,
    /// Where each block begins, and where the last one ends.
    block_edges: Vec<usize>,
    total: usize,
}

impl ParameterIndex {
    /// The layout of a configuration: embedding, blocks, last norm, head (when not tied).
    pub fn new(config: &Qwen3Config) -> Self {
        let mut index = Self {
            parameters: Vec::new(),
            by_name: HashMap::new(),
            block_edges: Vec::new(),
            total: 0,
        };
        let (d, v) = (config.hidden_size, config.vocab_size);
        index.push("model.embed_tokens.weight".to_owned(), &[v, d]);
        for layer in 0..config.num_hidden_layers {
            index.block_edges.push(index.total);
            index.push_block(config, layer);
        }
        index.block_edges.push(index.total);
        index.push("model.norm.weight".to_owned(), &[d]);
        if !config.tie_word_embeddings {
            index.push("lm_head.weight".to_owned(), &[v, d]);
        }
        index
    }

    /// All parameters, in the order of the flat tensor.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The parameter of a name.
    pub fn get(&self, name: &str) -> Option<&Parameter> {
        self.by_name.get(name).map(|&at| &self.parameters[at])
    }

    /// Number of elements of all parameters together, P.
    pub fn total(&self) -> usize {
        self.total
    }

    /// The flat tensor in parts: what lies before the blocks, each block, what lies after them.
    pub(crate) fn parts(&self) -> Vec<Range<usize>> {
        let edges: Vec<usize> = [&[0], self.block_edges.as_slice(), &[self.total]].concat();
        edges.windows(2).map(|edge| edge[0]..edge[1]).collect()
    }

    /// BLAKE3 of names and shapes in order: two states fit each other when it is equal.
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for parameter in &self.parameters {
            hasher.update(format!("{} {:?}\n", parameter.name, parameter.shape).as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// The view of one parameter in a flat tensor of this layout.
    ///
    /// # Errors
    /// When no parameter has this name.
    pub fn view(&self, flat: &Tensor, name: &str) -> Result<Tensor> {
        match self.get(name) {
            Some(found) => flat.narrow(0, found.offset, found.len())?.reshape(found.shape.clone()),
            None => bail!("this model has no parameter `{name}`"),
        }
    }

    /// The view of neighbouring parameters joined along their first dimension.
    fn joined(&self, flat: &Tensor, names: &[String]) -> Result<Tensor> {
        let mut rows = 0;
        let mut first: Option<&Parameter> = None;
        let mut end = 0;
        for name in names {
            let Some(found) = self.get(name) else { bail!("this model has no parameter `{name}`") };
            if first.is_some() && found.offset != end {
                bail!("`{name}` does not follow its neighbour in the flat tensor");
            }
            first.get_or_insert(found);
            rows += found.shape[0];
            end = found.offset + found.len();
        }
        let Some(first) = first else { bail!("nothing to join") };
        let mut shape = first.shape.clone();
        shape[0] = rows;
        flat.narrow(0, first.offset, end - first.offset)?.reshape(shape)
    }

    fn push(&mut self, name: String, shape: &[usize]) {
        let parameter = Parameter { name, offset: self.total, shape: shape.to_vec() };
        self.total += parameter.len();
        self.by_name.insert(parameter.name.clone(), self.parameters.len());
        self.parameters.push(parameter);
    }

    fn push_block(&mut self, config: &Qwen3Config, layer: usize) {
        let (d, e, i) = (config.hidden_size, config.head_dim, config.intermediate_size);
        let (h, g) = (config.num_attention_heads * e, config.num_key_value_heads * e);
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        self.push(name("input_layernorm.weight"), &[d]);
        let projections = [("q_proj", h), ("k_proj", g), ("v_proj", g)];
        for (part, rows) in projections {
            self.push(name(&format!("self_attn.{part}.weight")), &[rows, d]);
        }
        if config.attention_bias {
            for (part, rows) in projections {
                self.push(name(&format!("self_attn.{part}.bias")), &[rows]);
            }
        }
        self.push(name("self_attn.q_norm.weight"), &[e]);
        self.push(name("self_attn.k_norm.weight"), &[e]);
        self.push(name("self_attn.o_proj.weight"), &[d, h]);
        if config.attention_bias {
            self.push(name("self_attn.o_proj.bias"), &[d]);
        }
        self.push(name("post_attention_layernorm.weight"), &[d]);
        self.push(name("mlp.gate_proj.weight"), &[i, d]);
        self.push(name("mlp.up_proj.weight"), &[i, d]);
        self.push(name("mlp.down_proj.weight"), &[d, i]);
    }
}

/// The parameters of one block as the network uses them: views of a flat tensor.
#[derive(Clone, Debug)]
pub(crate) struct BlockViews {
    pub(crate) input_norm: Tensor,
    /// `[(H + 2 G) E, D]`
    pub(crate) qkv: Tensor,
    pub(crate) qkv_bias: Option<Tensor>,
    pub(crate) q_norm: Tensor,
    pub(crate) k_norm: Tensor,
    pub(crate) o: Tensor,
    pub(crate) o_bias: Option<Tensor>,
    pub(crate) mlp_norm: Tensor,
    /// `[2 I, D]`
    pub(crate) gate_up: Tensor,
    pub(crate) down: Tensor,
}

/// All parameters as the network uses them: views of a flat tensor.
#[derive(Clone, Debug)]
pub(crate) struct ModelViews {
    pub(crate) embedding: Tensor,
    pub(crate) blocks: Vec<BlockViews>,
    pub(crate) norm: Tensor,
    /// The embedding again when tied.
    pub(crate) head: Tensor,
}

impl ModelViews {
    /// The views of a flat tensor. Vectors of a 16-bit tensor are widened copies: they are small,
    /// and norms and biases are computed in float32.
    pub(crate) fn new(flat: &Tensor, index: &ParameterIndex, blocks: usize) -> Result<Self> {
        let embedding = index.view(flat, "model.embed_tokens.weight")?;
        let head = match index.get("lm_head.weight") {
            Some(_) => index.view(flat, "lm_head.weight")?,
            None => embedding.clone(),
        };
        let blocks =
            (0..blocks).map(|at| BlockViews::new(flat, index, at)).collect::<Result<_>>()?;
        Ok(Self { embedding, blocks, norm: vector(flat, index, "model.norm.weight")?, head })
    }
}

impl BlockViews {
    fn new(flat: &Tensor, index: &ParameterIndex, layer: usize) -> Result<Self> {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let names = |parts: &[&str]| parts.iter().map(|part| name(part)).collect::<Vec<_>>();
        let qkv = names(&[
            "self_attn.q_proj.weight",
            "self_attn.k_proj.weight",
            "self_attn.v_proj.weight",
        ]);
        let qkv_biases =
            names(&["self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"]);
        let biased = index.get(&qkv_biases[0]).is_some();
        let qkv_bias =
            biased.then(|| index.joined(flat, &qkv_biases)?.to_dtype(DType::F32)).transpose()?;
        let o_bias =
            biased.then(|| vector(flat, index, &name("self_attn.o_proj.bias"))).transpose()?;
        Ok(Self {
            input_norm: vector(flat, index, &name("input_layernorm.weight"))?,
            qkv: index.joined(flat, &qkv)?,
            qkv_bias,
            q_norm: vector(flat, index, &name("self_attn.q_norm.weight"))?,
            k_norm: vector(flat, index, &name("self_attn.k_norm.weight"))?,
            o: index.view(flat, &name("self_attn.o_proj.weight"))?,
            o_bias,
            mlp_norm: vector(flat, index, &name("post_attention_layernorm.weight"))?,
            gate_up: index.joined(flat, &names(&["mlp.gate_proj.weight", "mlp.up_proj.weight"]))?,
            down: index.view(flat, &name("mlp.down_proj.weight"))?,
        })
    }
}

fn vector(flat: &Tensor, index: &ParameterIndex, name: &str) -> Result<Tensor> {
    index.view(flat, name)?.to_dtype(DType::F32)
}

#[cfg(test)]
#[path = "parameters_tests.rs"]
mod tests;
